"""Annotates on a simulated cluster of three nodes and takes one away in mid-run.

Its own process, because a driver can be connected to one cluster only.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from jobs.annotate import main
from tests.jobs.processes import parts_in

STORE_BYTES = 100 * 2**20


def annotate(clips: str, out: Path) -> int:
    """One run with two workers of one CPU each, one per node."""
    model = ["--model", "random:w2v2-b-6", "--dtype", "fp32"]
    return main(
        ["--input", clips, "--output", str(out), *model, "--shard-s", "5", "--workers", "2"]
    )


def run(clips: str, folder: Path) -> dict[str, int]:
    """A calm run, then one that loses a node after its second part."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
        },
    )
    os.environ["RAY_ADDRESS"] = cluster.address
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
    cluster.wait_for_nodes()
    lost: list[object] = []

    def lose_a_node() -> None:
        while parts_in(folder / "out") < 2:
            time.sleep(0.05)
        cluster.remove_node(nodes[1], allow_graceful=False)
        lost.append(nodes[1])

    report = {"calm": annotate(clips, folder / "calm")}
    threading.Thread(target=lose_a_node, daemon=True).start()
    report["out"] = annotate(clips, folder / "out")
    return report | {"nodes_lost": len(lost)}


if __name__ == "__main__":
    outcome = run(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.flush()
    print("\n" + json.dumps(outcome), flush=True)
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(0)  # an orderly end would wait for the lost node

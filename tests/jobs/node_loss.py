"""Annotates on a simulated cluster of three nodes and takes one away in mid-run.

Its own process, because a driver can be connected to one cluster only.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from raysers.commands.archive import annotate as main
from tests.jobs import processes

STORE_BYTES = 100 * 2**20


def run(folder: Path, command: list[str]) -> dict[str, int]:
    """A calm run of one worker, then one of two, each on its node, that loses a node.

    Each node has as many CPUs as the machine, so that a worker computes with as many threads as it
    would have on the machine alone.
    """
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = cluster.address
    cpus = len(os.sched_getaffinity(0))
    nodes = [cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES) for _ in range(2)]
    cluster.wait_for_nodes()
    lost: list[int] = []

    def annotate(name: str, workers: int) -> int:
        args = [word.replace("{out}", str(folder / name)) for word in command]
        return main([*args, "--workers", str(workers)])

    def lose_a_node() -> None:
        raylet = nodes[1].all_processes["raylet"][0].process.pid
        out = folder / "out"
        workers = processes.stop_workers_when(raylet, lambda: processes.parts_in(out) >= 2)
        lost.append(processes.parts_in(out))
        cluster.remove_node(nodes[1], allow_graceful=False)
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()

    report = {"calm": annotate("calm", 1)}
    threading.Thread(target=lose_a_node, daemon=True).start()
    report["out"] = annotate("out", 2)
    return report | {"parts_at_the_loss": lost[0]}


if __name__ == "__main__":
    outcome = run(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    print("\n" + json.dumps(outcome), flush=True)
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(0)  # an orderly end would wait for the lost node

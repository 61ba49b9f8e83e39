"""Scores on a simulated cluster of one node, to which another comes in mid-run.

Its own process, because a driver can be connected to one cluster only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from raysers.cli import ClipJobFlags
from raysers.engine.job import ClipJob
from tests.cluster.tasks import LevelTask
from tests.jobs import processes

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


def run(clips: Path, folder: Path) -> int:
    """The job's exit code; a file `joined` in the folder when the new node has a worker."""
    head = {**NODE, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = cluster.address
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    out = folder / "out"

    def add_node() -> None:
        while processes.parts_in(out) < 1:
            time.sleep(0.05)
        # Ray's own `add_node` needs the main thread
        start = ["start", "--address", cluster.address, "--num-cpus", "1", "--block"]
        node = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *start], stdout=subprocess.DEVNULL
        )
        while not processes.model_workers(node.pid):
            time.sleep(0.05)
        (folder / "joined").write_text(str(processes.parts_in(out)))

    flags = ClipJobFlags(input=(str(clips),), output=str(out), shard_s=1.1)
    with ClipJob.open(flags, "level", table=LevelTask.table) as job:
        job.prepare(LevelTask(diary=str(folder), pause_s=2.0))
        threading.Thread(target=add_node, daemon=True).start()
        return job.execute()


if __name__ == "__main__":
    code = run(Path(sys.argv[1]), Path(sys.argv[2]))
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(code)

"""A cluster with a dashboard that takes jobs; prints its address and stays until it is killed."""

from __future__ import annotations

import time

from ray.cluster_utils import Cluster

from tests.s3 import free_port


def serve() -> None:
    """Start the head and print where jobs go."""
    port = free_port()
    Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "object_store_memory": 150 * 2**20,
            "include_dashboard": True,
            "dashboard_port": port,
            # the usual one belongs to another cluster of this machine, if there is one
            "dashboard_agent_listen_port": free_port(),
        },
    )
    time.sleep(5)  # the head takes jobs only when its agent is up
    print(f"http://127.0.0.1:{port}", flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    serve()

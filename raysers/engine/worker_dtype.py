"""The number format of a cluster's workers, asked of one of them.

Who asks may be a trial, whose own place has no room for workers: the question is spread over the
cluster, or it would wait for that place for ever.
"""

from __future__ import annotations

import ray

from raysers.engine.cluster import Placement, patient_get
from raysers.models.precision import dtype_name


def worker_dtype(placement: Placement) -> str:
    """What `--dtype auto` means to workers that are placed like this: fp32 or bf16."""
    ask = ray.remote(
        num_cpus=placement.num_cpus, num_gpus=placement.num_gpus, scheduling_strategy="SPREAD"
    )(dtype_name)
    return str(patient_get(ask.remote("auto", placement.device), f"one {placement.device} worker"))

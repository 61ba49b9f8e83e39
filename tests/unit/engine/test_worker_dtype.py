"""The number format of workers, asked by whoever holds a place without room for them."""

from __future__ import annotations

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysers.engine.cluster import Placement
from raysers.engine.worker_dtype import worker_dtype


def test_a_trial_whose_place_holds_no_cpu_is_answered(ray_session):
    """Its place captures what it starts, as Ray Tune makes it for trials of several workers."""
    place = placement_group([{"memory": 1}])
    ask = ray.remote(worker_dtype).options(
        num_cpus=0,
        memory=1,
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            place, placement_group_capture_child_tasks=True
        ),
    )
    try:
        answer = ray.get(ask.remote(Placement(workers=2, num_cpus=1, num_gpus=0)), timeout=60)
    finally:
        remove_placement_group(place)
    assert answer in ("fp32", "bf16")

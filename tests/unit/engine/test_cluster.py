"""Calls on workers, made from a place that has no room for them."""

from __future__ import annotations

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysers.engine.cluster import call_on_worker
from raysers.engine.placement import Placement
from raysers.models.scorer import dtype_name


@pytest.mark.slow
def test_a_trial_whose_place_holds_no_cpu_is_answered(ray_session):
    """Its place captures what it starts, as Ray Tune makes it for trials of several workers."""
    place = placement_group([{"memory": 1}])
    ask = ray.remote(call_on_worker).options(
        num_cpus=0,
        memory=1,
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            place, placement_group_capture_child_tasks=True
        ),
    )
    placement = Placement(workers=2, num_cpus=1, num_gpus=0)
    try:
        answer = ray.get(ask.remote(placement, dtype_name, "auto", "cpu"), timeout=60)
    finally:
        remove_placement_group(place)
    assert answer in ("fp32", "bf16")

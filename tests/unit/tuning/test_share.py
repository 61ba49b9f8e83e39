"""How many trials a cluster holds at once."""

from __future__ import annotations

import pytest

from raysers.errors import ConfigError
from raysers.tuning.resources import choose_resources

CPUS = [{"CPU": 4.0}, {"CPU": 4.0}]
GPUS = [{"CPU": 0.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]


@pytest.mark.parametrize(
    ("nodes", "trials", "workers", "most", "at_once", "cpus", "gpus"),
    [
        (CPUS, 100, 1, 0, 8, 1, 0),
        (CPUS, 3, 1, 0, 3, 2, 0),  # few trials get several threads
        (CPUS, 100, 1, 2, 2, 4, 0),
        (CPUS, 100, 1, 16, 16, 0.5, 0),
        ([{"CPU": 64.0}], 100, 1, 0, 8, 8, 0),
        (GPUS, 100, 1, 0, 8, 1, 1),
        (GPUS, 3, 1, 0, 3, 1, 1),
    ],
)
def test_trials_of_one_worker(nodes, trials, workers, most, at_once, cpus, gpus):
    resources = choose_resources(trials, workers, most, nodes)
    share = resources.share
    assert (share.at_once, share.cpus_each, share.gpus_each) == (at_once, cpus, gpus)
    assert share.reuse
    assert resources.placement is None
    assert resources.local is not None
    assert resources.local.threads == max(1, int(cpus))
    held = sum(node.get("CPU", 0) for node in nodes)
    assert share.at_once * share.cpus_each <= held


@pytest.mark.parametrize(
    ("nodes", "workers", "at_once", "cpus", "gpus"),
    [(CPUS, 2, 4, 1, 0), (CPUS, 3, 2, 1, 0), (GPUS, 4, 2, 1, 1), (GPUS, 8, 1, 1, 1)],
)
def test_trials_of_several_workers_leave_the_cluster_to_them(nodes, workers, at_once, cpus, gpus):
    resources = choose_resources(100, workers, 0, nodes)
    assert (resources.share.at_once, resources.share.cpus_each, resources.share.gpus_each) == (
        at_once,
        0,
        0,
    )
    assert not resources.share.reuse
    placement = resources.placement
    assert placement is not None
    assert (placement.workers, placement.num_cpus, placement.num_gpus) == (workers, cpus, gpus)


@pytest.mark.parametrize(
    ("nodes", "trials", "most", "here"),
    [
        ([{"CPU": 64.0, "GPU": 8.0}, *[{"CPU": 16.0}] * 7], 100, 0, 8),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}], 100, 0, 8),
        ([{"CPU": 64.0, "GPU": 8.0}], 3, 0, 3),
        ([{"CPU": 16.0}, {"CPU": 2.0}], 6, 6, 6),
        (CPUS, 100, 0, 4),
        (CPUS, 100, 16, 8),
    ],
)
def test_memory_is_shared_by_all_trials_that_one_machine_can_hold(nodes, trials, most, here):
    resources = choose_resources(trials, 1, most, nodes)
    assert resources.local is not None
    assert resources.local.processes_here == here


@pytest.mark.parametrize(
    ("nodes", "workers", "most", "flag"),
    [
        (GPUS, 9, 0, "--workers-per-trial 9"),
        (GPUS, 1, 9, "--max-concurrent 9"),
        (CPUS, 1, 33, "--max-concurrent 33"),
    ],
)
def test_more_than_the_cluster_holds_is_refused_by_flag(nodes, workers, most, flag):
    with pytest.raises(ConfigError, match=flag):
        choose_resources(100, workers, most, nodes)

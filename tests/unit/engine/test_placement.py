"""Where workers go on clusters of many shapes, without starting any."""

from __future__ import annotations

import pytest

from raysers.engine.placement import choose_placement
from raysers.errors import ConfigError

LAPTOP = [{"CPU": 2.0}]
HEAD = {"memory": 1.0}


@pytest.mark.parametrize(
    ("workers", "nodes", "expected"),
    [
        (0, LAPTOP, (1, 2, 0)),
        (1, LAPTOP, (1, 2, 0)),
        (2, LAPTOP, (2, 1, 0)),
        (4, LAPTOP, (4, 0.5, 0)),
        (0, [HEAD, {"CPU": 16.0}, {"CPU": 16.0}], (4, 8, 0)),
        (0, [{"CPU": 15.0}], (3, 5, 0)),
        (0, [{"CPU": 10.0}], (2, 5, 0)),
        (3, [{"CPU": 4.0}, {"CPU": 2.0}], (3, 2, 0)),
        (0, [HEAD, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}], (5, 1, 1)),
        (2, [{"CPU": 16.0, "GPU": 4.0}], (2, 1, 1)),
        (0, [{"CPU": 2.0, "GPU": 4.0}], (2, 1, 1)),
    ],
)
def test_workers_fit_the_cluster(workers, nodes, expected):
    placement = choose_placement(workers, nodes)
    assert (placement.workers, placement.num_cpus, placement.num_gpus) == expected


@pytest.mark.parametrize(
    ("workers", "nodes", "words"),
    [
        (64, LAPTOP, "--workers 64"),
        (5, [{"CPU": 16.0, "GPU": 4.0}], "--workers 4"),
        (0, [HEAD], "no CPU or GPU"),
    ],
)
def test_more_workers_than_the_cluster_holds_are_refused_not_awaited(workers, nodes, words):
    with pytest.raises(ConfigError, match=words):
        choose_placement(workers, nodes)

"""A long run in small: what the driver keeps does not grow with the shards that are done."""

from __future__ import annotations

import pytest

from tests.benchmarks import soak
from tests.benchmarks.measure import fresh


@pytest.mark.slow
def test_workers_that_die_at_random_cost_no_row_and_the_driver_stays_small():
    found = fresh(soak.run, 150, 2)
    assert (found["shards"], found["rows"], found["deaths"]) == (150, 1500, 2)
    assert found["growth_bytes"] < soak.TARGET_BYTES

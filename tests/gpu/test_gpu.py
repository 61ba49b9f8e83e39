"""The checks that need a GPU, as tests; `make gpu` also measures speed."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import checks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.mark.parametrize(
    "check",
    [
        checks.scores_equal_the_cpu,
        checks.training_equals_the_cpu,
        checks.out_of_memory_falls_back,
    ],
)
def test_the_gpu_gives_what_the_cpu_gives(check) -> None:
    for row in check(checks.FULL, "cuda"):
        assert row.holds, row

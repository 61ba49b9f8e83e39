"""Schedules, gradient buckets and averaged weights by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raysers.training.optim import SCHEDULES, AveragedWeights, Gradients, lr_factor


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_torch_after_a_straight_line_to_the_top(name: str) -> None:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    ends = {"constant": 1.0, "linear": 0.0}
    schedule: torch.optim.lr_scheduler.LRScheduler = (
        torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, ends[name], total_iters=90)
        if name in ends
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=90)
    )
    factors = []
    for _ in range(90):
        factors.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert [lr_factor(step, 90, name, 0.0) for step in range(90)] == pytest.approx(factors)
    warm = [lr_factor(step, 100, name, 0.1) for step in range(100)]
    assert warm[:11] == pytest.approx(np.arange(1, 12) / 11)
    assert warm[10:] == pytest.approx(factors)
    assert min(warm) > 0


def test_gradients_are_views_that_autograd_fills() -> None:
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    unused = nn.Parameter(torch.ones(4))
    parameters = [*network.parameters(), unused]
    gradients = Gradients(parameters, bucket_bytes=200)  # a few parameters a bucket
    assert len(gradients.buckets) > 1
    assert gradients.num_bytes == 4 * sum(p.numel() for p in parameters)
    inputs = torch.randn(6, 5)
    for _ in range(2):
        gradients.clear()
        with gradients.last_pass():
            network(inputs).square().sum().backward()
        gradients.sum_()  # of a process alone: nothing to add
    expected = torch.autograd.grad(network(inputs).square().sum(), list(network.parameters()))
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    norm = torch.nn.utils.get_total_norm(expected)
    assert gradients.norm().item() == pytest.approx(norm.item(), rel=1e-6)
    for most in (norm.item() / 4, norm.item()):  # the second is not reached
        gradients.clip(gradients.norm().item(), most)
        torch.testing.assert_close(network[0].weight.grad, expected[0] / 4)
    assert unused.grad is not None
    assert not unused.grad.any()


def test_the_average_lags_behind_a_ramp_and_is_in_place_only_within() -> None:
    weight = torch.zeros(3)
    average = AveragedWeights([weight], decay=0.9)
    for step in range(1, 401):
        weight.fill_(float(step))
        average.update()
        if step == 1:
            assert torch.equal(average.averages[0], weight)  # nothing of the start
    # of weights w_t = t, the average with decay d is d / (1 - d) steps behind
    lagging = pytest.approx([391.0] * 3, abs=1e-3)
    assert average.averages[0].tolist() == lagging
    with average.in_place():
        assert weight.tolist() == lagging
    assert weight.tolist() == [400.0] * 3

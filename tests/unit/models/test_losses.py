"""Losses against audmetric's published values, hand-worked cases and numeric derivatives."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from raysers.models.heads import LOSSES, category_loss, ccc_loss, mse_loss
from tests.places import SHARED_DATA, needs_shared

NAN = math.nan
REFERENCE = SHARED_DATA.parent / "reference"


def columns(*values: list[float]) -> Tensor:
    """[clips, targets] of one list a target."""
    return torch.tensor(values).T


@needs_shared
def test_ccc_equals_audmetric() -> None:
    cases = json.loads((REFERENCE / "ccc_vectors.json").read_text())["cases"]
    compared = 0
    for case in cases:
        truth, guess = (
            torch.tensor([[NAN if v is None else v] for v in case[key]], dtype=torch.float64)
            for key in ("truth", "prediction")
        )
        if case["ccc"] is None or guess.isnan().any() or truth.isnan().any():
            continue
        assert 1 - ccc_loss(guess, truth, (1,)).item() == pytest.approx(case["ccc"], abs=1e-6)
        compared += 1
    assert compared >= 4


def test_missing_labels_are_as_if_the_clip_were_not_there() -> None:
    generator = torch.Generator().manual_seed(0)
    guess, truth = torch.rand(2, 9, 3, generator=generator)
    for loss in LOSSES.values():
        holes = truth.clone()
        holes[2:5, 1] = NAN
        kept = [0, 1, 5, 6, 7, 8]
        whole = loss(guess[:, :1], truth[:, :1], (1,)) + loss(guess[:, 2:], truth[:, 2:], (1,))
        part = loss(guess[kept, 1:2], truth[kept, 1:2], (1,))
        assert loss(guess, holes, (1, 1, 1)).item() == pytest.approx(
            (whole + part).item() / 3, abs=1e-6
        )


def test_weights_are_shares_of_the_targets_that_are_left() -> None:
    guess = columns([0.0, 1.0, 2.0], [0.0, 0.5, 1.0], [1.0, 2.0, 3.0])
    truth = columns([0.0, 1.0, 1.0], [NAN, NAN, 1.0], [0.0, 1.0, 2.0])
    # CCC 2/3 (audmetric's docstring) and 4/7: means differ by 1, variances 2/3
    assert ccc_loss(guess, truth, (1, 5, 3)).item() == pytest.approx((1 / 3 + 3 * 3 / 7) / 4)
    # squared errors 1/3, 0 (one clip has the label), 1
    assert mse_loss(guess, truth, (1, 5, 3)).item() == pytest.approx((1 / 3 + 0 + 3) / 9)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_nothing_labelled_is_no_loss_and_no_gradient(loss: object) -> None:
    guess = torch.rand(4, 3, requires_grad=True)
    value = loss(guess, torch.full((4, 3), NAN), (1, 1, 1))  # type: ignore[operator]
    value.backward()
    assert value.item() == 0
    assert torch.equal(guess.grad, torch.zeros(4, 3))


def test_constants_are_a_loss_of_one_with_finite_gradients() -> None:
    guess = torch.full((5, 3), 0.5, requires_grad=True)
    value = ccc_loss(guess, torch.full((5, 3), 0.5))
    value.backward()
    assert value.item() == pytest.approx(1)
    assert guess.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_numeric_ones(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    guess, truth = torch.rand(2, 7, 3, generator=generator, dtype=torch.float64)
    truth[1, 0], truth[:6, 2] = NAN, NAN
    guess.requires_grad_()
    assert torch.autograd.gradcheck(lambda g: LOSSES[name](g, truth, (1.0, 2.0, 0.5)), (guess,))


def test_category_loss_is_the_mean_log_probability_of_labelled_clips() -> None:
    logits = torch.tensor([[0.0, 0.0], [5.0, -5.0], [math.log(3), 0.0]], requires_grad=True)
    value = category_loss(logits, torch.tensor([1, -1, 0]))
    assert value.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, rel=1e-6)
    value.backward()
    assert logits.grad[1].abs().max() == 0
    nothing = category_loss(logits, torch.tensor([-1, -1, -1]))
    assert nothing.item() == 0
    np.testing.assert_array_equal(torch.autograd.grad(nothing, logits)[0], 0)

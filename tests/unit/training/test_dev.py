"""The dev CCC that chooses the epoch."""

from __future__ import annotations

import math

import audmetric
import numpy as np
import pytest

from raysers.training.dev import dev_ccc, dev_uar
from raysers.types import DIMENSIONS


@pytest.fixture
def dev() -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions that go along with them, [20, 3]."""
    rng = np.random.default_rng(0)
    labels = rng.random((20, 3)).astype(np.float32)
    return labels, labels + rng.normal(0, 0.1, labels.shape)


def test_clips_without_a_label_or_a_signal_are_left_out(dev):
    labels, predictions = dev
    labels[:5, 0] = np.nan
    predictions[18:] = np.nan
    found = dev_ccc(labels, predictions)
    for column, name in enumerate(DIMENSIONS):
        first = 5 if name == "arousal" else 0
        theirs = audmetric.concordance_cc(labels[first:18, column], predictions[first:18, column])
        assert found[name] == pytest.approx(theirs, abs=1e-6)


def test_a_network_that_fails_on_a_clip_is_not_judged_by_the_others(dev):
    labels, predictions = dev
    predictions[3, 1] = np.inf
    assert all(math.isnan(value) for value in dev_ccc(labels, predictions).values())


def test_uar_is_that_of_the_clips_with_a_category_and_a_signal():
    rng = np.random.default_rng(1)
    classes, probabilities = rng.integers(0, 3, 60), rng.dirichlet((1, 1, 1), 60)
    predicted = probabilities.argmax(axis=1)
    theirs = audmetric.unweighted_average_recall(classes[10:50], predicted[10:50])
    classes[:10] = -1
    probabilities[50:] = np.nan
    assert dev_uar(classes, probabilities) == pytest.approx(theirs)
    probabilities[20] = np.inf
    assert math.isnan(dev_uar(classes, probabilities))
    assert math.isnan(dev_uar(np.full(60, -1), probabilities))

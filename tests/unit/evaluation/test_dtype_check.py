"""Deviations between two sets of scores, by hand."""

from __future__ import annotations

import numpy as np

from raysers.commands.models import deviations

NAN = float("nan")


def test_deviations_by_hand() -> None:
    reference = np.array([[0.0, 0.5, NAN], [1.0, 0.5, NAN], [2.0, NAN, NAN]])
    chosen = np.array([[0.0, 0.7, NAN], [1.0, 0.4, NAN], [1.0, 0.5, NAN]])
    labels = np.array([[0.0, NAN, 1.0], [1.0, NAN, 1.0], [2.0, NAN, 1.0]])
    assert deviations(chosen, reference, labels) == {
        # 2 x 1 / (2 + 2/3 + 3 x (1/3)^2) = 2/3
        "arousal": "mean 0.33333, p95 0.90000, max 1.00000; CCC 1.0000 to 0.6667 (-0.3333)",
        "dominance": "mean 0.15000, p95 0.19500, max 0.20000",
    }

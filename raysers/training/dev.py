"""Scoring the whole dev set with all workers together; every worker ends with all predictions.

CCC is computed over the whole set on every worker, in float64, so that all of them decide alike
which epoch is the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raysers.evaluation.metrics import ccc, per_dimension
from raysers.models.losses import NO_CATEGORY
from raysers.training.context import Group
from raysers.training.feed import Signal, Signals
from raysers.types import DIMENSIONS

#: 16 kHz signals of any lengths -> float32 [clips, outputs]
Predict = Callable[[Sequence[Signal]], NDArray[np.float32]]


def cut_by_length(lengths_s: Sequence[float], max_padded_s: float) -> list[list[int]]:
    """Clips by falling length, cut so that clips x longest stays within `max_padded_s`.

    >>> cut_by_length([1.0, 3.0, 2.0], 6.0)
    [[1, 2], [0]]
    """
    pieces: list[list[int]] = []
    for number in np.argsort(-np.asarray(lengths_s), kind="stable").tolist():
        if pieces and (len(pieces[-1]) + 1) * lengths_s[pieces[-1][0]] <= max_padded_s:
            pieces[-1].append(number)
        else:
            pieces.append([number])
    return pieces


def predict_all(
    signals: Signals,
    pieces: Sequence[Sequence[int]],
    predict: Predict,
    *,
    clips: int,
    outputs: int,
    device: torch.device,
    group: Group,
) -> NDArray[np.float64]:
    """Predictions [clips, outputs] of the clips in `pieces`, dealt to the workers.

    NaN where a clip could not be decoded, infinite where the network gave no
    number. A collective operation: every worker has to call it.
    """
    # the last column tells which rows some worker has filled
    table = torch.zeros(clips, outputs + 1, dtype=torch.float64)
    for piece, found in signals.ahead(pieces[group.rank :: group.size], list):
        decoded_clips = [(n, s) for n, s in zip(piece, found, strict=True) if s is not None]
        if decoded_clips:
            numbers, decoded = zip(*decoded_clips, strict=True)
            scores = torch.from_numpy(predict(decoded)).double()
            # a network that fails on a clip must not pass for one that was not asked
            table[list(numbers), :-1] = scores.nan_to_num(nan=math.inf)
            table[list(numbers), -1] = 1.0
    table = table.to(device)
    group.sum_([table])
    whole = table.cpu().numpy()
    return np.where(whole[:, -1:] > 0, whole[:, :-1], np.nan)


def dev_ccc(labels: NDArray[np.float32], predictions: NDArray[np.float64]) -> dict[str, float]:
    """CCC by dimension over the whole dev set; NaN where it is undefined.

    A network that has no number for some clip has none at all: it must not be judged by the rest.
    """
    if (np.isinf(predictions) & np.isfinite(labels)).any():
        return dict.fromkeys(DIMENSIONS, math.nan)
    values = per_dimension(ccc, labels.astype(np.float64), predictions)
    return dict(zip(DIMENSIONS, map(float, values), strict=True))


def dev_uar(classes: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Unweighted average recall over the categories of the dev set; NaN where it has none.

    Args:
        classes: category of every clip, `NO_CATEGORY` where it has none of those trained.
        probabilities: [clips, categories]; as predictions of `predict_all`.
    """
    known = (classes != NO_CATEGORY) & ~np.isnan(probabilities).any(axis=1)
    if not known.any() or np.isinf(probabilities[known]).any():
        return math.nan
    truth, right = classes[known], classes[known] == probabilities[known].argmax(axis=1)
    return float(np.mean([right[truth == one].mean() for one in np.unique(truth)]))

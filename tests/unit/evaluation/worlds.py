"""Made labels and predictions with known properties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from raysers.evaluation.evaluate import EvaluateFlags
from raysers.evaluation.scores import Categories, Scores


def scores(
    truth: np.ndarray,
    clip_id: Sequence[str] | None = None,
    columns: dict[str, Sequence[str | None]] | None = None,
    **predictions: np.ndarray,
) -> Scores:
    """`truth` and predictions [n] (arousal alone) or [n, 3]."""
    ids = clip_id or [f"clip{i:05d}" for i in range(len(truth))]
    return Scores(
        clip_id=ids,
        truth=_wide(truth),
        columns=columns or {},
        predictions={name: _wide(values) for name, values in predictions.items()},
    )


def _wide(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim == 2:
        return values
    nothing = np.full(len(values), np.nan)
    return np.stack([values, nothing, nothing], axis=1)


def speakers_world(clips: int = 240, speakers: int = 12, seed: int = 3) -> Scores:
    """Two models of different quality; every speaker has a bias of their own."""
    rng = np.random.default_rng(seed)
    of = np.arange(clips) % speakers
    truth = rng.beta(4, 4, (clips, 3))
    bias = rng.normal(0, 0.1, (speakers, 3))[of]
    return scores(
        truth,
        columns={
            "speaker": [f"s{i:02d}" for i in of],
            "sex": ["female" if i % 2 else "male" for i in of],
            "corpus": ["made"] * clips,
            "split": ["test"] * clips,
        },
        good=truth + bias + rng.normal(0, 0.08, truth.shape),
        poor=truth + 2 * bias + rng.normal(0, 0.2, truth.shape),
    )


def options(draws: int = 1000, **given) -> EvaluateFlags:
    """Flags of an evaluation."""
    return EvaluateFlags(labels=("-",), output="-", bootstrap=draws, **given)


def only(rows, **wanted):
    """The one row with these values."""
    found = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(found) == 1, f"{len(found)} rows with {wanted}"
    return found[0]


def permuted(made: Scores, seed: int = 0) -> Scores:
    """The same clips in another order."""
    order = np.random.default_rng(seed).permutation(len(made.clip_id))
    return Scores(
        clip_id=[made.clip_id[i] for i in order],
        truth=made.truth[order],
        columns={k: [v[i] for i in order] for k, v in made.columns.items()},
        predictions={k: v[order] for k, v in made.predictions.items()},
        categories={
            k: Categories(names=v.names, probabilities=v.probabilities[order])
            for k, v in made.categories.items()
        },
    )


def stretched(draws: Sequence[float], units: int) -> tuple[float, float]:
    """Interval of draws of a figure from so many units, with Student's t of scipy."""
    low, middle, high = np.quantile(draws, [0.025, 0.5, 0.975])
    by = (units / (units - 1)) ** 0.5 * stats.t.ppf(0.975, units - 1) / stats.norm.ppf(0.975)
    return middle - by * (middle - low), middle + by * (high - middle)

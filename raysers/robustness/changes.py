"""What is compared with what, and the sums from which shares and their intervals follow.

Scores are float32, so their difference is taken in float64; rounded scores are compared as whole
hundredths, because .50 - .45 is less than .05 in binary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysers.evaluation.metrics import Floats
from raysers.evaluation.scores import Scores, Subset
from raysers.types import DIMENSIONS

#: Predictions of the clips as they are.
CLEAN = "clean"
#: Columns of the sums.
COLUMNS = ("compared", "unchanged", "change")
_DECIMALS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A perturbation in a table of predictions.

    Attributes:
        name: of the perturbation.
        versions: the predictions of its repeats.
        against: the predictions they are compared with.
        small: whether it counts towards the mean over perturbations.
    """

    name: str
    versions: tuple[str, ...]
    against: str
    small: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How scores are compared.

    Attributes:
        threshold: a change below it leaves a score unchanged.
        rounded: round scores to 2 decimals first, as ser-tests does.
        by: columns whose values get rows of their own.
        draws: bootstrap draws; 0: no intervals.
        seed: of the draws and of the random baseline.
        tone_snr: what the added tone's SNR is relative to, `peak` (paper) or `rms` (ser-tests).
    """

    threshold: float = 0.05
    rounded: bool = False
    by: Sequence[str] = ("sex", "language", "emotion")
    draws: int = 1000
    seed: int = 0
    tone_snr: str = "peak"

    @property
    def text(self) -> str:
        """When a score counts as unchanged, in words."""
        rounding = f", scores rounded to {_DECIMALS} decimals" if self.rounded else ""
        return f"changed by less than {self.threshold:g}{rounding}"

    def difference(self, before: Floats, after: Floats) -> Floats:
        """Magnitudes of the changes; whole hundredths when scores are rounded, free of error."""
        before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
        if not self.rounded:
            return np.abs(after - before)
        scale = 10**_DECIMALS
        return np.asarray(np.abs(np.rint(after * scale) - np.rint(before * scale)) / scale)

    def unchanged(self, difference: Floats) -> NDArray[np.bool_]:
        """Where a change is below the threshold; False where there is none."""
        if not self.rounded:
            return np.asarray(difference < self.threshold)
        scale = 10**_DECIMALS
        return np.asarray(np.rint(difference * scale) < round(self.threshold * scale, 9))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeSums:
    """Sums of a cell.

    Attributes:
        by_unit: clips compared, those unchanged, and the absolute change, [units, COLUMNS,
            changes, 4]; the fourth dimension is the three together.
        p95: 95th percentile of the absolute change, [changes, 4].
        clips: clips with any comparison, [changes].
    """

    by_unit: Floats
    p95: Floats
    clips: NDArray[np.int64]


def change_sums(
    scores: Scores,
    cell: Subset,
    changes: Sequence[Change],
    how: Comparison,
    unit: NDArray[np.intp],
    units: int,
) -> ChangeSums:
    """Add up what a bootstrap draw needs; repeats of a perturbation count like further clips."""
    dimensions = len(DIMENSIONS)
    by_unit = np.zeros((units, len(COLUMNS), len(changes), dimensions + 1))
    p95 = np.full((len(changes), dimensions + 1), np.nan)
    clips = np.zeros(len(changes), np.int64)
    for i, change in enumerate(changes):
        before = scores.predictions[change.against][cell.rows]
        found = np.stack(
            [how.difference(before, scores.predictions[v][cell.rows]) for v in change.versions]
        )
        there = np.isfinite(found)
        clips[i] = there.any(axis=(0, 2)).sum()
        columns = (there, there & how.unchanged(found), np.where(there, found, 0.0))
        for c, values in enumerate(columns):
            for d, per_clip in enumerate(values.sum(axis=0).T):
                by_unit[:, c, i, d] = np.bincount(unit, per_clip, units)
        for d in range(dimensions + 1):
            values = found[..., d][there[..., d]] if d < dimensions else found[there]
            p95[i, d] = np.percentile(values, 95) if values.size else np.nan
    by_unit[..., -1] = by_unit[..., :-1].sum(axis=-1)
    return ChangeSums(by_unit=by_unit, p95=p95, clips=clips)

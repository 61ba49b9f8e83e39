"""95 % intervals of every figure: the percentile bootstrap over speakers, widened for few of them.

Speakers are drawn with replacement, with all their clips, because clips of one speaker are not
independent. Plain percentiles are too narrow for few units (coverage .81 for 5 speakers), so they
are stretched as Student's t is (`stretch`), and below `FEWEST_UNITS` there is no interval. A draw
depends on the seed and the names of what is drawn, never on the order of the rows, so all models
with the same clips see the same draws.

A draw is a weighted sum of per-speaker sums, from which the metrics follow: 1000 draws of a test
set are one matrix product, however many models, dimensions and metrics there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from raysers.evaluation.scores import (
    NOTHING,
    OF_SUMS,
    Floats,
    Integers,
    Scores,
    Subset,
    mean_of_defined,
    ordinals,
    ratio,
    sum_by_unit,
    unit_sums,
)
from raysers.types import generator

#: Units an interval needs; with fewer than `FEW_UNITS` speakers it is rough.
FEWEST_UNITS, FEW_UNITS = 5, 10
#: Units drawn at most; more are merged at random into so many, which leaves the variance as it is.
MOST_UNITS = 10_000
#: With more undefined draws than this an interval would describe the rest only.
_MOST_UNDEFINED = 0.05
#: Standard deviations of a normal distribution from its mean to its 97.5th percentile.
_NORMAL = 1.959964
#: Subsets a note names.
_MOST_NAMED = 6
#: Counts held at a time: bounds the memory, and fixes how the generator is read.
_CHUNK_COUNTS = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How often to draw (0: no intervals), and the seed of the draws."""

    draws: int = 1000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Draws:
    """Figures of all clips, [...], and their bootstrap `values`, [draws, ...]; NaN: undefined.

    `units` is how many each figure is drawn from, `wider` what its interval is stretched by, [...].
    """

    value: Floats
    values: Floats
    units: Integers
    wider: Floats

    def __getitem__(self, place: Any) -> Draws:
        place = place if isinstance(place, tuple) else (place,)
        own = self.value[place], self.values[:, *place], self.units[place], self.wider[place]
        return Draws(*own)

    @property
    def defined(self) -> NDArray[np.bool_]:
        """Which figures are, [...]."""
        return np.isfinite(self.value)

    def __sub__(self, other: Draws) -> Draws:
        """The difference of two figures that were drawn together."""
        units = np.minimum(self.units, other.units)
        return Draws(self.value - other.value, self.values - other.values, units, stretch(units))

    def with_independent(self, other: Draws, function: Callable[[Any, Any], Floats]) -> Draws:
        """A function of two figures that were drawn independently (their keys differ).

        Degrees of freedom are those of Welch and Satterthwaite (Welch 1947), from the variance that
        each of the two adds alone.
        """
        alone = function(self.values, other.value), function(self.value, other.values)
        drawn = np.stack([_variance(draws) for draws in alone])
        n = np.maximum(np.stack([self.units, other.units]), 2)
        variance = drawn * n / (n - 1)
        total = variance.sum(axis=0)
        freedom = ratio(total**2, (variance**2 / (n - 1)).sum(axis=0))
        return Draws(
            function(self.value, other.value),
            function(self.values, other.values),
            np.minimum(self.units, other.units),
            # draws that are all the same have no degrees of freedom, and no width
            np.nan_to_num(
                np.sqrt(ratio(total, drawn.sum(axis=0))) * stdtrit(freedom, 0.975) / _NORMAL
            ),
        )

    def interval(self) -> tuple[Floats, Floats]:
        """See `interval`; NaN where the figure is undefined."""
        low, high = interval(self.values, self.units, self.wider)
        return np.where(self.defined, low, np.nan), np.where(self.defined, high, np.nan)

    def share_interval(self, n: Integers) -> tuple[Floats, Floats]:
        """See `share_interval`."""
        return share_interval(self.value, self.values, self.units, n)


def stretch(units: Integers) -> Floats:
    """By what the interval of the mean of so many units (2 or more) is wider than the percentiles.

    sqrt(n / (n - 1)) t(.975, n - 1) / 1.96: makes up for the draws' variance, which is too small by
    (n - 1) / n, and for the normal's tails. Hesterberg (2015, section 5.3) moves the percentiles
    outwards by as much; but of five units no draw is that far out (coverage of CCC .92, not .95).
    """
    n = np.maximum(np.asarray(units, np.float64), 2)
    return np.asarray(np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975) / _NORMAL, np.float64)


def interval(
    draws: Floats, units: Integers | int, wider: Floats | float | None = None
) -> tuple[Floats, Floats]:
    """Bounds of the stretched percentile interval, [k, ...] -> [...] twice.

    The median and `wider` (`stretch` of the units, if not given) times the distance from it to the
    2.5th and 97.5th percentile. NaN below `FEWEST_UNITS` drawn speakers (or clips), with more than
    5 % undefined draws (NaN; fewer are left out), and without any draws.
    """
    draws = np.asarray(draws, np.float64)
    shape = draws.shape[1:]
    low, high = np.full(shape, np.nan), np.full(shape, np.nan)
    if not len(draws):
        return low, high
    counts = np.broadcast_to(np.asarray(units), shape)
    usable = (np.isnan(draws).mean(axis=0) <= _MOST_UNDEFINED) & (counts >= FEWEST_UNITS)
    kept = draws[:, usable]
    # the same where nothing is undefined, and many times faster
    quantile = np.nanquantile if np.isnan(kept).any() else np.quantile
    lower, middle, upper = quantile(kept, [0.025, 0.5, 0.975], axis=0)
    by = np.broadcast_to(stretch(counts) if wider is None else np.asarray(wider), shape)[usable]
    low[usable], high[usable] = middle + (lower - middle) * by, middle + (upper - middle) * by
    return low, high


def _variance(draws: Floats) -> Floats:
    """Of the defined draws, [k, ...] -> [...]."""
    return mean_of_defined(np.square(draws - mean_of_defined(draws, 0)), 0)


def share_interval(
    share: Floats, draws: Floats, units: Integers | int, n: Integers | int
) -> tuple[Floats, Floats]:
    """95 % interval of shares: the exact one of as many independent clips as these `n` are worth.

    Korn and Graubard (1998): Clopper-Pearson for p (1 - p) / variance clips, at most `n`, times
    (t(.975, n - 1) / t(.975, units - 1))^2; the variance is that of the draws. Percentiles are too
    narrow near 0 and 1 (coverage .6 to .85), and a point where all clips agree. NaN as `interval`.
    """
    low, _ = interval(draws, units)
    count = np.maximum(np.asarray(units, np.float64), 2)
    clips = np.maximum(np.asarray(n, np.float64), 2)
    with np.errstate(invalid="ignore"):
        variance = _variance(draws) * count / (count - 1)
        worth = np.minimum(clips, ratio(share * (1 - share), variance))
        worth = np.where(np.isfinite(worth), worth, clips)
        worth = worth * (stdtrit(clips - 1, 0.975) / stdtrit(count - 1, 0.975)) ** 2
        hits = share * worth
        least = np.where(share > 0, betaincinv(hits, worth - hits + 1, 0.025), 0.0)
        most = np.where(share < 1, betaincinv(hits + 1, worth - hits, 0.975), 1.0)
    there = np.isfinite(low) & np.isfinite(share)
    return np.where(there, least, np.nan), np.where(there, most, np.nan)


def resampling_units(
    speakers: Sequence[str | None], clip_ids: Sequence[str]
) -> tuple[NDArray[np.intp], int]:
    """Which unit is drawn with each clip, [n], and how many units there are.

    A unit is a speaker. A clip of an unknown speaker is a unit by itself, and so is every clip
    when there are not two speakers to choose from. More than `MOST_UNITS` are merged at random.
    """
    return _units(ordinals(speakers)[0], ordinals(clip_ids)[0])


def _units(speaker: Integers, clip: Integers) -> tuple[NDArray[np.intp], int]:
    apart = len(np.unique(speaker[speaker >= 0])) < 2
    after_clips = clip.max(initial=0) + 1
    names = clip if apart else np.where(speaker < 0, clip, after_clips + speaker)
    unit = np.unique(names, return_inverse=True)[1].astype(np.intp)
    units = int(unit.max(initial=-1)) + 1
    if units > MOST_UNITS:
        place = np.random.default_rng(units).permutation(units) % MOST_UNITS
        unit, units = place[unit], MOST_UNITS
    return unit, units


def units_of(scores: Scores, cell: Subset) -> tuple[NDArray[np.intp], int]:
    """`resampling_units` of the clips of a subset."""
    return _units(*(scores.coded(name)[0][cell.rows] for name in ("speaker", "clip_id")))


def support(scores: Scores, cell: Subset, there: NDArray[np.bool_]) -> tuple[Integers, Integers]:
    """Clips and known speakers that each figure is from, [clips of the cell, k] -> [k] twice."""
    speaker = scores.coded("speaker")[0][cell.rows]
    speakers = [len(np.unique(speaker[column & (speaker >= 0)])) for column in there.T]
    return there.sum(axis=0), np.array(speakers, np.int64)


def interval_notes(scores: Scores, cells: Sequence[Subset]) -> Iterator[str]:
    """Subsets whose intervals are missing, rough or too narrow, and why."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        speaker = scores.coded("speaker")[0][cell.rows]
        known, units = len(np.unique(speaker[speaker >= 0])), units_of(scores, cell)[1]
        if known < 2 and cell.group != "speaker":
            text = (
                "fewer than two speakers are known, so clips were resampled and the intervals may "
                "be too narrow"
            )
            found.setdefault(text, []).append(str(cell))
        elif known >= 2 and units < FEW_UNITS:
            text = "intervals from so few speakers are rough"
            if units < FEWEST_UNITS:
                text = f"no intervals, which need at least {FEWEST_UNITS} speakers"
            found.setdefault(text, []).append(f"{cell} ({units})")
    yield from (f"{some_cells(names)}: {text}" for text, names in found.items())


def some_cells(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def resample(sums: Floats, draws: int, rng: np.random.Generator, size: int = 0) -> Floats:
    """Sums of `draws` samples of the units with replacement, [units, ...] -> [draws, ...].

    A sample is of `size` units, or of as many as there are.
    """
    units, flat = len(sums), sums.reshape(len(sums), -1)
    drawn: list[Floats] = [np.empty((0, flat.shape[1]))]
    at_once = max(1, _CHUNK_COUNTS // max(units, 1))
    for first in range(0, draws, at_once):
        rows = min(at_once, draws - first)
        picked = (
            rng.integers(0, units, size=(rows, size or units)) + np.arange(rows)[:, None] * units
        )
        counts = np.bincount(picked.ravel(), minlength=rows * units).reshape(rows, units)
        drawn.append(counts.astype(np.float64) @ flat)
    return np.concatenate(drawn).reshape(draws, *sums.shape[1:])


def draw(
    figures: Callable[[Floats], Floats],
    sums: Floats,
    there: NDArray[np.bool_],
    bootstrap: Bootstrap,
    *key: str,
) -> Draws:
    """Figures and their bootstrap draws, each drawn from the units that have its data.

    `figures` is a function of `sums`, what each unit adds: [units, ...] -> [units, *figures].
    `there` says which units have data for which figure; `key` names the draws.
    """
    shape, flat = there.shape[1:], there.reshape(len(there), -1)
    values = np.full((bootstrap.draws, flat.shape[1]), np.nan)
    patterns, which = np.unique(flat, axis=1, return_inverse=True)
    for i, units in enumerate(patterns.T):
        if units.sum() < FEWEST_UNITS:
            continue
        drawn = resample(sums[units], bootstrap.draws, generator(bootstrap.seed, *key))
        mine = which.ravel() == i
        values[:, mine] = figures(drawn).reshape(len(values), flat.shape[1])[:, mine]
    units = flat.sum(axis=0).reshape(shape)
    values = values.reshape(len(values), *shape)
    return Draws(figures(sums.sum(axis=0)), values, units, stretch(units))


def draw_metrics(
    scores: Scores, cell: Subset, predictions: Sequence[Floats], bootstrap: Bootstrap
) -> dict[str, Draws]:
    """Every metric of `OF_SUMS` of a subset, [len(predictions), 3].

    There is no CCC of constant labels, which would be 0 whatever the model predicts. The key of the
    subset names the draws. `predictions` are of all clips, [n, 3]; NaN leaves a clip out.
    """
    unit, units = units_of(scores, cell)
    truth = scores.truth[cell.rows]
    there = np.isfinite(truth)
    offset = np.where(there, truth, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    parts = [unit_sums(truth, p[cell.rows], unit, units, offset) for p in predictions]
    sums = np.stack(parts, axis=1)

    def figures(drawn: Floats) -> Floats:
        return np.stack([metric(drawn) for metric in OF_SUMS.values()], axis=-1)

    known = np.repeat(sums[..., 0, None] > 0, len(OF_SUMS), axis=-1)
    found = draw(figures, sums, known, bootstrap, *cell.key)
    whole = sums.sum(axis=0)
    varies = ratio(whole[..., 4], whole[..., 0]) - ratio(whole[..., 2], whole[..., 0]) ** 2
    found.value[..., 0][~(varies > NOTHING)] = np.nan
    return {name: found[..., i] for i, name in enumerate(OF_SUMS)}


def drawn_counts(
    scores: Scores, cell: Subset, each: Floats, bootstrap: Bootstrap
) -> tuple[Floats, int]:
    """Sums of every draw over what each clip of the subset counts, [clips, k] -> [draws, k].

    Also how many units were drawn; those whose clips count nothing are left out.
    """
    sums = sum_by_unit(each, *units_of(scores, cell))
    sums = sums[sums.any(axis=1)]
    return resample(sums, bootstrap.draws, generator(bootstrap.seed, *cell.key)), len(sums)

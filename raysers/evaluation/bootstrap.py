"""95 % intervals of every figure: the expanded percentile bootstrap over speakers.

Speakers are drawn with replacement, with all their clips, because clips of one speaker are not
independent. Plain percentiles are too narrow for few units (coverage .81 for 5 speakers), so their
tails are those of Hesterberg (2015, section 5.3), and below `FEWEST_UNITS` there is no interval. A
draw depends on the seed and the names of what is drawn, never on the order of the rows, so all
models with the same clips see the same draws.

A draw is a weighted sum of per-speaker sums, from which the metrics follow: 1000 draws of a test
set are one matrix product, however many models, dimensions and metrics there are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit
from scipy.stats import beta

from raysers.evaluation.metrics import Floats, ratio
from raysers.evaluation.scores import Scores, Subset, ordinals
from raysers.seeding import generator

Integers = NDArray[np.int64]

#: Units an interval needs; with fewer than `FEW_UNITS` speakers it is rough.
FEWEST_UNITS, FEW_UNITS = 5, 10
#: Units drawn at most; more are merged at random into so many, which leaves the variance as it is.
MOST_UNITS = 10_000
#: With more undefined draws than this an interval would describe the rest only.
_MOST_UNDEFINED = 0.05
#: Cells a note names.
MOST_NAMED = 6
#: Counts held at a time: bounds the memory, and fixes how the generator is read.
_CHUNK_COUNTS = 2_000_000
#: Variances below this are rounding: labels and scores are float32 in about 0..1.
_NOTHING = 1e-14
#: Sums behind the metrics: number of pairs, then sums over them; x is the prediction, y the label.
COLUMNS = ("n", "x", "y", "xx", "yy", "xy", "abs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How often to draw (0: no intervals), and the seed of the draws."""

    draws: int = 1000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Draws:
    """Bootstrap draws of figures.

    Attributes:
        values: [draws, ...]; NaN: undefined.
        units: how many units each figure is drawn from, [...].
    """

    values: Floats
    units: Integers

    def __sub__(self, other: Draws) -> Draws:
        return Draws(self.values - other.values, np.minimum(self.units, other.units))

    def interval(self) -> tuple[Floats, Floats]:
        """See `interval`."""
        return interval(self.values, self.units)


def tail(units: Integers) -> Floats:
    """Share of the draws below a 95 % interval of the mean of so many units, at least 2.

    Phi(-sqrt(n / (n - 1)) t(.975, n - 1)): makes up for the bootstrap's variance, which is too
    small by (n - 1) / n, and for the normal's tails (Hesterberg 2015, section 5.3). .025 for many.
    """
    n = np.maximum(np.asarray(units, np.float64), 2)
    return np.asarray(ndtr(-np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975)), np.float64)


def interval(draws: Floats, units: Integers | int) -> tuple[Floats, Floats]:
    """Bounds of the expanded percentile interval, [k, ...] -> [...] twice.

    NaN below `FEWEST_UNITS`, with more than 5 % undefined draws (fewer are left out), and without
    any draws.

    Args:
        draws: figures of every draw; NaN: undefined.
        units: how many speakers (or clips) were drawn, [...] or one number for all.
    """
    draws = np.asarray(draws, np.float64)
    shape = draws.shape[1:]
    low, high = np.full(shape, np.nan), np.full(shape, np.nan)
    if not len(draws):
        return low, high
    counts = np.broadcast_to(np.asarray(units), shape)
    undefined = np.isnan(draws).mean(axis=0)
    usable = (undefined <= _MOST_UNDEFINED) & (counts >= FEWEST_UNITS)
    for count in np.unique(counts[usable]).tolist():
        mine = usable & (counts == count)
        kept, at = draws[:, mine], float(tail(np.array(count)))
        # the same where nothing is undefined, and many times faster
        quantile = np.nanquantile if np.isnan(kept).any() else np.quantile
        low[mine], high[mine] = quantile(kept, [at, 1 - at], axis=0)
    return low, high


def share_interval(
    share: Floats, draws: Floats, units: Integers | int, n: Integers
) -> tuple[Floats, Floats]:
    """95 % interval of shares: the exact one of as many independent clips as these are worth.

    Korn and Graubard (1998): Clopper-Pearson for p (1 - p) / variance clips, at most `n`, times
    (t(.975, n - 1) / t(.975, units - 1))^2; the variance is that of the draws. Percentiles are too
    narrow near 0 and 1 (coverage .6 to .85), and a point where all clips agree. NaN as `interval`.

    Args:
        share: the shares, [...].
        draws: as in `interval`.
        units: as in `interval`.
        n: clips behind each share, [...].
    """
    low, _ = interval(draws, units)
    count = np.maximum(np.asarray(units, np.float64), 2)
    clips = np.maximum(np.asarray(n, np.float64), 2)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no draws
        variance = np.nanvar(draws, axis=0) * count / (count - 1)
        worth = np.minimum(clips, ratio(share * (1 - share), variance, variance > 0))
        worth = np.where(np.isfinite(worth), worth, clips)
        worth = worth * (stdtrit(clips - 1, 0.975) / stdtrit(count - 1, 0.975)) ** 2
        hits = share * worth
        least = np.where(share > 0, beta.ppf(0.025, hits, worth - hits + 1), 0.0)
        most = np.where(share < 1, beta.ppf(0.975, hits + 1, worth - hits), 1.0)
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
    """`resampling_units` of the clips of a cell."""
    return _units(scores.coded("speaker")[0][cell.rows], scores.coded("clip_id")[0][cell.rows])


def speakers_of(scores: Scores, cell: Subset, there: NDArray[np.bool_]) -> Integers:
    """Known speakers of the clips that each figure is from, [clips of the cell, k] -> [k]."""
    speaker = scores.coded("speaker")[0][cell.rows]
    counts = [len(np.unique(speaker[column & (speaker >= 0)])) for column in there.T]
    return np.array(counts, np.int64)


def interval_notes(scores: Scores, cells: Sequence[Subset]) -> Iterator[str]:
    """Cells whose intervals are missing, rough or too narrow, and why."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        speaker = scores.coded("speaker")[0][cell.rows]
        known, units = len(np.unique(speaker[speaker >= 0])), units_of(scores, cell)[1]
        name = f"{cell.dataset} {cell.split}" + (f", {cell.group_value}" if cell.group else "")
        if known < 2 and cell.group != "speaker":
            text = (
                "fewer than two speakers are known, so clips were resampled and the intervals may "
                "be too narrow"
            )
            found.setdefault(text, []).append(name)
        elif known >= 2 and units < FEWEST_UNITS:
            text = f"no intervals, which need at least {FEWEST_UNITS} speakers"
            found.setdefault(text, []).append(f"{name} ({units})")
        elif known >= 2 and units < FEW_UNITS:
            text = "intervals from so few speakers are rough"
            found.setdefault(text, []).append(f"{name} ({units})")
    for text, names in found.items():
        more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        yield f"{', '.join(names[:MOST_NAMED])}{more}: {text}"


def resample(sums: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Sums of `draws` samples of the units with replacement, [units, ...] -> [draws, ...].

    Every draw takes as many units as there are.
    """
    flat = sums.reshape(len(sums), -1)
    drawn = [counts @ flat for counts in _counts(len(sums), draws, rng)]
    return np.concatenate([np.empty((0, flat.shape[1])), *drawn]).reshape(draws, *sums.shape[1:])


def _counts(units: int, draws: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each unit is in each draw, [some draws, units], until all `draws` are done."""
    at_once = max(1, _CHUNK_COUNTS // max(units, 1))
    for first in range(0, draws, at_once):
        rows = min(at_once, draws - first)
        picked = rng.integers(0, units, size=(rows, units))
        picked += np.arange(rows)[:, None] * units
        counts = np.bincount(picked.ravel(), minlength=rows * units)
        yield counts.reshape(rows, units).astype(np.float64)


def draw(
    figures: Callable[[Floats], Floats],
    sums: Floats,
    there: NDArray[np.bool_],
    bootstrap: Bootstrap,
    *key: str,
) -> Draws:
    """Bootstrap draws of figures, each drawn from the units that have its data.

    Args:
        figures: figures of sums, [..., *sums' other axes] -> [..., *figures].
        sums: what each unit adds, [units, ...].
        there: which units have data for which figure, [units, *figures].
        bootstrap: draws and seed.
        key: names the draws.
    """
    shape = there.shape[1:]
    flat = there.reshape(len(there), -1)
    values = np.full((bootstrap.draws, flat.shape[1]), np.nan)
    patterns, which = np.unique(flat, axis=1, return_inverse=True)
    for i, units in enumerate(patterns.T):
        if units.sum() < FEWEST_UNITS:
            continue
        drawn = resample(sums[units], bootstrap.draws, generator(bootstrap.seed, *key))
        mine = which.ravel() == i
        values[:, mine] = figures(drawn).reshape(len(values), flat.shape[1])[:, mine]
    return Draws(values.reshape(len(values), *shape), flat.sum(axis=0).reshape(shape))


def draw_metrics(
    scores: Scores, cell: Subset, predictions: Sequence[Floats], bootstrap: Bootstrap
) -> dict[str, Draws]:
    """Draws of every metric of `OF_SUMS`, [draws, len(predictions), 3].

    Args:
        scores: the clips the cell is of.
        cell: which of them; names the draws.
        predictions: arrays [n, 3] of all clips; NaN leaves a clip out.
        bootstrap: number of draws, and seed.
    """
    unit, units = units_of(scores, cell)
    truth = scores.truth[cell.rows]
    offset = mean_label(truth)
    parts = [unit_sums(truth, p[cell.rows], unit, units, offset) for p in predictions]
    sums = np.stack(parts, axis=1)

    def figures(drawn: Floats) -> Floats:
        return np.stack([metric(drawn) for metric in OF_SUMS.values()], axis=-1)

    there = np.repeat(sums[..., 0, None] > 0, len(OF_SUMS), axis=-1)
    found = draw(figures, sums, there, bootstrap, *cell.key)
    return {
        name: Draws(found.values[..., i], found.units[..., i]) for i, name in enumerate(OF_SUMS)
    }


def drawn_counts(
    scores: Scores, cell: Subset, each: Floats, bootstrap: Bootstrap
) -> tuple[Floats, int]:
    """Sums of every draw over what each clip of the cell counts, [clips, k] -> [draws, k].

    Also how many units were drawn; those whose clips count nothing are left out.
    """
    sums = sum_by_unit(each, *units_of(scores, cell))
    sums = sums[sums.any(axis=1)]
    return resample(sums, bootstrap.draws, generator(bootstrap.seed, *cell.key)), len(sums)


def mean_label(truth: Floats) -> Floats:
    """Mean of the labels that are there, [n, 3] -> [3]; 0 where there is none."""
    there = np.isfinite(truth)
    total: Floats = np.where(there, truth, 0.0).sum(axis=0)
    return np.asarray(total / np.maximum(there.sum(axis=0), 1), np.float64)


def pairs(truth: Floats, prediction: Floats) -> Integers:
    """How many clips have both label and prediction, [n, 3] and [n, 3] -> [3]."""
    both = np.isfinite(truth) & np.isfinite(prediction)
    return np.asarray(both.sum(axis=0), np.int64)


def unit_sums(
    truth: Floats, prediction: Floats, unit: NDArray[np.intp], units: int, offset: Floats
) -> Floats:
    """Sums over the clips of every unit, [n, d] and [n, d] -> [units, d, len(COLUMNS)].

    Values are taken relative to an offset near their mean: the raw second moments would lose the
    variance to rounding.

    Args:
        truth: labels; a NaN leaves the clip out of that dimension.
        prediction: predictions; as `truth`.
        unit: number of the unit each clip belongs to, [n].
        units: how many units there are.
        offset: what to subtract from labels and predictions alike, [d].
    """
    there = np.isfinite(truth) & np.isfinite(prediction)
    x = np.where(there, prediction - offset, 0.0)
    y = np.where(there, truth - offset, 0.0)
    parts = [there.astype(np.float64), x, y, x * x, y * y, x * y, np.abs(x - y)]
    stacked = np.stack(parts, axis=-1).reshape(len(truth), truth.shape[1] * len(COLUMNS))
    sums: Floats = np.stack(
        [np.bincount(unit, column, units).astype(np.float64) for column in stacked.T], axis=-1
    )
    return sums.reshape(units, truth.shape[1], len(COLUMNS))


def sum_by_unit(each: Floats, unit: NDArray[np.intp], units: int) -> Floats:
    """Sums of what each clip counts, [n, k] -> [units, k]."""
    columns = [np.bincount(unit, column, units) for column in each.T]
    return np.stack(columns, axis=-1).astype(np.float64)


def _ccc(sums: Floats) -> Floats:
    n, mean_x, mean_y, var_x, var_y, cov = _central(sums)
    spread = var_x + var_y + (mean_x - mean_y) ** 2
    return ratio(2 * cov, spread, (n >= 2) & (spread > _NOTHING))


def _pearson(sums: Floats) -> Floats:
    n, _, _, var_x, var_y, cov = _central(sums)
    varies = (n >= 2) & (var_x > _NOTHING) & (var_y > _NOTHING)
    return np.clip(ratio(cov, np.sqrt(np.maximum(var_x * var_y, 0)), varies), -1, 1)


def _mae(sums: Floats) -> Floats:
    return ratio(sums[..., 6], sums[..., 0], sums[..., 0] > 0)


def _mean_error(sums: Floats) -> Floats:
    return ratio(sums[..., 1] - sums[..., 2], sums[..., 0], sums[..., 0] > 0)


#: Metrics as functions of the sums, [..., len(COLUMNS)] -> [...]. `mean_error` is the signed one.
OF_SUMS: Mapping[str, Callable[[Floats], Floats]] = {
    "ccc": _ccc,
    "pearson": _pearson,
    "mae": _mae,
    "mean_error": _mean_error,
}


def _central(sums: Floats) -> tuple[Floats, ...]:
    n = sums[..., 0]
    mean_x, mean_y, xx, yy, xy = (
        ratio(sums[..., column], n, n > 0) for column in range(1, len(COLUMNS) - 1)
    )
    return n, mean_x, mean_y, xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y

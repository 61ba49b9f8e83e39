"""How often 95 % intervals cover the truth, by simulation: worlds whose population value is known.

Speakers differ: labels, predictions and shares of unchanged scores have parts that all clips of a
speaker share. The suite runs a few hundred worlds of the small sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from raysers.evaluation.bootstrap import Bootstrap, draw
from raysers.evaluation.scores import OF_SUMS, unit_sums
from tests.benchmarks.measure import Line, Scale, judged

World = Callable[[np.random.Generator, int], bool]

#: Labels: spread between and within speakers; predictions: slope, speakers' bias, noise.
LABEL_SPEAKER, LABEL_CLIP, SLOPE, BIAS, NOISE = 0.10, 0.15, 0.8, 0.08, 0.10
#: Share of unchanged scores, and intraclass correlation of speakers.
SHARE, WITHIN = 0.9, 0.1


def population_ccc(*, speakers: bool) -> float:
    """CCC of the infinite population that `pair` draws from; its means are equal."""
    between = (LABEL_SPEAKER**2, BIAS**2) if speakers else (0.0, 0.0)
    label = between[0] + LABEL_CLIP**2
    prediction = SLOPE**2 * label + between[1] + NOISE**2
    return 2 * SLOPE * label / (label + prediction)


def pair(rng: np.random.Generator, speakers: int, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions, [speakers * clips, 1]; one clip a speaker has no speaker's part."""
    of = np.repeat(np.arange(speakers), clips)
    on = float(clips > 1)
    label = on * rng.normal(0, LABEL_SPEAKER, speakers)[of] + rng.normal(0, LABEL_CLIP, len(of))
    bias = on * rng.normal(0, BIAS, speakers)[of]
    prediction = SLOPE * label + bias + rng.normal(0, NOISE, len(of))
    return label[:, None], prediction[:, None]


def _draws(rng: np.random.Generator, speakers: int, clips: int, seed: int, name: str):
    label, prediction = pair(rng, speakers, clips)
    unit = np.repeat(np.arange(speakers), clips)
    sums = unit_sums(label, prediction, unit, speakers, np.zeros(1))
    return draw(OF_SUMS[name], sums, sums[..., 0] > 0, Bootstrap(seed=seed), str(rng.random()))


def ccc_covered(speakers: int, clips: int, rng: np.random.Generator, seed: int) -> bool:
    """Whether the interval of a test set's CCC holds the population's."""
    low, high = _draws(rng, speakers, clips, seed, "ccc").interval()
    return bool(low[0] <= population_ccc(speakers=clips > 1) <= high[0])


def gap_covered(name: str, speakers: int, clips: int, rng: np.random.Generator, seed: int) -> bool:
    """Whether the interval of a difference between two alike groups holds 0."""
    one, other = (_draws(rng, speakers, clips, seed, name) for _ in range(2))
    low, high = one.with_independent(other, np.subtract).interval()
    return bool(low[0] <= 0 <= high[0])


def share_covered(speakers: int, clips: int, rng: np.random.Generator, seed: int) -> bool:
    """Whether the interval of a share of unchanged scores holds the population's."""
    scale = (1 - WITHIN) / WITHIN
    each = rng.beta(SHARE * scale, (1 - SHARE) * scale, speakers) if clips > 1 else SHARE
    sums = np.stack([rng.binomial(clips, each, speakers), np.full(speakers, clips)], 1) * 1.0
    there = np.ones((speakers, 1), bool)
    drawn = draw(lambda s: s[..., :1] / s[..., 1:], sums, there, Bootstrap(seed=seed), "share")
    total = sums.sum(axis=0)
    low, high = drawn.share_interval(total[1:].astype(np.int64))
    return bool(low[0] <= SHARE <= high[0])


WORLDS: dict[str, World] = {
    "CCC, 5 speakers": partial(ccc_covered, 5, 50),
    "CCC, 10 speakers": partial(ccc_covered, 10, 50),
    "CCC, 30 speakers": partial(ccc_covered, 30, 50),
    "CCC, 100 clips": partial(ccc_covered, 100, 1),
    "fairness score, 5 + 5 speakers": partial(gap_covered, "ccc", 5, 50),
    "fairness bias, 5 + 5 speakers": partial(gap_covered, "mean_error", 5, 50),
    "fairness score, 10 + 10 speakers": partial(gap_covered, "ccc", 10, 50),
    "robustness share, 5 speakers": partial(share_covered, 5, 50),
    "robustness share, 10 speakers": partial(share_covered, 10, 50),
    "robustness share, 30 speakers": partial(share_covered, 30, 50),
    "robustness share, 100 clips": partial(share_covered, 100, 1),
}


def covered(name: str, worlds: int, seed: int = 0) -> float:
    """Share of the simulated worlds whose interval holds the truth."""
    rng = np.random.default_rng(seed)
    return float(np.mean([WORLDS[name](rng, world) for world in range(worlds)]))


def coverage(scale: Scale) -> Iterator[Line]:
    """One line per kind of interval; between .93 and .97 is what they promise."""
    worlds = 4000 if scale.rows >= 1_000_000 else 400
    for name in WORLDS:
        found = covered(name, worlds)
        yield judged({"bench": "coverage", "measure": name}, ratio=found, target=0.93)

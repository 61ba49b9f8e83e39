"""Random scores, the baseline that is measured beside every model.

The random-gaussian model of the paper authors' test suite (ser-tests): every score from a normal
distribution with mean 1/2 and standard deviation 1/6, truncated to 0..1. A clip's scores follow
from its identity and the seed, so they are the same in every evaluation and wherever a copy of the
corpus lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import ndtr, ndtri

from raysers.evaluation.metrics import Floats
from raysers.evaluation.scores import Scores

NAME = "random-gaussian"
MEAN, SD = 1 / 2, 1 / 6
_DIMENSIONS = 3


def random_scores(identities: Sequence[str], seed: int = 0) -> Floats:
    """Scores in 0..1 of every clip, [n, 3]; independent of each other and of the labels."""
    key = str(seed).encode()
    digests = [
        hashlib.blake2b(clip.encode("utf-8", "surrogateescape"), digest_size=24, key=key).digest()
        for clip in identities
    ]
    bits = np.frombuffer(b"".join(digests), "<u8").reshape(-1, _DIMENSIONS)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    low, high = ndtr((0 - MEAN) / SD), ndtr((1 - MEAN) / SD)
    return np.asarray(MEAN + SD * ndtri(low + uniform * (high - low)), np.float64)


def with_baseline(scores: Scores, seed: int = 0) -> Scores:
    """`scores` with one more model, the random one, on every clip some model predicted."""
    drawn = random_scores(scores.identities, seed)
    predicted = np.any([np.isfinite(p) for p in scores.predictions.values()], axis=0)
    random = {NAME: np.where(predicted, drawn, np.nan)}
    return replace(scores, predictions={**scores.predictions, **random})

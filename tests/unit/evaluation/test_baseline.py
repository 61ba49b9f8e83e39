"""The random model: its distribution, and that it depends on nothing but id and seed."""

from __future__ import annotations

import numpy as np
from scipy import stats

from raysers.evaluation.scores import RANDOM as NAME
from raysers.evaluation.scores import random_scores, with_baseline
from tests.unit.evaluation.worlds import scores

IDS = [f"{i:x}" for i in range(8000)]


def test_scores_are_truncated_gaussian():
    found = random_scores(IDS)
    theirs = stats.truncnorm(-3, 3, loc=0.5, scale=1 / 6)
    for column in found.T:
        assert stats.kstest(column, theirs.cdf).pvalue > 0.001
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.05
    assert found.min() >= 0
    assert found.max() <= 1


def test_scores_follow_the_clip_and_the_seed_only():
    some = random_scores(IDS[100:50:-1])
    np.testing.assert_array_equal(some, random_scores(IDS)[100:50:-1])
    assert np.abs(random_scores(IDS, 1) - random_scores(IDS)).min() > 0


def test_a_copy_of_the_corpus_elsewhere_has_the_same_random_scores():
    truth = np.linspace(0, 1, 5)
    here, there = (
        scores(
            truth,
            clip_id=[f"{place}{i}" for i in range(5)],
            columns={"identity": [*"abcde"]},
            m=truth,
        )
        for place in ("/data/", "s3://bucket/")
    )
    both = [with_baseline(made).predictions[NAME] for made in (here, there)]
    np.testing.assert_array_equal(*both)

"""Shifts by sentiment: hand-worked means, pairing, languages and the published figures."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import Bootstrap
from raysers.words.spoken import SENTENCES, sentiment_rows
from tests.unit.evaluation.worlds import only

FEW = Bootstrap(draws=200)


def sentence(sentiment, valence, text="x", **more):
    return {
        "text": text,
        "sentiment": sentiment,
        "arousal": 0.5,
        "dominance": 0.6,
        "valence": valence,
        "model": "m",
        **more,
    }


def rows_of(sentences, bootstrap=FEW):
    return sentiment_rows(
        pa.Table.from_pylist(sentences, SENTENCES), dataset="made", bootstrap=bootstrap
    )


def value(rows, metric, group_value, dimension="valence"):
    return only(rows, metric=metric, group_value=group_value, dimension=dimension)


def test_means_and_shifts_by_hand():
    rows = rows_of(
        [
            sentence("positive", 0.9, "a"),
            sentence("positive", 0.7, "b"),
            sentence("neutral", 0.5, "c"),
            sentence("negative", 0.2, "d"),
        ]
    )
    assert value(rows, "sentiment_mean", "positive").value == pytest.approx(0.8)
    assert value(rows, "sentiment_mean", "positive").n == 2
    shift = value(rows, "mean_shift", "positive - neutral")
    assert (shift.value, shift.n) == (pytest.approx(0.3), 3)
    assert value(rows, "mean_shift", "negative - neutral").value == pytest.approx(-0.3)
    assert value(rows, "mean_shift", "positive - negative").value == pytest.approx(0.6)
    assert value(rows, "mean_shift", "positive - all").value == pytest.approx(0.8 - 2.3 / 4)
    assert value(rows, "mean_shift", "positive - neutral", "dominance").value == pytest.approx(0)
    assert math.isnan(shift.ci_low)  # one neutral sentence only: nothing to draw


def test_bins_are_sertests_of_rounded_scores():
    """.254 is .25 and belongs to the first bin, whose upper edge is its own."""
    valences = (0.254, 0.256, 1.2)
    rows = rows_of(
        [sentence("positive", v, str(i)) for i, v in enumerate(valences)]
        + [sentence("negative", v, f"n{v}") for v in (-0.1, 0.1, 0.2)]
    )
    first = value(rows, "bin_proportion_shift_0.00_0.25", "positive - all").value
    second = value(rows, "bin_proportion_shift_0.25_0.50", "positive - all").value
    last = value(rows, "bin_proportion_shift_0.75_1.00", "positive - all").value
    assert (first, second, last) == pytest.approx((1 / 3 - 4 / 6, 1 / 3 - 1 / 6, 1 / 3 - 1 / 6))
    shares = [r.value for r in rows if r.metric.startswith("bin_") and r.group_value[0] == "p"]
    assert sum(shares) == pytest.approx(0, abs=1e-12)


def made(effect=0.3, words=6, voices=3, model="m", seed=0, noise=0.02, voice_bias=0.2):
    rng = np.random.default_rng(seed)
    bias = np.linspace(-voice_bias, voice_bias, voices)
    return [
        sentence(
            name,
            float(0.5 + s * effect + bias[v] + rng.normal(0, noise)),
            text=f"This is {name}{w}",
            word=f"{name}{w}",
            template="This is {word}",
            voice=f"v{v}",
            model=model,
        )
        for s, name in ((1, "positive"), (0, "neutral"), (-1, "negative"))
        for w in range(words)
        for v in range(voices)
    ]


def test_pairing_takes_the_voices_out_of_the_interval():
    """Voices differ by .4; the shift within a voice hardly varies, the means do."""
    rows = rows_of(made(), Bootstrap(draws=500))
    mean = value(rows, "sentiment_mean", "positive")
    shift = value(rows, "mean_shift", "positive - neutral")
    assert mean.ci_high - mean.ci_low > 0.2
    assert shift.ci_high - shift.ci_low < 0.06
    assert shift.ci_low < 0.3 < shift.ci_high
    # a shift of words alone is not in dimensions that do not hear them
    assert value(rows, "mean_shift", "positive - neutral", "arousal").value == pytest.approx(0)


def test_languages_have_shifts_where_there_are_several():
    german = [s | {"language": "de"} for s in made(effect=0.1)]
    rows = rows_of([s | {"language": "en"} for s in made()] + german)
    for language, effect in (("en", 0.3), ("de", 0.1)):
        row = value(rows, "mean_shift", f"{language}, positive - neutral")
        assert row.group == "language"
        assert row.value == pytest.approx(effect, abs=0.02)
    assert {row.group for row in rows_of(made())} == {"sentiment"}


def test_the_papers_sentences_stand_beside_ours():
    rows = rows_of(
        [
            sentence("positive", 0.7, "This is wonderful!", voice="a"),
            sentence("positive", 0.9, "this is WONDERFUL!", voice="b"),
            sentence("negative", 0.1, "This is stupid"),
            sentence("neutral", 0.5, "This is a table"),
        ]
    )
    found = [r for r in rows if r.group == "text" and r.dimension == "valence"]
    wonderful, stupid = sorted(found, key=lambda row: -row.paper)
    assert (wonderful.value, wonderful.n, wonderful.paper) == (pytest.approx(0.8), 2, 0.816)
    assert (stupid.value, stupid.n, stupid.paper) == (pytest.approx(0.1), 1, 0.137)
    assert math.isnan(only(rows, group="text", dimension="arousal", n=1).paper)


def test_an_unknown_sentiment_is_refused():
    with pytest.raises(ConfigError, match="positive, neutral or negative"):
        rows_of([sentence("happy", 0.5)])

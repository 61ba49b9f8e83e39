"""The map from categories to dimensions, and the words of corpora."""

from __future__ import annotations

import typing

import pytest

from raysers.commands.archive import CorpusName
from raysers.data.corpora import (
    EMOTION_MAPS,
    common_name,
    load_emotion_map,
    sex_of,
    speaker_of,
    split_of,
)
from raysers.data.labelled import CORPORA
from raysers.errors import ConfigError
from tests.unit.data.corpora import trees


def test_published_points_on_0_to_1_in_the_order_arousal_dominance_valence():
    table = EMOTION_MAPS["russell-mehrabian"]
    # angry: pleasure -.51, arousal .59, dominance .25
    assert table["anger"] == pytest.approx((0.795, 0.625, 0.245))
    # happy: .81, .51, .46
    assert table["happiness"] == pytest.approx((0.755, 0.73, 0.905))
    assert table["neutral"] == (0.5, 0.5, 0.5)
    assert all(0 <= value <= 1 for point in table.values() for value in point)
    # what tells fear from anger is dominance, and boredom is the least aroused
    assert table["anger"][1] - table["fear"][1] > 0.3
    assert min(table, key=lambda name: table[name][0]) == "boredom"
    assert {"anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"} <= set(table)


def test_a_map_of_ones_own(tmp_path):
    file = trees.text(tmp_path / "map.yaml", "Happy: [0.5, 1, 0.75]\nwistful: [0, 0, 0.25]\n")
    assert load_emotion_map(str(file)) == {"happiness": (0.5, 1, 0.75), "wistful": (0, 0, 0.25)}
    for content, message in (
        ("joy: [0.5, 1]", r"joy is \[0.5, 1\]: write \[arousal, dominance, valence\]"),
        ("joy: [0.5, 1, 1.5]", "each number is from 0 to 1"),
        ("joy: [0.5, 1, loud]", "write"),
        ("[1, 2]", "write category"),
        ("a: [", "nor a YAML file"),
    ):
        trees.text(tmp_path / "map.yaml", content)
        with pytest.raises(ConfigError, match=message):
            load_emotion_map(str(file))
    with pytest.raises(ConfigError, match=r"no map known here .russell-mehrabian."):
        load_emotion_map(str(tmp_path / "russel-mehrabian"))


def test_words():
    assert [common_name(w) for w in ("hap", "Joy", "no_agreement")] == [
        "happiness",
        "happiness",
        "no_agreement",
    ]
    assert [sex_of(w) for w in ("Female", "m", "FEMALE ", "?", "", None)] == [
        "female", "male", "female", None, None, None,
    ]  # fmt: skip
    words = ("Train", "Validation", "Development", "valid", "devel", "Test", "Test3", "all", None)
    assert [split_of(w) for w in words] == [
        "train", "dev", "dev", "dev", "dev", "test", "test3", None, None,
    ]  # fmt: skip
    assert [speaker_of(w) for w in ("03", 3, 3.0, "Unknown", float("nan"), None)] == [
        "03", "3", "3", None, None, None,
    ]  # fmt: skip


def test_the_flag_names_every_reader():
    assert {"none", "auto", *CORPORA} == set(typing.get_args(CorpusName))

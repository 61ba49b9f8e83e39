"""The learning curve: the same bytes for the same history, and what it says."""

import io
import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image

from raysers.plotting import spread
from raysers.training.model_card import learning_curve

VERMILION, BLUE, GREEN = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73)


def record(epoch, ccc=(0.8, 0.7, 0.5), kept=False, loss=0.5):
    names = ("arousal", "dominance", "valence")
    dev = None if ccc is None else dict(zip(names, ccc, strict=True))
    return {"epoch": epoch, "step": 9 * epoch, "train_loss": loss, "dev_ccc": dev, "kept": kept}


HISTORY = [
    record(1, (0.21, 0.11, -0.07), True, 1.04),
    record(2, (0.62, 0.41, 0.13), True, 0.71),
    record(3, (0.83, 0.64, 0.46), True, 0.44),
    record(4, (0.81, 0.66, 0.32), False, 0.38),
]


def words(svg: bytes) -> list[str]:
    """The texts of a picture: matplotlib names every drawn text in a comment."""
    return re.findall(r"<!-- (.*?) -->", svg.decode())


def test_the_picture_names_each_line_with_its_value_in_the_kept_epoch():
    said = words(learning_curve(HISTORY)["svg"])
    assert {"arousal 0.83", "dominance 0.64", "valence 0.46", "kept: epoch 3", "0.380"} <= set(said)


def test_recall_of_categories_is_a_line_beside_the_dimensions_or_alone():
    history = [{**one, "dev_uar": 0.25 * one["epoch"]} for one in HISTORY]
    assert {"UAR 0.75", "arousal 0.83", "CCC and UAR on the dev set"} <= set(
        words(learning_curve(history)["svg"])
    )
    alone = [{**one, "dev_ccc": None} for one in history]
    assert {"UAR 0.75", "UAR on the dev set"} <= set(words(learning_curve(alone)["svg"]))


@pytest.mark.parametrize(
    "history",
    [
        [record(1, kept=True)],
        [record(1, None), record(2, None, kept=True)],
        [record(1, None), record(2), record(3, (math.nan,) * 3, loss=math.nan)],
        [record(1, (-0.4, -0.9, 0.0), loss=math.nan)],
        [record(e, (1.0, 1.0, 1.0), loss=0.0) for e in range(1, 200)],
    ],
    ids=["one epoch", "no dev set", "gaps", "below zero", "three lines at one height"],
)
def test_any_history_becomes_a_png_and_well_formed_svg_without_dates(history):
    drawn = learning_curve(history)
    assert image.imread(io.BytesIO(drawn["png"]), format="png").shape[1] == pytest.approx(1152)
    root = ElementTree.fromstring(drawn["svg"])
    assert root.tag.endswith("svg")
    assert b"<dc:date>" not in drawn["svg"]
    assert ("CCC on the dev set" in words(drawn["svg"])) == any(r["dev_ccc"] for r in history)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5))
def test_labels_keep_their_order_and_distance_and_stay_in_the_panel(values):
    heights = {str(i): value for i, value in enumerate(values)}
    moved = spread(heights, gap=0.1, low=-1.0, high=1.0)
    assert moved.keys() == heights.keys()
    placed = [moved[name] for name in sorted(heights, key=heights.__getitem__)]
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(placed))
    assert -1 - 1e-9 <= placed[0] <= placed[-1] <= 1 + 1e-9

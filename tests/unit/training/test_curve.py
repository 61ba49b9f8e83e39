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
from raysers.types import DIMENSIONS


def record(epoch, ccc=(0.8, 0.7, 0.5), kept=False, loss=0.5, **more):
    dev = None if ccc is None else dict(zip(DIMENSIONS, ccc, strict=True))
    return {"epoch": epoch, "train_loss": loss, "dev_ccc": dev, "kept": kept, **more}


HISTORY = [
    record(1, (0.21, 0.11, -0.07), True, 1.04, dev_uar=0.25),
    record(2, (0.83, 0.64, 0.46), True, 0.44, dev_uar=0.75),
    record(3, (0.81, 0.66, 0.32), False, 0.38, dev_uar=0.7),
]


def words(svg: bytes) -> set[str]:
    """The texts of a picture: matplotlib names every drawn text in a comment."""
    return set(re.findall(r"<!-- (.*?) -->", svg.decode()))


def test_the_picture_names_each_line_with_its_value_in_the_kept_epoch():
    values = {"arousal 0.83", "dominance 0.64", "valence 0.46", "UAR 0.75", "0.380"}
    titles = {"kept: epoch 2", "CCC and UAR on the dev set"}
    assert values | titles <= words(learning_curve(HISTORY)["svg"])
    alone = [{**one, "dev_ccc": None} for one in HISTORY]
    assert {"UAR 0.75", "UAR on the dev set"} <= words(learning_curve(alone)["svg"])


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
    assert ElementTree.fromstring(drawn["svg"]).tag.endswith("svg")
    assert b"<dc:date>" not in drawn["svg"]
    assert ("CCC on the dev set" in words(drawn["svg"])) == any(r["dev_ccc"] for r in history)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5))
def test_labels_keep_their_order_and_distance_and_stay_in_the_panel(values):
    heights = {str(i): value for i, value in enumerate(values)}
    moved = spread(heights, gap=0.1, low=-1.0, high=1.0)
    placed = [moved[name] for name in sorted(heights, key=heights.__getitem__)]
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(placed))
    assert -1 - 1e-9 <= placed[0] <= placed[-1] <= 1 + 1e-9

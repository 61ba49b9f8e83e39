"""What a fusion cannot be trained or judged on."""

from __future__ import annotations

import numpy as np
import pytest

from raysers.words.fusion_data import nothing_to_learn

NAN = np.nan


@pytest.mark.parametrize(
    ("train", "dev", "good"),
    [
        ([[0.1, NAN, NAN], [0.2, NAN, NAN]], [[0.1, NAN, NAN], [0.2, NAN, NAN]], True),
        ([[0.1, NAN, NAN], [0.2, NAN, NAN]], [[0.1, 0.3, 0.4], [NAN, 0.2, 0.1]], False),
        ([[0.1, NAN, 0.5], [0.2, NAN, 0.5]], [[NAN, 0.3, 0.4], [NAN, 0.2, 0.1]], True),
        ([[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]], [[0.1, 0.3, 0.4]], False),
        ([[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]], [], False),
    ],
    ids=["one dimension", "another one", "one of several", "one dev clip", "no dev clip"],
)
def test_two_labels_of_a_dimension_are_needed_in_train_and_in_dev(train, dev, good):
    labels = np.array([*train, *dev], np.float32)
    split = ["train"] * len(train) + ["dev"] * len(dev)
    assert (nothing_to_learn(labels, split) == "") is good

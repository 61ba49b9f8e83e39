"""Both kinds of network learn arousal from real speech, and nothing once labels are shuffled.

At small scale: a few seconds of training for each, on one second from the middle of every clip of
EmoDB, whose categories stand for points of arousal. Speakers scored are never heard in training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import audmetric
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile as sf
import torch

from raysers.data.labelled import read_labelled
from raysers.data.splits import fold_splits, shuffle_labels
from raysers.models.initialize import start_model
from raysers.training.dataloader import Batch, MicroBatch, epoch_order, global_batches
from raysers.training.learner import Learner
from raysers.types import DIMENSIONS
from tests.jobs.voices import MEL_FRONT, write_toy_config
from tests.places import SHARED_DATA, needs_shared
from tests.unit.models.train_runs import learning

pytestmark = needs_shared

CLIP_SAMPLES = 16_000
BATCH_SIZE = 16

#: Networks of under 0.1 M parameters, front end, epochs, and how they are trained.
RECIPES: dict[str, tuple[dict[str, Any], str, int, dict[str, Any]]] = {
    "cnn14": (
        {
            "model_type": "cnn14", "widths": [8, 16, 32], "dropout": 0.1, "mel_bands": 32,
            "window_samples": 1024, "hop_samples": 320,
        },
        "plain", 7, {"optimiser": "sgd", "lr": 0.01},
    ),
    "wav2vec2": (
        MEL_FRONT | {"conv_dim": [64, 32, 32, 32], "apply_spec_augment": False},
        "mel", 6, {"lr": 1e-3},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The figures do not depend on the machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def train_and_dev() -> tuple[pa.Table, pa.Table]:
    """EmoDB with six speakers to learn from and four others."""
    root = str(SHARED_DATA / "emodb" / "wav")
    table = read_labelled([root], corpus="emodb", emotion_map="russell-mehrabian").table
    table = fold_splits(table, folds=3, fold=0)
    train, dev = (table.filter(pc.equal(table["split"], name)) for name in ("train", "dev"))
    assert not set(train["speaker"].to_pylist()) & set(dev["speaker"].to_pylist())
    assert (len(set(dev["speaker"].to_pylist())), len(dev)) == (4, 198)
    return train, dev


def _signals(table: pa.Table) -> list[np.ndarray]:
    """The middle second of each clip."""
    found = [sf.read(file, dtype="float32")[0] for file in table["file"].to_pylist()]
    starts = [max(0, (len(s) - CLIP_SAMPLES) // 2) for s in found]
    return [s[start : start + CLIP_SAMPLES] for s, start in zip(found, starts, strict=True)]


def _arousal_ccc(kind: str, train: pa.Table, dev: pa.Table, folder: Path) -> float:
    """Of the dev clips, after a training."""
    config, front, epochs, flags = RECIPES[kind]
    path = write_toy_config(folder, **config)
    if kind == "cnn14":
        path.write_text(json.dumps(config))
    signals = _signals(train)
    labels = np.stack([train[name].to_numpy() for name in DIMENSIONS], 1).astype(np.float32)
    orders = [epoch_order(len(train), 0, epoch) for epoch in range(epochs)]
    batches = [batch for order in orders for batch in global_batches(order, BATCH_SIZE)]
    start = start_model(f"random:{path}", seed=0, front=front)
    how = learning(schedule="linear", warmup=0.1, **flags)
    learner = Learner(start, (), how, len(batches), "cpu")
    for batch in batches:
        piece = MicroBatch.of(0, range(len(batch)), [signals[i] for i in batch])
        unknown = torch.full((len(batch),), -1)
        known = torch.from_numpy(labels[batch])
        learner.step(Batch(labels=known, categories=unknown, pieces=[piece]))
    unheard = _signals(dev)
    pieces = [learner.predict(unheard[i : i + 32])[:, 0] for i in range(0, len(unheard), 32)]
    return audmetric.concordance_cc(dev["arousal"].to_numpy(), np.concatenate(pieces))


@pytest.fixture(scope="module")
def taught(train_and_dev, tmp_path_factory) -> Callable[[str], float]:
    """The arousal CCC of a network after its training on the true labels."""
    folder = tmp_path_factory.mktemp("taught")
    return cache(lambda kind: _arousal_ccc(kind, *train_and_dev, folder))


@pytest.mark.parametrize("kind", ["wav2vec2", pytest.param("cnn14", marks=pytest.mark.slow)])
def test_arousal_of_unseen_speakers_is_learned(kind, taught):
    # .59 to .72 by the processor's rounding; what chance gives is measured below
    assert taught(kind) > 0.4


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(train_and_dev, taught, tmp_path):
    """The mean of two shuffles, because one may be near the truth or its opposite by chance.

    The clips of a category sound alike, so whatever a network makes of noise goes along with
    arousal or against it: the CCC of one shuffle has a mean of .01 and a standard deviation of .12
    (16 were measured, -.29 to .27). The mean of two is nearly four deviations below half of what
    truth teaches, .67, which is also what labels that leak would teach.
    """
    train, dev = train_and_dev
    found = []
    for seed, kind in enumerate(RECIPES):
        shuffled = shuffle_labels(train, seed=seed)
        assert shuffled["arousal"].to_pylist() != train["arousal"].to_pylist()
        found.append(_arousal_ccc(kind, shuffled, dev, tmp_path))
    assert np.mean(found) < np.mean([taught(kind) for kind in RECIPES]) / 2

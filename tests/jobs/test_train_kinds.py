"""Training of other networks than the common one, with the settings that change the network.

In this process, which gives the same bytes as Ray Train's workers and starts none.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from safetensors.numpy import load_file

from jobs import annotate, train
from raysers.cli import as_plain, parse
from raysers.models.loading import load_emotion_model
from raysers.models.scorer import Scorer
from raysers.training.session import run_training
from raysers.types import DIMENSIONS
from tests.jobs.conftest import rows_of
from tests.jobs.voices import TOY, write_toy_config, write_voices

#: CNN14 with a hundredth of the channels.
NARROW = {"model_type": "cnn14", "widths": [8, 16, 16]}
PATIENCE = 3


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    return write_voices(tmp_path_factory.mktemp("kinds") / "voices")


def _trained(labels: Path, out: Path, config: Path, *args: str) -> dict:
    """The `training.json` of a training in this process."""
    common = ["--data", str(labels), "--output", str(out), "--backbone", f"random:{config}"]
    flags = parse(train.TrainFlags, [*common, *args], description="")
    run_training(flags, as_plain(flags), alone=True)
    return json.loads((out / "training.json").read_text())


def _predictions(out: Path) -> dict[str, list[float]]:
    """The dev scores by file."""
    rows = pq.read_table(out / "predictions" / "part-00000.parquet").to_pylist()
    return {row["file"]: [row[name] for name in DIMENSIONS] for row in rows}


def test_cnn14_trains_by_its_own_recipe_stops_early_and_annotates(labels, tmp_path):
    config, out, scored = tmp_path / "config.json", tmp_path / "cnn", tmp_path / "scored"
    config.write_text(json.dumps(NARROW))
    document = _trained(labels, out, config, "--patience", str(PATIENCE))
    settings, history = document["settings"], document["history"]
    recipe = {"optimiser": "sgd", "lr": 0.01, "batch_size": 64, "epochs": 60}
    assert {name: settings[name] for name in recipe} == recipe
    assert document["network"]["kind"] == "cnn14"
    assert document["network"]["trained"] == document["network"]["parameters"]
    assert len(history) == document["outcome"]["kept_epoch"] + PATIENCE < settings["epochs"]
    assert [r["kept"] for r in history[-PATIENCE - 1 :]] == [True] + [False] * PATIENCE
    assert history[-1]["train_loss"] < history[0]["train_loss"]

    args = ["--input", str(labels), "--output", str(scored), "--model", str(out)]
    assert annotate.main([*args, "--dtype", "fp32", "--workers", "local"]) == 0
    rows = {row["file"]: [row[name] for name in DIMENSIONS] for row in rows_of(scored)}
    dev = _predictions(out)
    assert len(dev) == 14
    for file, scores in dev.items():
        assert scores == pytest.approx(rows[file], abs=1e-5)


def test_fewer_layers_attentive_pooling_and_little_memory(labels, tmp_path):
    config, out = write_toy_config(tmp_path), tmp_path / "small"
    assert TOY["num_hidden_layers"] == 2
    document = _trained(
        labels, out, config, "--layers", "1", "--pooling", "attentive", "--dtype", "bf16",
        "--gradient-checkpointing", "--accumulate", "2", "--epochs", "2", "--lr", "1e-3",
    )  # fmt: skip
    assert document["settings"]["dtype"] == "bf16"
    assert len(document["history"]) == 2
    stored = json.loads((out / "config.json").read_text())
    assert (stored["num_hidden_layers"], stored["pooling_mode"]) == (1, "attentive")
    weights = load_file(out / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}
    assert weights["classifier.dense.weight"].shape == (32, 2 * 32)  # means and deviations
    assert not any("layers.1." in name for name in weights if ".encoder." in name)

    dev = _predictions(out)
    scorer = Scorer(load_emotion_model(str(out)), dtype="fp32", device="cpu", threads=1)
    found = scorer.score([sf.read(file, dtype="float32")[0] for file in dev]).scores
    np.testing.assert_allclose(list(dev.values()), found, atol=0.05)
    assert np.ptp(found[:, 0]) > 0

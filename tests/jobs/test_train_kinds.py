"""Training of other networks than the common one, with the settings that change the network.

In this process, which gives the same bytes as Ray Train's workers and starts none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from safetensors.numpy import load_file

from raysers.cli import as_plain, parse
from raysers.commands.analyses import evaluate, report, robustness
from raysers.commands.archive import annotate
from raysers.engine.placement import here
from raysers.models.backbones import ASSETS
from raysers.models.loading import load_emotion_model
from raysers.models.scorer import Scorer
from raysers.training.config import TrainingFlags
from raysers.training.loop import TrainingStopped
from raysers.training.trainer import run_training
from raysers.types import DIMENSIONS
from tests.jobs.conftest import rows_of
from tests.jobs.voices import TOY, read_table, write_table, write_toy_config, write_voices

#: CNN14 with a hundredth of the channels.
NARROW = {"model_type": "cnn14", "widths": [8, 16, 16]}
PATIENCE = 3
LOCAL = ("--workers", "local", "--dtype", "fp32")


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    return write_voices(tmp_path_factory.mktemp("kinds") / "voices")


def _trained(
    labels: Path, out: Path, backbone: object, *args: str, on_epoch: Callable | None = None
) -> dict:
    """The `training.json` of a training in this process."""
    common = ["--data", str(labels), "--output", str(out), "--backbone", f"random:{backbone}"]
    recipes = ASSETS / "recipes"
    flags = parse(TrainingFlags, [*common, *args], description="", recipes=recipes)
    run_training(flags, as_plain(flags), on_epoch=on_epoch, placement=here(threads=1))
    return json.loads((out / "training.json").read_text())


def _predictions(out: Path) -> dict[str, list[float]]:
    """The dev scores by file."""
    rows = pq.read_table(out / "predictions" / "part-00000.parquet").to_pylist()
    return {row["file"]: [row[name] for name in DIMENSIONS] for row in rows}


def _annotated(labels: Path, model: Path, out: Path) -> list[dict]:
    args = ["--input", str(labels), "--output", str(out), "--model", str(model)]
    assert annotate([*args, *LOCAL]) == 0
    return rows_of(out)


def test_cnn14_trains_by_its_own_recipe_stops_early_and_annotates(labels, tmp_path):
    config, out = tmp_path / "config.json", tmp_path / "cnn"
    config.write_text(json.dumps(NARROW))
    document = _trained(labels, out, config, "--patience", str(PATIENCE))
    settings, history, network = document["settings"], document["history"], document["network"]
    recipe = {"optimiser": "sgd", "lr": 0.01, "batch_size": 64, "epochs": 60}
    assert {name: settings[name] for name in recipe} == recipe
    assert (network["kind"], network["trained"]) == ("cnn14", network["parameters"])
    assert len(history) == document["outcome"]["kept_epoch"] + PATIENCE < settings["epochs"]
    assert [r["kept"] for r in history[-PATIENCE - 1 :]] == [True] + [False] * PATIENCE
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    scored = {row["file"]: row for row in _annotated(labels, out, tmp_path / "scored")}
    dev = _predictions(out)
    assert len(dev) == 14
    for file, scores in dev.items():
        assert scores == pytest.approx([scored[file][name] for name in DIMENSIONS], abs=1e-5)


def test_fewer_layers_attentive_pooling_and_little_memory(labels, tmp_path):
    config, out = write_toy_config(tmp_path), tmp_path / "small"
    assert TOY["num_hidden_layers"] == 2
    document = _trained(
        labels, out, config, "--layers", "1", "--pooling", "attentive", "--dtype", "bf16",
        "--gradient-checkpointing", "--accumulate", "2", "--epochs", "2", "--lr", "1e-3",
    )  # fmt: skip
    assert document["settings"]["dtype"] == "bf16"
    stored = json.loads((out / "config.json").read_text())
    assert (stored["num_hidden_layers"], stored["pooling_mode"]) == (1, "attentive")
    weights = load_file(out / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}
    assert weights["classifier.dense.weight"].shape == (32, 2 * 32)  # means and deviations
    dev = _predictions(out)
    scorer = Scorer(load_emotion_model(str(out)), dtype="fp32", device="cpu", threads=1)
    found = scorer.score([sf.read(file, dtype="float32")[0] for file in dev]).scores
    np.testing.assert_allclose(list(dev.values()), found, atol=0.05)
    assert np.ptp(found[:, 0]) > 0


@pytest.mark.parametrize(
    ("recipe", "settings", "added"),
    [
        ("lora", {"lora": 8, "lr": 1e-3}, set()),
        ("layer-weights", {"layer_weights": True, "freeze": "backbone"}, {"layer_weights"}),
        # the head for the sex is of the training alone
        ("multi-task", {"category_weight": 0.5, "sex_weight": 0.2},
         {"categories.weight", "categories.bias"}),
    ],
)  # fmt: skip
def test_a_recipe_beyond_the_paper_trains_resumes_and_leaves_a_model_to_annotate_with(
    recipe, settings, added, labels, tmp_path
):
    rows = read_table(labels)
    rows = [{**row, "sex": row["sex"] if number % 4 else ""} for number, row in enumerate(rows)]
    labels = write_table(labels.with_name("some.csv"), rows)
    out, calm = tmp_path / "out", tmp_path / "calm"
    args = ("--recipe", recipe, "--epochs", "2", "--batch-size", "7")

    def stop(record: dict) -> None:
        raise TrainingStopped("enough")

    with pytest.raises(TrainingStopped):
        _trained(labels, out, "tiny", *args, on_epoch=stop)
    document = _trained(labels, out, "tiny", *args)
    expected = _trained(labels, calm, "tiny", *args)
    assert document["settings"].items() >= settings.items()
    network = document["network"]
    if recipe != "multi-task":
        assert network["freeze"] == "backbone"
        assert network["trained"] < network["parameters"]
    losses = [[r["train_loss"] for r in d["history"]] for d in (document, expected)]
    assert losses[0] == losses[1]
    stored, same = (load_file(folder / "model.safetensors") for folder in (out, calm))
    assert all(np.array_equal(value, same[name]) for name, value in stored.items())
    plain = load_emotion_model("random:tiny").model.state_dict()
    assert {*stored} - {*plain} == added
    if "layer_weights" in added:
        assert np.ptp(stored["layer_weights"]) > 0
    scored = {row["file"]: row for row in _annotated(labels, out, tmp_path / "scored")}
    for file, scores in _predictions(out).items():
        assert scores == pytest.approx([scored[file][name] for name in DIMENSIONS], abs=1e-5)


@pytest.mark.slow
def test_a_dimension_without_train_labels_is_null_from_the_model_to_the_report(
    labels, tmp_path, capsys
):
    """And one whose train labels never vary is trained, with a warning."""
    rows = [
        {**row, "file": str(labels.parent / row["file"]), "valence": "0.5"}
        | ({"dominance": ""} if row["split"] == "train" else {})
        for row in read_table(labels)
    ]
    table, out = write_table(tmp_path / "some.csv", rows), tmp_path / "model"
    config = write_toy_config(tmp_path, num_hidden_layers=1)
    _trained(table, out, config, "--epochs", "1", "--batch-size", "7")
    captured = " ".join(capsys.readouterr().out.split())
    assert "dominance is not trained" in captured
    stored = json.loads((out / "config.json").read_text())
    assert stored["trained_dimensions"] == ["arousal", "valence"]
    card = (out / "README.md").read_text()
    for words in ("Scores speech for arousal and valence", "Not trained for dominance"):
        assert words in card
    for text in (captured, card):
        assert "valence: all 14 train labels are 0.5" in text
    for scores in _predictions(out).values():
        assert [score is None for score in scores] == [False, True, False]
    for row in _annotated(table, out, tmp_path / "scored"):
        assert (row["status"], row["dominance"]) == ("ok", None)
        assert np.isfinite([row["arousal"], row["valence"]]).all()

    scored, evaluated, changed = (tmp_path / name for name in ("scored", "evaluated", "changed"))
    capsys.readouterr()
    args = ["--predictions", str(scored), "--labels", str(table), "--output", str(evaluated)]
    assert evaluate([*args, "--bootstrap", "20"]) == 0
    assert "no scores of dominance" in " ".join(capsys.readouterr().out.split())
    found = pq.read_table(evaluated / "metrics").to_pylist()
    assert {row["dimension"] for row in found if row["metric"] == "mae"} == {"arousal", "valence"}
    args = ["--input", str(table), "--output", str(changed), "--model", str(out), "--limit", "3"]
    assert robustness([*args, "--perturbations", "gain", *LOCAL]) == 0
    shares = {
        row["dimension"]: row["value"]
        for row in pq.read_table(changed / "metrics").to_pylist()
        if row["metric"] == "robustness_gain" and not row["group"] and row["model"] == str(out)
    }
    assert shares["dominance"] is None
    assert shares["mean"] == pytest.approx((shares["arousal"] + shares["valence"]) / 2)
    folders = [str(folder) for folder in (out, scored, evaluated, changed)]
    assert report(["--runs", *folders, "--output", str(tmp_path / "page")]) == 0

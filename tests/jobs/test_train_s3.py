"""Training into object storage without dev clips, with every extra of the recipe, and MLflow."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file

from raysers.commands.training import train
from raysers.engine.placement import here
from raysers.models.loading import load_emotion_model
from raysers.training import trainer
from raysers.training.trainer import run_training
from tests.jobs.voices import MEL_FRONT, write_toy_config, write_voices

MODEL_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


@pytest.mark.filterwarnings("ignore")  # mlflow's own, of its folder store
def test_a_model_for_shipping_goes_to_s3_and_to_mlflow(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    table, config = write_voices(tmp_path / "voices"), write_toy_config(tmp_path, **MEL_FRONT)
    monkeypatch.setattr(trainer, "run_training", partial(run_training, placement=here(threads=1)))
    args = (
        "--train", table, "--backbone", f"random:{config}", "--output", f"{s3.uri}/model",
        "--keep", "last", "--save-dtype", "fp16", "--track", "mlflow", "--epochs", 2,
        "--batch-size", 16, "--workers", 1, "--lr", "1e-3", "--ema", 0.9, "--crop-s", 0.25, 0.3,
        "--front", "mel", "--front-steps", 3, "--equaliser-db", 3, "--schedule", "cosine",
        "--warmup", 0.2,
    )  # fmt: skip
    assert train([str(arg) for arg in args]) == 0
    keys = s3.keys()
    names = {key.removeprefix("model/") for key in keys if key.startswith("model/")}
    assert {*MODEL_FILES, "README.md", "training.json", "run.json"} <= names
    assert not any(name.startswith(("state/", "predictions/")) for name in names)
    assert len([name for name in names if name.startswith("tensorboard/")]) == 1
    folder = tmp_path / "fetched"
    folder.mkdir()
    for name in MODEL_FILES:
        (folder / name).write_bytes(s3.get(f"model/{name}"))
    weights = load_file(folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float16)}
    load_emotion_model(str(folder))
    history = json.loads(s3.get("model/training.json"))["history"]
    assert [record["kept"] for record in history] == [True, True]
    _check_mlflow(history)


def _check_mlflow(history) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("raysers")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.001"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [m.step for m in losses] == [1, 2]
    assert [m.value for m in losses] == [record["train_loss"] for record in history]
    files = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "model")}
    assert {f"model/{name}" for name in MODEL_FILES} <= files

"""Models that come with the package: found by name, stored in 16 bits, like any other folder."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from raysers.errors import CheckpointError
from raysers.models import backbones
from raysers.models.loading import build_network, load_emotion_model, save_emotion_model
from raysers.models.scorer import Scorer
from tests.places import SHARED_DATA, needs_shared

NAME = "emodb-tiny"

#: The layout of the shipped model at toy width: a front end of its own, so 3,280 samples at least.
CONFIG = {
    "model_type": "wav2vec2", "conv_dim": [16, 8, 8, 8], "conv_kernel": [400, 3, 5, 5],
    "conv_stride": [160, 2, 1, 2], "feat_extract_norm": "group", "feat_extract_activation": "relu",
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip


def write_model(folder, seed=0):
    torch.manual_seed(seed)
    model = build_network(CONFIG, "test")
    save_emotion_model(model, folder, dtype=torch.float16)
    return model


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A made folder in the place of the shipped one."""
    monkeypatch.setattr(backbones, "ASSETS", tmp_path)
    return write_model(tmp_path / NAME), tmp_path / NAME


def test_weights_are_stored_in_16_bits_and_scored_in_32(made):
    model, folder = made
    stored = load_file(folder / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    loaded = load_emotion_model(NAME)
    state = loaded.model.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32}
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value.half().float()), key


def test_weights_beyond_16_bits_are_refused_instead_of_stored_as_infinity(tmp_path):
    model = build_network(CONFIG, "test")
    with torch.no_grad():
        model.classifier.dense.weight[0, 0] = 1e5
    with pytest.raises(CheckpointError, match=r"classifier\.dense\.weight"):
        save_emotion_model(model, tmp_path / "m", dtype=torch.float16)
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_the_revision_is_the_content_wherever_the_package_lies(made, tmp_path, monkeypatch):
    first = load_emotion_model(NAME)
    assert first.name == NAME
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(made[1], tmp_path / "elsewhere" / NAME)
    monkeypatch.setattr(backbones, "ASSETS", tmp_path / "elsewhere")
    assert load_emotion_model(NAME).revision == first.revision
    write_model(tmp_path / "elsewhere" / NAME, seed=1)
    assert load_emotion_model(NAME).revision != first.revision


def test_the_shipped_folder_is_small_and_complete_and_holds_nothing_that_runs():
    sizes = {path.name: path.stat().st_size for path in (backbones.ASSETS / NAME).iterdir()}
    wanted = {"config.json", "preprocessor_config.json", "model.safetensors", "README.md"}
    assert wanted | {"training.json", "recipe.yaml"} <= sizes.keys()
    assert sizes["model.safetensors"] <= 3_000_000
    kinds = {name.rpartition(".")[2] for name in sizes}
    assert kinds == {"json", "safetensors", "md", "png", "yaml"}
    stored = load_file((backbones.ASSETS / NAME) / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}


@needs_shared
def test_the_shipped_model_hears_arousal_whatever_the_level():
    """On speakers it was trained on, so no measure of quality: it is the model it says it is."""
    scorer = Scorer(load_emotion_model(NAME), dtype="fp32", device="cpu", threads=1)
    arousal = {}
    for letter in "WT":  # EmoDB's letters of anger and sadness
        paths = sorted((SHARED_DATA / "emodb" / "wav").glob(f"*{letter}?.wav"))[:12]
        signals = [soundfile.read(path, dtype="float32")[0] for path in paths]
        scores = np.concatenate([scorer.score([signal]).scores for signal in signals])
        louder = np.concatenate([scorer.score([3 * signal]).scores for signal in signals])
        np.testing.assert_allclose(louder, scores, atol=1e-3)
        arousal[letter] = scores[:, 0]
    assert arousal["W"].mean() - arousal["T"].mean() > 0.25
    assert arousal["W"].min() > arousal["T"].mean()

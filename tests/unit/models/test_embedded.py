"""Models that come with the package: found by name, stored in 16 bits, like any other folder."""

import csv
import json
import shutil

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr
import torch
from safetensors.torch import load_file

from raysers.data.corpora import load_emotion_map
from raysers.errors import CheckpointError
from raysers.models import backbones
from raysers.models.loading import build_network, load_emotion_model, save_emotion_model
from raysers.models.scorer import Scorer
from raysers.types import DIMENSIONS
from tests.places import SHARED_DATA, needs_shared

NAME = "raysers-base"

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
    assert sizes.keys() == {
        "config.json", "preprocessor_config.json", "model.safetensors", "README.md",
        "measured.json", "LICENSE-whisper", backbones.TRAINED_FILES,
    }  # fmt: skip
    assert sizes["model.safetensors"] <= 20_000_000
    stored = load_file((backbones.ASSETS / NAME) / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}


def test_the_card_states_what_was_measured():
    folder = backbones.ASSETS / NAME
    measured, card = json.loads((folder / "measured.json").read_text()), (folder / "README.md")
    text = card.read_text()
    for values in (measured["ccc_shuffled_labels"], *measured["ccc"].values()):
        cells = " | ".join(f"{value:.3f}".replace("0.", ".", 1) for value in values)
        assert f"| {cells} |" in text
    assert min(measured["ccc"]["plain"]) >= 0.66
    assert all(0.87 <= share <= 0.93 for share in measured["coverage_90"])
    covered = " / ".join(f"{value:.3f}".removeprefix("0") for value in measured["coverage_90"])
    assert covered in text


@pytest.fixture(scope="module")
def scorer():
    return Scorer(load_emotion_model(NAME), dtype="fp32", device="cpu", threads=1)


def spoken(corpus):
    """Clips of a corpus and what its manifest says of them."""
    with (SHARED_DATA / corpus / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    return rows, [read_16k(SHARED_DATA / corpus / row["file"]) for row in rows]


def read_16k(path):
    signal, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(signal.mean(1), rate_hz, 16_000).astype(np.float32)


def by_name(scorer, signals):
    found = [scorer.score([signal]) for signal in signals]
    numbers = np.concatenate([np.concatenate((one.scores, one.extras), 1) for one in found])
    names = (*DIMENSIONS, *load_emotion_model(NAME).model.outputs.columns)
    return dict(zip(names, numbers.T, strict=True))


@needs_shared
def test_other_corpora_are_ordered_better_than_by_their_level(scorer):
    """Clips that the model never had, acted in English and German."""
    rows, signals = spoken("open_ser")
    points = load_emotion_map("russell-mehrabian")
    known = [number for number, row in enumerate(rows) if row["emotion"] in points]
    found = by_name(scorer, [signals[number] for number in known])
    arousal = [points[rows[number]["emotion"]][0] for number in known]
    level = [np.log(np.mean(signals[number] ** 2)) for number in known]
    ours, theirs = (np.corrcoef(arousal, one)[0, 1] for one in (found["arousal"], level))
    assert ours > theirs + 0.1
    assert ours > 0.75


@needs_shared
def test_silence_and_the_telephone_hardly_move_the_scores(scorer):
    _, signals = spoken("open_ser")
    signals = signals[::5]
    band = scipy.signal.butter(4, [300, 3400], "band", fs=16_000, output="sos")
    pause = np.zeros(32_000, np.float32)
    changed = {
        "silence": [np.concatenate((pause, signal, pause)) for signal in signals],
        "telephone": [scipy.signal.sosfilt(band, s).astype(np.float32) for s in signals],
        "quiet": [signal * np.float32(0.1) for signal in signals],
    }
    plain = by_name(scorer, signals)
    for name, most in (("silence", 0.02), ("telephone", 0.06), ("quiet", 0.01)):
        found = by_name(scorer, changed[name])
        shift = {d: np.abs(found[d] - plain[d]).mean() for d in DIMENSIONS}
        assert max(shift.values()) < most, (name, shift)


@needs_shared
def test_speech_lies_nearer_to_the_training_speech_than_other_sounds(scorer):
    rng, time_s = np.random.default_rng(0), np.arange(32_000) / 16_000
    sounds = [0.3 * np.sin(2 * np.pi * hz * time_s) for hz in (60, 220, 440, 1000, 3000)]
    sounds += [
        0.1 * sum(np.sin(2 * np.pi * hz * k * time_s) / k for hz in chord for k in (1, 2, 3))
        for chord in ((262, 330, 392), (220, 277, 330), (196, 247, 294))
    ]
    note = np.sin(2 * np.pi * np.outer([262, 294, 330, 392], time_s[:8_000]))
    sounds.append(0.3 * (note * np.exp(-8 * time_s[:8_000])).ravel())
    sounds += [level * rng.standard_normal(32_000) for level in (1e-5, 0.01, 0.1)]
    sounds += [0.1 * np.cumsum(rng.standard_normal(32_000)) / 100, np.zeros(32_000)]
    speech = [
        one for corpus in ("open_ser", "ci") for one in spoken(corpus)[1][::3] if len(one) > 8_000
    ]
    far = by_name(scorer, [np.asarray(sound, np.float32) for sound in sounds])["ood"]
    near = by_name(scorer, speech)["ood"]
    auroc = np.mean(near[:, None] < far) + np.mean(near[:, None] == far) / 2
    assert auroc >= 0.95

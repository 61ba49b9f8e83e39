"""CTC recognition against transformers' own pipeline, one file at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from raysers.errors import CheckpointError, ClipError, ConfigError
from raysers.models.asr import load_asr
from raysers.models.asr_ctc import load_ctc_network
from raysers.models.masking import normalise
from raysers.types import Status
from tests.unit.models.asr_folders import ALPHABET, CTC, clips, plain_texts, write_ctc

SIGNALS = clips([16_000, 23_457, 40_000, 400, 719, 8_000])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder per family, and the stock models' own folders stay as they were written."""
    root = tmp_path_factory.mktemp("ctc")
    for kind in CTC:
        write_ctc(root / kind, kind)
    return {kind: root / kind for kind in CTC}


@pytest.fixture
def folder(tmp_path) -> Path:
    write_ctc(tmp_path / "asr")
    return tmp_path / "asr"


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("kind", CTC)
def test_texts_of_a_batch_are_those_of_single_files(kind, folders):
    recogniser = load_asr(str(folders[kind]), dtype="fp32", threads=1)
    expected = plain_texts(folders[kind], SIGNALS)
    assert len({text[:5] for text in expected}) > 3  # the network tells clips apart
    expected = [" ".join(text.split()) for text in expected]
    assert recogniser.transcribe(SIGNALS) == expected
    assert recogniser.transcribe(SIGNALS[::-1]) == expected[::-1]
    assert [recogniser.transcribe([s])[0] for s in SIGNALS] == expected


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("kind", CTC)
@torch.inference_mode()
def test_logits_of_a_batch_equal_those_of_the_plain_single_file(kind, folders):
    config = json.loads((folders[kind] / "config.json").read_text())
    network = load_ctc_network(folders[kind], config, kind, "r").model
    stock = CTC[kind][1].from_pretrained(folders[kind]).eval()
    lengths = torch.tensor([len(s) for s in SIGNALS])
    padded = torch.zeros(len(SIGNALS), int(lengths.max()))
    for row, signal in zip(padded, SIGNALS, strict=True):
        row[: len(signal)] = torch.from_numpy(signal)
    padded = normalise(padded, lengths)
    ours = network.logits(padded, lengths)
    for signal, row in zip(SIGNALS, ours, strict=True):
        alone = (signal - signal.mean()) / np.sqrt(signal.var() + 1e-7)
        plain = stock(torch.from_numpy(alone)[None]).logits[0]
        # the head is twenty times as loud as a trained one
        torch.testing.assert_close(row[: len(plain)], plain, atol=20 * 1e-5, rtol=0)
    if kind == "wav2vec2-group":  # the padded stock batch is what this is all about
        mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
        batch = stock(padded, attention_mask=mask.long()).logits
        assert (batch[0, :49] - ours[0, :49]).abs().max() > 0.1


def test_short_silent_and_good_clips_keep_their_own_fate(folder):
    recogniser = load_asr(str(folder), dtype="fp32", threads=1)
    short, silent = np.ones(399, np.float32), np.zeros(32_000, np.float32)
    (alone,) = recogniser.transcribe(SIGNALS[:1])
    found = recogniser.transcribe([short, SIGNALS[0], silent, short[:1]])
    assert isinstance(found[0], ClipError)
    assert isinstance(found[3], ClipError)
    assert {found[0].status, found[3].status} == {Status.TOO_SHORT}
    assert found[1:3] == [alone, ""]
    assert recogniser.transcribe([]) == []


def _drop_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith("lm_head")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _shrink_alphabet(folder: Path) -> None:
    fewer = {k: v for k, v in ALPHABET.items() if v < 20}
    (folder / "vocab.json").write_text(json.dumps(fewer))


def _change(folder: Path, file: str, **keys: object) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | keys))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_drop_head, "no lm_head"),
        (_shrink_alphabet, "no token for 12 outputs"),
        (lambda f: (f / "vocab.json").unlink(), "no vocab.json"),
        (lambda f: (f / "vocab.json").write_text('{"eng": {"a": 1}}'), "not one alphabet"),
        (
            lambda f: _change(f, "tokenizer_config.json", tokenizer_class="MyTokenizer"),
            "MyTokenizer",
        ),
        (lambda f: _change(f, "config.json", vocab_size=10**9), "vocab_size"),
        (lambda f: _change(f, "config.json", vocab_size=None), "vocab_size"),
        (lambda f: _change(f, "config.json", hidden_size=96), "do not fit"),
        (lambda f: _change(f, "config.json", model_type="bert"), "model_type is 'bert'"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
    ],
)
def test_a_folder_that_cannot_be_trusted_is_refused_in_one_line(damage, words, folder):
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_asr(str(folder), threads=1)
    assert "\n" not in str(caught.value)


def test_code_beside_the_weights_is_never_run(folder, tmp_path):
    trap = tmp_path / "ran"
    for name in ("modeling_own.py", "tokenization_own.py"):
        (folder / name).write_text(f"open({str(trap)!r}, 'w')\nOwn = None\n")
    _change(folder, "config.json", auto_map={"AutoModelForCTC": "modeling_own.Own"})
    _change(
        folder,
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_own.Own", None]},
    )
    load_asr(str(folder), threads=1).transcribe(SIGNALS[:1])
    assert not trap.exists()


@pytest.mark.parametrize(
    "name",
    [
        "moonshin",
        "w2v2-b",
        "random:w2v2-b",
        "./nowhere",
        "/nowhere/at/all",
        "a b",
        "",
        "raysers-base",
    ],
)
def test_a_name_that_is_no_recogniser_is_refused_with_what_to_give(name):
    with pytest.raises(ConfigError, match=r"--asr.*moonshine") as caught:
        load_asr(name)
    assert "\n" not in str(caught.value)

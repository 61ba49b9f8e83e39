"""Recognition against transformers' own pipeline, one file at a time, greedy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from raysers.errors import CheckpointError, ClipError, ConfigError
from raysers.models.asr import CtcNetwork, load_asr
from raysers.models.speech import speech_windows
from raysers.types import Status
from tests.unit.models.asr_folders import (
    ALPHABET,
    BATCHED,
    CTC,
    clips,
    plain_texts,
    write_ctc,
    write_moonshine,
    write_whisper,
)

SIGNALS = clips([16_000, 23_457, 40_000, 1_719, 8_000])
WRITERS = {
    **{kind: lambda folder, kind=kind: write_ctc(folder, kind) for kind in CTC},
    "whisper": write_whisper,
    "whisper-multilingual": lambda folder: write_whisper(folder, multilingual=True),
    "moonshine": write_moonshine,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Folders that stay as they were written."""
    root = tmp_path_factory.mktemp("asr")
    write_ctc(root / "ctc")
    write_whisper(root / "whisper")
    return root


@pytest.fixture(scope="module")
def whisper(folders):
    return load_asr(str(folders / "whisper"), dtype="fp32", threads=1)


def heard(recogniser, signals: list[np.ndarray]) -> list[str | ClipError]:
    """The texts alone."""
    rows = recogniser.transcribe(signals)
    return [row if isinstance(row, ClipError) else row["text"] for row in rows]


def texts_of(folder: Path, signals: list[np.ndarray]) -> list[str | ClipError]:
    return heard(load_asr(str(folder), dtype="fp32", threads=1), signals)


def change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("kind", WRITERS)
def test_texts_of_a_batch_are_those_of_single_files(kind, tmp_path):
    WRITERS[kind](tmp_path)
    expected = plain_texts(tmp_path, SIGNALS)
    assert len(set(expected)) > 3  # the network tells clips apart
    recogniser = load_asr(str(tmp_path), dtype="fp32", threads=1)
    assert heard(recogniser, SIGNALS) == expected
    assert heard(recogniser, SIGNALS[:0:-1]) == expected[:0:-1]
    assert heard(recogniser, SIGNALS[2:3]) == expected[2:3]


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("kind", BATCHED)
@torch.inference_mode()
def test_logits_of_a_batch_equal_those_of_the_plain_single_file(kind, tmp_path):
    write_ctc(tmp_path, kind)
    stock = transformers.AutoModelForCTC.from_pretrained(tmp_path).eval()
    network = CtcNetwork(stock.config).eval()
    network.load_state_dict(stock.state_dict())
    signals = [torch.from_numpy((s - s.mean()) / s.std()) for s in SIGNALS]
    padded = torch.nn.utils.rnn.pad_sequence(signals, True)
    ours = network.logits(padded, torch.tensor([len(s) for s in signals]))
    for signal, row in zip(signals, ours, strict=True):
        plain = stock(signal[None]).logits[0]
        # the head is twenty times as loud as a trained one
        torch.testing.assert_close(row[: len(plain)], plain, atol=20 * 1e-5, rtol=0)


@pytest.mark.parametrize("write", [write_ctc, write_whisper])
def test_a_processor_in_one_file_is_read(write, folders, tmp_path):
    write(tmp_path, together=True)
    assert not (tmp_path / "preprocessor_config.json").exists()
    parts = folders / ("ctc" if write is write_ctc else "whisper")
    assert texts_of(tmp_path, SIGNALS[:2]) == texts_of(parts, SIGNALS[:2])


def test_a_long_clip_is_the_joined_text_of_its_pieces_whatever_is_beside_it(folders, whisper):
    (long,) = clips([40 * 16_000], seed=4)
    pieces = speech_windows(long, 30.0)
    assert len(pieces) == 2
    expected = " ".join(plain_texts(folders / "whisper", pieces))
    assert heard(whisper, [SIGNALS[0], long, SIGNALS[1]])[1] == expected


def test_words_are_never_translated(tmp_path):
    write_whisper(tmp_path, multilingual=True)
    file = tmp_path / "generation_config.json"
    assert json.loads(file.read_text())["task_to_id"]
    said = texts_of(tmp_path, SIGNALS[:3])
    for task in ("translate", None):
        change(file, task=task)
        assert texts_of(tmp_path, SIGNALS[:3]) == said


def test_the_language_of_each_clip_is_detected_or_given(tmp_path):
    """Detected as the stock network does it, clip by clip, and then transcribed in."""
    write_whisper(tmp_path, multilingual=True)
    stock = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path)
    names = {n: t.strip("<|>") for t, n in stock.generation_config.lang_to_id.items()}

    def rows(language: str) -> list[dict]:
        how = {"dtype": "fp32", "threads": 1, "language": language}
        return load_asr(str(tmp_path), **how).transcribe(SIGNALS)

    found = rows("auto")
    for signal, row in zip(SIGNALS, found, strict=True):
        features = extractor(signal, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.inference_mode():
            assert row["language"] == names[stock.detect_language(features).item()]
    given = {language: rows(language) for language in ("en", "de")}
    for language, of in given.items():
        assert {row["language"] for row in of} == {language}
    assert [row["text"] for row in found] == [
        given[row["language"]][i]["text"] for i, row in enumerate(found)
    ]
    with pytest.raises(ConfigError, match="--language fr: give auto, or one of de, en"):
        rows("fr")


@pytest.mark.parametrize("name", ["ctc", "whisper", "moonshine"])
def test_a_model_of_one_language_has_none_to_choose(name, folders):
    place = name if name == "moonshine" else str(folders / name)
    for language in ("auto", "de"):
        with pytest.raises(ConfigError, match="--language"):
            load_asr(place, language=language)
    if name != "ctc":
        with pytest.raises(ConfigError, match="--timestamps"):
            load_asr(place, timestamps=True)


def test_words_of_ctc_have_the_times_of_the_stock_pipeline(folders):
    pipeline = transformers.pipeline("automatic-speech-recognition", str(folders / "ctc"))
    recogniser = load_asr(str(folders / "ctc"), dtype="fp32", threads=1, timestamps=True)
    for signal, row in zip(SIGNALS, recogniser.transcribe(SIGNALS), strict=True):
        raw = {"raw": signal, "sampling_rate": 16_000}
        expected = pipeline(raw, return_timestamps="word")["chunks"]
        assert [word["word"] for word in row["words"]] == [word["text"] for word in expected]
        times = [(word["start_s"], word["end_s"]) for word in row["words"]]
        assert times == [pytest.approx(word["timestamp"], abs=1e-6) for word in expected]
        assert row["text"] == " ".join(word["word"] for word in row["words"])


def test_words_of_whisper_have_the_times_of_its_tokens(tmp_path):
    """As the stock network aligns them, one clip at a time; the toy spells without spaces."""
    write_whisper(tmp_path)
    change(tmp_path / "generation_config.json", alignment_heads=[[0, 0], [1, 1]])
    stock = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path)
    recogniser = load_asr(str(tmp_path), dtype="fp32", threads=1, timestamps=True)
    for signal, row in zip(SIGNALS, recogniser.transcribe(SIGNALS), strict=True):
        how = {"return_tensors": "pt", "return_attention_mask": True}
        features = extractor(signal, sampling_rate=16_000, **how)
        with torch.inference_mode():
            found = stock.generate(**features, return_token_timestamps=True, num_beams=1)
        (word,) = row["words"]
        assert word["word"] == row["text"]
        assert 0 <= word["start_s"] <= word["end_s"] <= 30
        kept = [t for t in found["sequences"][0].tolist() if t < 94]
        times = found["token_timestamps"][0].tolist()
        assert len(kept) == len(row["text"])
        assert word["end_s"] == pytest.approx(times[len(found["sequences"][0]) - 1], abs=0.05)
    (long,) = clips([40 * 16_000], seed=4)
    first, second = speech_windows(long, 30.0)
    whole, *parts = (row["words"] for row in recogniser.transcribe([long, first, second]))
    begins_s = (0, len(first) / 16_000)
    assert whole == [
        {"word": w["word"], "start_s": at + w["start_s"], "end_s": at + w["end_s"]}
        for at, words in zip(begins_s, parts, strict=True)
        for w in words
    ]


@pytest.mark.parametrize("kind", ["ctc", "whisper"])
def test_short_silent_and_good_clips_keep_their_own_fate(kind, folders):
    recogniser = load_asr(str(folders / kind), dtype="fp32", threads=1)
    short, silent = np.ones(399, np.float32), np.zeros(32_000, np.float32)
    (alone,) = heard(recogniser, SIGNALS[:1])
    found = heard(recogniser, [short, silent, SIGNALS[0], short[:1] * 0, silent[:0]])
    assert found[1:3] == ["", alone]
    for fate in (found[0], found[3], found[4]):
        assert isinstance(fate, ClipError)
        assert fate.status == Status.TOO_SHORT
    assert heard(recogniser, []) == []


def _change_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    kept = load_file(folder / "model.safetensors") | {
        key.replace("__", "."): tensor for key, tensor in tensors.items()
    }
    kept = {key: tensor for key, tensor in kept.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: _change_weights(f, lm_head__weight=None), "missing: lm_head.weight"),
        (lambda f: _change_weights(f, lora__down=torch.ones(2)), "no place for.*: lora.down"),
        (lambda f: _change_weights(f, lm_head__bias=torch.full((32,), torch.nan)), "NaN.*lm_head"),
        (
            lambda f: _change_weights(f, lm_head__bias=torch.ones(32, dtype=torch.int8)),
            "not plain.*lm_head.bias .torch.int8",
        ),
        (
            lambda f: (f / "vocab.json").write_text(
                json.dumps({k: v for k, v in ALPHABET.items() if v < 20})
            ),
            "no token for 12 outputs",
        ),
        (lambda f: (f / "vocab.json").unlink(), "no token for|tokenizer"),
        (lambda f: change(f / "config.json", vocab_size=10**9), "vocab_size|parameters"),
        (lambda f: change(f / "config.json", num_hidden_layers=40), "missing"),
        (lambda f: change(f / "config.json", model_type="none"), "model_type is 'none'"),
        (lambda f: change(f / "config.json", quantization_config={}), "quantised"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        ("generation_config.json", "generation_config.json"),
        ({"sampling_rate": 8000}, "sampling_rate is '8000'"),
        ({"chunk_length": 15}, "chunk_length is '15'"),
    ],
)
def test_a_folder_that_cannot_be_trusted_is_refused_in_one_line(damage, words, tmp_path):
    (write_ctc if callable(damage) else write_whisper)(tmp_path)
    if callable(damage):
        damage(tmp_path)
    elif isinstance(damage, dict):
        change(tmp_path / "preprocessor_config.json", **damage)
    else:
        (tmp_path / damage).unlink()
    with pytest.raises(CheckpointError, match=words) as caught:
        load_asr(str(tmp_path), threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["moonshin", "w2v2-b", "random:w2v2-b", "./nowhere", "a b", "", "raysers-base"]
)
def test_a_name_that_is_no_recogniser_is_refused_with_what_to_give(name):
    with pytest.raises(ConfigError, match=r"--asr.*moonshine") as caught:
        load_asr(name)
    assert "\n" not in str(caught.value)

"""Whisper recognition against transformers' own pipeline, one file at a time, greedy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from raysers.audio.level import quiet_pieces
from raysers.errors import CheckpointError, ClipError
from raysers.models.asr import load_asr
from raysers.types import Status
from tests.unit.models.asr_folders import clips, plain_texts, write_whisper

SIGNALS = clips([16_000, 23_457, 40_000, 719, 8_000])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("whisper")
    write_whisper(place)
    return place


@pytest.fixture(scope="module")
def recogniser(folder):
    return load_asr(str(folder), dtype="fp32", threads=1)


def test_texts_of_a_batch_are_those_of_single_files(folder, recogniser):
    expected = plain_texts(folder, SIGNALS)
    assert len(set(expected)) == len(SIGNALS)  # the network tells clips apart
    assert recogniser.transcribe(SIGNALS) == expected
    assert recogniser.transcribe(SIGNALS[2:3]) == expected[2:3]


def test_each_clip_of_a_batch_has_the_language_it_has_alone(tmp_path):
    write_whisper(tmp_path, multilingual=True)
    several = SIGNALS[:3]
    expected = plain_texts(tmp_path, several)
    assert load_asr(str(tmp_path), dtype="fp32", threads=1).transcribe(several) == expected


def test_a_long_clip_is_the_joined_text_of_its_pieces_whatever_is_beside_it(folder, recogniser):
    (long,) = clips([40 * 16_000], seed=4)
    pieces = quiet_pieces(long, longest_s=30.0, search_s=8.0)
    assert len(pieces) == 2
    expected = " ".join(plain_texts(folder, pieces))
    assert recogniser.transcribe([SIGNALS[0], long, SIGNALS[1]])[1] == expected


def test_of_a_long_clip_silent_windows_are_not_heard(folder, recogniser):
    (sound,) = clips([15 * 16_000], seed=5)
    tape = np.concatenate([np.zeros(45 * 16_000, np.float32), sound])
    pieces = quiet_pieces(tape, longest_s=30.0, search_s=8.0)
    loud = [piece for piece in pieces if piece.any()]
    assert 0 < len(loud) < len(pieces)
    expected = " ".join(plain_texts(folder, loud))
    assert recogniser.transcribe([tape]) == [expected]


def test_words_are_never_translated(tmp_path):
    write_whisper(tmp_path, multilingual=True)
    file = tmp_path / "generation_config.json"
    rules = json.loads(file.read_text())
    assert rules["task_to_id"]
    said = load_asr(str(tmp_path), dtype="fp32", threads=1).transcribe(SIGNALS[:3])
    for other in ({"task": "translate"}, {"task": None}):
        file.write_text(json.dumps(rules | other))
        assert load_asr(str(tmp_path), dtype="fp32", threads=1).transcribe(SIGNALS[:3]) == said


def test_short_and_silent_clips_keep_their_own_fate(recogniser):
    short, silent = np.ones(399, np.float32), np.zeros(32_000, np.float32)
    (alone,) = recogniser.transcribe(SIGNALS[:1])
    found = recogniser.transcribe([short, silent, SIGNALS[0], short[:1] * 0, silent[:0]])
    assert found[1:3] == ["", alone]
    for fate in (found[0], found[3], found[4]):
        assert isinstance(fate, ClipError)
        assert fate.status == Status.TOO_SHORT


@pytest.mark.parametrize(
    ("file", "keys", "words"),
    [
        ("generation_config.json", None, "generation_config.json"),
        ("preprocessor_config.json", None, "preprocessor_config.json"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate is '8000'"),
        ("preprocessor_config.json", {"feature_size": 10**9}, "feature_size"),
        ("config.json", {"decoder_layers": 10**6}, "decoder_layers"),
        ("config.json", {"d_model": 64}, "do not fit"),
        ("config.json", {"encoder_layers": 3}, "missing"),
        ("config.json", {"encoder_attention_heads": 5}, "no network can be built"),
    ],
)
def test_a_folder_that_cannot_be_trusted_is_refused_in_one_line(file, keys, words, tmp_path):
    write_whisper(tmp_path)
    if keys is None:
        (tmp_path / file).unlink()
    else:
        content = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps(content | keys))
    with pytest.raises(CheckpointError, match=words) as caught:
        load_asr(str(tmp_path), threads=1)
    assert "\n" not in str(caught.value)

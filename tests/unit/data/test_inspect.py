"""Probing one bad file of many: what it costs, what becomes of it, and of what comes before it."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from raysers.audio import decode
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sources import object_rows
from raysers.errors import ConfigError
from raysers.io.uris import ObjectInfo
from raysers.schemas import MANIFEST
from tests.s3 import Bucket, Faults
from tests.unit.audio.sounds import FORMATS, encode, noise
from tests.unit.audio.test_claims import with_granule
from tests.unit.audio.test_faults import mutated
from tests.unit.data.test_manifest import S, index, spans, truncated, wav

WINDOWS = Segmenting(kind="window", window_s=0.2, hop_s=0.2)
VAD = Segmenting(kind="vad")


@pytest.mark.parametrize(("fmt", "subtype", "rate_hz"), FORMATS)
def test_damaged_headers_become_rows(tmp_path: Path, fmt: str, subtype: str, rate_hz: int) -> None:
    dice = random.Random(f"{fmt} {subtype} rows")
    data = encode(noise(0.5, rate_hz), rate_hz, fmt, subtype)
    names = [tmp_path / f"{i}.wav" for i in range(40)]
    for name in names:
        name.write_bytes(mutated(data, dice))
    table = index(*names, segmenting=WINDOWS)
    assert table.schema.equals(MANIFEST)
    assert set(table["file"].to_pylist()) == set(map(str, names))
    assert not any("Error" in error.split(":")[0] for error in table["error"].to_pylist())


def test_header_numbers_beyond_any_clock_become_rows(tmp_path: Path) -> None:
    data = bytearray(encode(noise(0.5, 48000), 48000, "RF64", "PCM_16"))
    at = data.index(b"ds64") + 8
    data[at : at + 24] = struct.pack("<QQQ", 2**62 + 100, 2**62, 2**61)
    (tmp_path / "a.wav").write_bytes(data)
    vorbis = encode(noise(0.5, 48000), 48000, "OGG", "VORBIS")
    (tmp_path / "b.ogg").write_bytes(with_granule(vorbis, 2**58))
    table = index(tmp_path, segmenting=WINDOWS)
    assert table["status"].to_pylist()[-2:] == ["truncated", "truncated"]
    assert "the header promises" in table["error"].to_pylist()[-2]
    assert "Overflow" not in "".join(table["error"].to_pylist())


def loud(blocks: Iterable[np.ndarray]) -> list[tuple[int, int]]:
    """Stands in for the detector: all that is heard, in one stretch."""
    got = list(blocks)
    assert all(np.isfinite(block).all() for block in got)
    heard = sum(map(len, got))
    return [(0, heard * 62_500)] if heard else []


def test_speech_before_a_cut_is_kept_and_the_rest_counted(tmp_path: Path) -> None:
    truncated(tmp_path / "a.wav", 10, 4)
    flac = encode(noise(60, 16_000), 16_000, "FLAC", "PCM_16")
    (tmp_path / "b.flac").write_bytes(flac[: len(flac) // 2])
    table = index(tmp_path, segmenting=VAD, find_speech=loud)
    first, tail, *compressed = spans(table)
    assert (first, tail) == ((0, 4 * S, "ok"), (4 * S, 10 * S, "truncated"))
    (start, cut, ok), (lost, end, fate) = compressed
    assert (start, end, ok, fate) == (0, 60 * S, "ok", "truncated")
    assert cut == lost
    # libsndfile gives nothing of the 16 seconds in which the data end
    assert 14 * S <= (cut or 0) <= 32 * S


def test_speech_around_nan_is_found(tmp_path: Path) -> None:
    signal = noise(3, 16_000)
    signal[20_000] = np.nan
    (tmp_path / "a.wav").write_bytes(encode(signal, 16_000, "WAV", "FLOAT"))
    assert spans(index(tmp_path, segmenting=VAD, find_speech=loud)) == [(0, 3 * S, "ok")]


def test_detecting_decodes_one_file_at_a_time(tmp_path: Path) -> None:
    names = [wav(tmp_path / f"{i}.wav") for i in range(6)]
    threads = set()

    def find_speech(blocks: Iterator[np.ndarray]) -> list[tuple[int, int]]:
        threads.add(threading.get_ident())
        return loud(blocks)

    index(*names, segmenting=VAD, find_speech=find_speech)
    assert len(threads) == 1


def test_a_surprise_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wav(tmp_path / "bad.wav")
    wav(tmp_path / "good.wav")
    real = decode.probe

    def surprising(source: str, *, name: str) -> object:
        if "bad" in name:
            raise ZeroDivisionError("not foreseen")
        return real(source, name=name)

    monkeypatch.setattr(decode, "probe", surprising)
    bad, good = index(tmp_path).to_pylist()
    assert (bad["status"], bad["error"]) == ("unreadable", "ZeroDivisionError: not foreseen")
    assert good["status"] == "ok"

    def unset(blocks: object) -> list[tuple[int, int]]:
        raise ConfigError("install it")

    with pytest.raises(ConfigError, match="install it"):
        index(tmp_path, segmenting=VAD, find_speech=unset)


@pytest.mark.parametrize("name", ["pipe.wav", "a\0b.wav", "none.wav"])
def test_odd_local_names_are_rows_and_do_not_wait(tmp_path: Path, name: str) -> None:
    import os

    if "pipe" in name:
        os.mkfifo(tmp_path / name)
    for etag in ("", "listed"):
        batch = object_rows([ObjectInfo(f"{tmp_path}/{name}", 10, etag)])
        (row,) = probe_batch(batch, Segmenting()).to_pylist()
        assert row["status"] in ("missing", "unreadable")


def test_probing_fetches_little_of_an_object(s3: Bucket, s3_faults: Faults) -> None:
    data = encode(noise(62, 16_000), 16_000, "WAV", "PCM_16")
    assert 1_900_000 < len(data) < 2_100_000
    uri = s3.put("a.wav", data)
    assert spans(index(uri)) == [(0, 62 * S, "ok")]
    asked = [
        span[6:].split("-") for _, target, span in s3_faults.seen if span and "a.wav" in target
    ]
    assert sum(int(last) - int(first) + 1 for first, last in asked) <= 2**16 + 1

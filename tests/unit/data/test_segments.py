"""From files to clips: whole, cut, damaged, in tables and tars, locally and on S3."""

from __future__ import annotations

import math
import os
import struct
import threading
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from raysers.audio import decode
from raysers.data.manifest import clips_of, sort_manifest
from raysers.data.segments import Segmenting, probe_batch, windows
from raysers.data.sources import list_inputs, object_rows
from raysers.errors import ClipError, ConfigError, CredentialsError
from raysers.io import storage
from raysers.io.objects import ObjectInfo
from raysers.schemas import MANIFEST
from raysers.types import Status, clip_id
from tests.places import SHARED_DATA, needs_shared
from tests.s3 import Bucket, Faults
from tests.unit.audio.sounds import encode, noise
from tests.unit.audio.test_claims import with_granule
from tests.unit.data.test_tar import build

S = 10**9
VAD = Segmenting(kind="vad")


def wav(path: Path, seconds: float = 1.0, rate_hz: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, (round(seconds * rate_hz), channels))
    soundfile.write(path, samples, rate_hz)
    return path


def truncated(path: Path, seconds: float, kept_s: float) -> Path:
    whole = wav(path, seconds).read_bytes()
    path.write_bytes(whole[: 44 + round(kept_s * 16_000) * 2])
    return path


def index(*uris: object, segmenting: Segmenting | None = None, **options: object) -> pa.Table:
    batches = list_inputs([str(uri) for uri in uris])
    tables = [probe_batch(b, segmenting or Segmenting(), **options) for b in batches]  # type: ignore[arg-type]
    return sort_manifest(pa.concat_tables(tables, promote_options="default"))


def spans(table: pa.Table) -> list[tuple[int, int | None, str]]:
    start, end = (table[n].cast(pa.int64()).to_pylist() for n in ("start", "end"))
    return list(zip(start, end, table["status"].to_pylist(), strict=True))


def test_whole_files_and_windows(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 2.6, 44_100, 2)
    wav(tmp_path / "b.flac", 0.25)
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    table = index(tmp_path)
    assert table.schema.equals(MANIFEST)
    assert spans(table) == [(0, 2_600_000_000, "ok"), (0, S // 4, "ok"), (0, None, "missing")]
    first = table.slice(0, 1).to_pylist()[0]
    assert first["duration_s"] == 2.6
    assert (first["sample_rate_hz"], first["channels"]) == (44_100, 2)
    assert first["codec"].startswith("WAV")
    assert first["num_bytes"] == (tmp_path / "a.wav").stat().st_size
    assert first["clip_id"] == clip_id(f"{tmp_path}/a.wav", 0, 2_600_000_000)
    assert first["error"] == ""
    cut = Segmenting(kind="window", window_s=1, hop_s=1, min_s=0.5)
    table = index(tmp_path / "a.wav", segmenting=cut)
    assert spans(table) == [(0, S, "ok"), (S, 2 * S, "ok"), (2 * S, 2_600_000_000, "ok")]
    assert table["duration_s"].to_pylist() == pytest.approx([1, 1, 0.6])
    assert len(set(table["clip_id"].to_pylist())) == 3
    for bad in ({"kind": "words"}, {"window_s": 0}, {"hop_s": -1.0}, {"min_s": -1.0}):
        with pytest.raises(ConfigError, match=r"--segment|--window-s"):
            Segmenting(**bad)  # type: ignore[arg-type]


def test_windows_do_not_have_the_transcript_of_the_whole_recording(tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    names = [wav(tmp_path / f"{seconds}.wav", seconds).name for seconds in (1, 3)]
    rows = "".join(f"{name},hello,a\n" for name in names)
    table.write_text(f"file,transcript,speaker\n{rows}")
    found = index(table, segmenting=Segmenting(kind="window", window_s=2, hop_s=2))
    assert found["transcript"].to_pylist() == ["hello", None, None]
    assert found["speaker"].to_pylist() == ["a"] * 3


def test_truncated_file_whole_and_in_windows(tmp_path: Path) -> None:
    truncated(tmp_path / "a.wav", 10, 3.5)
    assert spans(index(tmp_path)) == [(0, 3_500_000_000, "truncated")]
    table = index(tmp_path, segmenting=Segmenting(kind="window", window_s=2, hop_s=2, min_s=0.5))
    assert spans(table) == [
        (0, 2 * S, "ok"),
        (2 * S, 3_500_000_000, "ok"),
        (3_500_000_000, 10 * S, "truncated"),
    ]
    assert "promises 10.000 s" in table["error"][2].as_py()


def loud(blocks: Iterable[np.ndarray]) -> list[tuple[int, int]]:
    """Stands in for the detector: everything, in one stretch."""
    got = list(blocks)
    assert all(np.isfinite(block).all() for block in got)
    samples = sum(map(len, got))
    return [(0, samples * 62_500)] if samples else []


def test_speech_segments(tmp_path: Path) -> None:
    wav(tmp_path / "quiet.wav", 1)
    wav(tmp_path / "speech.wav", 3)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    threads = set()

    def find_speech(blocks: Iterable[np.ndarray]) -> list[tuple[int, int]]:
        threads.add(threading.get_ident())
        return [] if sum(map(len, blocks)) == 16_000 else [(S // 2, S), (2 * S, 3 * S)]

    table = index(tmp_path, segmenting=VAD, find_speech=find_speech)
    assert spans(table) == [
        (0, None, "unreadable"),
        (0, S, "empty"),
        (S // 2, S, "ok"),
        (2 * S, 3 * S, "ok"),
    ]
    assert table["error"][1].as_py() == "no speech found"
    assert len(threads) == 1  # one file is decoded at a time
    with pytest.raises(ValueError, match="find_speech"):
        index(tmp_path, segmenting=VAD)

    def fails(blocks: object) -> list[tuple[int, int]]:
        raise ClipError(Status.NOT_FINITE, "NaN")

    table = index(tmp_path / "quiet.wav", segmenting=VAD, find_speech=fails)
    assert spans(table) == [(0, S, "not_finite")]
    signal = noise(3, 16_000)
    signal[20_000] = np.nan
    (tmp_path / "nan.wav").write_bytes(encode(signal, 16_000, "WAV", "FLOAT"))
    found = index(tmp_path / "nan.wav", segmenting=VAD, find_speech=loud)
    assert spans(found) == [(0, 3 * S, "ok")]


def test_speech_before_a_cut_is_kept_and_the_rest_counted(tmp_path: Path) -> None:
    truncated(tmp_path / "a.wav", 10, 4)
    flac = encode(noise(60, 16_000), 16_000, "FLAC", "PCM_16")
    (tmp_path / "b.flac").write_bytes(flac[: len(flac) // 2])
    first, tail, *compressed = spans(index(tmp_path, segmenting=VAD, find_speech=loud))
    assert (first, tail) == ((0, 4 * S, "ok"), (4 * S, 10 * S, "truncated"))
    (start, cut, ok), (lost, end, status) = compressed
    assert (start, end, ok, status) == (0, 60 * S, "ok", "truncated")
    assert cut == lost
    # libsndfile gives nothing of the 16 seconds in which the data end
    assert 14 * S <= (cut or 0) <= 32 * S


#: A row of a table, and the clip of a file of 2 s (`cut`: of 4 s, 2 s of which are lost).
GIVEN = {
    "a.wav,0.5,1.5,03,.5": (S // 2, 3 * S // 2, "ok"),
    "a.wav,1,,03,": (S, 2 * S, "ok"),  # as the file's second window: one clip
    "a.wav,0,2.0005,03,": (0, 2_000_500_000, "ok"),  # half a millisecond past the end is rounding
    "a.wav,1.5,2.5,03,": (3 * S // 2, 5 * S // 2, "truncated"),
    "a.wav,2,3,03,": (2 * S, 3 * S, "empty"),
    "a.wav,7,,03,": (7 * S, 7 * S, "empty"),
    "a.wav,,,08,": (0, S, "ok"),  # the row without a segment, in windows
    "cut.wav,0,1,08,": (0, S, "ok"),
    "cut.wav,1,3,08,": (S, 3 * S, "truncated"),
    "cut.wav,1,,08,": (S, 2 * S, "truncated"),
    "gone.wav,1,2,08,": (S, 2 * S, "missing"),
}


def test_segments_of_a_table_keep_their_identity(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 2)
    truncated(tmp_path / "cut.wav", 4, 2)
    (tmp_path / "t.csv").write_text("\n".join(["file,start,end,speaker,arousal", *GIVEN]))
    table = index(tmp_path / "t.csv", segmenting=Segmenting(kind="window", window_s=1, hop_s=1))
    assert sorted(spans(table), key=str) == sorted(GIVEN.values(), key=str)
    by_end = table.filter(pc.equal(table["status"], "ok"))
    assert by_end["duration_s"].to_pylist() == pytest.approx([1, 2, 1, 1, 1])
    assert set(table["speaker"].to_pylist()) == {"03", "08"}
    assert table["arousal"].to_pylist()[2] == 0.5
    assert len(set(table["clip_id"].to_pylist())) == len(GIVEN)
    # a table does not know sizes and versions; the manifest does
    assert table["etag"][0].as_py() == storage.stat(str(tmp_path / "a.wav")).etag


def test_tar_members_and_their_refusals(tmp_path: Path) -> None:
    good = wav(tmp_path / "x.wav").read_bytes()
    members = [("ok.wav", good), ("../evil.wav", good), ("bad.wav", b"no"), ("cut.wav", good)]
    (tmp_path / "s.tar").write_bytes(build(members)[: -len(good) // 2 - 10240])
    table = index(tmp_path / "s.tar")
    found = dict(zip(table["file"].to_pylist(), table["status"].to_pylist(), strict=True))
    assert found == {
        f"{tmp_path}/s.tar#ok.wav": "ok",
        f"{tmp_path}/s.tar#../evil.wav": "unsupported",
        f"{tmp_path}/s.tar#bad.wav": "unreadable",
        f"{tmp_path}/s.tar#cut.wav": "truncated",
        f"{tmp_path}/s.tar": "truncated",
    }
    (clip,) = (c for c in clips_of(table) if c.status == Status.OK)
    assert clip.byte_size == clip.num_bytes == len(good)
    source = storage.open_source(clip.file, byte_offset=clip.byte_offset, byte_size=clip.byte_size)
    assert not isinstance(source, str)
    assert soundfile.info(source).frames == 16_000


@needs_shared
def test_the_same_archive_in_a_folder_a_tar_and_on_s3_gives_the_same_headers(
    s3: Bucket, tmp_path: Path
) -> None:
    odd = sorted(p for p in (SHARED_DATA / "ci" / "odd").iterdir() if p.suffix != ".csv")
    files = [(p.name, p.read_bytes()) for p in odd]
    (tmp_path / "odd.tar").write_bytes(build(files))
    for name, data in files:
        s3.put(f"odd/{name}", data)
    columns = ["end", "duration_s", "sample_rate_hz", "channels", "codec", "num_bytes", "status"]
    first, *others = [
        index(SHARED_DATA / "ci" / "odd"),
        index(tmp_path / "odd.tar"),
        index(f"{s3.uri}/odd"),
        index(s3.put("odd.tar", (tmp_path / "odd.tar").read_bytes())),
    ]
    assert len(first) == len(odd)
    assert len(set(first["status"].to_pylist())) >= 5
    for table in others:
        assert table.select(columns).equals(first.select(columns))


# damage -----------------------------------------------------------------------------------------


def test_header_numbers_beyond_any_clock_become_rows(tmp_path: Path) -> None:
    data = bytearray(encode(noise(0.5, 48000), 48000, "RF64", "PCM_16"))
    at = data.index(b"ds64") + 8
    data[at : at + 24] = struct.pack("<QQQ", 2**62 + 100, 2**62, 2**61)
    (tmp_path / "a.wav").write_bytes(data)
    vorbis = encode(noise(0.5, 48000), 48000, "OGG", "VORBIS")
    (tmp_path / "b.ogg").write_bytes(with_granule(vorbis, 2**58))
    table = index(tmp_path, segmenting=Segmenting(kind="window", window_s=0.2, hop_s=0.2))
    assert table["status"].to_pylist()[-2:] == ["truncated", "truncated"]
    assert "the header promises" in table["error"].to_pylist()[-2]
    assert "Overflow" not in "".join(table["error"].to_pylist())


def test_a_surprise_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wav(tmp_path / "bad.wav")
    wav(tmp_path / "good.wav")
    real = decode.probe

    def surprising(source: str, *, name: str, stream: str) -> object:
        if "bad" in name:
            raise ZeroDivisionError("not foreseen")
        return real(source, name=name, stream=stream)

    monkeypatch.setattr(decode, "probe", surprising)
    bad, good = index(tmp_path).to_pylist()
    assert (bad["status"], bad["error"]) == ("unreadable", "ZeroDivisionError: not foreseen")
    assert good["status"] == "ok"

    def unset(blocks: object) -> list[tuple[int, int]]:
        raise ConfigError("install it")

    with pytest.raises(ConfigError, match="install it"):
        index(tmp_path, segmenting=VAD, find_speech=unset)


def test_odd_local_names_are_rows_and_do_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for name in ("pipe.wav", "a\0b.wav", "none.wav"):
        for etag in ("", "listed"):
            (batch,) = object_rows([ObjectInfo(f"{tmp_path}/{name}", 10, etag)])
            (row,) = probe_batch(batch, Segmenting()).to_pylist()
            assert row["status"] in ("missing", "unreadable")


# S3 ---------------------------------------------------------------------------------------------


def test_each_storage_fault_has_its_status(s3: Bucket, s3_faults: Faults, tmp_path: Path) -> None:
    data = wav(tmp_path / "x.wav").read_bytes()
    expected = {
        "good": (0, S, "ok"), "gone": (0, None, "missing"), "shut": (0, None, "forbidden"),
        "slow": (0, S, "ok"), "resets": (0, S, "ok"),
    }  # fmt: skip
    for name in expected:
        s3.put(f"in/{name}.wav", data)
    s3_faults.add("gone.wav", 404, code="NoSuchKey")
    s3_faults.add("shut.wav", 403, code="AccessDenied")
    s3_faults.add("slow.wav", 503, code="SlowDown", times=3)
    s3_faults.add("resets.wav", "reset", times=3)
    table = index(f"{s3.uri}/in")
    names = [Path(file).stem for file in table["file"].to_pylist()]
    assert dict(zip(names, spans(table), strict=True)) == expected
    s3_faults.add("good.wav", 503)
    bad = next(row for row in index(f"{s3.uri}/in").to_pylist() if "good" in row["file"])
    assert (bad["status"], "503" in bad["error"]) == ("unreadable", True)
    s3_faults.clear()
    s3_faults.add("good.wav", 403, code="ExpiredToken")
    with pytest.raises(CredentialsError):
        index(f"{s3.uri}/in")


def test_a_header_needs_little_of_an_object(s3: Bucket, s3_faults: Faults, tmp_path: Path) -> None:
    data = wav(tmp_path / "long.wav", 400).read_bytes()
    assert len(data) > 12_000_000
    uri = s3.put("in/long #1.wav", data)
    s3.put("in/t.csv", b"file\nlong #1.wav\n")
    assert index(uri)["duration_s"].to_pylist() == [400.0]
    asked = [span[6:].split("-") for _, target, span in s3_faults.seen if span and "wav" in target]
    assert sum(int(last) - int(first) + 1 for first, last in asked) <= 2**16 + 1
    # rows of a table learn size and version from the same read
    (row,) = index(f"{s3.uri}/in/t.csv").to_pylist()
    info = storage.stat(uri)
    assert (row["num_bytes"], row["etag"]) == (info.num_bytes, info.etag)


# windows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # exactly two windows; no third, empty one
        ((20, 10, 10, 1), [(0, 10), (10, 20)]),
        # the rest is long enough, just long enough, and too short
        ((25, 10, 10, 1), [(0, 10), (10, 20), (20, 25)]),
        ((21, 10, 10, 1), [(0, 10), (10, 20), (20, 21)]),
        ((20.9, 10, 10, 1), [(0, 10), (10, 20)]),
        # half overlap: the window from 10 reaches the end, the one from 15 would repeat its tail
        ((20, 10, 5, 1), [(0, 10), (5, 15), (10, 20)]),
        ((21, 10, 5, 1), [(0, 10), (5, 15), (10, 20), (15, 21)]),
        # shorter than a window, and shorter than the least
        ((4, 10, 10, 1), [(0, 4)]),
        ((0.4, 10, 10, 1), [(0, 0.4)]),
        ((0, 10, 10, 1), [(0, 0)]),
        # gaps: nothing starts beyond the end
        ((12, 2, 5, 1), [(0, 2), (5, 7), (10, 12)]),
        ((9, 2, 5, 1), [(0, 2), (5, 7)]),
        # a least length above the window's asks for full windows
        ((5, 2, 2, 3), [(0, 2), (2, 4)]),
    ],
)
def test_windows_by_hand(arguments, expected):
    duration_s, window_s, hop_s, min_s = arguments
    cut = windows(duration_s, window_s=window_s, hop_s=hop_s, min_s=min_s)
    assert [(a / 1e9, b / 1e9) for a, b in cut] == expected


@given(
    duration_ms=st.integers(0, 100_000),
    window_ms=st.integers(1, 20_000),
    hop_share=st.floats(0.02, 1.0),
    min_ms=st.integers(0, 5_000),
)
def test_overlapping_windows_cover_all_but_a_short_rest(duration_ms, window_ms, hop_share, min_ms):
    hop_ms = max(1, math.ceil(window_ms * hop_share))
    duration_ms = min(duration_ms, 200 * hop_ms)
    cut = windows(
        duration_ms / 1e3, window_s=window_ms / 1e3, hop_s=hop_ms / 1e3, min_s=min_ms / 1e3
    )
    assert cut[0][0] == 0
    assert all(b - a == window_ms * 10**6 for a, b in cut[:-1])
    assert all(y[0] - x[0] == hop_ms * 10**6 for x, y in pairwise(cut))
    # none lies within the one before
    assert all(y[1] > x[1] for x, y in pairwise(cut))
    start, end = cut[-1]
    assert end <= duration_ms * 10**6
    assert len(cut) == 1 or end - start >= min(min_ms, window_ms) * 10**6
    # what is left out is shorter than the least window
    rest_start = start + hop_ms * 10**6
    assert end == duration_ms * 10**6 or duration_ms * 10**6 - rest_start < min_ms * 10**6


def test_windows_do_not_drift_and_refuse_what_cannot_be() -> None:
    cut = windows(36_000, window_s=0.1, hop_s=0.1, min_s=0.1)
    assert (len(cut), cut[-1]) == (360_000, (35_999_900_000_000, 36_000_000_000_000))
    for window_s, hop_s in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(ConfigError):
            windows(5, window_s=window_s, hop_s=hop_s, min_s=1)
    for duration_s in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="duration"):
            windows(duration_s, window_s=1, hop_s=1, min_s=1)

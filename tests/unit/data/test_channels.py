"""`--channel`: which channels become clips, and what is decoded of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from raysers.data.manifest import clips_of, read_manifest, write_manifest
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sources import list_inputs
from raysers.engine.feed import decode_run
from raysers.engine.listing import ClipJobFlags, index, segmenting
from raysers.errors import ConfigError

NOISE = np.random.default_rng(0).normal(0, 0.1, (32_000, 3)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, columns in (("mono", [0]), ("pair", [0, 1]), ("three", [0, 1, 2])):
        soundfile.write(tmp_path / f"{name}.wav", NOISE[:, columns], 16_000, subtype="FLOAT")
    return tmp_path


def listed(place: Path, **flags: Any) -> pa.Table:
    given = ClipJobFlags(input=(str(place),), output="x", workers="local", **flags)
    given.check()
    return index(given.input, segmenting(given), local=True).table()


def channels(manifest: pa.Table) -> list[tuple[str, int | None, str]]:
    names = [Path(file).stem for file in manifest["file"].to_pylist()]
    columns = (manifest[name].to_pylist() for name in ("channel", "status"))
    return list(zip(names, *columns, strict=True))


def test_the_mean_has_no_column(folder: Path) -> None:
    manifest = listed(folder)
    assert "channel" not in manifest.column_names
    for clip in clips_of(manifest):
        (decoded,) = decode_run([clip], 60)
        truth, _ = soundfile.read(clip.file, always_2d=True, dtype="float32")
        np.testing.assert_allclose(decoded.signal, truth.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("each", [("mono", 1), ("pair", 1), ("pair", 2), *(("three", i) for i in (1, 2, 3))]),
        ("left", [("mono", 1), ("pair", 1), ("three", 1)]),
        ("right", [("mono", 2), ("pair", 2), ("three", 2)]),
        (3, [("mono", 3), ("pair", 3), ("three", 3)]),
    ],
)
def test_channels_that_are_scored(
    folder: Path, choice: Any, expected: list[tuple[str, int]]
) -> None:
    manifest = listed(folder, channel=choice)
    assert [found[:2] for found in channels(manifest)] == expected
    assert len(set(manifest["clip_id"].to_pylist())) == len(expected)
    for clip in clips_of(manifest):
        (decoded,) = decode_run([clip], 60)
        held = soundfile.info(clip.file).channels
        if clip.channel is None or clip.channel > held:
            assert decoded.error is not None
            assert decoded.error.status == "unsupported"
            assert f"no channel {clip.channel}" in decoded.error.message
        else:
            np.testing.assert_array_equal(decoded.signal, NOISE[:, clip.channel - 1])


def test_a_manifest_keeps_the_channels(folder: Path, tmp_path: Path) -> None:
    manifest = listed(folder, channel="each", segment="window", window_s=1.0, hop_s=1.0)
    assert len(manifest) == 12
    write_manifest(str(tmp_path / "out/manifest"), manifest)
    assert channels(read_manifest(str(tmp_path / "out"))) == channels(manifest)
    with pytest.raises(ConfigError, match=r"--channel each: .* is a manifest"):
        listed(tmp_path / "out", channel="each")
    (folder / "t.csv").write_text("file,channel\npair.wav,2\npair.wav,1\nmono.wav,\n")
    manifest = listed(folder / "t.csv", channel="each")  # a table decides for its rows
    assert channels(manifest) == [("mono", 1, "ok"), ("pair", 1, "ok"), ("pair", 2, "ok")]
    with pytest.raises(ConfigError, match="--channel is 0: give mean, left, right, each"):
        listed(folder, channel=0)
    with pytest.raises(ConfigError, match="--audio-stream is nothing: give a number or"):
        listed(folder, audio_stream=" ")


def test_speech_is_found_in_each_channel_apart(folder: Path) -> None:
    def loud(blocks: Any) -> list[tuple[int, int]]:
        """The second of the louder half."""
        signal = np.concatenate(list(blocks))
        first, second = np.square(signal.reshape(2, -1)).mean(axis=1)
        return [(0, 10**9)] if first > second else [(10**9, 2 * 10**9)]

    turns = np.zeros((32_000, 2), np.float32)
    turns[:16_000, 1], turns[16_000:, 0] = NOISE[:16_000, 0], NOISE[16_000:, 0]
    soundfile.write(folder / "calls.wav", turns, 16_000)
    (batch,) = list_inputs([str(folder / "calls.wav")])
    found = probe_batch(batch, Segmenting(kind="vad", channel="each"), find_speech=loud)
    spans = zip(found["channel"].to_pylist(), found["start"].to_pylist(), strict=True)
    assert [(channel, start.total_seconds()) for channel, start in spans] == [(1, 1), (2, 0)]

"""What `--retry` scores of files that changed after they were listed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf

from raysers.data.manifest import clips_of
from raysers.data.shards import ShardSource, plan_shards, replace_clips
from raysers.engine import output
from raysers.engine.feed import decode_run
from raysers.engine.listing import ClipJobFlags, index, segmenting
from raysers.engine.plan import Plan, with_failed
from raysers.types import Status

S = 10**9


def wav(path: Path, seconds: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds))
    sf.write(path, noise, 16_000)


class Listed:
    """Clips of one input, all of them rows of a finished part with a status to retry."""

    def __init__(
        self,
        place: Path,
        uri: Path,
        segment: Literal["whole", "window"] = "whole",
        limit: int = 0,
    ) -> None:
        self.flags = ClipJobFlags(
            input=(str(uri),), output=str(place / "out"), workers="local", segment=segment,
            window_s=1.0, hop_s=1.0, retry=(Status.UNREADABLE,),
        )  # fmt: skip
        self.clips = index(self.flags.input, segmenting(self.flags), limit=limit, local=True)
        self.manifest = self.clips.table()
        self.shards = plan_shards(self.clips, shard_s=600)

    def again(self, failed: slice = slice(None)) -> pa.Table:
        """The clips as they are scored again, those of the slice `failed` at least."""
        ids = set(self.manifest["clip_id"].to_pylist()[failed])
        for shard in range(len(self.shards)):
            clips = ShardSource(self.clips, self.shards).block(shard)["clip_id"]
            statuses = ["unreadable" if clip in ids else "ok" for clip in clips.to_pylist()]
            part = pa.table({"clip_id": clips, "status": statuses})
            uri = output.part_uri(self.flags.output, "annotations", shard)
            output.write_part(uri, part, stamp="s")
        plan = Plan(clips=self.clips, shards=self.shards, todo=[], settings={}, stamp="s")
        found = with_failed(plan, self.flags, self.flags.output, "annotations")
        assert found.todo
        return (
            self.manifest if found.changed is None else replace_clips(self.manifest, found.changed)
        )


def spans_s(table: pa.Table) -> list[tuple[float, float | None, str]]:
    return [
        (clip.start_ns / S, clip.end_ns and clip.end_ns / S, str(clip.status))
        for clip in clips_of(table)
    ]


@pytest.mark.parametrize("now_s", [5.0, 0.5, 1.0])
def test_a_replaced_file_is_scored_as_long_as_it_is_now(tmp_path: Path, now_s: float) -> None:
    (tmp_path / "in").mkdir()
    wav(tmp_path / "in/a.wav", 1.0)
    wav(tmp_path / "in/kept.wav", 1.0)
    listed = Listed(tmp_path, tmp_path / "in")
    wav(tmp_path / "in/a.wav", now_s)
    found = listed.again(slice(0, 1))
    assert spans_s(found) == [(0, now_s, "ok"), (0, 1, "ok")]
    (decoded,) = decode_run(clips_of(found)[:1], 600.0)
    assert decoded.duration_s == found["duration_s"][0].as_py() == now_s
    assert found.slice(1).equals(listed.manifest.slice(1))


@pytest.mark.parametrize(
    ("now_s", "expected"),
    [
        (2.6, [(0, 1, "ok"), (1, 2, "ok"), (2, 2.6, "ok")]),
        (2.0, [(0, 1, "ok"), (1, 2, "ok"), (2, 2.6, "unreadable")]),
        (5.0, [(0, 1, "unreadable"), (1, 2, "unreadable"), (2, 2.6, "unreadable")]),
        (None, [(0, 1, "missing"), (1, 2, "missing"), (2, 2.6, "missing")]),
    ],
)
def test_windows_are_scored_where_the_file_is_still_cut_alike(
    tmp_path: Path, now_s: float | None, expected: object
) -> None:
    path = tmp_path / "a.wav"
    wav(path, 2.6)
    listed = Listed(tmp_path, path, "window")
    path.unlink()
    if now_s is not None:
        wav(path, now_s)
    found = listed.again()
    assert spans_s(found) == expected
    refused = [error for error in found["error"].to_pylist() if "--output" in error]
    assert len(refused) == str(expected).count("unreadable")


@pytest.mark.parametrize(
    ("now_s", "expected"),
    [
        (5.0, [(0.5, 1.5, "ok"), (0.5, 2.05, "ok"), (1, 5, "ok"), (3, 4, "ok")]),
        (2.0, [(0.5, 1.5, "ok"), (0.5, 2, "ok"), (1, 2, "ok"), (3, 4, "empty")]),
        (
            1.0,
            [(0.5, 1.5, "truncated"), (0.5, 2.05, "truncated"), (1, 1, "empty"), (3, 4, "empty")],
        ),
    ],
)
@pytest.mark.parametrize("segment", ["whole", "window"])
def test_segments_have_the_times_of_their_table(
    tmp_path: Path, now_s: float, expected: object, segment: Literal["whole", "window"]
) -> None:
    wav(tmp_path / "a.wav", 2.0)
    rows = "a.wav,0.5,1.5\na.wav,0.5,2.05\na.wav,1,\na.wav,3,4\n"
    (tmp_path / "t.csv").write_text("file,start,end\n" + rows)
    listed = Listed(tmp_path, tmp_path / "t.csv", segment)
    wav(tmp_path / "a.wav", now_s)
    assert spans_s(listed.again()) == expected


def test_what_was_listed_by_version_has_to_be_of_that_version(tmp_path: Path) -> None:
    for name in ("a", "b"):
        wav(tmp_path / f"{name}.wav", 1.0)
    (tmp_path / "c.wav").write_bytes(b"RIFF")
    audio = [str(tmp_path / f"{name}.wav") for name in "abc"]
    index(audio, segmenting(ClipJobFlags(input=(), output=""))).write(str(tmp_path / "m"))
    listed = Listed(tmp_path, tmp_path / "m")
    wav(tmp_path / "a.wav", 5.0)
    wav(tmp_path / "c.wav", 2.0)
    found = listed.again()
    assert spans_s(found) == [(0, 1, "unreadable"), (0, 1, "ok"), (0, 2, "ok")]
    assert "index again" in found["error"][0].as_py()


def test_members_of_a_replaced_tar_are_not_read_at_their_old_place(tmp_path: Path) -> None:
    def pack(*names: str) -> None:
        with tarfile.open(tmp_path / "s.tar", "w") as tar:
            for name in names:
                data = io.BytesIO()
                sf.write(data, np.full(16_000, 0.1), 16_000, format="WAV")
                info = tarfile.TarInfo(name)
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)

    pack("a.wav", "b.wav")
    listed = Listed(tmp_path, tmp_path / "s.tar")
    assert spans_s(listed.again()) == [(0, 1, "ok")] * 2
    pack("new.wav", "a.wav")
    found = listed.again()
    assert spans_s(found) == [(0, 1, "unreadable")] * 2
    assert "changed since it was listed" in found["error"][0].as_py()

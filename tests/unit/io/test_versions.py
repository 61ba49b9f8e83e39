"""Audio that changed since it was listed is refused, never scored as the clip it replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raysers.audio.decode import AudioReader
from raysers.data.manifest import clips_of
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sources import list_inputs
from raysers.errors import ObjectChanged, StorageError
from raysers.io import storage
from raysers.io.objects import RangedFile
from raysers.types import Clip
from tests.s3 import Bucket, Faults
from tests.unit.data.test_segments import index, wav
from tests.unit.data.test_tar import build


def opened(clip: Clip) -> storage.AudioSource:
    return storage.open_source(
        clip.file,
        num_bytes=clip.num_bytes,
        byte_offset=clip.byte_offset,
        byte_size=clip.byte_size,
        etag=clip.etag,
    )


def heard(clip: Clip) -> int:
    with AudioReader(opened(clip), name="x") as reader:
        return len(reader.read(max_s=60))


def test_replaced_file_and_rewritten_tar_are_refused(tmp_path: Path) -> None:
    data = wav(tmp_path / "x.wav").read_bytes()
    (tmp_path / "x.tar").write_bytes(build([("a.wav", data)]))
    clips = clips_of(index(tmp_path))
    assert [heard(clip) for clip in clips] == [16_000, 16_000]
    for name in ("x.wav", "x.tar"):
        os.utime(tmp_path / name, ns=(1, 1))
    for clip in clips:
        with pytest.raises(ObjectChanged, match="changed since it was listed: index again"):
            heard(clip)


def test_replaced_object_is_refused(s3: Bucket, tmp_path: Path) -> None:
    uri = s3.put("x.wav", wav(tmp_path / "x.wav").read_bytes())
    (clip,) = clips_of(index(uri))
    assert heard(clip) == 16_000
    s3.put("x.wav", wav(tmp_path / "x.wav", rate_hz=8_000).read_bytes().ljust(clip.num_bytes or 0))
    with pytest.raises(ObjectChanged):
        heard(clip)


def test_file_replaced_between_listing_and_probing_is_a_row(tmp_path: Path) -> None:
    wav(tmp_path / "x.wav")
    (batch,) = list_inputs([str(tmp_path)])
    wav(tmp_path / "x.wav", 3)
    (row,) = probe_batch(batch, Segmenting()).to_pylist()
    assert (row["status"], "index again" in row["error"]) == ("unreadable", True)


def test_stores_without_version_marks_are_read_all_the_same(s3: Bucket, s3_faults: Faults) -> None:
    uri = s3.put("x.bin", b"data" * 100)
    s3_faults.add("/x.bin", "headers", headers={"etag": ""})
    assert storage.stat(uri).etag == ""
    assert storage.read_range(uri, 4, 8) == b"datadata"
    source = storage.open_source(uri, etag="known")
    assert isinstance(source, RangedFile)
    assert source.read() == b"data" * 100


def test_range_answers_without_a_size_or_of_another_range(s3: Bucket, s3_faults: Faults) -> None:
    uri = s3.put("x.bin", b"data" * 100)
    fault = s3_faults.add("/x.bin", "headers", headers={"content-range": "bytes 0-3/*"})
    source = storage.open_file(uri, whole_bytes=4)
    assert (source.num_bytes, source.read(4)) == (400, b"data")
    fault.headers["content-range"] = "bytes 8-11/400"
    with pytest.raises(StorageError, match="ignores Range"):
        storage.read_range(uri, 0, 4)

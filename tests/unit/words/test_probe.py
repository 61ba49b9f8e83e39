"""Which clips of a corpus the probe takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysers.data.manifest import read_manifest, write_manifest
from raysers.errors import ConfigError
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import clip_id
from raysers.words.probe import chosen_clips, transcribed


@pytest.fixture
def corpus(tmp_path):
    """`corpus(splits, transcripts)`: a finished manifest with these columns."""

    def make(splits, transcripts, corpora=None) -> str:
        n = len(splits)
        files = [f"/a/{i:03d}.wav" for i in range(n)]
        known = {
            "file": files,
            "start": np.zeros(n, "timedelta64[ns]"),
            "end": np.full(n, 10**9, "timedelta64[ns]"),
            "clip_id": [clip_id(file, 0, 10**9) for file in files],
            "duration_s": np.ones(n),
            "status": ["ok"] * n,
            "error": [""] * n,
            "split": splits,
            "transcript": transcripts,
            "corpus": corpora or ["made"] * n,
        }
        schema = pa.schema([*MANIFEST, *(f for f in LABEL_FIELDS if f.name in known)])
        columns = [pa.array(known.get(f.name, [None] * n), f.type) for f in schema]
        write_manifest(str(Path(tmp_path, "manifest")), pa.table(columns, schema=schema))
        return str(tmp_path)

    return make


@pytest.mark.parametrize(
    ("splits", "asked", "taken"),
    [
        (["train", "test1", "dev", "test2", "test1"], [], [1, 3, 4]),
        (["train", "test1", "dev", "test2", "test1"], ["test1"], [1, 4]),
        (["train", "test1", "dev", "test2", "test1"], ["train", "dev"], [0, 2]),
        ([None, None], [], [0, 1]),
        (["train", "dev"], [], [0, 1]),
    ],
)
def test_test_splits_are_taken_unless_others_are_asked_for(corpus, splits, asked, taken):
    clips, notes = chosen_clips([corpus(splits, ["words"] * len(splits))], asked)
    assert [int(file[-7:-4]) for file in clips["file"].to_pylist()] == taken
    assert notes == []


def test_recognised_texts_stand_in_for_transcripts(corpus, tmp_path):
    """`corpus` as an output of transcribe: known words stay, clips without speech have none."""
    place = corpus(["test"] * 4, ["known", None, None, None])
    ids = read_manifest(place, ["clip_id"])["clip_id"]
    texts, statuses = ["other", "heard", "", None], ["ok", "ok", "ok", "truncated"]
    (tmp_path / "transcripts").mkdir()
    rows = pa.table({"clip_id": ids, "status": statuses, "text": texts})
    pq.write_table(rows, tmp_path / "transcripts" / "part-000000.parquet")
    clips, _ = chosen_clips([place], [])
    assert clips["transcript"].to_pylist() == ["known", "heard", None, None]
    assert len(transcribed(clips)) == 2


@pytest.mark.parametrize(
    ("splits", "transcripts", "asked", "message"),
    [
        (["test"], ["a"], ["dev"], "--split dev: the data have no such split, but test"),
        ([None], ["a"], ["dev"], "the data have no splits"),
        (["test", "test"], [None, " "], [], "none of the 2 clips has a transcript"),
        (["test", "train"], [None, "a"], [], "none of the 1 clips has a transcript"),
    ],
)
def test_a_corpus_without_what_is_needed_is_refused(corpus, splits, transcripts, asked, message):
    with pytest.raises(ConfigError, match=message):
        chosen_clips([corpus(splits, transcripts)], asked)

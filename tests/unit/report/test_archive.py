"""An archive in numbers: hours, parts and failures against small tables worked by hand."""

from __future__ import annotations

import csv
import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raysers.report.archive import archive_exhibits, covered_s, folders, read_archive
from raysers.report.evidence import read_evidence
from raysers.report.listen import chosen, ratings_csv
from raysers.types import DIMENSIONS
from tests.made_runs import annotated


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = annotated(tmp_path_factory.mktemp("runs") / "calls", embeddings=False)
    found = read_archive(read_evidence([str(folder)]).runs[0])
    assert found is not None
    return found


def test_overlapping_clips_count_once_in_hours():
    rng = np.random.default_rng(3)
    start = rng.integers(0, 500, 300)
    end = start + rng.integers(1, 40, 300)
    file = rng.integers(0, 4, 300)
    clips = pd.DataFrame(
        {"file": file.astype(str), "start_ns": start * 10**9, "end_ns": end * 10**9}
    )
    seconds = {(f, s) for f, a, b in zip(file, start, end, strict=True) for s in range(a, b)}
    assert covered_s(clips) == pytest.approx(len(seconds))


def test_the_parts_of_an_archive_are_its_first_folders_and_tars():
    files = ["/d/x/a/1.wav", "/d/x/b/c/2.wav", "/d/x/3.wav", "/d/x/s.tar#k/4.wav", "/d/x/a#b.wav"]
    assert folders(pa.chunked_array([files])).tolist() == ["a", "b", "", "s.tar", ""]
    assert folders(pa.chunked_array([["/d/xa/1.wav", "/d/xb/2.wav"]])).tolist() == ["xa", "xb"]


def test_an_archive_s_tables_say_what_its_rows_say(archive):
    # 45 windows of 4 s every 2 s are 92 s; 45 files of 4 s
    assert covered_s(archive.clips) == pytest.approx(92 + 45 * 4)
    tables = {t.columns[0]: t for e in archive_exhibits(archive, "a") for t in e.tables}
    ok, failed = tables["status"].rows
    assert (ok[:3], failed[:3]) == (["ok", 80, "88.9%"], ["unreadable", 10, "11.1%"])
    assert str(failed[4]).count("broken: ") == 3
    women = next(row for row in tables["sex"].rows if row[0] == "female")
    own = archive.clips[archive.clips.sex == "female"]
    assert women[1:3] == [45, int((own.status != "ok").sum())]
    assert women[4:] == [f"{own[d].mean():.2f}" for d in DIMENSIONS]
    assert [row[1] for row in tables["folder"].rows] == [45, 45]
    assert len(tables["most probable"].rows) == 2


def test_clips_to_listen_to_are_the_ends_the_failed_and_a_sample_of_all(archive):
    clips = chosen(archive)
    assert clips.clip_id.is_unique
    by_reason = clips.explode("why").groupby("why").clip_id.apply(set)
    ok = archive.clips[archive.clips.status == "ok"]
    assert ok.clip_id[ok.valence.idxmax()] in by_reason["highest valence"]
    assert ok.clip_id[ok.arousal.idxmin()] in by_reason["lowest arousal"]
    assert by_reason["failed: unreadable"] <= set(
        archive.clips.clip_id[archive.clips.status != "ok"]
    )
    assert len(by_reason["random sample"]) == 12
    assert (clips.ood[clips.clip_id.isin(by_reason["out of domain"])] > 0.5).all()
    table = list(csv.DictReader(io.StringIO(ratings_csv(clips).decode())))
    assert [row["file"] for row in table] == clips.file.tolist()
    shuffled = archive.clips.sample(frac=1, random_state=0).reset_index(drop=True)
    again = chosen(type(archive)(run=archive.run, clips=shuffled, numbers=archive.numbers))
    assert (
        set(again.clip_id[again.why.map(lambda w: "random sample" in w)])
        == by_reason["random sample"]
    )

"""Labelled clips from corpora, tables and manifests, in one vocabulary."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysers.data.labelled import SCHEMA, read_labelled
from raysers.data.manifest import write_manifest
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sources import list_inputs
from raysers.errors import ConfigError
from raysers.types import clip_id
from tests.places import SHARED_DATA, needs_shared
from tests.s3 import Bucket
from tests.unit.data.corpora import trees


@needs_shared
def test_emodb_with_mapped_labels():
    root = str(SHARED_DATA / "emodb")
    bare = read_labelled([root])
    assert bare.table.schema.equals(SCHEMA)
    assert bare.table["arousal"].null_count == 535
    found = read_labelled([root], corpus="emodb", emotion_map="russell-mehrabian")
    rows = found.table.to_pylist()
    assert len(rows) == 535
    assert found.finished == 0
    angry = next(row for row in rows if row["emotion"] == "anger")
    assert [angry[name] for name in ("arousal", "dominance", "valence")] == pytest.approx(
        [0.795, 0.625, 0.245]
    )
    assert angry["clip_id"] == clip_id(angry["file"], 0, None)
    assert any("535 clips take labels" in note for note in found.notes)


def test_a_table_of_ones_own_in_other_words(tmp_path):
    table = trees.text(
        tmp_path / "labels.csv",
        "file,speaker,sex,split,emotion,arousal\n"
        "a.wav, 7 ,F,Validation,joy,0.5\n"
        "b.wav,Unknown,Male,Train,weird,\n"
        "c.wav,8,?,holdout,,nan\n",
    )
    found = read_labelled([str(table)], emotion_map="russell-mehrabian")
    rows = found.table.to_pylist()
    assert [r["speaker"] for r in rows] == ["7", None, "8"]
    assert [r["sex"] for r in rows] == ["female", "male", None]
    assert [r["split"] for r in rows] == ["dev", "train", None]
    # a label that is there stays; only what is missing is mapped
    assert [r["arousal"] for r in rows] == [0.5, None, None]
    assert rows[0]["valence"] == pytest.approx(0.905)
    assert any("'split' that are not used: 1 ('holdout')" in note for note in found.notes)
    assert any("does not have: weird" in note for note in found.notes)


def test_a_label_off_the_scale_is_named_by_file_and_row_and_nan_is_none(tmp_path):
    file = tmp_path / "labels.parquet"
    for bad in (1.25, -0.01, math.inf):
        labels = pa.array([0.5, None, bad], pa.float64())
        pq.write_table(pa.table({"file": ["a.wav", "b.wav", "c.wav"], "valence": labels}), file)
        with pytest.raises(ConfigError, match=rf"{file}, row 3: valence is .*, off the scale"):
            read_labelled([str(file)])
    pq.write_table(pa.table({"file": ["a.wav"], "valence": [math.nan]}), file)
    assert read_labelled([str(file)]).table["valence"].to_pylist() == [None]


def test_finished_manifests_come_first_as_they_are(tmp_path):
    emodb = tmp_path / "emodb"
    trees.wav(emodb / "wav/03a01Fa.wav", 0.5)
    plain = tmp_path / "plain"
    trees.wav(plain / "x.wav", 0.25)
    batches = list(list_inputs([str(plain)]))
    manifest = probe_batch(batches[0], Segmenting())
    write_manifest(str(tmp_path / "run/manifest"), manifest)
    # a folder of results holds its manifest inside
    found = read_labelled([str(emodb), str(tmp_path / "run")])
    rows = found.table.to_pylist()
    assert [r["file"].rpartition("/")[2] for r in rows] == ["x.wav", "03a01Fa.wav"]
    assert found.finished == 1
    assert (rows[0]["duration_s"], rows[0]["status"]) == (0.25, "ok")
    assert rows[0]["clip_id"] == manifest["clip_id"][0].as_py()
    assert (rows[1]["duration_s"], rows[1]["status"], rows[1]["speaker"]) == (None, None, "03")


def test_layouts_are_recognised_unless_told_otherwise(tmp_path):
    roots = [
        trees.mosi(tmp_path / "mosi"),
        trees.iemocap(tmp_path / "iemocap"),
        trees.msp_podcast(tmp_path / "msp", ["MSP-PODCAST_1_1.wav,N,4,4,4,1,Male,Train"]),
    ]
    found = read_labelled([str(root) for root in roots])
    counts = found.table.group_by("corpus").aggregate([([], "count_all")]).to_pylist()
    assert {c["corpus"]: c["count_all"] for c in counts} == {
        "cmu-mosi": 6,
        "iemocap": 4,
        "msp-podcast": 1,
    }
    plain = read_labelled([str(roots[2])], corpus="none")
    assert plain.table["corpus"].to_pylist() == [None]
    with pytest.raises(ConfigError, match="no Session1"):
        read_labelled([str(roots[2])], corpus="iemocap")
    with pytest.raises(ConfigError, match="--corpus emo: choose auto, none, audformat"):
        read_labelled([str(roots[2])], corpus="emo")
    with pytest.raises(ConfigError, match="names nothing"):
        read_labelled([])


def test_speakers_from_a_table_by_video_by_speaker_and_by_file(tmp_path):
    root = trees.mosi(tmp_path / "mosi")
    speakers = trees.text(
        tmp_path / "speakers.csv",
        "video,speaker,sex\n2iD-tVS8NPw,ann,Female\nDg_0XKD0Mf4,ann,f\n_dI--eQ6qVU,,m\n",
    )
    table = read_labelled([str(root)], speakers=str(speakers)).table
    by_video = {row["session"]: (row["speaker"], row["sex"]) for row in table.to_pylist()}
    assert by_video == {
        "2iD-tVS8NPw": ("ann", "female"),
        "Dg_0XKD0Mf4": ("ann", "female"),
        "_dI--eQ6qVU": ("_dI--eQ6qVU", "male"),
    }
    by_speaker = trees.text(tmp_path / "by.csv", "speaker,sex\n_dI--eQ6qVU,male\n")
    found = read_labelled([str(root)], speakers=str(by_speaker))
    assert sorted({(r["session"], r["sex"]) for r in found.table.to_pylist()}, key=str) == [
        ("2iD-tVS8NPw", None),
        ("Dg_0XKD0Mf4", None),
        ("_dI--eQ6qVU", "male"),
    ]
    assert any("is about 2 of 6 clips" in note for note in found.notes)

    for name in ("a/x.wav", "b/x.wav", "b/ax.wav"):  # files by the end of their path
        trees.wav(tmp_path / name)
    by_file = trees.text(tmp_path / "who.csv", "file,speaker,sex\nb/x.wav,ann,f\nx.wav,bob,m\n")
    table = read_labelled([str(tmp_path / "a"), str(tmp_path / "b")], speakers=str(by_file)).table
    found = {r["file"].removeprefix(f"{tmp_path}/"): r["speaker"] for r in table.to_pylist()}
    assert found == {"a/x.wav": "bob", "b/x.wav": "ann", "b/ax.wav": None}
    for content, message in (
        ("name,sex\na,m\n", "has no column file or video or session or speaker"),
        ("video\nv\n", "has no column besides: add sex"),
        ("video,sex\nv,man\nw,horse\n", "line 3: sex is 'horse'"),
    ):
        bad = trees.text(tmp_path / "bad.csv", content)
        with pytest.raises(ConfigError, match=message):  # before any input is looked at
            read_labelled([str(tmp_path / "nowhere")], speakers=str(bad))


def test_a_root_that_is_missing_or_a_file_is_said_to_be(tmp_path):
    with pytest.raises(ConfigError, match="nothing there; check the spelling"):
        read_labelled([str(tmp_path / "emobd")], corpus="emodb")
    file = trees.wav(tmp_path / "03a01Fa.wav")
    with pytest.raises(ConfigError, match="is a file: name the corpus' folder"):
        read_labelled([str(file)], corpus="emodb")
    table = trees.text(tmp_path / "t.csv", "file\n03a01Fa.wav\n")
    assert read_labelled([str(table)], corpus="emodb").table["speaker"].to_pylist() == [None]


def test_a_corpus_in_a_bucket_and_the_tables_beside_it(tmp_path, s3: Bucket):
    root = trees.mosi(tmp_path / "mosi")
    for path in root.rglob("*.*"):
        if path.is_file():
            s3.put(f"mosi/{path.relative_to(root)}", path.read_bytes())
    speakers = s3.put("speakers.csv", b"video,sex\n2iD-tVS8NPw,male\n")
    table = read_labelled([f"{s3.uri}/mosi"], speakers=speakers).table
    assert {(r["split"], r["session"]) for r in table.to_pylist()} == {
        (split, video) for video, split in trees.MOSI_VIDEOS.items()
    }
    probed = probe_batch(table, Segmenting()).to_pylist()
    assert {(r["status"], r["duration_s"]) for r in probed} == {("ok", 0.05)}
    assert {r["valence"] for r in probed} == {0.0, 0.75}
    assert {r["sex"] for r in probed if r["session"] == "2iD-tVS8NPw"} == {"male"}


def test_a_speaker_of_two_sexes_is_told(tmp_path):
    rows = "a.wav,7,f\nb.wav,7,m\nc.wav,8,m\nd.wav,8,m\ne.wav,9,f\nf.wav,9,\n"
    table = trees.text(tmp_path / "t.csv", "file,speaker,sex\n" + rows)
    found = read_labelled([str(table)], emotion_map="russell-mehrabian")
    assert "speakers who are female and male: 1 (7)" in found.notes
    assert found.table["arousal"].null_count == 6  # nothing to map from

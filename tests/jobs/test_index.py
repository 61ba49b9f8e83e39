"""The manifest job: what it lists, how it cuts, and that the other jobs take its output."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from raysers.commands.archive import annotate, index
from raysers.data.manifest import write_manifest
from raysers.engine.listing import index_labelled
from raysers.types import clip_id
from tests.jobs.conftest import record_of, rows_of
from tests.places import SHARED_DATA, needs_shared
from tests.unit.data.corpora.trees import iemocap, msp_podcast

pytestmark = needs_shared


def run(job, *args: object) -> int:
    return job([str(a) for a in args])


def test_the_other_jobs_take_the_manifest_as_it_is(clips_folder, checkpoint, tmp_path):
    folder, out = tmp_path / "index", tmp_path / "out"
    cut = ("--segment", "window", "--window-s", 1, "--hop-s", 0.5, "--min-s", 0.25)
    assert run(index, "--input", clips_folder, "--output", folder, *cut) == 0
    model = ("--model", checkpoint[0], "--workers", "local")
    assert run(annotate, "--input", folder, "--output", out, *model) == 0
    listed = {r["clip_id"]: (r["file"], r["start"], r["end"]) for r in rows_of(folder, "manifest")}
    scored = {r["clip_id"]: (r["file"], r["start"], r["end"]) for r in rows_of(out)}
    assert scored == listed
    assert len(scored) > 60
    again = ("--input", folder, "--output", tmp_path / "x", "--segment", "window")
    assert run(annotate, *again, *model) == 2


def test_speech_is_found_in_a_long_recording_and_silence_is_not_lost(
    emodb_files, tmp_path, no_cluster
):
    audio = tmp_path / "audio"
    audio.mkdir()
    speech = [sf.read(f, dtype="float32")[0] for f in emodb_files[:3]]
    pause = np.zeros(2 * 16_000, np.float32)
    sf.write(
        audio / "talk.flac",
        np.concatenate([pause, *[x for s in speech for x in (s, pause)]]),
        16_000,
    )
    sf.write(audio / "silence.wav", np.zeros(5 * 16_000), 16_000)
    assert run(index, "--input", audio, "--output", tmp_path / "out", "--segment", "vad") == 0
    rows = rows_of(tmp_path / "out", "manifest")
    silent = [r for r in rows if r["file"].endswith("silence.wav")]
    assert [r["status"] for r in silent] == ["empty"]
    spans = [
        (r["start"].total_seconds(), r["end"].total_seconds())
        for r in rows
        if r["file"].endswith("talk.flac")
    ]
    begin = 2.0
    for signal in speech:  # every utterance is inside what was found, give or take its fade
        end = begin + len(signal) / 16_000
        inside = sum(max(0.0, min(e, end) - max(s, begin)) for s, e in spans)
        assert inside > 0.8 * (end - begin)
        begin = end + 2.0
    assert sum(e - s for s, e in spans) < begin - 3.0  # the pauses are left out


def test_indexing_again_changes_nothing_and_other_settings_are_refused(
    clips_folder, tmp_path, capsys
):
    args = ("--input", clips_folder, "--output", tmp_path / "out")
    assert run(index, *args) == 0
    before = record_of(tmp_path / "out")
    assert run(index, *args) == 0
    assert record_of(tmp_path / "out") == before
    assert run(index, *args, "--segment", "window") == 2
    assert "segment was 'whole', now 'window'" in capsys.readouterr().err
    assert Path(tmp_path / "out" / "db.yaml").exists()


def test_a_corpus_becomes_a_labelled_manifest(tmp_path):
    args = ("--corpus", "emodb", "--emotion-map", "russell-mehrabian")
    out = tmp_path / "out"
    assert run(index, *args, "--input", SHARED_DATA / "emodb", "--output", out) == 0
    rows = rows_of(out, "manifest")
    assert len(rows) == 535
    assert {r["status"] for r in rows} == {"ok"}
    assert Counter(r["sex"] for r in rows) == {"female": 302, "male": 233}
    angry = next(r for r in rows if r["emotion"] == "anger")
    assert angry["arousal"] == pytest.approx(0.795)
    assert angry["duration_s"] == sf.info(angry["file"]).duration
    settings = record_of(out)["settings"]
    assert (settings["corpus"], settings["emotion_map"]) == ("emodb", "russell-mehrabian")
    # the same command resumes, another map is another manifest
    assert run(index, *args, "--input", SHARED_DATA / "emodb", "--output", out) == 0
    assert run(index, "--corpus", "emodb", "--input", SHARED_DATA / "emodb", "--output", out) == 2


def test_labels_are_refused_before_anything_is_written(tmp_path, capsys):
    root = msp_podcast(tmp_path / "msp", ["MSP-PODCAST_1_1.wav,N,4,loud,4,1,Male,Train"])
    args = ("--input", root, "--output", tmp_path / "out")
    assert run(index, *args, "--corpus", "auto") == 2
    assert "labels_consensus.csv, line 2: EmoVal is 'loud'" in capsys.readouterr().err
    assert run(index, *args, "--corpus", "none", "--emotion-map", "russel") == 2
    assert "--emotion-map russel is no map known here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_labelled_clips_for_training_are_probed_once(tmp_path):
    root = iemocap(tmp_path / "iemocap")
    first, notes = index_labelled([str(root)], corpus="auto", emotion_map="", speakers="")
    assert len(first) == 4
    assert set(first["status"].to_pylist()) == {"ok"}
    assert set(first["duration_s"].to_pylist()) == {0.05}
    assert first["clip_id"].to_pylist() == [
        clip_id(file, 0, 50_000_000) for file in first["file"].to_pylist()
    ]
    assert any("4 of the 10,039 turns" in note for note in notes)
    write_manifest(str(tmp_path / "manifest"), first)
    for file in first["file"].to_pylist():
        Path(file).unlink()  # what is in a manifest is not looked at again
    again, _ = index_labelled([str(tmp_path / "manifest")], corpus="iemocap")
    assert again.equals(first)
    two, _ = index_labelled([str(tmp_path / "manifest")], limit=2)
    assert two.equals(first.slice(0, 2))

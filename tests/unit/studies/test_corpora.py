"""Which clips of which corpora a study trains on and judges by."""

from __future__ import annotations

import pyarrow as pa
import pytest

from raysers.data.labelled import SCHEMA
from raysers.data.splits import leaks
from raysers.errors import ConfigError
from raysers.run import Run
from raysers.studies.corpora import arrange
from raysers.studies.plan import StudyFlags, make_plan, missing


def _corpus(name: str, speakers: dict[str, str], clips_each: int = 3, splits=None) -> pa.Table:
    """Speakers by sex; `splits` by speaker."""
    rows = [
        {
            "file": f"/{name}/{speaker}-{number}.wav", "start": 0,
            "clip_id": f"{name}{speaker}{number}",
            "speaker": speaker, "sex": sex, "corpus": name, "status": "ok", "error": "",
            "arousal": 0.5, "split": (splits or {}).get(speaker), "duration_s": 1.0,
        }
        for speaker, sex in speakers.items()
        for number in range(clips_each)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMA)


TEN = {f"f{i}": "female" for i in range(5)} | {f"m{i}": "male" for i in range(5)}


def _count(table: pa.Table) -> dict:
    found: dict = {}
    for row in table.to_pylist():
        found.setdefault((row["corpus"], row["split"]), set()).add(row["speaker"])
    return {key: len(speakers) for key, speakers in found.items()}


def test_a_corpus_without_splits_is_split_by_speaker_and_sex():
    corpora = arrange({"a": _corpus("a", TEN)}, ["a"], [], 0)
    assert _count(corpora.training) == {("a", "train"): 4, ("a", "dev"): 2, ("a", "test"): 4}
    assert leaks(corpora.training) == []
    sexes = {r["sex"] for r in corpora.judged.to_pylist()}
    assert sexes == {"female", "male"}
    assert any("its speakers are split" in note for note in corpora.notes)


def test_splits_a_corpus_has_are_kept():
    splits = {"f0": "train", "f1": "dev", "m0": "test1", "m1": "test2"}
    corpora = arrange({"a": _corpus("a", TEN, splits=splits)}, ["a"], [], 0)
    assert {r["speaker"]: r["split"] for r in corpora.training.to_pylist()} == splits
    assert {r["split"] for r in corpora.judged.to_pylist()} == {"test1", "test2"}


def test_other_corpora_judge_by_their_test_clips_or_all():
    tables = {
        "a": _corpus("a", TEN),
        "mosi": _corpus("mosi", TEN, splits={"f0": "train", "m0": "test"}),
        "iemocap": _corpus("iemocap", TEN),
    }
    judged = arrange(tables, ["a"], [], 0).judged
    found = _count(judged)
    assert found["mosi", "test"] == 1
    assert found["iemocap", None] == 10
    assert ("mosi", "train") not in found


def test_a_limit_is_spread_over_the_speakers():
    corpora = arrange({"a": _corpus("a", TEN, clips_each=10)}, ["a"], [], 20)
    assert len(corpora.training) == 20
    assert len({r["speaker"] for r in corpora.training.to_pylist()}) == 10


def test_half_a_split_is_refused():
    with pytest.raises(ConfigError, match="no clips for dev"):
        arrange({"a": _corpus("a", TEN, splits={"f0": "train", "m0": "test"})}, ["a"], [], 0)


def test_a_plan_says_which_packages_models_and_transcripts_are_missing(tmp_path, monkeypatch):
    def refuse(hub_id: str, name: str, etag_timeout: float) -> str:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    flags = StudyFlags(study=("probe", "fusion", "fairness"), data=("/a",), output=str(tmp_path))
    plan = make_plan(flags, Run.open("study", flags.output, dry_run=True))
    found = missing(plan, arrange({"a": _corpus("a", TEN)}, ["a"], [], 0))
    for words in ("package wordcloud", "transcripts of a", "model facebook/wav2vec2-large-robust"):
        assert words in found["probe"]
    assert "hub model bert-base-uncased (OSError)" in found["fusion"]
    assert "package" not in found["fairness"]

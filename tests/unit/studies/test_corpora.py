"""Which clips of which corpora a study trains on and evaluates on, and what it says is missing."""

from __future__ import annotations

import pyarrow as pa
import pytest

from raysers.data.labelled import SCHEMA
from raysers.data.splits import leaks
from raysers.errors import ConfigError
from raysers.run import Run
from raysers.studies.flags import StudyFlags
from raysers.studies.plan import arrange, make_plan, missing

TEN = {f"f{i}": "female" for i in range(5)} | {f"m{i}": "male" for i in range(5)}


def corpus(name: str, clips_each: int = 3, splits=None) -> pa.Table:
    """Clips of ten speakers; `splits` by speaker."""
    rows = [
        {
            "file": f"/{name}/{speaker}-{number}.wav", "start": 0,
            "clip_id": f"{name}{speaker}{number}",
            "speaker": speaker, "sex": sex, "corpus": name, "status": "ok", "error": "",
            "arousal": 0.5, "split": (splits or {}).get(speaker), "duration_s": 1.0,
        }
        for speaker, sex in TEN.items()
        for number in range(clips_each)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def speakers(table: pa.Table) -> dict[tuple[str, str | None], set[str]]:
    found: dict = {}
    for row in table.to_pylist():
        found.setdefault((row["corpus"], row["split"]), set()).add(row["speaker"])
    return found


def test_a_corpus_without_splits_is_split_by_speaker_and_sex_and_limited_evenly():
    corpora = arrange({"a": corpus("a", clips_each=10)}, ["a"], [], 20)
    assert len(corpora.training) == 20
    counts = {key: len(names) for key, names in speakers(corpora.training).items()}
    assert counts == {("a", "train"): 4, ("a", "dev"): 2, ("a", "test"): 4}
    assert leaks(corpora.training) == []
    assert {row["sex"] for row in corpora.judged.to_pylist()} == {"female", "male"}
    assert any("its speakers are split (4 train, 2 dev, 4 test)" in n for n in corpora.notes)


def test_splits_are_kept_and_other_corpora_judge_by_their_test_clips_or_all():
    splits = {"f0": "train", "f1": "dev", "m0": "test1", "m1": "test2"}
    tables = {
        "mosi": corpus("mosi", splits={"f0": "train", "m0": "test"}),
        "a": corpus("a", splits=splits),
        "iemocap": corpus("iemocap"),
    }
    corpora = arrange(tables, ["a"], [], 0)
    found = {(("a", split), speaker) for speaker, split in splits.items()}
    assert {(k, s) for k, names in speakers(corpora.training).items() for s in names} == found
    assert speakers(corpora.judged) == {
        ("a", "test1"): {"m0"}, ("a", "test2"): {"m1"}, ("mosi", "test"): {"m0"},
        ("iemocap", None): {*TEN},
    }  # fmt: skip
    assert (corpora.in_domain, corpora.others) == ("a", ("mosi", "iemocap"))
    with pytest.raises(ConfigError, match="no clips for dev"):
        arrange({"a": corpus("a", splits={"f0": "train", "m0": "test"})}, ["a"], [], 0)


def test_a_plan_says_which_packages_models_and_transcripts_are_missing(tmp_path, monkeypatch):
    def refuse(hub_id: str, name: str, etag_timeout: float) -> str:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    flags = StudyFlags(study=("probe", "fusion", "fairness"), data=("/a",), output=str(tmp_path))
    plan = make_plan(flags, Run.open("study", flags.output, dry_run=True))
    found = missing(plan, arrange({"a": corpus("a")}, ["a"], [], 0))
    for words in ("package wordcloud", "transcripts of a", "model facebook/wav2vec2-large-robust"):
        assert words in found["probe"]
    assert "hub model bert-base-uncased (OSError)" in found["fusion"]
    assert "package" not in found["fairness"]

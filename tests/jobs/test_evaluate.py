"""Evaluation end to end: made predictions beside made labels, and a model that predicts first."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import audmetric
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from raysers.commands import analyses
from raysers.commands.analyses import evaluate as main
from raysers.data.manifest import write_manifest
from raysers.evaluation.published import paper_numbers
from raysers.schemas import ANNOTATIONS, MANIFEST, METRICS
from raysers.types import NS_PER_S, clip_id
from tests.jobs.conftest import record_of
from tests.places import SHARED_DATA, needs_shared

CLIPS = 120
RNG = np.random.default_rng(11)
TRUTH = RNG.beta(4, 4, (CLIPS, 3)).astype(np.float32)
GOOD = TRUTH + RNG.normal(0, 0.1, TRUTH.shape)
POOR = TRUTH + RNG.normal(0.05, 0.3, TRUTH.shape)
FILES = [f"spk{i % 6}/{i:03d}.wav" for i in range(CLIPS)]
DIMENSIONS = ("arousal", "dominance", "valence")


def run(*args: object) -> int:
    return main([str(a) for a in args])


def metrics_of(output: Path) -> list[dict[str, Any]]:
    table = pq.ParquetFile(output / "metrics" / "part-00000.parquet").read()
    assert table.schema.names == METRICS.names
    return table.to_pylist()


def the(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    found = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
    assert len(found) == 1, f"{len(found)} rows with {wanted}"
    return found[0]


def write_labels(path: Path, **columns: list[str]) -> Path:
    """A CSV of labels beside the audio it names, with splits: 96 test clips, 24 dev."""
    known = {
        "file": FILES,
        "speaker": [f"spk{i % 6}" for i in range(CLIPS)],
        "sex": ["female" if i % 2 else "male" for i in range(CLIPS)],
        "corpus": ["made"] * CLIPS,
        "split": ["dev" if i % 5 == 0 else "test" for i in range(CLIPS)],
        **{d: [f"{v:.9g}" for v in TRUTH[:, k]] for k, d in enumerate(DIMENSIONS)},
        **columns,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(known)
        writer.writerows(zip(*known.values(), strict=True))
    return path


def write_predictions(
    folder: Path,
    values: np.ndarray,
    *,
    model: str = "good",
    revision: str = "r1",
    clips: Iterable[int] = range(CLIPS),
    failed: Iterable[int] = (),
    table: str = "annotations",
    root: str = "/moved/away",
) -> Path:
    rows = []
    for i in clips:
        scores = [None] * 3 if i in set(failed) else values[i].tolist()
        end = (i + 1) * NS_PER_S
        file = f"{root}/{FILES[i]}"
        row = {"file": file, "start": 0, "end": end, "clip_id": clip_id(file, 0, end)}
        row |= {"status": "unreadable" if i in set(failed) else "ok", "error": ""}
        row |= {"model": model, "model_revision": revision, **dict(zip(DIMENSIONS, scores))}  # noqa: B905
        rows.append(row)
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in ANNOTATIONS]
    part = folder / table / "part-00000.parquet"
    part.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=ANNOTATIONS), part)
    return folder


@pytest.fixture
def labels(tmp_path) -> Path:
    return write_labels(tmp_path / "corpus" / "labels.csv")


@pytest.fixture
def good(tmp_path) -> Path:
    return write_predictions(tmp_path / "good", GOOD)


@pytest.fixture
def poor(tmp_path) -> Path:
    return write_predictions(tmp_path / "poor", POOR, model="poor")


def test_metrics_equal_audmetric_per_split_and_need_no_cluster(labels, good, tmp_path, capsys):
    had_ray = ray.is_initialized()
    out = tmp_path / "out"
    assert run("--predictions", good, "--labels", labels, "--output", out) == 0
    assert ray.is_initialized() == had_ray
    rows = metrics_of(out)
    dev = np.arange(CLIPS) % 5 == 0
    theirs = {
        "ccc": audmetric.concordance_cc,
        "pearson": audmetric.pearson_cc,
        "mae": audmetric.mean_absolute_error,
    }
    for split, mask in {"dev": dev, "test": ~dev, "all": dev | True}.items():
        for k, dimension in enumerate(DIMENSIONS):
            for metric, function in theirs.items():
                where = {"split": split, "dimension": dimension, "metric": metric, "group": ""}
                row = the(rows, model="good", **where)
                wanted = function(TRUTH[mask, k].astype(float), GOOD[mask, k].astype(np.float32))
                assert row["value"] == pytest.approx(wanted, abs=1e-6)
                assert row["ci_low"] < row["value"] < row["ci_high"]
                assert (row["n"], row["dataset"], row["paper"]) == (mask.sum(), "made", None)
    random = the(rows, model="random-gaussian", split="all", dimension="arousal", metric="ccc")
    assert abs(random["value"]) < 0.3
    record = record_of(out)
    assert record["status"] == "done"
    assert {row["run_id"] for row in rows} == {record["run_id"]}
    coverage = record["outcome"]["models"]["good"]
    assert (coverage["rows"], coverage["by_path"], coverage["unpredicted"]) == (120, 120, 0)
    printed = capsys.readouterr().out
    shown = the(rows, model="good", split="test", dimension="valence", metric="ccc")["value"]
    assert f"{shown:.3f}"[1:] in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 100


def test_the_same_command_replaces_its_result_and_another_is_refused(
    labels, good, tmp_path, capsys
):
    out = tmp_path / "out"
    args = ("--predictions", good, "--labels", labels, "--output", out)
    assert run(*args) == 0
    first = metrics_of(out)
    assert run(*args) == 0
    again = metrics_of(out)
    assert first[0]["run_id"] != again[0]["run_id"]
    assert [{**r, "run_id": ""} for r in first] == [{**r, "run_id": ""} for r in again]
    before = (out / "run.json").read_text()
    capsys.readouterr()
    assert run(*args, "--bootstrap", 10) == 2
    assert "bootstrap was 1000, now 10" in capsys.readouterr().err
    assert (out / "run.json").read_text() == before


def test_a_record_repeats_the_run_from_any_folder(labels, good, tmp_path, monkeypatch):
    (tmp_path / "speakers.csv").write_text("speaker,pitch_hz\nspk1,200\nspk2,120\n")
    (tmp_path / "map.yaml").write_text("anger: [0.9, 0.8, 0.2]\n")
    monkeypatch.chdir(tmp_path)
    more = ("--speakers", "speakers.csv", "--emotion-map", "map.yaml")
    assert run(good.name, good.name, "--labels", "corpus/labels.csv", "-o", "out", *more) == 0
    assert {row["model"] for row in metrics_of(tmp_path / "out")} == {"good", "random-gaussian"}
    monkeypatch.chdir("/")
    assert run("--config", tmp_path / "out" / "run.json") == 0


def test_failed_and_missing_predictions_are_counted(labels, tmp_path, capsys):
    some = write_predictions(tmp_path / "p", GOOD, clips=range(100), failed=range(10))
    out = tmp_path / "out"
    args = ("--predictions", some, "--labels", labels)
    assert run(*args, "--output", out) == 3
    coverage = record_of(out)["outcome"]["models"]["good"]
    assert coverage["statuses"] == {"unreadable": 10, "ok": 90}
    assert coverage["unpredicted"] == 20
    assert record_of(out)["status"] == "done_with_failures"
    row = the(metrics_of(out), model="good", split="all", dimension="valence", metric="ccc")
    assert row["n"] == 90
    assert run(*args, "--output", tmp_path / "other", "--max-failed", 0.1) == 0


def test_folds_pool_to_one_model(labels, good, tmp_path):
    folds = []
    for k in range(3):
        made = {"model": f"/cv/fold{k}", "revision": f"r{k}", "clips": range(k, CLIPS, 3)}
        place = tmp_path / f"cv/fold{k}"
        folds.append(write_predictions(place, GOOD, table="predictions", **made))
    pooled, whole = tmp_path / "pooled", tmp_path / "whole"
    common = ("--labels", labels, "--bootstrap", 50)
    assert run("--predictions", *folds, "--pool", *common, "--output", pooled) == 0
    assert run("--predictions", good, *common, "--output", whole) == 0
    ours, theirs = (
        {(r["split"], r["dimension"], r["metric"]): r for r in metrics_of(out) if r["model"] == m}
        for out, m in ((pooled, "/cv (pool of 3)"), (whole, "good"))
    )
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        names = ("value", "ci_low", "ci_high", "n")
        both = np.array([[of[n] for n in names] for of in (row, theirs[key])], float)
        np.testing.assert_allclose(*both, rtol=1e-9)


@pytest.mark.parametrize(
    ("by_path", "theirs", "paper"), [(False, CLIPS, 0.655), (True, 12902, None)]
)
def test_the_papers_number_stands_beside_its_backbone_trained_and_its_clips(
    tmp_path, monkeypatch, by_path, theirs, paper
):
    monkeypatch.setitem(paper_numbers().datasets["msp-podcast"], "clips", theirs)
    count = ["test1"] * CLIPS
    labels = write_labels(
        tmp_path / "c" / "labels.csv", corpus=["msp-podcast"] * CLIPS, split=count
    )
    model = tmp_path / "trained"
    name = str(model) if by_path else "trained"
    write_predictions(model, GOOD, model=name, table="predictions")
    data = {"splits": [{"corpus": "msp-podcast"}], "leakage": ["speaker 7 is in train and dev"]}
    training = {"config": {"backbone": "hubert-L"}, "data": data}
    (model / "training.json").write_text(json.dumps(training))
    out = tmp_path / "out"
    assert run("--predictions", model, "--labels", labels, "--output", out) == 0
    rows = metrics_of(out)
    assert any("--allow-leakage (speaker 7" in n for n in record_of(out)["outcome"]["notes"])
    where = {"model": name, "metric": "ccc", "group": ""}
    assert the(rows, dimension="dominance", **where)["paper"] == paper
    told = any("12,902 in the paper" in note for note in record_of(out)["outcome"]["notes"])
    assert told == (paper is None)


def test_a_store_holds_predictions_labels_and_result(s3, labels, good):
    part = "annotations/part-00000.parquet"
    s3.put(f"good/{part}", (good / part).read_bytes())
    at = s3.put("corpus/labels.csv", labels.read_bytes())
    args = ("--predictions", s3.uri + "/good", "--labels", at, "--output", s3.uri + "/out")
    assert run(*args, "--bootstrap", 10) == 0
    table = pq.ParquetFile(pa.BufferReader(s3.get("out/metrics/part-00000.parquet"))).read()
    assert table.num_rows > 0
    assert json.loads(s3.get("out/run.json"))["status"] == "done"


EMOTIONS = ("anger", "neutral", "sadness")


def with_categories(folder: Path) -> np.ndarray:
    """Add predicted categories to the predictions; the names of those predicted, [CLIPS]."""
    sure = RNG.dirichlet((1, 1, 1), CLIPS).astype(np.float32)
    part = folder / "annotations/part-00000.parquet"
    table = pq.ParquetFile(part).read()
    names = np.array(EMOTIONS)[sure.argmax(axis=1)]
    table = table.append_column("emotion", pa.array(names))
    for name, column in zip(EMOTIONS, sure.T, strict=True):
        table = table.append_column(f"p_{name}", pa.array(column))
    pq.write_table(table, part)
    return names


def test_categories_are_measured_and_need_no_other_label(good, poor, tmp_path, capsys):
    predicted = with_categories(good)
    truth = RNG.choice(EMOTIONS, CLIPS)
    bare = dict.fromkeys(DIMENSIONS, [""] * CLIPS)
    labels = write_labels(tmp_path / "corpus" / "labels.csv", emotion=truth.tolist(), **bare)
    out = tmp_path / "out"
    args = ("--labels", labels, "--output", out, "--bootstrap", 50)
    assert run("--predictions", good, *args, "--by", "emotion") == 0
    rows = metrics_of(out)
    where = {"model": "good", "dimension": "emotion", "split": "all"}
    row = the(rows, metric="uar", group="", **where)
    recall = audmetric.unweighted_average_recall(truth, predicted)
    assert row["value"] == pytest.approx(recall)
    assert row["ci_low"] < row["value"] < row["ci_high"]
    anger = the(rows, metric="uar", group_value="anger", **where)
    assert anger["value"] == pytest.approx((predicted[truth == "anger"] == "anger").mean())
    assert {r["metric"] for r in rows} == {"uar", "macro_f1", "accuracy", "ece"}
    assert f"{row['value']:.3f}"[1:] in capsys.readouterr().out
    assert run("--predictions", poor, *args[:3], tmp_path / "other") == 2
    assert "none of its 120 clips has a label" in capsys.readouterr().err


def mixed(folder: Path) -> Path:
    write_predictions(folder, GOOD)
    other = write_predictions(folder / "other", POOR, model="poor")
    (other / "annotations/part-00000.parquet").rename(folder / "annotations/part-00001.parquet")
    return folder


WRONG = {
    "nothing-to-do": ([], "give --predictions FOLDER or --model MODEL"),
    "no-folder": (["--predictions", "{tmp}/nowhere"], "nowhere has no annotations or predictions"),
    "other-files": (["--predictions", "{other}"], "none of the 120 clips that good predicted"),
    "two-models": (["--predictions", "{mixed}"], "rows of 2 models (good r1, poor r1)"),
    "input-alone": (["--predictions", "{good}", "--input", "x"], "--input is what --model"),
    "pool-of-one": (["--predictions", "{good}", "--pool"], "give more than one"),
    "pool-twice": (["--predictions", "{good}", "{poor}", "--pool"], "120 predictions are of clips"),
    "negative": (["--predictions", "{good}", "--bootstrap", "-1"], "--bootstrap is -1"),
    "unknown-group": (["--predictions", "{good}", "--by", "language"], "--by language"),
    "unknown-home": (["--predictions", "{good}", "--in-domain", "x"], "the clips are of made"),
    "all-failed": (["--predictions", "{failed}"], "no labelled clip has scores"),
    "labels-twice": (
        ["--predictions", "{good}", "--labels", "{labels}", "{copy}"],
        "120 clips are labelled twice",
    ),
    "unlabelled": (
        ["--predictions", "{good}", "--labels", "{bare}"],
        "none of its 120 clips has a label",
    ),
    "unknown-model": (["--model", "no-such-model"], "no-such-model"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_wrong_command_ends_with_2_one_line_and_nothing_written(
    case, labels, good, poor, tmp_path, capsys
):
    args, message = case
    empty = dict.fromkeys(DIMENSIONS, [""] * CLIPS)
    places = {
        "tmp": tmp_path,
        "good": good,
        "poor": poor,
        "labels": labels,
        "copy": write_labels(labels.parent / "copy.csv"),
        "bare": write_labels(labels.parent / "bare.csv", **empty),
        "mixed": mixed(tmp_path / "mixed"),
        "failed": write_predictions(tmp_path / "failed", GOOD, failed=range(CLIPS)),
        "other": write_predictions(tmp_path / "other", GOOD, clips=range(CLIPS), root="/x/y"),
    }
    moved = tmp_path / "other/annotations/part-00000.parquet"
    table = pq.ParquetFile(moved).read()
    files = pa.array([f.as_py().replace("spk", "who") for f in table["file"]])
    pq.write_table(table.set_column(0, table.schema.field("file"), files), moved)
    out = tmp_path / "out"
    given = [arg.format(**places) for arg in args]
    if "--labels" not in given:
        given += ["--labels", str(labels)]
    assert run(*given, "--output", out) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


def write_emodb(path: Path, files: list[str]) -> Path:
    """A table of EmoDB's clips with their categories."""
    with (SHARED_DATA / "emodb" / "manifest.csv").open() as file:
        known = {r["file"].rpartition("/")[2]: r for r in csv.DictReader(file)}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "speaker", "sex", "emotion", "corpus"])
        for name in files:
            row = known[Path(name).name]
            writer.writerow([name, row["speaker"], row["sex"], row["emotion"], "emodb"])
    return path


@needs_shared
def test_an_interrupted_evaluation_never_takes_the_clips_of_other_labels(
    tmp_path, emodb_files, monkeypatch, capsys
):
    one = write_emodb(tmp_path / "one.csv", emodb_files[:4])
    two = write_emodb(tmp_path / "two.csv", emodb_files[2:8])
    out = tmp_path / "out"
    args = ("--model", "random:tiny", "--output", out, "--emotion-map", "russell-mehrabian")

    asked: list[int] = []

    def interrupted(flags):
        asked.append(len(pq.read_table(flags.input[0])))
        raise KeyboardInterrupt

    monkeypatch.setattr(analyses, "annotate", SimpleNamespace(run=interrupted))
    assert run(*args, "--labels", one) not in (0, 2)
    assert record_of(out)["status"] == "interrupted"
    assert run(*args, "--labels", two) == 2
    assert "labels was" in capsys.readouterr().err
    write_emodb(one, emodb_files)  # the same file, with more clips by now
    assert run(*args, "--labels", one) not in (0, 2)
    assert asked == [4, len(emodb_files)]


@needs_shared
def test_a_model_predicts_first_and_the_same_command_only_measures_again(
    tmp_path, emodb_files, no_cluster
):
    labels = write_emodb(tmp_path / "emodb.csv", emodb_files)
    out = tmp_path / "out"
    args = ("--model", "random:tiny", "--labels", labels, "--output", out)
    args += ("--emotion-map", "russell-mehrabian", "--bootstrap", 100)
    assert run(*args) == 0
    predicted = out / "predictions" / "random-tiny" / "annotations"
    written = {p: p.stat().st_mtime_ns for p in predicted.iterdir()}
    assert written
    rows = metrics_of(out)
    row = the(rows, model="random:tiny", dimension="arousal", metric="ccc")
    assert row["n"] == len(emodb_files)
    assert row["ci_low"] < 0.5
    assert any("random weights" in note for note in record_of(out)["outcome"]["notes"])
    assert run(*args) == 0
    assert {p: p.stat().st_mtime_ns for p in predicted.iterdir()} == written


@pytest.mark.parametrize("root", ["/moved/away", "s3://elsewhere/corpus"])
def test_clips_that_a_model_was_trained_on_are_told_wherever_they_lie(root, labels, good, tmp_path):
    """The training left its manifest, of 40 training clips and 24 dev clips, beside the model."""
    dev = [i for i in range(CLIPS) if i % 5 == 0]
    train = [i for i in range(CLIPS) if i % 5][:40]
    rows = sorted([*dev, *train])
    ends = [(i + 1) * NS_PER_S for i in rows]
    files = [f"{root}/{FILES[i]}" for i in rows]
    known = {
        "file": files,
        "start": [0] * len(rows),
        "end": ends,
        "clip_id": [clip_id(f, 0, end) for f, end in zip(files, ends, strict=True)],
        "status": ["ok"] * len(rows),
    }
    columns = [pa.array(known.get(f.name, [None] * len(rows)), f.type) for f in MANIFEST]
    split = pa.array(["dev" if i in dev else "train" for i in rows])
    write_manifest(f"{good}/manifest", pa.table(columns, MANIFEST).append_column("split", split))
    (good / "training.json").write_text('{"data": {}}')
    out = tmp_path / "out"
    assert run("--predictions", good, "--labels", labels, "--output", out) == 0
    of = [r for r in metrics_of(out) if r["metric"] == "ccc" and not r["group"]]
    found = {(r["split"], r["model"]): r["trained_on"] for r in of}
    random = {(split, "random-gaussian"): 0 for split in ("dev", "test", "all")}
    assert found == {("dev", "good"): 0, ("test", "good"): 40, ("all", "good"): 40} | random
    notes = record_of(out)["outcome"]["notes"]
    assert any(n.startswith("good was trained on 40 of the 96 clips of made test") for n in notes)

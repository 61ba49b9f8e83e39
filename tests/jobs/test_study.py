"""A study of toy networks: killed in mid-run, taken up again, looked at by other jobs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raysers.commands import evaluate, study
from raysers.run import load_record
from raysers.tuning.trials import stored
from tests.jobs import processes
from tests.jobs.voices import read_table, write_table, write_toy_config, write_voices

pytestmark = pytest.mark.slow

SPLITS = {"ann": "train", "cid": "train", "bea": "dev", "dan": "test"}
TRAIN = {"epochs": 2, "batch_size": 7, "lr": 3e-3, "max_padded_s": 8}
STUDIES = {
    "seeds": {"factor": "seed", "seeds": [0, 1]},
    "shares": {
        "factor": "share",
        "values": {"100 %": {}, "50 %": {"train_fraction": 0.5}, "broken": {"layers": 99}},
    },
    "changes": {"job": "robustness", "flags": {"perturbations": ["gain"]}},
    "women-and-men": {"job": "evaluate", "together": True, "seeds": [0, 1],
                      "flags": {"by": ["sex"], "speaker_samples": 3}},
    "better": {"job": "evaluate", "best": True, "seeds": [0, 1], "flags": {"bootstrap": 10}},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def command(place) -> list[str]:
    """The flags of a study over two corpora."""
    for name in ("home", "abroad"):
        table = write_voices(place / name)
        rows = [{**row, "split": SPLITS[row["speaker"]]} for row in read_table(table)]
        if name == "abroad":
            rows = [{k: v for k, v in row.items() if k != "split"} for row in rows]
        write_table(place / name / f"{name}.csv", rows)
    config = write_toy_config(place)
    files = []
    for name, document in STUDIES.items():
        whole = {"models": {"toy": f"random:{config}"}, "train": TRAIN, **document}
        files.append(str(place / f"{name}.yaml"))
        Path(files[-1]).write_text(json.dumps(whole))  # JSON is YAML
    corpora = [str(place / name / f"{name}.csv") for name in ("home", "abroad")]
    return ["--study", *files, "--data", *corpora, "--retries", "0"]


@pytest.fixture(scope="module")
def out(place, command) -> Path:
    """The output of a study whose processes were all killed once, and begun again."""
    out = place / "out"
    arguments = [*command, "--output", str(out), "--max-failed-cells", "0.2"]
    process = processes.start("jobs/study.py", *arguments)
    deadline = time.monotonic() + 200
    while not _done(out):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes.kill_tree(process.pid)
    process.communicate()
    before = {name: _files(out / "runs" / name) for name in _done(out)}
    assert len(before) < _runs(out)
    code, _, err = processes.run("jobs/study.py", *arguments)
    assert code == 0, err
    # what was done is not touched again
    assert {name: _files(out / "runs" / name) for name in before} == before
    return out


def _done(out: Path) -> list[str]:
    records = [stored(str(file.parent)) for file in sorted(out.glob("runs/*/trial.json"))]
    return [record.name for record in records if record and record.status == "done"]


def _files(folder: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for f in sorted(folder.rglob("*")) if f.is_file()}


def _runs(out: Path) -> int:
    # two seeds, half the data, the broken one, and the three looks
    return 7


def _history(out: Path, cell: dict) -> list[dict]:
    return json.loads((out / cell["path"] / "training.json").read_text())["history"]


def _rows(out: Path, table: str) -> list[dict]:
    return pq.read_table(out / table / "part-00000.parquet").to_pylist()


def test_killing_a_study_loses_no_cell_and_runs_none_twice(out):
    records = {file.parent.name: stored(str(file.parent)) for file in out.glob("runs/*/trial.json")}
    assert len(records) == _runs(out)
    assert sorted(r.status for r in records.values()) == ["done"] * 6 + ["failed"]
    for record in records.values():
        own = load_record(record.path)
        if record.status == "done":
            assert own.status == "done"
            # only what was at work was taken up again, and went on from where it was
            assert len(own.history) < record.attempts <= 2
    cells = _rows(out, "cells")
    assert len(cells) == 2 + 3 + 1 + 1 + 1
    assert load_record(str(out)).outcome["done"] == 7


def test_cells_that_studies_share_are_run_once(out):
    path = {(row["study"], row["cell"]): row["path"] for row in _rows(out, "cells")}
    assert path["seeds", "toy-seed-0"] == path["shares", "toy-100-percent"]
    assert path["seeds", "toy-seed-0"] != path["seeds", "toy-seed-1"]
    values = {}
    for row in _rows(out, "metrics"):
        if row["metric"] == "ccc" and row["model"] == "toy" and not row["group"]:
            key = (row["dataset"], row["split"], row["dimension"])
            values.setdefault((row["study"], row["cell"]), {})[key] = row["value"]
    assert values["seeds", "toy-seed-0"] == values["shares", "toy-100-percent"]
    assert values["seeds", "toy-seed-0"] != values["seeds", "toy-seed-1"]


def test_the_random_model_is_said_once_a_study(out):
    rows = [r for r in _rows(out, "metrics") if r["model"] == "random-gaussian"]
    key = ("study", "dataset", "split", "group", "group_value", "dimension", "metric")
    places = [tuple(r[k] for k in key) for r in rows]
    assert len(set(places)) == len(places) > 10


def test_a_failed_cell_is_recorded_and_the_rest_goes_on(out):
    (failed,) = [row for row in _rows(out, "cells") if row["status"] != "done"]
    assert (failed["study"], failed["cell"]) == ("shares", "toy-broken")
    assert "layers" in failed["error"]
    assert not [row for row in _rows(out, "metrics") if row["cell"] == "toy-broken"]


def test_numbers_are_those_of_evaluate_by_hand(out, place):
    cell = next(row for row in _rows(out, "cells") if row["cell"] == "toy-seed-1")
    by_hand = place / "by-hand"
    assert evaluate.main([
        "--predictions", str(out / cell["path"] / "judged"), "--in-domain", "home",
        "--labels", str(out / "corpora" / "judged"), "--output", str(by_hand),
    ]) == 0  # fmt: skip
    key = ("dataset", "split", "group", "group_value", "dimension", "metric")
    wanted = {
        tuple(row[k] for k in key): (row["value"], row["ci_low"], row["ci_high"], row["n"])
        for row in _rows(by_hand, "metrics")
        if row["model"] != "random-gaussian"
    }
    found = {
        tuple(row[k] for k in key): (row["value"], row["ci_low"], row["ci_high"], row["n"])
        for row in _rows(out, "metrics")
        if row["cell"] == "toy-seed-1" and row["study"] == "seeds" and row["split"] != "dev"
        and row["model"] == "toy"
    }  # fmt: skip
    assert len(wanted) > 20
    assert found == wanted
    assert ("home", "test", "", "", "arousal", "ccc") in found
    assert ("abroad", "all", "", "", "arousal", "ccc") in found


def test_curves_are_those_of_the_trainings(out):
    rows = [r for r in _rows(out, "curves") if r["study"] == "seeds" and r["seed"] == 1]
    path = next(r["path"] for r in _rows(out, "cells") if r["cell"] == "toy-seed-1")
    history = json.loads((out / path / "training.json").read_text())["history"]
    arousal = [r["ccc"] for r in rows if r["dimension"] == "arousal"]
    assert arousal == [epoch["dev_ccc"]["arousal"] for epoch in history]
    assert [r["epoch"] for r in rows if r["dimension"] == "mean"] == [1, 2]


def test_looks_leave_the_outputs_of_their_jobs(out):
    path = {row["kind"]: out / row["path"] for row in _rows(out, "cells")}
    assert load_record(str(path["robustness"])).job == "robustness"
    assert len(pq.read_table(path["robustness"] / "robustness")) == 2 * (7 + 28)
    assert load_record(str(path["evaluate"])).job == "evaluate"
    metrics = [r for r in _rows(out, "metrics") if r["study"] == "women-and-men"]
    assert {"toy seed 0", "toy seed 1"} <= {r["model"] for r in metrics}
    assert any(r["metric"] == "sex_fairness_score" for r in metrics)


def test_the_best_alone_is_looked_at_where_a_study_asks_for_it(out):
    cells = [row for row in _rows(out, "cells") if row["study"] == "seeds"]
    scores = {f"toy {c['cell'][4:].replace('-', ' ')}": _history(out, c)[-1] for c in cells}
    kept = {name: epoch["dev_ccc_mean"] for name, epoch in scores.items()}
    looked_at = {row["model"] for row in _rows(out, "metrics") if row["study"] == "better"}
    assert looked_at - {"random-gaussian"} == {max(kept, key=kept.get)}


def test_a_cell_took_at_least_as_long_as_its_epochs(out):
    """Those of before the study was killed too."""
    cells = [c for c in _rows(out, "cells") if c["kind"] == "train" and c["status"] == "done"]
    for cell in cells:
        assert cell["wall_s"] >= sum(epoch["wall_s"] for epoch in _history(out, cell)) - 0.01


def test_other_settings_are_refused(out, command, capsys):
    before = _files(out)
    assert study.main([*command, "--output", str(out), "--limit", "5"]) == 2
    assert "limit was 0, now 5" in capsys.readouterr().err
    assert _files(out) == before


def test_a_study_of_the_same_name_with_other_values_is_refused(out, command, place, capsys):
    other = place / "other" / "seeds.yaml"
    other.parent.mkdir()
    other.write_text((place / "seeds.yaml").read_text().replace("[0, 1]", "[0, 1, 2]"))
    flags = ["--study", str(other), *command[command.index("--data") :]]
    assert study.main([*flags, "--output", str(out)]) == 2
    assert "holds the study seeds with other seeds" in capsys.readouterr().err


def test_a_bad_file_is_refused_and_nothing_written(place, command, tmp_path, capsys):
    bad = place / "bad.yaml"
    bad.write_text("models: [w2v2-b]\ntrain: {epoch: 3}")
    flags = ["--study", str(bad), *command[command.index("--data") :]]
    assert study.main([*flags, "--output", str(tmp_path / "new")]) == 2
    assert "key 'train': 'epoch'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    command, tmp_path, capsys, ray_session
):
    flags = ["--dry-run", "--usd-per-hour", "2", "--output", str(tmp_path / "new")]
    assert study.main([*command, *flags]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "USD" in said
    assert "evaluate, not estimated" in said
    assert "h of audio" in said or "s of audio" in said
    assert not (tmp_path / "new").exists()

"""A study of toy networks: killed in mid-run, resumed, analysed by other jobs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raysers.commands.analyses import evaluate
from raysers.commands.training import study
from raysers.run import load_record
from raysers.tuning.trials import stored
from tests.jobs import processes
from tests.jobs.voices import read_table, write_table, write_toy_config, write_voices

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPLITS = {"ann": "train", "cid": "train", "bea": "dev", "dan": "test"}
TRAIN = {"epochs": 2, "batch_size": 7, "lr": 3e-3, "max_padded_s": 8, "eval_steps": 1}
STUDIES = {
    "seeds": {"factor": "seed", "seeds": [0, 1]},
    "shares": {
        "factor": "share",
        "values": {"100 %": {}, "50 %": {"train_fraction": 0.5}, "broken": {"layers": 99}},
    },
    "changes": {"job": "robustness", "flags": {"perturbations": ["gain"]}},
    "women-and-men": {"job": "evaluate", "together": True, "seeds": [0, 1],
                      "flags": {"by": ["sex"], "speaker_samples": 3}},
}  # fmt: skip
#: Two seeds, half the data, the broken one, and two analyses.
RUNS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def command(place) -> list[str]:
    """The flags of a study over two corpora."""
    for name in ("home", "abroad"):
        rows = read_table(write_voices(place / name))
        split = {"home": SPLITS}.get(name, {})
        rows = [{**row, "split": split.get(row["speaker"], "")} for row in rows]
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
    while not done(out):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes.kill_tree(process.pid)
    process.communicate()
    before = {name: files(out / "runs" / name) for name in done(out)}
    assert len(before) < RUNS
    code, _, err = processes.run("jobs/study.py", *arguments)
    assert code == 0, err
    # what was done is not touched again
    assert {name: files(out / "runs" / name) for name in before} == before
    return out


def done(out: Path) -> list[str]:
    records = [stored(str(file.parent)) for file in sorted(out.glob("runs/*/trial.json"))]
    return [record.name for record in records if record and record.status == "done"]


def files(folder: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for f in sorted(folder.rglob("*")) if f.is_file()}


def rows(out: Path, table: str, **having) -> list[dict]:
    found = pq.read_table(out / table / "part-00000.parquet").to_pylist()
    return [row for row in found if all(row[key] == value for key, value in having.items())]


def test_killing_a_study_loses_no_cell_and_runs_none_twice(out):
    records = [stored(str(file.parent)) for file in out.glob("runs/*/trial.json")]
    assert sorted(r.status for r in records) == ["done"] * (RUNS - 1) + ["failed"]
    for record in records:
        if record.status == "done":
            own = load_record(record.path)
            assert own.status == "done"
            # only what was at work was taken up again, and resumed from where it was
            assert len(own.history) < record.attempts <= 2
    assert len(rows(out, "cells")) == 2 + 3 + 1 + 1
    assert load_record(str(out)).outcome["done"] == 6
    (failed,) = [row for row in rows(out, "cells") if row["status"] != "done"]
    assert (failed["study"], failed["cell"]) == ("shares", "toy-broken")
    assert "layers" in failed["error"]
    assert not rows(out, "metrics", cell="toy-broken")


def test_shared_cells_have_the_same_values_and_the_random_model_is_listed_once_a_study(out):
    path = {(row["study"], row["cell"]): row["path"] for row in rows(out, "cells")}
    assert path["seeds", "toy-seed-0"] == path["shares", "toy-100-percent"]
    assert path["seeds", "toy-seed-0"] != path["seeds", "toy-seed-1"]
    key = ("study", "dataset", "split", "group", "group_value", "dimension", "metric")
    places = [tuple(r[k] for k in key) for r in rows(out, "metrics", model="random-gaussian")]
    assert len(set(places)) == len(places) > 10


def test_numbers_are_those_of_evaluate_by_hand(out, place):
    (cell,) = rows(out, "cells", cell="toy-seed-1")
    assert evaluate([
        "--predictions", str(out / cell["path"] / "judged"), "--in-domain", "home",
        "--labels", str(out / "corpora" / "judged"), "--output", str(place / "by-hand"),
    ]) == 0  # fmt: skip
    names = ("dataset", "split", "group", "group_value", "dimension", "metric",
             "value", "ci_low", "ci_high", "n")  # fmt: skip
    by_hand, found = (
        {tuple(str(row[name]) for name in names) for row in table if row["split"] != "dev"}
        for table in (
            [r for r in rows(place / "by-hand", "metrics") if r["model"] != "random-gaussian"],
            rows(out, "metrics", cell="toy-seed-1", model="toy"),
        )
    )
    assert len(by_hand) > 20
    assert found == by_hand


def test_curves_have_every_evaluation_of_the_trainings(out):
    (cell,) = rows(out, "cells", cell="toy-seed-1")
    document = json.loads((out / cell["path"] / "training.json").read_text())
    found = rows(out, "curves", study="seeds", seed=1, dimension="arousal")
    by_step = {one["step"]: one["dev_ccc"]["arousal"] for one in document["evaluations"]}
    by_step |= {one["step"]: one["dev_ccc"]["arousal"] for one in document["history"]}
    assert {row["step"]: row["ccc"] for row in found} == by_step
    assert len(by_step) > len(document["history"]) == 2
    # a cell took at least as long as its epochs, those before the kill too
    assert cell["wall_s"] >= sum(epoch["wall_s"] for epoch in document["history"]) - 0.01


def test_analyses_leave_the_outputs_of_their_jobs_and_name_the_models(out):
    path = {row["kind"]: out / row["path"] for row in rows(out, "cells")}
    assert load_record(str(path["robustness"])).job == "robustness"
    assert len(pq.read_table(path["robustness"] / "robustness")) == 2 * (7 + 28)
    both = rows(out, "metrics", study="women-and-men")
    assert {"toy seed 0", "toy seed 1"} <= {row["model"] for row in both}
    assert any(row["metric"] == "sex_fairness_score" for row in both)


def test_other_settings_and_other_studies_of_the_same_name_are_refused(out, command, place, capsys):
    before = files(out)
    assert study([*command, "--output", str(out), "--limit", "5"]) == 2
    assert "limit was 0, now 5" in capsys.readouterr().err
    other = place / "other" / "seeds.yaml"
    other.parent.mkdir()
    other.write_text((place / "seeds.yaml").read_text().replace("[0, 1]", "[0, 1, 2]"))
    flags = ["--study", str(other), *command[command.index("--data") :]]
    assert study([*flags, "--output", str(out)]) == 2
    assert "holds the study seeds with other seeds" in capsys.readouterr().err
    assert files(out) == before


def test_a_dry_run_measures_the_cost_and_writes_nothing(command, tmp_path, capsys, ray_session):
    flags = ["--dry-run", "--usd-per-hour", "2", "--output", str(tmp_path / "new")]
    assert study([*command, *flags]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("USD", "evaluate, not estimated", "of audio", "cannot be measured"):
        assert words in said
    assert not (tmp_path / "new").exists()


def test_corpora_that_cannot_be_used_are_refused_before_speech_is_made(
    place, tmp_path, capsys, ray_session
):
    rows = [{**row, "speaker": "one", "split": ""} for row in read_table(write_voices(place / "1"))]
    small = ["seeds", "--scale", "small", "--output", str(tmp_path / "new")]
    for more, said in (
        (["--in-domain", "nowhere"], "--in-domain nowhere"),
        (["--data", str(write_table(place / "1" / "one.csv", rows))], "only one speaker"),
    ):
        assert study([*small, *more]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

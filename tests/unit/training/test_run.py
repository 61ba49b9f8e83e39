"""A training in the calling process: stopped by a callback, resumed, finished once."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import audmetric
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raysers.cli import as_plain
from raysers.data.manifest import read_manifest, write_manifest
from raysers.errors import ConfigError, RaysersError
from raysers.models.loading import load_emotion_model, save_emotion_model
from raysers.models.outputs import Outputs
from raysers.training.config import TrainingFlags
from raysers.training.dataset import Indexed, TrainingData, choose, index_data
from raysers.training.loop import TrainingStopped
from raysers.training.trainer import Outcome, run_training
from raysers.types import DIMENSIONS
from tests.jobs.voices import read_table, write_table, write_toy_config, write_voices
from tests.unit.models.train_runs import Run, new_learner

EPOCHS = 4
#: Of an epoch: 14 clips in batches of at most 7.
STEPS = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def flags(place) -> TrainingFlags:
    return TrainingFlags(
        data=(str(write_voices(place / "voices")),),
        backbone=f"random:{write_toy_config(place)}",
        epochs=EPOCHS,
        batch_size=7,
        lr=3e-3,
        output=str(place / "calm"),
    )


@pytest.fixture(scope="module")
def indexed(flags, place, ray_session) -> Indexed:
    table, notes = index_data(flags)
    write_manifest(str(place / "manifest"), table)
    return Indexed(manifest=str(place / "manifest"), notes=tuple(notes))


def trained(flags: TrainingFlags, output: Path, indexed=None, on_epoch=None, **changes) -> Outcome:
    own = replace(flags, output=str(output), **changes)
    return run_training(
        own, as_plain(own), on_epoch=on_epoch, in_process=True, indexed=indexed, command=["x"]
    )


def weights_of(output: Path) -> bytes:
    return (output / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def calm(flags, indexed, place) -> Outcome:
    return trained(flags, place / "calm", indexed)


def test_stopped_and_resumed_it_ends_as_if_never_stopped(flags, indexed, place, calm):
    out, seen = place / "stopped", []

    def stop_at_two(record) -> None:
        seen.append(record["epoch"])
        if record["epoch"] == 2:
            raise TrainingStopped("enough")

    with pytest.raises(TrainingStopped):
        trained(flags, out, indexed, stop_at_two)
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["outcome"]) == ("stopped", {"reason": "enough"})
    assert list(out.glob("state/*/state.json"))

    again = trained(flags, out, indexed, lambda r: seen.append(r["epoch"]))
    assert seen == [1, 2, 1, 2, 3, 4]  # those that were done are told again, not trained again
    assert [r["train_loss"] for r in again.history] == [r["train_loss"] for r in calm.history]
    assert weights_of(out) == weights_of(place / "calm")
    assert json.loads((out / "run.json").read_text())["status"] == "done"

    once_more = trained(flags, out, indexed, lambda r: seen.append(r["epoch"]))
    assert not once_more.trained
    assert once_more.figures == again.figures
    json.dumps(again.figures, allow_nan=False)
    assert len(seen) == 6


def test_sigterm_saves_the_state_of_the_step_and_the_same_call_resumes(flags, indexed, place, calm):
    out = place / "terminated"

    def terminate(record) -> None:
        if record["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        trained(flags, out, indexed, terminate)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    (state,) = out.glob("state/*/state.json")
    assert int(state.parent.name) == 2 * STEPS + 1  # a step after the second epoch
    trained(flags, out, indexed)
    assert weights_of(out) == weights_of(place / "calm")


def test_dev_scores_between_epochs_change_nothing_but_the_table(flags, indexed, place, calm):
    out = place / "stepwise"
    outcome = trained(flags, out, indexed, eval_steps=1)
    assert weights_of(out) == weights_of(place / "calm")
    document = json.loads((out / "training.json").read_text())
    evaluations = document["evaluations"]
    places = [(step, -(-step // STEPS)) for step in range(1, STEPS * EPOCHS + 1)]
    assert [(e["step"], e["epoch"]) for e in evaluations] == places
    assert evaluations[3]["dev_ccc"] == outcome.history[1]["dev_ccc"]
    rows = pq.read_table(out / "metrics/part-00000.parquet").to_pylist()
    rows = [row for row in rows if row["group"] == "step"]
    table = {(row["group_value"], row["dimension"]): row["value"] for row in rows}
    assert table["3", "arousal"] == pytest.approx(evaluations[2]["dev_ccc"]["arousal"])
    assert len({step for step, _ in table}) == len(evaluations)


def test_the_best_step_is_kept_when_asked_for(flags, indexed, place, tmp_path):
    trained(flags, tmp_path / "out", indexed, eval_steps=1, keep="best-step")
    document = json.loads((tmp_path / "out/training.json").read_text())
    means = [e["dev_ccc_mean"] for e in document["evaluations"]]
    best = max(range(len(means)), key=means.__getitem__)
    assert [e["step"] for e in document["evaluations"] if e["kept"]][-1] == best + 1
    assert document["outcome"]["kept_epoch"] == best // STEPS + 1
    rows = pq.read_table(tmp_path / "out/metrics/part-00000.parquet").to_pylist()
    stored = [
        row["value"]
        for row in rows
        if row["metric"] == "ccc" and not row["group"] and row["model"] == "out"
        and row["dimension"] != "mean"
    ]  # fmt: skip
    # valence has constant labels: no CCC in the table, 0 in the mean that chooses
    assert np.nan_to_num(np.array(stored, float)).mean() == pytest.approx(means[best], abs=1e-4)


def test_a_corpus_that_was_moved_gives_the_same_model(flags, place, ray_session):
    moved = shutil.copytree(place / "voices", place / "another disk" / "deeper")
    changes = {"train_fraction": 0.7, "noise_db": (10.0, 30.0), "speed": (0.9, 1.0, 1.1)}
    outputs = []
    for folder in (place / "voices", moved):
        outputs.append(place / f"of {folder.name}")
        trained(flags, outputs[-1], data=(str(folder / "labels.csv"),), **changes)
    assert weights_of(outputs[0]) == weights_of(outputs[1])


def data_of(table, **changes) -> TrainingData:
    flags = TrainingFlags(data=("somewhere",), output="nowhere", **changes)
    return choose(flags, table, [], seed=0, min_samples=400, dev_needed=True)


def with_column(table: pa.Table, name: str, values) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def test_clips_without_any_label_are_no_failed_ones_but_a_wrong_command(indexed):
    table = read_manifest(indexed.manifest)
    for name in DIMENSIONS:
        table = with_column(table, name, pa.nulls(len(table), pa.float32()))
    with pytest.raises(ConfigError, match="--emotion-map"):
        data_of(table)


def test_a_clip_in_train_and_dev_counts_in_both(indexed):
    table = read_manifest(indexed.manifest)
    train = table.filter(pc.equal(table["split"], "train"))
    again = with_column(train, "split", pa.array(["dev"] * len(train)))
    data = data_of(pa.concat_tables([train, again]), allow_leakage=True)
    assert data.leakage
    assert len(data.train) == len(data.dev) == len(train)
    assert sorted(data.table["split"].to_pylist()) == ["dev"] * len(train) + ["train"] * len(train)


@pytest.fixture(scope="module")
def classifier(flags, place, ray_session) -> Path:
    """A model of categories alone, of data without dimensions; two words mean the same."""
    rows = [
        {**row, "arousal": "", "dominance": "", "valence": "", "emotion": emotion}
        for i, row in enumerate(read_table(Path(flags.data[0])))
        for emotion in [("angry", "anger")[i % 2] if row["emotion"] == "high" else "sad"]
    ]
    rows[-1]["emotion"] = "no_agreement"  # of a train clip
    table = write_table(place / "voices/categories.csv", rows)
    trained(flags, place / "classifier", data=(str(table),), categories=True)
    return place / "classifier"


def test_categories_alone_train_a_model_whose_dimensions_are_null(classifier):
    config = json.loads((classifier / "config.json").read_text())
    assert (config["categories"], config["trained_dimensions"]) == (["anger", "sadness"], [])
    document = json.loads((classifier / "training.json").read_text())
    assert document["data"]["left_out"] == {"no label": 1}
    history = document["history"]
    uar = [record["dev_uar"] for record in history]
    assert max(uar) > 0.6
    assert document["outcome"]["kept_epoch"] == 1 + int(np.argmax(uar))
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.05
    rows = pq.read_table(classifier / "predictions/part-00000.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert {row[name] for row in rows for name in DIMENSIONS} == {None}
    for row in rows:
        assert row["p_anger"] + row["p_sadness"] == pytest.approx(1)
        assert row["emotion"] == ("anger" if row["p_anger"] > 0.5 else "sadness")
    truth = {r["file"]: r["emotion"] for r in read_table(classifier.parent / "voices/labels.csv")}
    names = {"high": "anger", "low": "sadness"}
    recall = audmetric.unweighted_average_recall(
        [names[truth[Path(row["file"]).name]] for row in rows], [row["emotion"] for row in rows]
    )
    metrics = pq.read_table(classifier / "metrics/part-00000.parquet").to_pylist()
    (of_dev,) = [r["value"] for r in metrics if r["metric"] == "uar" and not r["group"]]
    assert of_dev == pytest.approx(recall)
    assert document["outcome"]["dev_uar"] == {"unnamed emotion": pytest.approx(recall, abs=1e-4)}
    card = (classifier / "README.md").read_text()
    assert "probabilities of the emotion categories anger and sadness." in card
    assert "**Not trained for arousal, dominance and valence.**" in card
    assert "Arousal, dominance, valence of one mono clip" not in card


OUTPUTS = Outputs(categories=("a", "b"), uncertainty_heads=2, ood_rank=2)


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("w2v2-b", replace(OUTPUTS, points=((0.0, 0.5, 1.0),) * 2)), ("cnn14", OUTPUTS)],
    ids=["scores of points", "cnn14"],
)
def test_a_model_trained_further_drops_the_heads_that_no_longer_fit(
    kind, outputs, flags, tmp_path, ray_session
):
    start = new_learner(Run(kind=kind)).model
    start.attach(outputs)
    save_emotion_model(start, tmp_path / "start")
    for categories, columns in ((False, ()), (True, ("p_high", "p_low"))):
        out, backbone = tmp_path / str(categories), str(tmp_path / "start")
        trained(flags, out, backbone=backbone, epochs=1, categories=categories)
        assert load_emotion_model(str(out)).model.outputs.columns == columns


@pytest.mark.parametrize(
    ("emotions", "changes", "message"),
    [
        ([""], {"category_weight": 0.5}, "--category-weight"),
        (["high"], {"categories": True}, "1 emotion categories, 2 are needed"),
        (["high", "x" * 101], {"categories": True}, "list of names"),
    ],
)
def test_categories_that_no_model_can_have_are_refused(
    emotions, changes, message, flags, place, ray_session, tmp_path
):
    rows = read_table(Path(flags.data[0]))
    rows = [{**row, "emotion": emotions[i % len(emotions)]} for i, row in enumerate(rows)]
    table = write_table(place / "voices/odd.csv", rows)
    with pytest.raises(RaysersError, match=message):
        trained(flags, tmp_path / "out", data=(str(table),), **changes)
    assert not (tmp_path / "out").exists()

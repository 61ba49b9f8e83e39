"""A training in the calling process: stopped by a callback, resumed, finished once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import audmetric
import numpy as np
import pyarrow.parquet as pq
import pytest

from raysers.cli import as_plain
from raysers.data.manifest import write_manifest
from raysers.engine.placement import here
from raysers.errors import RaysersError
from raysers.models.backbones import Outputs
from raysers.models.loading import load_emotion_model, save_emotion_model
from raysers.training.config import TrainingFlags
from raysers.training.dataset import Indexed, index_data
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
def indexed(flags, place) -> Indexed:
    table, notes = index_data(flags)
    write_manifest(str(place / "manifest"), table)
    return Indexed(manifest=str(place / "manifest"), notes=tuple(notes))


def trained(flags: TrainingFlags, output: Path, indexed=None, on_epoch=None, **changes) -> Outcome:
    own = replace(flags, output=str(output), **changes)
    how = {"on_epoch": on_epoch, "placement": here(threads=1), "indexed": indexed}
    return run_training(own, as_plain(own), command=["x"], **how)


def weights_of(output: Path) -> bytes:
    return (output / "model.safetensors").read_bytes()


def document_of(output: Path, name: str = "training.json") -> Any:
    return json.loads((output / name).read_text())


def metrics_of(output: Path, **where: str) -> list[Mapping[str, Any]]:
    rows = pq.read_table(output / "metrics/part-00000.parquet").to_pylist()
    return [row for row in rows if where.items() <= row.items()]


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
    record = document_of(out, "run.json")
    assert (record["status"], record["outcome"]) == ("stopped", {"reason": "enough"})
    assert list(out.glob("state/*/state.json"))

    again = trained(flags, out, indexed, lambda r: seen.append(r["epoch"]))
    assert seen == [1, 2, 1, 2, 3, 4]  # those that were done are told again, not trained again
    assert [r["train_loss"] for r in again.history] == [r["train_loss"] for r in calm.history]
    assert weights_of(out) == weights_of(place / "calm")
    assert document_of(out, "run.json")["status"] == "done"

    once_more = trained(flags, out, indexed, lambda r: seen.append(r["epoch"]))
    assert not once_more.trained
    assert once_more.figures == again.figures
    json.dumps(again.figures, allow_nan=False)
    assert len(seen) == 6


def test_dev_scores_between_epochs_choose_the_best_step_and_change_no_training(
    flags, indexed, calm, tmp_path
):
    outcome = trained(flags, tmp_path / "out", indexed, eval_steps=1, keep="best-step")
    found = document_of(tmp_path / "out")["evaluations"]
    places = [(step, -(-step // STEPS)) for step in range(1, STEPS * EPOCHS + 1)]
    assert [(e["step"], e["epoch"]) for e in found] == places
    assert [e["dev_ccc"] for e in found[STEPS - 1 :: STEPS]] == [r["dev_ccc"] for r in calm.history]
    of_third = metrics_of(tmp_path / "out", group="step", group_value="3", dimension="arousal")
    assert [row["value"] for row in of_third] == pytest.approx([found[2]["dev_ccc"]["arousal"]])
    means = [e["dev_ccc_mean"] for e in found]
    best = int(np.argmax(means))
    assert [e["step"] for e in found if e["kept"]][-1] == best + 1
    assert outcome.figures["kept_epoch"] == best // STEPS + 1
    whole = metrics_of(tmp_path / "out", metric="ccc", group="", model="out")
    stored = [row["value"] for row in whole if row["dimension"] != "mean"]
    # valence has constant labels: no CCC in the table, 0 in the mean that chooses
    assert np.nan_to_num(np.array(stored, float)).mean() == pytest.approx(means[best], abs=1e-4)


def test_a_corpus_that_was_moved_gives_the_same_model(flags, place):
    moved = shutil.copytree(place / "voices", place / "another disk" / "deeper")
    changes = {
        "train_fraction": 0.7,
        "balance": True,
        "noise_db": (10.0, 30.0),
        "speed": (0.9, 1.0, 1.1),
    }
    outputs = []
    for folder in (place / "voices", moved):
        outputs.append(place / f"of {folder.name}")
        data = (str(folder / "labels.csv"),)
        trained(flags, outputs[-1], data=data, **changes)
    assert weights_of(outputs[0]) == weights_of(outputs[1])


def test_categories_alone_train_a_model_whose_dimensions_are_null(flags, place):
    """Two words mean the same category."""
    rows = [
        {**row, "arousal": "", "dominance": "", "valence": "", "emotion": emotion}
        for i, row in enumerate(read_table(Path(flags.data[0])))
        for emotion in [("angry", "anger")[i % 2] if row["emotion"] == "high" else "sad"]
    ]
    rows[-1]["emotion"] = "no_agreement"  # of a train clip
    table, out = write_table(place / "voices/categories.csv", rows), place / "classifier"
    trained(flags, out, data=(str(table),), categories=True)
    config, document = document_of(out, "config.json"), document_of(out)
    assert (config["categories"], config["trained_dimensions"]) == (["anger", "sadness"], [])
    assert document["data"]["left_out"] == {"no label": 1}
    uar = [record["dev_uar"] for record in document["history"]]
    assert max(uar) > 0.6
    assert document["outcome"]["kept_epoch"] == 1 + int(np.argmax(uar))
    rows = pq.read_table(out / "predictions/part-00000.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert {row[name] for row in rows for name in DIMENSIONS} == {None}
    for row in rows:
        assert row["p_anger"] + row["p_sadness"] == pytest.approx(1)
        assert row["emotion"] == ("anger" if row["p_anger"] > 0.5 else "sadness")
    truth = {r["file"]: r["emotion"] for r in read_table(place / "voices/labels.csv")}
    names = {"high": "anger", "low": "sadness"}
    recall = audmetric.unweighted_average_recall(
        [names[truth[Path(row["file"]).name]] for row in rows], [row["emotion"] for row in rows]
    )
    (of_dev,) = metrics_of(out, metric="uar", group="")
    assert of_dev["value"] == pytest.approx(recall)
    assert document["outcome"]["dev_uar"] == {"unnamed emotion": pytest.approx(recall, abs=1e-4)}
    card = (out / "README.md").read_text()
    assert "probabilities of the emotion categories anger and sadness." in card
    assert "**Not trained for arousal, dominance and valence.**" in card


OUTPUTS = Outputs(categories=("a", "b"), uncertainty_heads=2, ood_rank=2)


@pytest.mark.parametrize(
    ("kind", "outputs", "columns"),
    [
        ("w2v2-b", replace(OUTPUTS, points=((0.0, 0.5, 1.0),) * 2), ("p_high", "p_low")),
        ("cnn14", OUTPUTS, ()),
    ],
    ids=["scores of points", "cnn14"],
)
def test_a_model_trained_further_drops_the_heads_that_no_longer_fit(
    kind, outputs, columns, flags, indexed, tmp_path
):
    start = new_learner(Run(kind=kind)).model
    start.attach(outputs)
    save_emotion_model(start, tmp_path / "start")
    changes = {"backbone": str(tmp_path / "start"), "categories": bool(columns), "epochs": 1}
    trained(flags, tmp_path / "out", indexed, **changes)
    assert load_emotion_model(str(tmp_path / "out")).model.outputs.columns == columns


@pytest.mark.parametrize(
    ("emotions", "changes", "message"),
    [
        ([""], {"category_weight": 0.5}, "--category-weight"),
        (["high"], {"categories": True}, "1 emotion categories, 2 are needed"),
        (["high", "x" * 101], {"categories": True}, "list of names"),
    ],
)
def test_categories_that_no_model_can_have_are_refused(
    emotions, changes, message, flags, place, tmp_path
):
    rows = read_table(Path(flags.data[0]))
    rows = [{**row, "emotion": emotions[i % len(emotions)]} for i, row in enumerate(rows)]
    table = write_table(place / "voices/odd.csv", rows)
    with pytest.raises(RaysersError, match=message):
        trained(flags, tmp_path / "out", data=(str(table),), backbone="random:tiny", **changes)
    assert not (tmp_path / "out").exists()

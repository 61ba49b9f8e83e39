"""A training in the calling process: stopped by whoever listens, gone on with, finished once."""

from __future__ import annotations

import json
import shutil
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
from raysers.training.context import TrainingStopped
from raysers.training.dataset import Indexed, TrainingData, choose, index_data
from raysers.training.session import Outcome, run_training
from raysers.tuning.trial import command_of
from raysers.types import DIMENSIONS
from tests.jobs.voices import read_table, write_table, write_toy_config, write_voices
from tests.unit.models.train_runs import Run, new_trainee

EPOCHS = 4


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


def trained(flags: TrainingFlags, indexed: Indexed, output: str, on_epoch) -> Outcome:
    own = replace(flags, output=output)
    return run_training(
        own,
        as_plain(own),
        on_epoch=on_epoch,
        in_process=True,
        indexed=indexed,
        command=command_of(own),
    )


def vars_of(flags: TrainingFlags) -> dict:
    return {name: getattr(flags, name) for name in flags.__dataclass_fields__}


def test_stopped_and_gone_on_with_it_ends_as_if_never_stopped(flags, indexed, place):
    calm = trained(flags, indexed, str(place / "calm"), None)
    assert calm.trained
    out, heard = place / "stopped", []

    def stop_at_two(record) -> None:
        heard.append(record["epoch"])
        if record["epoch"] == 2:
            raise TrainingStopped("enough")

    with pytest.raises(TrainingStopped):
        trained(flags, indexed, str(out), stop_at_two)
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["outcome"]) == ("stopped", {"reason": "enough"})
    assert heard == [1, 2]
    assert list(out.glob("state/*/state.json"))

    again = trained(flags, indexed, str(out), lambda r: heard.append(r["epoch"]))
    assert heard == [1, 2, 1, 2, 3, 4]  # those that were done are told again, not trained again
    assert [r["train_loss"] for r in again.history] == [r["train_loss"] for r in calm.history]
    weights = [(place / name / "model.safetensors").read_bytes() for name in ("calm", "stopped")]
    assert weights[0] == weights[1]
    assert json.loads((out / "run.json").read_text())["status"] == "done"

    once_more = trained(flags, indexed, str(out), lambda r: heard.append(r["epoch"]))
    assert not once_more.trained
    assert once_more.figures == again.figures
    assert len(heard) == 6


def test_a_corpus_that_was_moved_gives_the_same_model(flags, place, ray_session):
    moved = shutil.copytree(place / "voices", place / "another disk" / "deeper")
    weights = []
    for folder in (place / "voices", moved):
        own = replace(
            flags,
            data=(str(folder / "labels.csv"),),
            train_fraction=0.7,
            noise_db=(10.0, 30.0),
            speed=(0.9, 1.0, 1.1),
            output=str(place / f"of {folder.name}"),
        )
        run_training(own, as_plain(own), in_process=True)
        weights.append(Path(own.output, "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def data_of(table, **changes) -> TrainingData:
    flags = TrainingFlags(data=("somewhere",), output="nowhere", **changes)
    return choose(flags, table, [], seed=0, min_samples=400, dev_needed=True)


def test_clips_without_any_label_are_no_failed_ones_but_a_wrong_command(indexed):
    table = read_manifest(indexed.manifest)
    for name in DIMENSIONS:
        empty = pa.nulls(len(table), pa.float32())
        table = table.set_column(table.column_names.index(name), name, empty)
    with pytest.raises(ConfigError, match="--emotion-map"):
        data_of(table)


def test_a_clip_in_train_and_dev_counts_in_both(indexed):
    table = read_manifest(indexed.manifest)
    train = table.filter(pc.equal(table["split"], "train"))
    again = train.set_column(
        train.column_names.index("split"), "split", pa.array(["dev"] * len(train))
    )
    data = data_of(pa.concat_tables([train, again]), allow_leakage=True)
    assert data.leakage
    assert len(data.train) == len(data.dev) == len(train)
    assert sorted(data.table["split"].to_pylist()) == ["dev"] * len(train) + ["train"] * len(train)


def test_a_category_loss_without_categories_is_refused(flags, place, ray_session, tmp_path):
    rows = [{**row, "emotion": ""} for row in read_table(Path(flags.data[0]))]
    bare = write_table(place / "voices/bare.csv", rows)
    own = replace(flags, data=(str(bare),), category_weight=0.5, output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="--category-weight"):
        run_training(own, as_plain(own), in_process=True)
    assert not (tmp_path / "out").exists()


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
    own = replace(flags, data=(str(table),), categories=True, output=str(place / "classifier"))
    run_training(own, as_plain(own), in_process=True)
    return Path(own.output)


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
    [
        ("w2v2-b", OUTPUTS),
        ("w2v2-b", replace(OUTPUTS, points=((0.0, 0.5, 1.0),) * 2)),
        ("cnn14", OUTPUTS),
    ],
    ids=["heads", "scores of points", "cnn14"],
)
def test_a_model_trained_further_drops_the_heads_that_no_longer_fit(
    kind, outputs, flags, tmp_path, ray_session
):
    start = new_trainee(Run(kind=kind)).model
    start.attach(outputs)
    save_emotion_model(start, tmp_path / "start")
    own = replace(flags, backbone=str(tmp_path / "start"), output=str(tmp_path / "out"), epochs=1)
    for categories, columns in ((False, ()), (True, ("p_high", "p_low"))):
        own = replace(own, categories=categories, output=f"{own.output}+")
        run_training(own, as_plain(own), in_process=True)
        assert load_emotion_model(own.output).model.outputs.columns == columns


@pytest.mark.parametrize(
    ("emotions", "message"),
    [(["high"], "1 emotion categories, 2 are needed"), (["high", "x" * 101], "list of names")],
)
def test_categories_that_no_model_can_have_are_refused(
    emotions, message, flags, place, ray_session, tmp_path
):
    rows = read_table(Path(flags.data[0]))
    rows = [{**row, "emotion": emotions[i % len(emotions)]} for i, row in enumerate(rows)]
    table = write_table(place / "voices/odd.csv", rows)
    own = replace(flags, data=(str(table),), categories=True, output=str(tmp_path / "out"))
    with pytest.raises(RaysersError, match=message):
        run_training(own, as_plain(own), in_process=True)
    assert not (tmp_path / "out").exists()


def test_the_card_names_a_command_that_gives_the_same_model(flags):
    from raysers.cli import parse
    from raysers.commands.train import TrainFlags

    words = command_of(flags)
    assert words[:2] == ["raysers", "train"]
    assert vars_of(parse(TrainFlags, words[2:], description="")) == vars_of(flags)

"""What the filters of a training leave has to be enough; what is not is refused in one line."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from raysers.engine.placement import here
from raysers.errors import ConfigError
from raysers.run import Run
from raysers.training import plan
from raysers.training.config import LabelledFlags, TrainingFlags
from raysers.training.dataset import TrainingData, choose, index_data

#: Speaker, split, seconds of audio, and arousal of each clip.
CLIPS = [
    ("ann", "train", 1.0, 0.1), ("ann", "train", 0.5, 0.9), ("ann", "train", 0.5, 0.4),
    ("bob", "dev", 1.0, 0.2), ("bob", "dev", 0.5, 0.7), ("cid", "train", 0.5, 0.6),
]  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number, (speaker, split, seconds, arousal) in enumerate(CLIPS):
        file = folder / f"{number}.wav"
        noise = np.random.default_rng(number).uniform(-0.1, 0.1, int(seconds * 16_000))
        sf.write(file, noise, 16_000)
        known = {"speaker": speaker, "split": split, "arousal": arousal}
        rows.append({"file": file.name, "emotion": "anger", **known})
    return write(folder / "clips.csv", rows)


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def data_of(table: Path, flags: LabelledFlags, **how: Any) -> TrainingData:
    settings = {"seed": 0, "min_samples": 400, "dev_needed": True} | how
    flags = replace(flags, data=(str(table),))
    return choose(flags, *index_data(flags), **settings)


def refusal(table: Path, flags: LabelledFlags, **how: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        data_of(table, flags, **how)
    (line,) = str(caught.value).splitlines()
    return line


def test_all_clips_are_enough(table: Path) -> None:
    data = data_of(table, LabelledFlags())
    assert (len(data.train), len(data.dev)) == (4, 2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"min_clip_s": 0.8}, ["only 1 train clip ", "too short 4", "--min-clip-s"]),
        ({"max_clip_s": 0.8, "train_fraction": 0.1}, ["only 1 train clip", "--train-fraction"]),
        ({"limit": 4}, ["only 1 dev clip ", "--limit", "--keep last"]),
        ({"limit": 3}, ["no dev clips", "--limit"]),
        ({"limit": 3, "folds": 2}, ["--folds 2", "no train clips", "a --limit above 3"]),
        ({"limit": 5, "folds": 3, "fold": 2}, ["--folds 3", "fewer folds", "a --limit above 5"]),
        ({"limit": 4, "folds": 2, "fold": 1}, ["only 1 dev clip", "--limit"]),
    ],
)
def test_one_usable_clip_is_refused_with_the_flags_that_leave_out_the_others(
    flags: dict[str, Any], words: list[str], table: Path
) -> None:
    line = refusal(table, LabelledFlags(**flags))
    assert all(word in line for word in words), line


def test_dev_clips_are_only_needed_to_choose_an_epoch(table: Path) -> None:
    assert len(data_of(table, LabelledFlags(limit=4), dev_needed=False).dev) == 1


def test_dev_clips_need_labels_of_what_is_trained(table: Path, tmp_path: Path) -> None:
    with table.open(newline="") as file:
        rows = [row | {"file": str(table.parent / row["file"])} for row in csv.DictReader(file)]
    for row in rows:
        if row["split"] == "dev":
            row |= {"arousal": "", "valence": "0.5"}
        else:
            row["valence"] = ""
    changed = write(tmp_path / "changed.csv", rows)
    assert "2 dev labels" in refusal(changed, LabelledFlags())
    assert len(data_of(changed, LabelledFlags(), dev_needed=False).dev) == 2
    assert len(data_of(changed, LabelledFlags(), categories=True).dev) == 2


def pieces_of(table: Path, output: Path, workers: int) -> int:
    """Least pieces of a batch in a run of that many workers; begins it or goes on with it."""
    flags = TrainingFlags(data=(str(table),), backbone="random:tiny", output=str(output))
    with Run.open("train", flags.output) as run:
        settled, network = plan.inspect(flags)
        placement = replace(here(threads=1), workers=workers)
        planned = plan.make_plan(settled, network, run, placement)
        run.begin({}, planned.settings)
    return planned.job("").pieces


def test_a_run_goes_on_with_another_number_of_workers_and_the_same_pieces(
    table: Path, tmp_path: Path
) -> None:
    assert [pieces_of(table, tmp_path / "few", workers) for workers in (1, 2, 6)] == [4, 4, 4]
    assert [pieces_of(table, tmp_path / "many", workers) for workers in (6, 1, 8)] == [6, 6, 6]

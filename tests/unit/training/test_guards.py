"""What the filters of a training leave has to be enough; what is not is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
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
from raysers.training.config import TrainingFlags
from raysers.training.dataset import TrainingData, choose, index_data
from tests.jobs.voices import read_table, write_table

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
        noise = np.random.default_rng(number).uniform(-0.1, 0.1, int(seconds * 16_000))
        sf.write(folder / f"{number}.wav", noise, 16_000)
        known = {"speaker": speaker, "split": split, "arousal": str(arousal), "valence": ""}
        rows.append({"file": f"{number}.wav", "emotion": "anger", **known})
    return write_table(folder / "clips.csv", rows)


def changed(table: Path, name: str, change: Callable[[dict[str, str]], dict[str, str]]) -> Path:
    """A table of the same clips whose rows are changed."""
    return write_table(table.parent / f"{name}.csv", [r | change(r) for r in read_table(table)])


def data_of(table: Path, **changes: Any) -> TrainingData:
    flags = TrainingFlags(**{"data": (str(table),), "output": "out"} | changes)
    return choose(flags, *index_data(flags), min_samples=400)


def refusal(table: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        data_of(table, **changes)
    (line,) = str(caught.value).splitlines()
    return line


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
    line = refusal(table, **flags)
    assert all(word in line for word in words), line


def test_all_clips_are_enough_and_few_dev_clips_where_none_are_needed(table: Path) -> None:
    data = data_of(table)
    assert (len(data.train), len(data.dev)) == (4, 2)
    assert len(data_of(table, limit=4, keep="last").dev) == 1


def test_labels_have_to_be_of_what_is_trained(table: Path) -> None:
    none = changed(table, "none", lambda _: {"arousal": ""})
    assert "--emotion-map" in refusal(none)  # a wrong command, not failed clips
    other = {"train": {"valence": ""}, "dev": {"arousal": "", "valence": "0.5"}}
    odd = changed(table, "odd", lambda row: other[row["split"]])
    assert "2 dev labels" in refusal(odd)
    assert len(data_of(odd, keep="last").dev) == 2
    assert len(data_of(odd, categories=True).dev) == 2


def test_a_clip_in_train_and_dev_counts_in_both(table: Path) -> None:
    both = {"data": (), "train": (str(table),), "dev": (str(table),)}
    data = data_of(table, **both, allow_leakage=True)
    assert data.leakage
    assert len(data.train) == len(data.dev) == len(CLIPS)
    assert data.table["split"].to_pylist().count("dev") == len(CLIPS)


def pieces_of(table: Path, output: Path, workers: int, **changes: Any) -> int:
    """Least pieces of a batch in a run of that many workers; begins it or goes on with it."""
    names = {"data": (str(table),), "backbone": "random:tiny", "output": str(output)}
    flags = TrainingFlags(**names | changes)
    with Run.open("train", flags.output) as run:
        settled, network = plan.inspect(flags)
        placement = replace(here(threads=1), workers=workers)
        planned = plan.make_plan(settled, network, run, placement)
        run.begin({}, planned.settings)
    return planned.pieces


def test_a_head_for_the_sex_needs_both(table: Path, tmp_path: Path) -> None:
    women = changed(table, "women", lambda _: {"sex": "female"})
    with pytest.raises(ConfigError, match=r"--sex-weight.* 1 sexes"):
        pieces_of(women, tmp_path / "out", 1, sex_weight=0.2)


def test_a_run_goes_on_with_another_number_of_workers_and_the_same_pieces(
    table: Path, tmp_path: Path
) -> None:
    assert [pieces_of(table, tmp_path / "few", workers) for workers in (1, 6)] == [4, 4]
    assert [pieces_of(table, tmp_path / "many", workers) for workers in (6, 1, 8)] == [6, 6, 6]


@pytest.mark.parametrize("flag", ["data", "train", "dev"])
def test_a_place_without_data_is_named_with_its_flag(flag: str, table: Path, tmp_path: Path):
    places = {"data": ()} if flag == "data" else {"train": (str(table),), "dev": (str(table),)}
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=rf"^--{flag} \S*{place.name}: no"):
            index_data(TrainingFlags(output="out", **{**places, flag: (str(place),)}))

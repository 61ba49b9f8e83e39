"""The record of a run in its folder, however the run ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysers.errors import ConfigError, ObjectForbidden, RaysersError, TransientStorageError
from raysers.run import Run, load_record


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (None, None, "running"),
        (ValueError("a bug"), ValueError, "failed"),
        (ConfigError("refused by a worker"), RaysersError, "failed"),
        (ModuleNotFoundError("no module named av", name="av"), RaysersError, "failed"),
        (KeyboardInterrupt(), KeyboardInterrupt, "interrupted"),
        (SystemExit(143), SystemExit, "interrupted"),
    ],
)
@pytest.mark.parametrize("finish", [False, True])
def test_the_record_says_how_a_begun_run_ended(tmp_path: Path, error, raised, status, finish):
    output = str(tmp_path / "out")
    caught: BaseException | None = None
    try:
        with Run.open("train", output) as run:
            run.begin({"epochs": 1}, {"lr": 0.1}, ["jobs/train.py"])
            if finish:
                run.finish("done", {"epochs": 1})
            if error is not None:
                raise error
    except BaseException as one:
        caught = one
    assert type(caught) is (raised or type(None))
    record = load_record(output)
    assert record is not None
    assert record.status == ("done" if finish else status)  # what follows the end does not undo it
    assert record.command == ["jobs/train.py"]
    assert not (tmp_path / "out" / "_claim.json").exists()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ObjectForbidden("no access"), ConfigError),
        (TransientStorageError("no answer"), TransientStorageError),
        (RaysersError("other"), RaysersError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_run_that_did_not_begin_leaves_no_folder(tmp_path: Path, error, raised):
    with pytest.raises(raised), Run.open("train", str(tmp_path / "new" / "out")):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_and_foreign_files_stay(tmp_path: Path):
    (tmp_path / "there").mkdir()
    for output, file in (("there", ""), ("new", "mine.txt")):
        with pytest.raises(ConfigError):
            fail_before_begin(str(tmp_path / output), file)
    assert (tmp_path / "there").is_dir()
    assert (tmp_path / "new" / "mine.txt").exists()


def fail_before_begin(output: str, file: str) -> None:
    """A run that writes `file` into its folder and is then refused."""
    with Run.open("train", output) as run:
        if file:
            Path(run.output, file).touch()
        raise ConfigError("wrong")

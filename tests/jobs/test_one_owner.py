"""One run at a time owns an output: the second command is refused before it does anything."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysers.commands import find
from tests.places import REPO

#: Arguments with a model, data and files that do not exist: whatever is looked at first is named.
COMMANDS = {
    "annotate": ("--input", "no-audio", "--model", "no-model"),
    "evaluate": ("--labels", "no-labels", "--model", "no-model"),
    "fuse-predict": ("predict", "--input", "no-audio", "--fusion", "no-fusion"),
    "fuse-train": ("train", "--data", "no-data", "--model", "no-model"),
    "index": ("--input", "no-audio"),
    "probe": ("--model", "no-model"),
    "report": ("--runs", "no-run"),
    "robustness": ("--input", "no-audio", "--model", "no-model"),
    "study": ("--study", "seeds", "--data", "no-data"),
    "synthesize": ("--texts", "no-texts.csv"),
    "train": ("--data", "no-data", "--backbone", "no-backbone"),
    "transcribe": ("--input", "no-audio", "--asr", "no-asr"),
    "tune": ("--space", "no-space.yaml", "--data", "no-data", "--backbone", "no-backbone"),
}

_HOLD = """
import sys
from contextlib import ExitStack
from raysers.run import Run

with ExitStack() as stack:
    for place in sys.argv[1:]:
        run = stack.enter_context(Run.open(place.rpartition("/")[2], place))
        run.begin({}, {"of": "the first command"})
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("held")


@pytest.fixture(scope="module")
def holder(outputs) -> Iterator[int]:
    """The process that owns OUTPUTS/JOB for every job."""
    places = [str(outputs / job) for job in COMMANDS]
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, *places],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process.pid
    process.communicate()
    assert process.returncode == 0


def contents(folder: Path) -> dict[str, object]:
    """Every file with its bytes; of a claim, what does not change while it is renewed."""
    files = [file for file in folder.rglob("*") if not file.name.startswith(".raysers-")]
    found: dict[str, object] = {
        str(file.relative_to(folder)): file.read_bytes() if file.is_file() else None
        for file in files
    }
    found["_claim.json"] = json.loads((folder / "_claim.json").read_text())["token"]
    return found


@pytest.mark.parametrize("job", COMMANDS)
def test_a_second_command_is_refused_and_changes_nothing(
    job, outputs, holder, monkeypatch, capfd, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # a cluster that is joined would be an error
    out = outputs / job
    before = contents(out)
    main = find(job.partition("-")[0])
    assert main([*COMMANDS[job], "--output", str(out)]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert f"{out} is in use by {job} on " in line
    assert f"(process {holder})" in line
    assert contents(out) == before
    assert list(tmp_path.iterdir()) == []

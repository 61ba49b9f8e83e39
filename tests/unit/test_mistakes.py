"""What people type wrong: one line with the cause and the fix, and the right exit code."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from raysers import commands, display
from raysers.display import with_packages
from tests.places import REPO

#: Command line, and a part of the line that it ends with; `FILE` is what the folder below holds.
MISTAKES = {
    # commands and flags
    "anotate audio": "did you mean 'annotate'?",
    "audio": "did you mean raysers annotate audio?",
    "scores": "give one of annotate, read, transcribe,",
    "annotate": "raysers annotate needs --input URI ...: Folders",
    "annotate audio --ouput x": "--ouput is no flag here: did you mean '--output'?",
    "annotate audio -output x": "-output is no flag here: did you mean '--output'?",
    "annotate audio --cuda 2": "--cuda is no flag here: --help-all lists them",
    "annotate audio --input audio": "audio: give it with --input, or all without",
    "annotate audio --limit": "--limit takes a value (N), not none",
    "annotate audio --workers many": "--workers many: give N or local",
    "annotate audio --workers -1": "--workers is -1: give 0 (automatic), a number, or local",
    "annotate audio --retry ok": "--retry ok: give one of missing, forbidden,",
    "annotate audio --retry mising": "--retry mising: did you mean 'missing'?",
    "annotate audio --segment windows": "--segment windows: did you mean 'window'?",
    "annotate audio --hop-s 5": "--hop-s is 5.0: give also --segment window",
    "annotate audio --segment window --hop-s 20": "--hop-s is 20.0: give above 0 and at most",
    "annotate audio --segment window --window-s 0": "--window-s is 0.0: give a length above 0",
    "annotate audio --limit -1": "--limit is -1: give 0 (all) or more",
    "annotate audio --limit 3.5": "--limit 3.5: give a whole number",
    "annotate audio --max-failed 5": "--max-failed is 5.0: give a share from 0 to 1",
    "annotate audio --dtype int4": "--dtype int4: did you mean 'int8'?",
    "annotate audio --extend=no": "--extend takes no value, not no",
    "annotate audio --usd-per-hour -2": "--usd-per-hour is -2.0: give 0 or more",
    "fuse audio": "'audio' is no command of fuse: give train or predict",
    # config files
    "annotate audio --config": "--config needs a file",
    "annotate audio --config nowhere.yaml": "--config nowhere.yaml",
    "annotate audio --config bad.yaml": "unknown key 'modle'",
    "train audio --recipe papr": "--recipe papr: give one of cnn14, from-scratch, ",
    # places
    "annotate nowhere": "nowhere",
    "annotate empty": "no audio",
    "annotate notes": "no audio",
    "annotate s3:/bucket/calls": "s3:/bucket/calls",
    "annotate audio -o bad.yaml/out": "bad.yaml/out",
    "annotate audio -o ./audio/": "audio is an --input, too: choose another folder",
    "index audio -o audio": "audio is an --input, too: choose another folder",
    "annotate audio -o other": "holds a run of 'index'",
    "annotate names.csv": "file",
    "index audio --corpus emodb": "no file is named as EmoDB's are",
    "probe raysers-base --data empty": "error: --data ",
    "evaluate --model raysers-base --labels empty": "error: --labels ",
    "train": "--data is empty: give labelled data, or --train and --dev",
    "train audio --dev audio": "--data is ('audio',): give either --data, or --train and --dev",
    "evaluate nowhere --labels labels.csv": "nowhere",
    "evaluate audio --labels labels.csv": "audio",
    "evaluate other": "raysers evaluate needs --labels",
    "report nowhere": "nowhere",
    "report audio": "audio",
    "tune nowhere.yaml --data audio": "nowhere.yaml",
    "tune bad.yaml --data audio": "modle",
    "study papr --scale small": "papr",
    "probe nowhere -o p": "nowhere",
    "annotate audio -o /proc/here": "/proc/here",
    # models
    "annotate audio --model w2v2-l-robst": "did you mean",
    "annotate audio --dtype fp16 --workers local": "--dtype",
    "annotate audio --model no-such-model": "no-such-model",
    "annotate audio --model ./nowhere": "nowhere",
    "annotate audio --model ./notes": "notes",
    "export raysers-base --dtype bf16": "--dtype bf16: give one of fp32, int8",
    "calibrate raysers-base --sample audio": "--sample",
    "fuse predict audio": "needs --fusion TEXT",
    "fuse predict audio --fusion notes": "notes",
    "transcribe audio --asr ./nowhere": "nowhere",
    # jobs of their own flags
    "synthesize": "give either --texts FILE or --templates NAME",
    "synthesize --templates this-was": "this-was",
    "synthesize bad.csv": "bad.csv",
    "robustness audio --suite large": "--suite large: give one of paper, small, full",
    "robustness audio --perturbations white-noise": "white-noise",
    "train audio --folds 1": "--folds is 1: give 2 or more",
    "train audio --crop-s 1": "--crop-s takes 2 values (X X), not 1",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One clip of noise, and what is no input."""
    place = tmp_path_factory.mktemp("mistakes")
    for name in ("audio", "empty", "notes", "other"):
        (place / name).mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write(place / "audio" / "a.wav", noise, 16_000)
    (place / "notes" / "readme.txt").write_text("no audio here")
    (place / "bad.yaml").write_text("modle: msp-dim\n")
    (place / "names.csv").write_text("name,valence\na.wav,0.5\n")
    (place / "labels.csv").write_text("file,valence\naudio/a.wav,0.5\n")
    (place / "other" / "run.json").write_text(
        '{"run_id": "1", "job": "index", "status": "done", "started_at": "", "config": {}, '
        '"settings": {}, "versions": {}, "command": []}'
    )
    return place


def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = commands.main(argv)
    said = capsys.readouterr()
    (line,) = [one for one in said.err.splitlines() if one.strip()]
    assert line.startswith("error: ")
    assert "Traceback" not in said.out + said.err
    return code, line


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_exit_code_2(mistake, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
    code, line = run(shlex.split(mistake), capsys)
    print(line)
    assert MISTAKES[mistake] in line
    assert code == 2
    assert {path for path in folder.rglob("*") if "__pycache__" not in path.parts} == before


def test_a_missing_extra_is_named_as_pip_finds_it(monkeypatch, tmp_path):
    said = with_packages("--asr moonshine needs a package: pip install 'raysers[asr]'")
    assert said.endswith(f": pip install '{REPO}[asr]'")
    monkeypatch.setattr(display, "__file__", str(tmp_path / "site-packages/raysers/display.py"))
    lines = ["torch>=2", 'onnx>=1.17; extra == "cpu"', "optuna; extra == 'search'"]
    monkeypatch.setattr(display.metadata, "requires", lambda name: lines)
    said = with_packages("int8: pip install 'raysers[cpu]', or take fp32")
    assert said == "int8: pip install 'onnx>=1.17', or take fp32"


@pytest.mark.parametrize(
    ("mistake", "variable", "value"),
    [
        ("annotate audio", "RAY_ADDRESS", "127.0.0.1:1"),
        ("annotate s3://bucket/calls", "AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
    ],
)
def test_a_wrong_address_is_named_in_seconds(mistake, variable, value, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    code, line = run(shlex.split(mistake), capsys)
    assert code == 2
    assert variable in line
    assert value in line

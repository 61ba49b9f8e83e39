"""Ctrl-C in any job: exit code 130, one line, and `interrupted` in its record."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile

from raysers import commands
from raysers.run import Run
from tests.jobs import processes
from tests.jobs.conftest import record_of
from tests.unit.models.text_folders import write_encoder

TRAINING = "--data {0}/calls.csv --backbone random:tiny --epochs 1 --dtype fp32"
COMMANDS = {
    "annotate": "{0}/calls.csv --workers local",
    "robustness": "{0}/calls.csv --suite small --workers local",
    "transcribe": "{0}/calls.csv --workers local",
    "fuse": "train {0}/calls.csv --text-model {0}/encoder --asr manifest --workers 1",
    "index": "{0}/calls.csv",
    "evaluate": "{0}/scores --labels {0}/calls.csv --bootstrap 10",
    "probe": "raysers-base --limit 2",
    "report": "{0}/scores",
    "synthesize": "{0}/texts.csv",
    "train": TRAINING + " --workers 1",
    "tune": "{0}/space.yaml --search grid " + TRAINING,
    "study": "{0}/study.yaml --data {0}/calls.csv",
    "export": "raysers-base",
    "calibrate": "raysers-base --sample {0}/scores",
}
#: Jobs with packages of their own, the one that writes nothing, and the one that is `annotate`.
NEEDS = {
    "transcribe": "moonshine_voice",
    "probe": "espeakng_loader",
    "synthesize": "espeakng_loader",
}
OTHERS = {"read", "demo"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Fifty labelled calls of noise and their scores, texts, and settings."""
    folder, noise = tmp_path_factory.mktemp("ctrl-c"), np.random.default_rng(0)
    lines = ["file,speaker,sex,split,transcript,arousal,dominance,valence"]
    for n in range(50):
        soundfile.write(folder / f"{n}.wav", noise.normal(0, 0.1, 6_000 + 40 * n), 16_000)
        split = ("train", "dev", "test")[n % 3]
        lines.append(f"{n}.wav,{split}{n % 2},female,{split},well,{n / 50},0.5,{1 - n / 50}")
    (folder / "calls.csv").write_text("\n".join(lines))
    (folder / "texts.csv").write_text("text\nhello\n")
    (folder / "space.yaml").write_text("lr: [3e-3, 1e-3]\n")
    study = {
        "models": {"toy": "random:tiny"},
        "train": {"epochs": 1},
        "factor": "seed",
        "seeds": [0],
    }
    (folder / "study.yaml").write_text(json.dumps(study))
    (folder / "long.yaml").write_text(json.dumps({**study, "train": {"epochs": 500}}))
    write_encoder(folder / "encoder")
    scored = ["annotate", str(folder / "calls.csv"), "-o", str(folder / "scores"), "--embeddings"]
    assert commands.main([*scored, "--workers", "local"]) == 0
    return folder


@pytest.mark.parametrize("job", COMMANDS)
@pytest.mark.usefixtures("ray_session")
def test_ctrl_c_ends_every_job_with_130_and_interrupted(job, place, tmp_path, monkeypatch, capsys):
    if job in NEEDS:
        pytest.importorskip(NEEDS[job])
    begin = Run.begin

    def interrupted(self: Run, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "begin", interrupted)
    words = COMMANDS[job].format(place).split()
    assert commands.main([job, *words, "-o", str(tmp_path / "out")]) == 130
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert (
        error.strip().splitlines()[-1] == "interrupted: the same command resumes where it stopped"
    )
    assert record_of(tmp_path / "out")["status"] == "interrupted"
    assert not (tmp_path / "out" / "_claim.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("job", ["train", "tune", "study"])
def test_ctrl_c_in_mid_run_ends_jobs_of_many_processes(job, place, tmp_path):
    words = COMMANDS[job].format(place).replace("--epochs 1", "--epochs 500")
    words = words.replace("study.yaml", "long.yaml")
    driver = processes.start(f"jobs/{job}.py", *words.split(), "-o", tmp_path / "out")
    deadline = time.monotonic() + 120
    while not (tmp_path / "out/run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(10)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGINT)
    code, _, errors = processes.finish(driver, timeout_s=120)
    assert code == 130, errors
    assert errors.strip().endswith("interrupted: the same command resumes where it stopped")
    assert "Traceback" not in errors
    assert record_of(tmp_path / "out")["status"] == "interrupted"
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_every_job_is_tried() -> None:
    assert {*COMMANDS, *OTHERS} == set(commands.COMMANDS)

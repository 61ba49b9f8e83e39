"""`--sample`: a random share first, what the rest takes, and the same rows in the end."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import soundfile

import raysers
from raysers.commands.archive import AnnotateFlags, annotate
from raysers.errors import ConfigError

CLIPS = 12


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "audio"
    place.mkdir()
    rng = np.random.default_rng(0)
    for number in range(CLIPS):
        noise = rng.normal(0, 0.1, 8_000 + 400 * number)
        soundfile.write(place / f"{number}.wav", noise, 16_000)
    return place


def test_a_sample_is_part_of_the_whole_and_the_same_command_goes_on(folder, tmp_path, capsys):
    command = [str(folder), "--workers", "local", "--shard-s", "1.5", "--usd-per-hour", "2"]
    sampled, straight = tmp_path / "sampled", tmp_path / "straight"
    assert annotate([*command, "-o", str(sampled), "--sample", "25%"]) == 0
    said = capsys.readouterr().out
    assert "what the rest takes" in said
    assert "USD" in said
    assert json.loads((sampled / "run.json").read_text())["status"] == "stopped"
    first = raysers.read(sampled)
    assert 0 < len(first) < CLIPS / 2
    assert annotate([*command, "-o", str(sampled)]) == 0
    assert annotate([*command, "-o", str(straight)]) == 0
    assert json.loads((sampled / "run.json").read_text())["status"] == "done"
    both = raysers.read(sampled), raysers.read(straight)
    own = ["run_id", "created_at"]
    pd.testing.assert_frame_equal(*(frame.drop(columns=own) for frame in both))
    assert set(first["clip_id"]) < set(both[0]["clip_id"])


def test_shares():
    for sample, share in {"1%": 0.01, "0.25": 0.25, "100%": 1.0, " 5 %": 0.05}.items():
        flags = AnnotateFlags(input=("a",), output="b", sample=sample)
        flags.check()
        assert flags.share == pytest.approx(share)
    for sample in ("0", "101%", "-1%", "some", "nan", ""):
        with pytest.raises(ConfigError, match="give a share such as 1%"):
            AnnotateFlags(input=("a",), output="b", sample=sample).check()

"""Variants of a decoded clip, and the recordings they are made with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf

from raysers.engine.feed import Decoded
from raysers.robustness.environments import NoiseReader, decoded_once
from raysers.robustness.task import Perturbed, chosen
from raysers.types import Clip


def perturbed(*names: str, **options) -> Perturbed:
    return Perturbed(rows=tuple(chosen(names, "paper", ())[0]), **options)


def decoded(samples: int = 8000, clip_id: str = "a") -> Decoded:
    signal = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    return Decoded(clip=Clip(clip_id=clip_id, file="a.wav"), signal=signal, rms_db=-20.0)


def test_draws_differ_between_clips_and_not_with_their_company():
    rows = perturbed("white_noise")
    first, other = (rows.of(decoded(clip_id=c))[1] for c in ("a", "b"))
    assert not np.array_equal(first.signal, other.signal)
    with_more = perturbed("gain", "white_noise", "clip").of(decoded(clip_id="a"))
    again = next(m for m in with_more if m.variant == "white_noise")
    np.testing.assert_array_equal(again.signal, first.signal)


@pytest.mark.parametrize("seconds", [2, 15])
def test_recordings_are_read_where_they_are_asked_for(tmp_path, seconds):
    ramp = (np.arange(16_000 * seconds) % 30_000).astype(np.int16)
    sf.write(tmp_path / "ramp.wav", ramp, 16_000)
    item = Clip(clip_id="", file=str(tmp_path / "ramp.wav"), duration_s=seconds)
    reading = NoiseReader([item])
    got = reading.read(0, 20_001, 500)
    np.testing.assert_array_equal(got * 32_768, ramp[20_001:20_501])
    assert len(reading.read(0, len(ramp) - 10, 500)) == 10
    assert reading.taken == [item.file] * 2


def test_a_recording_is_decoded_to_its_end_before_it_is_used(tmp_path):
    sf.write(tmp_path / "x.flac", np.random.default_rng(0).normal(0, 0.1, 80_000), 16_000)
    item = Clip(clip_id="", file=str(tmp_path / "x.flac"), duration_s=80_007 / 16_000)
    assert decoded_once(item) == replace(item, duration_s=5.0)
    data = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(data[: len(data) // 2])
    assert decoded_once(item).status == "truncated"
    gone = replace(item, file=str(tmp_path / "gone.flac"))
    assert decoded_once(gone).status == "missing"

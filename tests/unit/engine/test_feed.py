"""Decoding ahead: order, bounds, and whose fault is whose."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from raysers.engine.feed import Decoded, decode_ahead, micro_batches
from raysers.errors import CredentialsError
from raysers.types import Clip, Status


@pytest.fixture
def recording(tmp_path):
    """Ten seconds at 16 kHz whose sample values tell the second they belong to."""
    path = tmp_path / "ten seconds #1 %.wav"
    second = np.repeat(np.arange(10, dtype=np.int16) * 100, 16_000)
    sf.write(path, second, 16_000, subtype="PCM_16")
    return str(path)


def _clip(file: str, start_s: int, end_s: int, **more) -> Clip:
    return Clip(
        clip_id=f"{file}-{start_s}",
        file=file,
        start_ns=start_s * 10**9,
        end_ns=end_s * 10**9,
        duration_s=float(end_s - start_s),
        **more,
    )


def _run(clips, ahead_s=600.0, max_clip_s=600.0):
    with ThreadPoolExecutor(3) as pool:
        return list(decode_ahead(clips, pool, max_clip_s=max_clip_s, ahead_s=ahead_s))


@pytest.mark.parametrize("ahead_s", [0.0, 2.5, 600.0])
def test_clips_come_in_the_order_asked_for_whatever_is_wrong_with_some(recording, ahead_s):
    clips = [
        _clip(recording, 4, 5),
        _clip("/nowhere/x.wav", 0, 1),
        _clip(recording, 1, 3),
        _clip(recording, 2, 4),
        _clip(recording, 0, 1, status=Status.TRUNCATED, error="cut"),
        _clip(recording, 0, 10),
    ]
    got = _run(clips, ahead_s=ahead_s, max_clip_s=5.0)
    assert [d.clip.clip_id for d in got] == [c.clip_id for c in clips]
    fates = [d.error.status if d.error else Status.OK for d in got]
    assert fates == ["ok", "missing", "ok", "ok", "truncated", "too_long"]
    assert np.unique(got[0].signal * 32768).tolist() == [400]
    assert np.unique(got[2].signal * 32768).tolist() == [100, 200]
    assert np.unique(got[3].signal * 32768).tolist() == [200, 300]
    assert got[0].duration_s == 1.0


def test_at_most_the_asked_for_audio_is_in_flight():
    submitted = []

    class Pool(ThreadPoolExecutor):
        def submit(self, fn, /, *args, **kwargs):
            submitted.append(sum(len(run) for run in args[0]))
            return super().submit(fn, *args, **kwargs)

    clips = [_clip(f"/nowhere/{i}.wav", 0, 10) for i in range(40)]
    with Pool(2) as pool:
        feed = decode_ahead(clips, pool, max_clip_s=600, ahead_s=200)
        begun = sum(submitted)  # before anyone asks
        assert 0 < begun <= 20
        next(feed)
        assert begun < sum(submitted) <= 30
        assert len(list(feed)) == 39


def test_variants_of_a_long_clip_die_as_they_are_consumed_before_the_next_is_begun(tmp_path):
    """Variants alive, counted by references to their signals."""
    for i in range(4):
        sf.write(tmp_path / f"{i}.wav", np.zeros(5 * 16_000), 16_000)
    made: list[weakref.ref] = []

    def variants(one):
        copies = [replace(one, signal=one.signal.copy()) for _ in range(9)]
        made.extend(weakref.ref(copy.signal) for copy in copies)
        return copies

    clips = [_clip(str(tmp_path / f"{i}.wav"), 0, 5) for i in range(4)]
    with ThreadPoolExecutor(2) as pool:
        feed = decode_ahead(clips, pool, max_clip_s=600, ahead_s=0.5, variants=variants)
        most = 0
        for _ in feed:
            most = max(most, sum(ref() is not None for ref in made))
    assert len(made) == 36
    assert most <= 11


def test_a_storage_failure_is_not_the_clips_fault(recording, monkeypatch):
    # an endpoint nobody listens on would be retried; missing credentials fail at once
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(CredentialsError):
        _run([_clip("s3://bucket-of-nobody/x.wav", 0, 1)])


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=60),
    st.floats(0.5, 30),
    st.booleans(),
)
def test_micro_batches_hold_every_clip_once_in_order_within_the_budget(lengths_s, budget_s, pads):
    clips = [
        Decoded(
            clip=Clip(clip_id=str(i), file="x"),
            signal=np.zeros(s * 16_000, np.float32) if s else None,
        )
        for i, s in enumerate(lengths_s)
    ]
    batches = list(micro_batches(clips, budget_s, pads))
    assert [d.clip.clip_id for b in batches for d in b] == [str(i) for i in range(len(clips))]
    for batch in batches:
        lengths = [d.duration_s for d in batch if d.signal is not None]
        assert len(lengths) <= 1 or len(lengths) * max(lengths) <= budget_s


def test_lasting_failures_of_single_files_are_rows(recording, tmp_path):
    """`/proc/self/mem` answers EIO for ever; the others are ranges that are in no file."""
    (tmp_path / "bad disk.wav").symlink_to("/proc/self/mem")
    ranges = [(2**62, 44), (10**6, 44), (320_040, 44)]
    clips = [
        _clip(str(tmp_path / "bad disk.wav"), 0, 1),
        *(_clip(recording, 0, 1, byte_offset=start, byte_size=size) for start, size in ranges),
        _clip(recording, 4, 5),
        _clip(str(tmp_path), 0, 1),
    ]
    got = _run(clips)
    assert [d.error.status if d.error else Status.OK for d in got] == [
        *["unreadable"] * 4,
        "ok",
        "unreadable",
    ]
    assert "Input/output error" in str(got[0].error)
    assert all("are not in the object" in str(d.error) for d in got[1:4])

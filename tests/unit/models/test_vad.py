from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysers.errors import ConfigError
from raysers.models import speech
from raysers.models.speech import find_speech, speech_windows
from tests.places import SHARED_DATA, needs_shared

pytest.importorskip("silero_vad")

NS = 1_000_000_000


def recording(seconds_of_silence: float = 2.0) -> np.ndarray:
    """Three acted sentences with digital silence around and between them."""
    files = sorted((SHARED_DATA / "emodb" / "wav").glob("*.wav"))[100:300:70]
    silence = np.zeros(int(seconds_of_silence * 16_000), np.float32)
    parts = [silence]
    for file in files:
        parts += [soundfile.read(file, dtype="float32")[0], silence]
    return np.concatenate(parts)


def blocks(signal: np.ndarray, size: int) -> list[np.ndarray]:
    return [signal[i : i + size] for i in range(0, len(signal), size)]


@needs_shared
def test_equals_the_package_on_the_whole_recording() -> None:
    import silero_vad

    signal = recording()
    expected = silero_vad.get_speech_timestamps(
        torch.from_numpy(signal),
        silero_vad.load_silero_vad(),
        min_speech_duration_ms=300,
        max_speech_duration_s=10,
    )
    got = find_speech(blocks(signal, 16_000), min_s=0.3, max_s=10)
    assert got == [(s["start"] * NS // 16_000, s["end"] * NS // 16_000) for s in expected]
    assert len(got) >= 3


@needs_shared
@pytest.mark.parametrize("size", [100, 777, 10**9])
def test_block_size_does_not_matter(size: int) -> None:
    signal = recording()
    expected = find_speech(blocks(signal, 4_096), min_s=0.25, max_s=30)
    assert find_speech(iter(blocks(signal, size)), min_s=0.25, max_s=30) == expected


@needs_shared
def test_long_speech_is_split_and_nothing_overlaps() -> None:
    signal = recording(seconds_of_silence=0.0)
    got = find_speech([signal], min_s=0.1, max_s=1.0)
    assert len(got) > 4
    assert all(0 < end - start <= 1.0 * NS for start, end in got)
    flat = [time for segment in got for time in segment]
    assert flat == sorted(flat)
    assert flat[-1] <= len(signal) * NS // 16_000


@pytest.mark.parametrize("signal", [np.zeros(0, np.float32), np.zeros(48_000, np.float32)])
def test_no_speech(signal: np.ndarray) -> None:
    assert find_speech([signal], min_s=0.25, max_s=10) == []
    assert find_speech([], min_s=0.25, max_s=10) == []


def test_impossible_bounds() -> None:
    with pytest.raises(ConfigError, match="min"):
        find_speech([], min_s=2.0, max_s=1.0)


IMPORT = """
import sys
from raysers.models.speech import find_speech
print("torch" in sys.modules, "silero_vad" in sys.modules)
import torch, numpy as np
torch.set_num_threads(2)
find_speech([np.zeros(2000, np.float32)], min_s=.2, max_s=5)
print(torch.get_num_threads())
"""


def test_importing_the_finder_loads_no_torch_and_its_first_call_keeps_torchs_threads() -> None:
    """Most workers never call it; its package sets torch to one thread when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False", "2"]


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(ConfigError, match=r"raysers\[vad\]"):
        find_speech([np.zeros(9, np.float32)], min_s=0.2, max_s=5)


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    import silero_vad

    loads: list[int] = []
    load = silero_vad.load_silero_vad
    monkeypatch.setattr(silero_vad, "load_silero_vad", lambda: loads.append(1) or load())
    return loads


def test_threads_that_come_and_go_load_the_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(find_speech, [np.zeros(2_000, np.float32)], min_s=0.2, max_s=5).result()
    assert len(loads) <= 1  # none where an earlier test has left one


def test_a_stream_that_breaks_off_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    signal = np.random.default_rng(0).normal(0, 0.3, 16_000).astype(np.float32)

    def broken() -> Iterator[np.ndarray]:
        yield signal
        raise OSError("gone")

    expected = find_speech([signal], min_s=0.01, max_s=5)
    loads.clear()
    with pytest.raises(OSError, match="gone"):
        find_speech(broken(), min_s=0.01, max_s=5)
    assert find_speech([signal], min_s=0.01, max_s=5) == expected
    assert not loads


@needs_shared
def test_interleaved_streams_do_not_mix() -> None:
    """Each stream waits for the others in the middle, so all are open at once."""
    signals = [recording()[start:] for start in (0, 40_000, 80_000)]
    alone = [find_speech([signal], min_s=0.25, max_s=10) for signal in signals]
    assert len({tuple(found) for found in alone}) == 3
    meet = threading.Barrier(3, timeout=30)

    def halves(signal: np.ndarray) -> Iterator[np.ndarray]:
        yield signal[: len(signal) // 2]
        meet.wait()
        yield signal[len(signal) // 2 :]

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda s: find_speech(halves(s), min_s=0.25, max_s=10), signals))
    assert together == alone


@needs_shared
@pytest.mark.parametrize(("detector", "pause_level"), [(True, 0.03), (True, 0.0), (False, 0.0)])
def test_long_speech_is_cut_between_its_sentences(detector, pause_level, monkeypatch) -> None:
    """Of 1.5 to 2.5 s, so that every window of 12 s ends with a pause in its last third.

    The detector finds pauses that are louder than much of the speech.
    """
    if not detector:
        monkeypatch.setattr(speech, "find_spec", lambda name: None)
    files = sorted((SHARED_DATA / "emodb" / "wav").glob("*.wav"))
    sentences = [s for s in (soundfile.read(f, dtype="float32")[0] for f in files[::9])
                 if 24_000 < len(s) < 40_000][:20]  # fmt: skip
    rng = np.random.default_rng(0)
    pause = (pause_level * rng.standard_normal(12_000)).astype(np.float32)
    parts = [part for sentence in sentences for part in (sentence, pause)]
    ends = np.cumsum([len(part) for part in parts]).reshape(-1, 2)
    windows = speech_windows(np.concatenate(parts), 12.0)
    cuts = np.cumsum([len(window) for window in windows])[:-1, None]
    assert len(cuts) > 3
    assert ((ends[:, 0] < cuts) & (cuts < ends[:, 1])).any(axis=1).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 300_000), st.integers(0, 2**32 - 1))
def test_windows_are_the_clip_and_none_is_too_long(samples: int, seed: int) -> None:
    signal = np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
    windows = speech_windows(signal, 4.0)
    np.testing.assert_array_equal(np.concatenate(windows), signal)
    assert max(len(window) for window in windows) <= 4 * 16_000
    assert all(len(window) > 2.6 * 16_000 for window in windows[:-1])

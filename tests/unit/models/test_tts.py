"""Speech synthesis: repeatable samples, and arguments that do what they say."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from raysers.errors import ConfigError
from raysers.models import tts

espeakng_loader = pytest.importorskip("espeakng_loader")

TEXT = "I am so happy to see you!"
# plain; three with noise of espeak-ng's own; one with libc's; and its other synthesisers
SPEAKERS = ("", "f3", "whisper", "croak", "Reed", "klatt2", "klatt6", "robosoft")


def digest(text, **how):
    return hashlib.sha256(tts.speak(text, **how)[0].tobytes()).hexdigest()


def fundamental_hz(samples, sample_rate_hz):
    """Median over 40 ms frames of the lag with the highest autocorrelation."""
    size, hop = sample_rate_hz // 25, sample_rate_hz // 100
    shortest, longest = sample_rate_hz // 400, sample_rate_hz // 50
    found = []
    for start in range(0, len(samples) - size, hop):
        frame = samples[start : start + size]
        correlation = np.correlate(frame, frame, "full")[size - 1 :]
        lag = shortest + int(np.argmax(correlation[shortest:longest]))
        if correlation[lag] > 0.5 * correlation[0] > 0.5:
            found.append(sample_rate_hz / lag)
    return float(np.median(found))


@pytest.mark.parametrize("variant", SPEAKERS)
def test_same_words_same_samples_whatever_was_spoken_before(variant):
    first = digest(TEXT, variant=variant)
    for text, how in [
        ("Something else entirely, and much longer. Is it not?", {"rate_wpm": 300, "pitch": 90}),
        ("x", {"variant": "whisper", "rate_wpm": 80}),
        ("Guten Tag", {"voice": "de", "variant": "klatt4"}),
    ]:
        tts.speak(text, **how)
        assert digest(TEXT, variant=variant) == first


def test_same_samples_in_another_process():
    code = (
        "import hashlib, sys\n"
        "from raysers.models import tts\n"
        "for v in sys.argv[2:]:\n"
        "    x = tts.speak(sys.argv[1], variant=v)[0]\n"
        "    print(hashlib.sha256(x.tobytes()).hexdigest())\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, TEXT, *SPEAKERS], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [digest(TEXT, variant=v) for v in SPEAKERS]


def test_threads_take_turns():
    texts = [f"Sentence number {i}." for i in range(12)]
    alone = [digest(text, variant="f2") for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: digest(text, variant="f2"), texts))
    assert together == alone
    assert len(set(alone)) == len(texts)


def test_rate_and_pitch_do_what_they_say():
    slow, rate_hz = tts.speak(TEXT, rate_wpm=100)
    fast, _ = tts.speak(TEXT, rate_wpm=200)
    assert 1.6 < len(slow) / len(fast) < 2.4
    low, middle, high = (
        fundamental_hz(tts.speak(TEXT, pitch=pitch)[0], rate_hz) for pitch in (10, 50, 90)
    )
    assert low < 0.9 * middle < 0.8 * high


def test_text_is_read_not_obeyed():
    plain, rate_hz = tts.speak("one two")
    with_pause, _ = tts.speak('one <break time="20s"/> two')
    assert len(with_pause) / rate_hz < 10
    with_nul, _ = tts.speak("one\0two")
    assert len(with_nul) == pytest.approx(len(plain), rel=0.1)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"voice": "en-uss"}, "en-us"),
        ({"voice": "../../etc/passwd"}, "unknown voice"),
        ({"voice": "en-us+f3"}, "unknown voice"),
        ({"variant": "wisper"}, "whisper"),
        ({"rate_wpm": 79}, "rate_wpm must be 80..450"),
        ({"rate_wpm": 451}, "rate_wpm must be 80..450"),
        ({"pitch": -1}, "pitch must be 0..99"),
        ({"pitch": 100}, "pitch must be 0..99"),
        ({"text": " \n"}, "empty"),
        ({"text": "a" * (tts.MAX_CHARACTERS + 1)}, "split it"),
    ],
)
def test_refuses_with_a_hint(how, message):
    with pytest.raises(ConfigError, match=message):
        tts.speak(**{"text": TEXT, **how})


def test_names_the_extra_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ConfigError, match=r"pip install raysers\[speech\]"):
        tts.speak(TEXT)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's memory map")
def test_leaves_no_library_behind():
    tts.speak(TEXT)
    assert "raysers-espeak" not in Path("/proc/self/maps").read_text()

"""Speech synthesis: repeatable samples, programs, and arguments that do what they say."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from raysers.errors import ClipError, ConfigError
from raysers.models.tts import NEUTRAL, RANDOM, Engine, Line
from raysers.types import Status

espeakng_loader = pytest.importorskip("espeakng_loader")

TEXT = "I am so happy to see you!"
# plain; three with noise of espeak-ng's own; one with libc's; and its other synthesisers
SPEAKERS = ("", "+f3", "+whisper", "+croak", "+Reed", "+klatt2", "+klatt6", "+robosoft")


def speak(text: str, **how: object) -> tuple[np.ndarray, int]:
    return Engine().speak(Line(text=text, **{"voice": "en-us"} | how))


def digest(text, **how):
    return hashlib.sha256(speak(text, **how)[0].tobytes()).hexdigest()


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


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_same_words_same_samples_whatever_was_spoken_before(speaker):
    first = digest(TEXT, voice=f"en-us{speaker}")
    for text, how in [
        ("Something else entirely, and much longer. Is it not?", {"rate_wpm": 300, "pitch": 90}),
        ("x", {"voice": "en-us+whisper", "rate_wpm": 80}),
        ("Guten Tag", {"voice": "de+klatt4"}),
    ]:
        speak(text, **how)
        assert digest(TEXT, voice=f"en-us{speaker}") == first


def test_same_samples_in_another_process():
    code = (
        "import hashlib, sys\n"
        "from raysers.models.tts import Engine, Line\n"
        "for v in sys.argv[2:]:\n"
        "    x = Engine().speak(Line(text=sys.argv[1], voice='en-us' + v))[0]\n"
        "    print(hashlib.sha256(x.tobytes()).hexdigest())\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, TEXT, *SPEAKERS], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [digest(TEXT, voice=f"en-us{v}") for v in SPEAKERS]


def test_threads_take_turns():
    texts = [f"Sentence number {i}." for i in range(12)]
    alone = [digest(text, voice="en-us+f2") for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: digest(text, voice="en-us+f2"), texts))
    assert together == alone
    assert len(set(alone)) == len(texts)


def test_rate_and_pitch_do_what_they_say():
    slow, rate_hz = speak(TEXT, rate_wpm=100)
    fast, _ = speak(TEXT, rate_wpm=200)
    assert rate_hz == 22_050
    assert 1.6 < len(slow) / len(fast) < 2.4
    low, middle, high = (
        fundamental_hz(speak(TEXT, pitch=pitch)[0], rate_hz) for pitch in (10, 50, 90)
    )
    assert low < 0.9 * middle < 0.8 * high


def test_text_is_read_not_obeyed():
    plain, rate_hz = speak("one two")
    with_pause, _ = speak('one <break time="20s"/> two')
    assert len(with_pause) / rate_hz < 10
    with_nul, _ = speak("one\0two")
    assert len(with_nul) == pytest.approx(len(plain), rel=0.1)


def test_names_the_extra_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ConfigError, match=r"pip install raysers\[speech\]"):
        speak(TEXT)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's memory map")
def test_leaves_no_library_behind():
    speak(TEXT)
    assert "raysers-espeak" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("language", "voice"),
    [(None, "en-us"), ("", "en-us"), ("en", "en-us"), ("de", "de"), ("DE", "de"), ("fr_CA", "fr"),
     ("en-GB", "en-gb"), ("xx", "xx"), ("deu", "de"), ("fra-CA", "fr"), ("zh", "cmn"),
     ("zh-CN", "cmn"), ("no", "nb")],
)  # fmt: skip
def test_the_neutral_voice_is_the_plain_one_of_the_language(language, voice):
    assert Engine().voice_for(NEUTRAL, "hello", language) == voice


def test_random_voices_are_a_function_of_seed_and_text():
    texts = [f"sentence {i}" for i in range(400)]
    drawn = {seed: [Engine(seed=seed).voice_for(RANDOM, t, "de") for t in texts] for seed in (0, 1)}
    assert drawn[0] == [Engine(seed=0).voice_for(RANDOM, t, "de") for t in reversed(texts)][::-1]
    assert drawn[0] != drawn[1]
    counts = Counter(drawn[0])
    assert all(voice.partition("+")[0] == "de" for voice in counts)
    Engine().check(list(counts), [], [])
    # 14 speakers: each is expected 29 times; 6 or 60 would be a chance of less than 1 in 10,000
    assert len(counts) == 14
    assert 6 < min(counts.values()) <= max(counts.values()) < 60


@pytest.mark.parametrize(
    ("text", "how", "status", "message"),
    [
        (" \n\t", {}, "empty", "blank"),
        ("...", {}, "empty", "nothing in the text is pronounced"),
        ("\u200b", {}, "empty", "nothing"),
        ("a" * 20_001, {}, "too_long", "20,001 characters"),
        ("hello", {"voice": "xx"}, "model_error", "voice xx: espeak-ng has no 'xx'"),
        ("hello", {"voice": "../../etc/passwd"}, "model_error", "has no"),
    ],
)
def test_what_cannot_be_spoken_has_a_status(text, how, status, message):
    with pytest.raises(ClipError, match=message) as caught:
        speak(text, **how)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("voices", "rates", "pitches", "message"),
    [
        (["en-usx"], [], [], "--voice en-usx"),
        (["en-us+nobody"], [], [], "has no 'nobody'"),
        ([NEUTRAL], [20], [], "--rate is 20: give 80 to 450"),
        ([NEUTRAL], [], [100], "--pitch is 100: give 0 to 99"),
    ],
)
def test_espeak_refuses_what_it_does_not_have(voices, rates, pitches, message):
    with pytest.raises(ConfigError, match=message):
        Engine().check(voices, rates, pitches)


#: A program that says the bytes of its input as samples, so the test can read them back.
SAY = """
import sys, wave
data = open(sys.argv[1], 'rb').read() if sys.argv[1] != '-' else sys.stdin.buffer.read()
extra = ' '.join(sys.argv[3:]).encode()
out = wave.open(sys.argv[2] if sys.argv[2] != '-' else sys.stdout.buffer, 'wb')
out.setparams((1, 2, 16000, 0, 'NONE', ''))
out.writeframes(b''.join(bytes([b, 0]) for b in data + extra))
out.close()
"""
ODD = Line(
    text='x"; rm -rf / #$(touch pwned) `id`\n{output} {voice} \u05e9\U0001f600 -h',
    voice="v",
    rate_wpm=175,
    pitch=50,
    language="en",
)


@pytest.fixture
def program(tmp_path):
    """`program(source, arguments)`: a Python script that speaks."""

    def make(source: str, arguments: str, timeout_s: float = 20.0) -> Engine:
        script = tmp_path / "say it.py"
        script.write_text(source)
        command = f"{sys.executable} '{script}' {arguments}"
        return Engine.of_command(command, timeout_s=timeout_s, folder=str(tmp_path))

    return make


def heard(samples: np.ndarray) -> str:
    return bytes(np.rint(samples * 32768).astype(np.int64).tolist()).decode()


@pytest.mark.parametrize("places", ["{text_file} {output}", "- {output}", "{text_file} -"])
def test_any_text_reaches_the_program_as_it_is(program, places):
    samples, rate_hz = program(SAY, places).speak(ODD)
    assert rate_hz == 16_000
    assert heard(samples) == ODD.text


def test_nothing_of_a_text_is_run_by_a_shell(program, tmp_path):
    program(SAY, "{text_file} {output}").speak(ODD)
    assert {path.name for path in tmp_path.iterdir()} == {"say it.py"}


def test_a_text_as_argument_is_one_argument_and_nothing_in_it_is_replaced(program):
    command = program(SAY, "/dev/null {output} '<{text}>' {voice}-{rate}-{pitch}-{language}-{seed}")
    assert heard(command.speak(ODD)[0]) == f"<{ODD.text}> v-175-50-en-0"


def write_sound(samples, subtype):
    values = np.asarray(samples).tolist()
    return (
        "import numpy, soundfile, sys\n"
        "nan, inf = numpy.nan, numpy.inf\n"
        f"soundfile.write(sys.argv[1], numpy.array({values!r}), 8000, subtype={subtype!r})\n"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys; print('a\\nno such voice\\n', file=sys.stderr); sys.exit(3)",
         "ended with exit code 3: no such voice"),
        ("import os; os.kill(os.getpid(), 11)", "was killed by signal 11"),
        ("pass", r"wrote no \{output\}"),
        ("import sys; open(sys.argv[1], 'w').write('words')", "is no sound file"),
        ("import sys; open(sys.argv[1], 'w')", "is no sound file"),
        (write_sound([0.1, np.nan], "FLOAT"), "samples that are no numbers"),
        ("import soundfile, sys, numpy; soundfile.write(sys.argv[1], numpy.zeros(7300), 2)",
         "more than 3600 s"),
    ],
)  # fmt: skip
def test_a_failing_program_is_a_clips_fate(program, source, message):
    with pytest.raises(ClipError, match=message) as caught:
        program(source, "{output}").speak(Line(text="hello"))
    assert caught.value.status == Status.MODEL_ERROR
    assert len(str(caught.value)) < 1000


def test_silence_of_a_program_is_empty_speech(program):
    with pytest.raises(ClipError) as caught:
        program(write_sound([0.0] * 80, "PCM_16"), "{output}").speak(Line(text="hello"))
    assert caught.value.status == Status.EMPTY


def test_a_program_that_hangs_is_stopped_with_all_it_started(program, tmp_path):
    source = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(ClipError, match="took more than 3 s"):
        program(source, "{output}", timeout_s=3.0).speak(Line(text="hello"))
    assert _ends(int((tmp_path / "child").read_text()))


def _ends(pid: int) -> bool:
    for _ in range(100):
        with suppress(ProcessLookupError, FileNotFoundError):
            os.kill(pid, 0)
            if "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                time.sleep(0.05)
                continue
        return True
    return False


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("say {txt}", r"unknown \{txt\}; known are \{text\}"),
        ("say 'open", "No closing quotation"),
        ("  ", "give a program"),
    ],
)
def test_a_command_that_cannot_mean_anything_is_refused(command, message):
    with pytest.raises(ConfigError, match=message):
        Engine.of_command(command, timeout_s=1, folder="/")


@pytest.mark.parametrize(
    ("arguments", "voices", "rates", "message"),
    [
        ("{output}", ["anna"], [], r"--voice anna: --tts-command has no \{voice\}"),
        ("{output}", [NEUTRAL], [100], r"has no \{rate\}"),
        ("{output} {voice}", [NEUTRAL], [], "say which with --voice"),
        ("{output} {rate}", [NEUTRAL], [], "say which with --rate"),
        ("{output} {voice}", [RANDOM], [], "--voice random"),
    ],
)
def test_flags_and_placeholders_have_to_agree(program, arguments, voices, rates, message):
    with pytest.raises(ConfigError, match=message):
        program("", arguments).check(voices, rates, [])


def test_a_program_that_is_not_installed_is_found_out_before_anything_is_written(program):
    with pytest.raises(ConfigError, match="no program 'no-such-tts'"):
        Engine.of_command("no-such-tts", timeout_s=5, folder="/").check([NEUTRAL], [], [])
    program("", "{output} {voice}").check(["anna", "bert"], [], [])

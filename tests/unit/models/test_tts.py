"""Speech synthesis: repeatable samples, programs, and arguments that do what they say."""

from __future__ import annotations

import hashlib
import importlib.machinery
import os
import subprocess
import sys
import time
import types
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from raysers.errors import ClipError, ConfigError
from raysers.models.tts import NEUTRAL, RANDOM, Engine, Gtts, Line, Program
from raysers.types import Status

espeakng_loader = pytest.importorskip("espeakng_loader")

TEXT = "I am so happy to see you!"
# plain; noise of espeak-ng's own; of libc's; and another of its synthesisers
SPEAKERS = ("", "+f3", "+croak", "+klatt6")


def speak(text: str, **how: object) -> tuple[np.ndarray, int]:
    return Engine().speak(Line(text=text, **{"voice": "en-us"} | how))


def digest(text, **how):
    return hashlib.sha256(speak(text, **how)[0].tobytes()).hexdigest()


def test_same_words_same_samples_before_beside_and_after_others_and_in_another_process():
    alone = {v: digest(TEXT, voice=f"en-us{v}") for v in SPEAKERS}
    speak("Something else entirely, and much longer. Is it not?", rate_wpm=300, pitch=90)
    speak("Guten Tag", voice="de+klatt4")
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda v: digest(TEXT, voice=f"en-us{v}"), SPEAKERS * 2))
    assert together == [*alone.values()] * 2
    assert len(set(together)) == len(SPEAKERS)
    code = (
        "import hashlib, sys\n"
        "from raysers.models.tts import Engine, Line\n"
        "for v in sys.argv[2:]:\n"
        "    x = Engine().speak(Line(text=sys.argv[1], voice='en-us' + v))[0]\n"
        "    print(hashlib.sha256(x.tobytes()).hexdigest())\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, TEXT, *SPEAKERS]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [*alone.values()]


def test_names_the_extra_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ConfigError, match=r"pip install raysers\[speech\]"):
        speak(TEXT)


def test_the_neutral_voice_is_the_plain_one_of_the_language():
    voices = {None: "en-us", "en": "en-us", "DE": "de", "fr_CA": "fr", "en-GB": "en-gb",
              "xx": "xx", "deu": "de", "zh-CN": "cmn"}  # fmt: skip
    assert {k: Engine().voice_for(NEUTRAL, "hello", k) for k in voices} == voices


def test_random_voices_are_a_function_of_seed_and_text():
    texts = [f"sentence {i}" for i in range(400)]
    drawn = {seed: [Engine(seed=seed).voice_for(RANDOM, t, "de") for t in texts] for seed in (0, 1)}
    assert drawn[0] == [Engine(seed=0).voice_for(RANDOM, t, "de") for t in reversed(texts)][::-1]
    assert drawn[0] != drawn[1]
    counts = Counter(drawn[0])
    Engine().check(list(counts), [], [])
    # 14 speakers: each is expected 29 times; 6 or 60 would be a chance of less than 1 in 10,000
    assert len(counts) == 14
    assert 6 < min(counts.values()) <= max(counts.values()) < 60


@pytest.mark.parametrize(
    ("text", "how", "status", "message"),
    [
        (" \n\t", {}, "empty", "blank"),
        ("...", {}, "empty", "nothing in the text is pronounced"),
        ("a" * 20_001, {}, "too_long", "20,001 characters"),
        ("hello", {"voice": "../../etc/passwd"}, "model_error", "has no"),
    ],
)
def test_what_cannot_be_spoken_has_a_status(text, how, status, message):
    with pytest.raises(ClipError, match=message) as caught:
        speak(text, **how)
    assert caught.value.status == status


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

    def make(source: str, arguments: str, timeout_s: float = 20.0) -> Program:
        (tmp_path / "say it.py").write_text(source)
        command = f"{sys.executable} -S '{tmp_path / 'say it.py'}' {arguments}"
        return Program.of_command(command, timeout_s=timeout_s, folder=str(tmp_path))

    return make


def said(samples: np.ndarray) -> str:
    return bytes(np.rint(samples * 32768).astype(np.int64).tolist()).decode()


@pytest.mark.parametrize("places", ["{text_file} {output}", "- {output}", "{text_file} -"])
def test_nothing_of_a_text_is_run_by_a_shell(program, places, tmp_path):
    """It reaches the program as it is."""
    samples, rate_hz = program(SAY, places).speak(ODD)
    assert rate_hz == 16_000
    assert said(samples) == ODD.text
    assert {path.name for path in tmp_path.iterdir()} == {"say it.py"}


def test_a_text_as_argument_is_one_argument_and_nothing_in_it_is_replaced(program):
    command = program(SAY, "/dev/null {output} '<{text}>' {voice}-{rate}-{pitch}-{language}-{seed}")
    assert said(command.speak(ODD)[0]) == f"<{ODD.text}> v-175-50-en-0"


WAVE = (
    "import sys, wave; out = wave.open(sys.argv[1], 'wb'); out.setparams((1, 2, {}, 0, 'NONE', ''))"
)


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ("import sys; print('a\\nno such voice\\n', file=sys.stderr); sys.exit(3)", "model_error",
         "ended with exit code 3: no such voice"),
        ("import os; os.kill(os.getpid(), 11)", "model_error", "was killed by signal 11"),
        ("pass", "model_error", r"wrote no \{output\}"),
        ("import sys; open(sys.argv[1], 'w').write('words')", "model_error", "is no sound file"),
        (WAVE.format(8000) + "; out.writeframes(bytes(160))", "empty", "no sound came of it"),
    ],
)  # fmt: skip
def test_a_failing_program_is_the_status_of_its_clip(program, source, status, message):
    with pytest.raises(ClipError, match=message) as caught:
        program(source, "{output}").speak(Line(text="hello"))
    assert caught.value.status == status


def test_a_program_that_hangs_is_stopped_with_all_it_started(program, tmp_path):
    source = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(ClipError, match="took more than 2 s"):
        program(source, "{output}", timeout_s=2.0).speak(Line(text="hello"))
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
    ("command", "voices", "rates", "message"),
    [
        ("say {txt}", [], [], r"unknown \{txt\}; known are \{text\}"),
        ("say 'open", [], [], "No closing quotation"),
        ("  ", [], [], "give a program"),
        ("no-such-tts", [NEUTRAL], [], "no program 'no-such-tts'"),
        ("env {output}", ["anna"], [], r"--voice anna: --tts-command has no \{voice\}"),
        ("env {output}", [NEUTRAL], [100], r"has no \{rate\}"),
        ("env {output} {voice}", [NEUTRAL], [], "say which with --voice"),
        ("env {output} {rate}", [NEUTRAL], [], "say which with --rate"),
        ("env {output} {voice}", [RANDOM], [], "--voice random"),
    ],
)
def test_a_command_that_cannot_work_is_refused(command, voices, rates, message):
    with pytest.raises(ConfigError, match=message):
        Program.of_command(command, timeout_s=1, folder="/").check(voices, rates, [])


@pytest.fixture
def gtts(monkeypatch):
    """A stand-in for the package gTTS: an MP3 whose length is that of the text; "down" fails."""
    module = types.ModuleType("gtts")
    module.__spec__ = importlib.machinery.ModuleSpec("gtts", None)

    class Failure(Exception):
        pass

    class Voice:
        def __init__(self, text: str, lang: str) -> None:
            if lang == "xx":
                raise ValueError("Language not supported: xx")
            self.text = text

        def write_to_fp(self, file) -> None:
            if self.text == "down":
                raise Failure("Failed to connect.\nProbable cause: Unknown")
            tone = np.sin(np.arange(1_000 * len(self.text)) / 9)
            soundfile.write(file, tone, 24_000, format="MP3")

    module.gTTS, module.gTTSError = Voice, Failure
    monkeypatch.setitem(sys.modules, "gtts", module)


def test_gtts_speaks_in_the_language_of_the_text(gtts, monkeypatch):
    engine = Gtts()
    engine.check([NEUTRAL, "de"], [], [])
    found = [engine.voice_for(v, "x", n) for v, n in ((NEUTRAL, "FR"), (NEUTRAL, None), ("de", ""))]
    assert found == ["fr", "en", "de"]
    samples, rate_hz = engine.speak(Line(text="hello there", voice="en"))
    assert rate_hz == 24_000
    assert len(samples) == pytest.approx(11_000, abs=2_500)  # MP3 pads
    for text, voice, message in (("down", "en", "Failed to connect"), ("a", "xx", "not supported")):
        with pytest.raises(ClipError, match=message) as caught:
            engine.speak(Line(text=text, voice=voice))
        assert caught.value.status == Status.MODEL_ERROR
        assert "\n" not in str(caught.value)
    for voices, rates in (([RANDOM], []), ([NEUTRAL], [100])):
        with pytest.raises(ConfigError, match="--tts gtts has neither"):
            engine.check(voices, rates, [])
    monkeypatch.setitem(sys.modules, "gtts", None)
    with pytest.raises(ConfigError, match="pip install --no-deps gTTS"):
        engine.check([NEUTRAL], [], [])

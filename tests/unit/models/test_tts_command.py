"""Programs that speak: what they get, what is made of their sound, and how they may fail."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from raysers.errors import ClipError, ConfigError
from raysers.models.tts_command import speech_program
from raysers.types import Status

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
VALUES = {"voice": "v", "rate": "175", "pitch": "50", "language": "en", "seed": "0"}
ODD = 'x"; rm -rf / #$(touch pwned) `id`\n{output} {voice} \u05e9\U0001f600 -h'


@pytest.fixture
def program(tmp_path):
    """`program(source, arguments)`: a Python script as a speech program."""

    def make(source: str, arguments: str, timeout_s: float = 20.0):
        script = tmp_path / "say it.py"
        script.write_text(source)
        command = f"{sys.executable} '{script}' {arguments}"
        return speech_program(command, timeout_s=timeout_s, folder=str(tmp_path))

    return make


def heard(samples):
    return bytes(np.rint(samples * 32768).astype(np.int64).tolist())


@pytest.mark.parametrize("places", ["{text_file} {output}", "- {output}", "{text_file} -"])
def test_any_text_reaches_the_program_as_it_is(program, places):
    if places.startswith("-"):
        command = program(SAY, places)
        assert "text_file" not in command.uses
    else:
        command = program(SAY, places)
    samples, rate_hz = command.speak(ODD, VALUES)
    assert rate_hz == 16_000
    assert heard(samples).decode() == ODD


def test_a_text_as_argument_is_one_argument_and_nothing_in_it_is_replaced(program):
    command = program(SAY, "/dev/null {output} '<{text}>' {voice}-{rate}-{pitch}-{language}-{seed}")
    samples, _ = command.speak(ODD, VALUES)
    assert heard(samples).decode() == f"<{ODD}> v-175-50-en-0"


def test_nothing_of_a_text_is_run_by_a_shell(program, tmp_path):
    program(SAY, "{text_file} {output}").speak(ODD, VALUES)
    assert {path.name for path in tmp_path.iterdir()} == {"say it.py"}


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
        program(source, "{output}").speak("hello", VALUES)
    assert caught.value.status == Status.MODEL_ERROR
    assert len(str(caught.value)) < 1000


def test_a_program_that_hangs_is_stopped_with_all_it_started(program, tmp_path):
    source = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(ClipError, match="took more than 3 s"):
        program(source, "{output}", timeout_s=3.0).speak("hello", VALUES)
    child = int((tmp_path / "child").read_text())
    assert _ends(child)


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
        speech_program(command, timeout_s=1, folder="/")

"""Text to speech by any program that writes a WAV file.

The program is started directly, never through a shell, and the text goes to it as one argument, a
file or its standard input, so nothing in a text can become a command.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from raysers.errors import ClipError, ConfigError
from raysers.types import Status

#: What a command may have in its arguments, each standing for something of the text at hand.
PLACEHOLDERS = ("text", "text_file", "output", "voice", "rate", "pitch", "language", "seed")

#: Longest speech taken from a program.
MAX_SPEECH_S = 3600.0

_PLACEHOLDER = re.compile(r"\{(" + "|".join(PLACEHOLDERS) + r")\}")
_BRACED = re.compile(r"\{(\w*)\}")
_SAID_BYTES = 4096
_SAID_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechProgram:
    """A program and how it is called.

    Attributes:
        arguments: the program and its arguments, with placeholders in braces.
        timeout_s: it is killed, with what it started, when it takes longer.
        folder: where it is started, for relative names in its arguments.
    """

    arguments: tuple[str, ...]
    timeout_s: float
    folder: str

    @property
    def uses(self) -> frozenset[str]:
        """The placeholders in the arguments."""
        return frozenset(_PLACEHOLDER.findall(" ".join(self.arguments)))

    def speak(self, text: str, values: Mapping[str, str]) -> tuple[npt.NDArray[np.float32], int]:
        """Run the program once.

        Args:
            text: what to say; on standard input when the arguments have neither `{text}` nor
                `{text_file}`.
            values: what `voice`, `rate`, `pitch`, `language` and `seed` stand for.

        Returns:
            Mono samples, shape (samples,), and their rate in Hz.

        Raises:
            ClipError: `model_error`, with the last the program said.
        """
        with tempfile.TemporaryDirectory(prefix="raysers-speech-") as folder:
            text_file, output = Path(folder, "text.txt"), Path(folder, "speech.wav")
            text_file.write_text(text, "utf-8", newline="")
            # a text that begins with "-" would be an option of the program
            spoken = text.replace("\0", " ")
            spoken = f" {spoken}" if spoken.startswith("-") else spoken
            places = {"text": spoken, "text_file": text_file, "output": output}
            self._run(text_file, output, {**values, **{k: str(v) for k, v in places.items()}})
            return _samples(output)

    def _run(self, text_file: Path, output: Path, values: Mapping[str, str]) -> None:
        # one pass, so that a brace in the text stays a brace
        filled = [_PLACEHOLDER.sub(lambda m: values[m[1]], part) for part in self.arguments]
        said = output.with_name("said.txt")
        sound = output if "output" not in self.uses else output.with_name("stdout.txt")
        with text_file.open("rb") as words, said.open("wb") as err, sound.open("wb") as out:
            code = _finished(
                filled, self.timeout_s, self.folder, (words.fileno(), out.fileno(), err.fileno())
            )
        if code != 0:
            how = f"took more than {self.timeout_s:g} s" if code is None else _ending(code)
            raise ClipError(Status.MODEL_ERROR, f"{self.arguments[0]} {how}{_last_words(said)}")
        if not output.is_file():
            message = f"{self.arguments[0]} wrote no {{output}}{_last_words(said)}"
            raise ClipError(Status.MODEL_ERROR, message)


def speech_program(command: str, *, timeout_s: float, folder: str) -> SpeechProgram:
    """The program a command line names, as a shell would split it into words.

    Raises:
        ConfigError: no program, quotes that do not close, or unknown placeholders.
    """
    try:
        arguments = tuple(shlex.split(command))
    except ValueError as error:
        raise ConfigError(f"--tts-command {command}: {error}") from error
    if not arguments:
        raise ConfigError(
            "--tts-command is empty: give a program, such as 'my-tts {text_file} {output}'"
        )
    found = set(_BRACED.findall(" ".join(arguments)))
    if unknown := sorted(found - set(PLACEHOLDERS)):
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise ConfigError(f"--tts-command: unknown {{{unknown[0]}}}; known are {known}")
    if "/" in arguments[0]:
        arguments = (os.path.join(folder, os.path.expanduser(arguments[0])), *arguments[1:])
    return SpeechProgram(arguments=arguments, timeout_s=timeout_s, folder=folder)


def _finished(
    arguments: Sequence[str], timeout_s: float, folder: str, streams: tuple[int, int, int]
) -> int | None:
    """Exit code, None when time was up; nothing of the program is left running."""
    words, out, err = streams
    try:
        process = subprocess.Popen(
            arguments,
            stdin=words,
            stdout=out,
            stderr=err,
            cwd=folder if os.path.isdir(folder) else None,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise ClipError(Status.MODEL_ERROR, f"cannot start {arguments[0]}: {error}") from error
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ending(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"


def _last_words(said: Path) -> str:
    """The last line of what the program said, to follow what happened."""
    with said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - _SAID_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last[-_SAID_CHARACTERS:]}" if last else ""


def _samples(output: Path) -> tuple[npt.NDArray[np.float32], int]:
    try:
        with soundfile.SoundFile(output) as file:
            if file.frames > MAX_SPEECH_S * file.samplerate:
                message = f"the program wrote more than {MAX_SPEECH_S:g} s of speech"
                raise ClipError(Status.MODEL_ERROR, message)
            samples = file.read(dtype="float32", always_2d=True)
            rate_hz = int(file.samplerate)
    except (soundfile.SoundFileError, OSError) as error:
        message = f"what the program wrote is no sound file: {error}"
        raise ClipError(Status.MODEL_ERROR, message.replace(str(output), "{output}")) from error
    mono = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise ClipError(Status.MODEL_ERROR, "the program wrote samples that are no numbers")
    return mono, rate_hz

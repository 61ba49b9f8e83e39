"""Text to speech with espeak-ng, gTTS, or any program that writes a sound file.

A program is started directly, never through a shell, so nothing in a text can become a command.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from raysers.errors import ClipError, ConfigError
from raysers.models import espeak
from raysers.seeding import seed_of
from raysers.types import Status

Floats = npt.NDArray[np.float32]

#: Longest text of one call; about a quarter of an hour of speech, 80 MB of samples.
MAX_CHARACTERS = 20_000
#: Longest speech taken from a program.
MAX_SPEECH_S = 3600.0

#: Voice names with a meaning: the plain voice of the text's language, and one drawn for each text.
NEUTRAL, RANDOM = "neutral", "random"

#: espeak-ng's speakers without an effect or a character, the plain voice first.
_SPEAKERS = (
    "",
    *(f"f{number}" for number in range(1, 6)),
    *(f"m{number}" for number in range(1, 9)),
)

#: What a command may have in its arguments, each standing for something of the text at hand.
_PLACEHOLDERS = ("text", "text_file", "output", "voice", "rate", "pitch", "language", "seed")
_PLACEHOLDER = re.compile(r"\{(" + "|".join(_PLACEHOLDERS) + r")\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A text and how it is said; what is None is up to the engine."""

    text: str
    language: str | None = None
    voice: str | None = None
    rate_wpm: int | None = None
    pitch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """espeak-ng as a function of the text and how it is said; picklable.

    Safe to use from several threads, in turns. `seed` is of the voices that are drawn.
    """

    seed: int = 0

    @property
    def name(self) -> str:
        """As written into the rows, and hashed into the names of the sound files."""
        return "espeak"

    def check(self, voices: Sequence[str], rates: Sequence[int], pitches: Sequence[int]) -> None:
        """Check the flags on the machine that will speak.

        Raises:
            ConfigError: a value is impossible; names the flag.
        """
        for voice in voices:
            if voice not in (NEUTRAL, RANDOM):
                espeak.check_voice(f"--voice {voice}", voice)
        ranges = (
            ("--rate", rates, espeak.RATE_RANGE_WPM),
            ("--pitch", pitches, espeak.PITCH_RANGE),
        )
        for flag, numbers, (low, high) in ranges:
            if off := [number for number in numbers if not low <= number <= high]:
                raise ConfigError(f"{flag} is {off[0]}: give {low} to {high}")

    def voice_for(self, voice: str, text: str, language: str | None) -> str | None:
        """The voice that `voice` stands for with this text; None is the engine's own."""
        if voice not in (NEUTRAL, RANDOM):
            return voice
        name = (language or "").strip().lower().replace("_", "-")
        if name in ("", "en", "eng", "english"):
            name = espeak.DEFAULT_VOICE
        family = name.partition("-")[0]
        names = (name, family, espeak.LANGUAGES.get(family))
        name = next(
            (n for n in names if n in espeak.espeak_voices()), name
        )  # an unknown one's row fails
        draw = seed_of(self.seed, text, size_bytes=8) if voice == RANDOM else 0
        return "+".join(filter(None, (name, _SPEAKERS[draw % len(_SPEAKERS)])))

    def speak(self, line: Line) -> tuple[Floats, int]:
        """Mono samples in -1..1, shape (samples,), and their rate in Hz.

        Raises:
            ClipError: `empty` for a blank text, or one without anything to pronounce; `too_long`;
                `model_error` for all else, with the reason.
        """
        if not line.text.strip():
            raise ClipError(Status.EMPTY, "the text is blank")
        if len(line.text) > MAX_CHARACTERS:
            message = f"the text has {len(line.text):,} characters, more than {MAX_CHARACTERS:,}"
            raise ClipError(Status.TOO_LONG, message)
        samples, rate_hz = self._samples(line)
        if not samples.any():
            raise ClipError(Status.EMPTY, "nothing in the text is pronounced: no sound came of it")
        return samples, rate_hz

    def _samples(self, line: Line) -> tuple[Floats, int]:
        return espeak.speak(line.text, line.voice, line.rate_wpm, line.pitch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gtts(Engine):
    """The voices of Google Translate through the package gTTS; every text is a request.

    `--voice` is a language (`en`, `de`); the neutral voice is that of the text.
    """

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return "gtts"

    def check(self, voices: Sequence[str], rates: Sequence[int], pitches: Sequence[int]) -> None:
        """See `Engine.check`."""
        if find_spec("gtts") is None:
            raise ConfigError("--tts gtts needs a package: pip install --no-deps gTTS")
        if RANDOM in voices or rates or pitches:
            raise ConfigError("--tts gtts has neither --voice random, nor --rate, nor --pitch")

    def voice_for(self, voice: str, text: str, language: str | None) -> str | None:
        """See `Engine.voice_for`."""
        return voice if voice != NEUTRAL else (language or "en").strip().lower()

    def _samples(self, line: Line) -> tuple[Floats, int]:
        import gtts

        file = io.BytesIO()
        try:
            gtts.gTTS(text=line.text, lang=line.voice or "en").write_to_fp(file)
        except (gtts.gTTSError, ValueError, AssertionError, OSError) as error:
            raise ClipError(Status.MODEL_ERROR, f"gtts: {' '.join(str(error).split())}") from error
        file.seek(0)
        return _read_sound(file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program(Engine):
    """Any program that writes a sound file.

    Attributes:
        arguments: the program and its arguments, with placeholders in braces.
        timeout_s: the program is killed, with what it started, when it takes longer.
        folder: where it is started, for relative names in its arguments.
    """

    arguments: tuple[str, ...]
    timeout_s: float = 60.0
    folder: str = ""

    @classmethod
    def of_command(cls, command: str, *, timeout_s: float, folder: str, seed: int = 0) -> Program:
        """The program of a command line, split into words as a shell does.

        Raises:
            ConfigError: no program, quotes that do not close, or unknown placeholders.
        """
        try:
            program, *others = shlex.split(command)
        except ValueError as error:
            reason = error if command.strip() else "give a program, as 'my-tts {text} {output}'"
            raise ConfigError(f"--tts-command {command}: {reason}") from error
        if unknown := sorted(set(re.findall(r"\{(\w*)\}", command)) - set(_PLACEHOLDERS)):
            known = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
            raise ConfigError(f"--tts-command: unknown {{{unknown[0]}}}; known are {known}")
        if "/" in program:
            program = os.path.join(folder, os.path.expanduser(program))
        return cls(arguments=(program, *others), timeout_s=timeout_s, folder=folder, seed=seed)

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return shlex.join(self.arguments)

    def check(self, voices: Sequence[str], rates: Sequence[int], pitches: Sequence[int]) -> None:
        """See `Engine.check`."""
        if shutil.which(self.arguments[0]) is None:
            raise ConfigError(f"--tts-command: there is no program {self.arguments[0]!r}")
        if RANDOM in voices:
            raise ConfigError("--voice random is espeak's: name the program's own voices")
        named = [voice for voice in voices if voice != NEUTRAL]
        given: dict[str, Sequence[object]] = {"voice": named, "rate": rates, "pitch": pitches}
        for name, values in given.items():
            used = name in _used(self.arguments)
            if values and not used:
                raise ConfigError(
                    f"--{name} {values[0]}: --tts-command has no {{{name}}} to pass it on"
                )
            if used and (not values or (name == "voice" and NEUTRAL in voices)):
                raise ConfigError(f"--tts-command has {{{name}}}: say which with --{name}")

    def voice_for(self, voice: str, text: str, language: str | None) -> str | None:
        """See `Engine.voice_for`."""
        return None if voice == NEUTRAL else voice

    def _samples(self, line: Line) -> tuple[Floats, int]:
        """One run; the text is on standard input if no argument takes it."""
        with tempfile.TemporaryDirectory(prefix="raysers-speech-") as place:
            text_file, output = Path(place, "text.txt"), Path(place, "speech.wav")
            text_file.write_text(line.text, "utf-8", newline="")
            values = {
                # a text that begins with "-" would be an option of the program
                "text": f"{' ' * line.text.startswith('-')}{line.text}".replace("\0", " "),
                "text_file": text_file, "output": output, "language": line.language,
                "voice": line.voice, "rate": line.rate_wpm, "pitch": line.pitch, "seed": self.seed,
            }  # fmt: skip
            words = {key: "" if value is None else str(value) for key, value in values.items()}
            # one pass, so that a brace in the text stays a brace
            filled = [_PLACEHOLDER.sub(lambda m: words[m[1]], part) for part in self.arguments]
            to_file = "output" in _used(self.arguments)
            failure, said = self._run(filled, text_file, None if to_file else output)
            if failure or not output.is_file():
                reason = said.decode("utf-8", "replace").rstrip().rpartition("\n")[2].strip()
                message = f"{self.arguments[0]} {failure or 'wrote no {output}'}"
                message += f": {reason[-300:]}" if reason else ""
                raise ClipError(Status.MODEL_ERROR, message)
            return _read_sound(output)

    def _run(self, filled: list[str], stdin: Path, stdout: Path | None) -> tuple[str, bytes]:
        """What went wrong, and standard error, once nothing of the program is left running."""
        folder = self.folder if os.path.isdir(self.folder) else None
        with (
            stdin.open() as given,
            (stdout or Path(os.devnull)).open("w") as out,
            tempfile.TemporaryFile() as errors,
        ):
            try:
                process = subprocess.Popen(
                    filled, stdin=given, stdout=out, stderr=errors, cwd=folder,
                    start_new_session=True,
                )  # fmt: skip
            except (OSError, ValueError) as error:
                message = f"cannot start {filled[0]}: {error}"
                raise ClipError(Status.MODEL_ERROR, message) from error
            try:
                code = process.wait(self.timeout_s)
                failure = f"ended with exit code {code}" if code else ""
                failure = f"was killed by signal {-code}" if code < 0 else failure
            except subprocess.TimeoutExpired:
                failure = f"took more than {self.timeout_s:g} s"
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            errors.seek(0)
            return failure, errors.read()


def _used(arguments: Sequence[str]) -> set[str]:
    """Placeholders in the arguments."""
    return set(_PLACEHOLDER.findall(" ".join(arguments)))


def _read_sound(file: Path | io.BytesIO) -> tuple[Floats, int]:
    try:
        with soundfile.SoundFile(file) as sound:
            rate_hz = int(sound.samplerate)
            most = int(MAX_SPEECH_S * rate_hz)
            samples = sound.read(most + 1, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        message = f"what the program wrote is no sound file: {error}"
        raise ClipError(Status.MODEL_ERROR, message.replace(str(file), "{output}")) from error
    mono = samples.mean(axis=1, dtype=np.float32)
    if len(mono) > most:
        message = f"the program wrote more than {MAX_SPEECH_S:g} s of speech"
        raise ClipError(Status.MODEL_ERROR, message)
    if not np.isfinite(mono).all():
        raise ClipError(Status.MODEL_ERROR, "the program wrote samples that are no numbers")
    return mono, rate_hz

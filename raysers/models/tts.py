"""Text to speech with espeak-ng, gTTS, or any program that writes a sound file.

espeak-ng keeps state in globals that none of its calls resets (oscillator phase, noise, flutter),
so every call speaks from a fresh image of the library, with both of its random generators seeded. A
program is started directly, never through a shell, so nothing in a text can become a command.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import soundfile

from raysers.errors import ClipError, ConfigError
from raysers.types import Status, seed_of

Floats = npt.NDArray[np.float32]
#: Longest text of one call; about a quarter of an hour of speech, 80 MB of samples.
MAX_CHARACTERS = 20_000
#: Voice names with a meaning: the plain voice of the text's language, and one drawn for each text.
NEUTRAL, RANDOM = "neutral", "random"
#: espeak-ng's ranges and defaults, and the language of a text that does not say.
RATE_RANGE_WPM, DEFAULT_RATE_WPM = (80, 450), 175
PITCH_RANGE, DEFAULT_PITCH = (0, 99), 50
DEFAULT_VOICE = "en-us"
#: espeak-ng's speakers without an effect or a character, the plain voice first.
_SPEAKERS = ("", *(f"f{n}" for n in range(1, 6)), *(f"m{n}" for n in range(1, 9)))
#: What a command may have in its arguments, each standing for something of the text at hand.
_PLACEHOLDERS = ("text", "text_file", "output", "voice", "rate", "pitch", "language", "seed")
_PLACEHOLDER = re.compile(r"\{(" + "|".join(_PLACEHOLDERS) + r")\}")
# Names and values of speak_lib.h, revision 12.
_AUDIO_OUTPUT_SYNCHRONOUS, _INITIALIZE_DONT_EXIT = 2, 0x8000
_POS_CHARACTER, _CHARS_UTF8 = 1, 1
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3
_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)
# libc's rand(), which some variants draw their breath from, belongs to the whole process
_lock = threading.Lock()


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
    """espeak-ng as a function of the text and how it is said; picklable, threads take turns."""

    #: Rate and pitch of a text that does not say; None: the program's own.
    defaults: ClassVar[tuple[int | None, int | None]] = (DEFAULT_RATE_WPM, DEFAULT_PITCH)

    seed: int = 0

    @property
    def name(self) -> str:
        """As written into the rows, and hashed into the names of the sound files."""
        return "espeak"

    def check(self, voices: Sequence[str], rates: Sequence[int], pitches: Sequence[int]) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        _installed()
        for voice in voices:
            if voice not in (NEUTRAL, RANDOM):
                _voice_file(f"--voice {voice}", voice)
        ranges = (("--rate", rates, RATE_RANGE_WPM), ("--pitch", pitches, PITCH_RANGE))
        for flag, numbers, (low, high) in ranges:
            if off := [number for number in numbers if not low <= number <= high]:
                raise ConfigError(f"{flag} is {off[0]}: give {low} to {high}")

    def voice_for(self, voice: str, text: str, language: str | None) -> str | None:
        """The voice that `voice` stands for with this text; None is the engine's own."""
        if voice not in (NEUTRAL, RANDOM):
            return voice
        name = (language or "").strip().lower().replace("_", "-")
        if name in ("", "en", "eng", "english"):
            name = DEFAULT_VOICE
        family = name.partition("-")[0]
        names = (name, family, _languages().get(family))
        name = next((n for n in names if n in espeak_voices()), name)  # an unknown one's row fails
        draw = seed_of(self.seed, text, size_bytes=8) if voice == RANDOM else 0
        return "+".join(filter(None, (name, _SPEAKERS[draw % len(_SPEAKERS)])))

    def speak(self, line: Line) -> tuple[Floats, int]:
        """Mono samples [samples] in -1..1 and their rate in Hz, or ClipError."""
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
        """At 22050 Hz; espeak-ng reads markup out and does not obey it."""
        _installed()
        try:
            name = _voice_file(f"voice {line.voice}", line.voice or DEFAULT_VOICE)
        except ConfigError as error:
            # the flags were checked, so it is the language that the text says it is in
            raise ClipError(Status.MODEL_ERROR, str(error)) from error
        rate_wpm = line.rate_wpm or DEFAULT_RATE_WPM
        pitch = DEFAULT_PITCH if line.pitch is None else line.pitch
        # a NUL would end the text for C; lone surrogates have no UTF-8
        spoken = line.text.replace("\0", " ").encode("utf-8", "replace")
        chunks: list[bytes] = []

        def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: object) -> int:
            if samples and count > 0:
                chunks.append(ctypes.string_at(samples, 2 * count))
            return 0

        callback = _Callback(collect)
        with _lock, _fresh_espeak() as (espeak, rate_hz):
            espeak.espeak_SetSynthCallback(callback)
            size = ctypes.c_size_t(len(spoken) + 1)
            codes = (
                espeak.espeak_SetVoiceByName(name.encode()),
                espeak.espeak_SetParameter(_PARAMETER_RATE, rate_wpm, 0),
                espeak.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0),
                espeak.espeak_Synth(spoken, size, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None),
            )
        if any(codes):
            message = f"espeak-ng could not speak as {name!r} (codes {codes})"
            raise ClipError(Status.MODEL_ERROR, message)
        pcm = np.frombuffer(b"".join(chunks), dtype=np.int16)
        return pcm.astype(np.float32) / np.float32(32768), rate_hz


@dataclass(frozen=True, slots=True, kw_only=True)
class Gtts(Engine):
    """The voices of Google Translate through gTTS, named by a language; every text is a request."""

    defaults: ClassVar[tuple[int | None, int | None]] = (None, None)

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
    """Any program that writes a sound file, with placeholders in braces among its arguments.

    It is started in `folder`, and killed, with what it started, after `timeout_s`.
    """

    defaults: ClassVar[tuple[int | None, int | None]] = (None, None)

    arguments: tuple[str, ...]
    timeout_s: float = 60.0
    folder: str = ""

    @classmethod
    def of_command(cls, command: str, *, timeout_s: float, folder: str, seed: int = 0) -> Program:
        """The program of a command line, split into words as a shell does, or a ConfigError."""
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
                raise ConfigError(f"--{name} {values[0]}: --tts-command has no {{{name}}}")
            if used and (not values or (name == "voice" and NEUTRAL in voices)):
                raise ConfigError(f"--tts-command has {{{name}}}: say which with --{name}")

    def voice_for(self, voice: str, text: str, language: str | None) -> str | None:
        """See `Engine.voice_for`."""
        return None if voice == NEUTRAL else voice

    def _samples(self, line: Line) -> tuple[Floats, int]:
        """One run; the text is on standard input if no argument takes it."""
        with tempfile.TemporaryDirectory(prefix="raysers-speech-") as place:
            names = ("text.txt", "speech.wav", "errors.txt")
            text_file, output, said = (Path(place, name) for name in names)
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
            sink = os.devnull if "output" in _used(self.arguments) else output
            with text_file.open() as given, open(sink, "w") as out, open(said, "w") as errors:
                failure = self._run(filled, stdin=given, stdout=out, stderr=errors)
            if failure or not output.is_file():
                lines = said.read_text("utf-8", "replace").rstrip()
                reason = lines.rpartition("\n")[2].strip()[-300:]
                message = f"{self.arguments[0]} {failure or 'wrote no {output}'}"
                raise ClipError(Status.MODEL_ERROR, ": ".join(filter(None, (message, reason))))
            return _read_sound(output)

    def _run(self, filled: list[str], **files: Any) -> str:
        """What went wrong, once nothing of the program is left running; empty: nothing."""
        folder = self.folder if os.path.isdir(self.folder) else None
        try:
            process = subprocess.Popen(filled, cwd=folder, start_new_session=True, **files)
        except (OSError, ValueError) as error:
            raise ClipError(Status.MODEL_ERROR, f"cannot start {filled[0]}: {error}") from error
        try:
            code = process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            return f"took more than {self.timeout_s:g} s"
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        failure = f"ended with exit code {code}" if code else ""
        return f"was killed by signal {-code}" if code < 0 else failure


def _used(arguments: Sequence[str]) -> set[str]:
    return set(_PLACEHOLDER.findall(" ".join(arguments)))


def _read_sound(file: Path | io.BytesIO) -> tuple[Floats, int]:
    try:
        samples, rate_hz = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        message = f"what the program wrote is no sound file: {error}"
        raise ClipError(Status.MODEL_ERROR, message.replace(str(file), "{output}")) from error
    if not np.isfinite(samples).all():
        raise ClipError(Status.MODEL_ERROR, "the program wrote samples that are no numbers")
    return samples.mean(axis=1, dtype=np.float32), int(rate_hz)


def espeak_voices() -> list[str]:
    """Languages that espeak-ng speaks, such as `en-us` or `de`, sorted; ConfigError without it."""
    return sorted(_voice_files())


def _voice_file(what: str, voice: str) -> str:
    """Voice file and speaker of a voice such as `en-us+f3`; ConfigError about `what` if unknown."""
    language, _, speaker = voice.partition("+")
    speakers = ["", *(path.name for path in (_installed()[1] / "voices" / "!v").iterdir())]
    for name, known in ((language, espeak_voices()), (speaker, speakers)):
        if name not in known:
            raise ConfigError(
                f"{what}: espeak-ng has no {name!r}; give neutral, random, or a language such as "
                f"{', '.join(espeak_voices()[:3])}, en-us, with a speaker as in en-us+f3"
            )
    return "+".join(filter(None, (_voice_files()[language], speaker)))


@cache
def _languages() -> dict[str, str]:
    """What espeak-ng calls languages that others write otherwise, ISO 639-3 above all."""
    text = resources.files("raysers").joinpath("assets/espeak_languages.json").read_text("utf-8")
    return dict(json.loads(text))


@cache
def _voice_files() -> dict[str, str]:
    """Voice file by the names it answers to: its own and its first language."""
    _, data = _installed()
    found: dict[str, str] = {}
    for path in sorted(path for path in (data / "lang").rglob("*") if path.is_file()):
        entries: dict[str, str] = {}  # lines are `key value [number]`, and the first counts
        for key, *values in map(str.split, filter(str.strip, path.read_text("utf-8").splitlines())):
            entries.setdefault(key, *values[:1] or [""])
        language = entries.get("language") or path.name
        dictionary = entries.get("dictionary") or language.split("-")[0]
        # a voice without a dictionary is listed by espeak-ng as well, and stays silent
        if (data / f"{dictionary}_dict").is_file():
            found[language.lower()] = found[path.name.lower()] = path.name
    return found


def _installed() -> tuple[Path, Path]:
    if find_spec("espeakng_loader") is None:
        raise ConfigError("speech synthesis needs espeak-ng: pip install raysers[speech]")
    import espeakng_loader

    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())


@contextmanager
def _fresh_espeak() -> Iterator[tuple[ctypes.CDLL, int]]:
    """A newly loaded and seeded library and its sample rate; unloaded afterwards."""
    import _ctypes

    library, data = _installed()
    # the loader hands out the image it has for a path it knows, so each call needs a new path
    with tempfile.NamedTemporaryFile(prefix="raysers-espeak-", suffix=library.suffix) as copy:
        shutil.copyfile(library, copy.name)
        try:
            espeak = ctypes.CDLL(copy.name)
        except OSError as error:
            raise ConfigError(
                f"cannot load espeak-ng from {copy.name} ({error}); "
                "point TMPDIR at a folder that allows executable files"
            ) from None
    try:
        sample_rate_hz = espeak.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, str(data).encode(), _INITIALIZE_DONT_EXIT
        )
        if sample_rate_hz <= 0:
            raise ConfigError(
                f"espeak-ng cannot read its data in {data}; reinstall: pip install raysers[speech]"
            )
        # espeak_Initialize seeds from the clock, so this comes after it
        espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(ctypes.c_uint(1))
        yield espeak, sample_rate_hz
    finally:
        espeak.espeak_Terminate()
        _ctypes.dlclose(espeak._handle)

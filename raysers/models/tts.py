"""Text to speech with espeak-ng, or with any program that writes a sound file.

espeak-ng is small, works offline, and makes the same samples of the same text. It keeps state in
the library's globals that none of its calls resets (oscillator phase, noise, flutter), so every
call speaks from a fresh image of the library, with both of its random generators seeded. A program
is started directly, never through a shell, so nothing in a text can become a command.
"""

from __future__ import annotations

import ctypes
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
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from raysers.errors import ClipError, ConfigError
from raysers.seeding import seed_of
from raysers.types import Status

Floats = npt.NDArray[np.float32]

#: Longest text of one call; about a quarter of an hour of speech, 80 MB of samples.
MAX_CHARACTERS = 20_000
#: Longest speech taken from a program.
MAX_SPEECH_S = 3600.0

RATE_RANGE_WPM, DEFAULT_RATE_WPM = (80, 450), 175
PITCH_RANGE, DEFAULT_PITCH = (0, 99), 50

#: Voice names with a meaning: the plain voice of the text's language, and one drawn for each text.
NEUTRAL, RANDOM = "neutral", "random"

#: Language of a text that does not say: what the paper's sentences are in.
_DEFAULT_VOICE = "en-us"
#: What espeak-ng calls languages that others write otherwise, ISO 639-3 above all.
_ESPEAK_NAMES = {
    "ara": "ar", "arb": "ar", "ben": "bn", "bul": "bg", "cat": "ca", "ces": "cs", "chi": "cmn",
    "cze": "cs", "dan": "da", "deu": "de", "dut": "nl", "ell": "el", "est": "et", "eus": "eu",
    "fas": "fa", "fin": "fi", "fra": "fr", "fre": "fr", "ger": "de", "gle": "ga", "gre": "el",
    "heb": "he", "hin": "hi", "hrv": "hr", "hun": "hu", "ind": "id", "isl": "is", "ita": "it",
    "iw": "he", "jpn": "ja", "kat": "ka", "kaz": "kk", "kor": "ko", "lav": "lv", "lit": "lt",
    "msa": "ms", "nld": "nl", "no": "nb", "nob": "nb", "nor": "nb", "per": "fa", "pes": "fa",
    "pol": "pl", "por": "pt", "ron": "ro", "rum": "ro", "rus": "ru", "slk": "sk", "slv": "sl",
    "spa": "es", "srp": "sr", "swa": "sw", "swe": "sv", "tam": "ta", "tel": "te", "tha": "th",
    "tur": "tr", "ukr": "uk", "urd": "ur", "vie": "vi", "zh": "cmn", "zho": "cmn",
}  # fmt: skip
#: espeak-ng's speakers without an effect or a character, the plain voice first.
_SPEAKERS = (
    "",
    *(f"f{number}" for number in range(1, 6)),
    *(f"m{number}" for number in range(1, 9)),
)

# Names and values of speak_lib.h, revision 12.
_AUDIO_OUTPUT_SYNCHRONOUS, _INITIALIZE_DONT_EXIT = 2, 0x8000
_POS_CHARACTER, _CHARS_UTF8 = 1, 1
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3

#: What a command may have in its arguments, each standing for something of the text at hand.
_PLACEHOLDERS = ("text", "text_file", "output", "voice", "rate", "pitch", "language", "seed")
_PLACEHOLDER = re.compile(r"\{(" + "|".join(_PLACEHOLDERS) + r")\}")

# libc's rand(), which some variants draw their breath from, belongs to the whole process
_lock = threading.Lock()

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


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
    """What speaks, as a function of the text and how it is said; picklable.

    Attributes:
        arguments: a program and its arguments, with placeholders in braces; empty is espeak-ng,
            which is safe to use from several threads, in turns.
        timeout_s: the program is killed, with what it started, when it takes longer.
        folder: where it is started, for relative names in its arguments.
        seed: of the voices that are drawn.
    """

    arguments: tuple[str, ...] = ()
    timeout_s: float = 60.0
    folder: str = ""
    seed: int = 0

    @classmethod
    def of_command(cls, command: str, *, timeout_s: float, folder: str, seed: int = 0) -> Engine:
        """The program a command line names, as a shell would split it into words.

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
        """As it stands in the rows, and in the names of the sound files."""
        return shlex.join(self.arguments) or "espeak"

    def check(self, voices: Sequence[str], rates: Sequence[int], pitches: Sequence[int]) -> None:
        """Look at what the flags ask for on the machine that will speak.

        Raises:
            ConfigError: it cannot be done; names the flag.
        """
        named = [voice for voice in voices if voice not in (NEUTRAL, RANDOM)]
        if not self.arguments:
            for voice in named:
                _espeak_name(f"--voice {voice}", voice)
            ranges = (("--rate", rates, RATE_RANGE_WPM), ("--pitch", pitches, PITCH_RANGE))
            for flag, numbers, (low, high) in ranges:
                if off := [number for number in numbers if not low <= number <= high]:
                    raise ConfigError(f"{flag} is {off[0]}: give {low} to {high}")
            return
        if shutil.which(self.arguments[0]) is None:
            raise ConfigError(f"--tts-command: there is no program {self.arguments[0]!r}")
        if RANDOM in voices:
            raise ConfigError("--voice random is espeak's: name the program's own voices")
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
        """The voice that `voice` stands for with this text; None is the program's own."""
        if self.arguments:
            return None if voice == NEUTRAL else voice
        if voice not in (NEUTRAL, RANDOM):
            return voice
        name = (language or "").strip().lower().replace("_", "-")
        if name in ("", "en", "eng", "english"):
            name = _DEFAULT_VOICE
        family = name.partition("-")[0]
        names = (name, family, _ESPEAK_NAMES.get(family))
        name = next((n for n in names if n in espeak_voices()), name)  # an unknown one's row fails
        draw = seed_of(self.seed, text, size_bytes=8) if voice == RANDOM else 0
        return "+".join(filter(None, (name, _SPEAKERS[draw % len(_SPEAKERS)])))

    def speak(self, line: Line) -> tuple[Floats, int]:
        """Mono samples in -1..1, shape (samples,), and their rate in Hz.

        Raises:
            ClipError: `empty` for a blank text, or one without anything to pronounce; `too_long`;
                `model_error` for all else, with the reason, a program's being the last line of
                its standard error.
        """
        if not line.text.strip():
            raise ClipError(Status.EMPTY, "the text is blank")
        if len(line.text) > MAX_CHARACTERS:
            message = f"the text has {len(line.text):,} characters, more than {MAX_CHARACTERS:,}"
            raise ClipError(Status.TOO_LONG, message)
        samples, rate_hz = self._program(line) if self.arguments else _espeak(line)
        if not samples.any():
            raise ClipError(Status.EMPTY, "nothing in the text is pronounced: no sound came of it")
        return samples, rate_hz

    def _program(self, line: Line) -> tuple[Floats, int]:
        """One run; the text is on standard input if no argument takes it."""
        with tempfile.TemporaryDirectory(prefix="raysers-speech-") as place:
            names = ("text.txt", "speech.wav", "stdout.txt", "stderr.txt")
            text_file, output, unused, errors = (Path(place, name) for name in names)
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
            sound = unused if "output" in _used(self.arguments) else output
            folder = self.folder if os.path.isdir(self.folder) else None
            with text_file.open() as given, sound.open("w") as out, errors.open("w") as err:
                try:
                    process = subprocess.Popen(
                        filled, stdin=given, stdout=out, stderr=err, cwd=folder,
                        start_new_session=True,
                    )  # fmt: skip
                except (OSError, ValueError) as error:
                    message = f"cannot start {filled[0]}: {error}"
                    raise ClipError(Status.MODEL_ERROR, message) from error
            failure = self._failure(process)
            if not failure and output.is_file():
                return _samples(output)
            said = errors.read_bytes().decode("utf-8", "replace").rstrip().rpartition("\n")[2]
            message = f"{self.arguments[0]} {failure or 'wrote no {output}'}"
            message += f": {said.strip()[-300:]}" if said else ""
            raise ClipError(Status.MODEL_ERROR, message)

    def _failure(self, process: subprocess.Popen[bytes]) -> str:
        """What went wrong, once nothing of the program is left running."""
        try:
            code = process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            return f"took more than {self.timeout_s:g} s"
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code < 0:
            return f"was killed by signal {-code}"
        return f"ended with exit code {code}" if code else ""


def _used(arguments: Sequence[str]) -> set[str]:
    """Placeholders in the arguments."""
    return set(_PLACEHOLDER.findall(" ".join(arguments)))


def _espeak(line: Line) -> tuple[Floats, int]:
    """Samples and rate (22050 Hz) of espeak-ng, which reads markup out and does not obey it.

    Text in another language than the voice's may leave 0.2 MB of its dictionary behind in the
    process, other text about 2 kB.
    """
    _installed()
    try:
        name = _espeak_name(f"voice {line.voice}", line.voice or _DEFAULT_VOICE)
    except ConfigError as error:
        # the flags were checked, so it is the language that the text says it is in
        raise ClipError(Status.MODEL_ERROR, str(error)) from error
    rate_wpm = DEFAULT_RATE_WPM if line.rate_wpm is None else line.rate_wpm
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


def espeak_voices() -> list[str]:
    """Languages that espeak-ng speaks, such as `en-us` or `de`, sorted.

    Raises:
        ConfigError: the `speech` extra is not installed.
    """
    return sorted(_voice_files())


def _espeak_name(what: str, voice: str) -> str:
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
    """Paths of the library and of its data folder."""
    try:
        import espeakng_loader
    except ImportError:
        raise ConfigError("speech synthesis needs espeak-ng: pip install raysers[speech]") from None
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


def _samples(output: Path) -> tuple[Floats, int]:
    try:
        with soundfile.SoundFile(output) as file:
            rate_hz = int(file.samplerate)
            most = int(MAX_SPEECH_S * rate_hz)
            samples = file.read(most + 1, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        message = f"what the program wrote is no sound file: {error}"
        raise ClipError(Status.MODEL_ERROR, message.replace(str(output), "{output}")) from error
    mono = samples.mean(axis=1, dtype=np.float32)
    if len(mono) > most or not np.isfinite(mono).all():
        what = (
            f"more than {MAX_SPEECH_S:g} s of speech"
            if len(mono) > most
            else "samples that are no numbers"
        )
        raise ClipError(Status.MODEL_ERROR, f"the program wrote {what}")
    return mono, rate_hz

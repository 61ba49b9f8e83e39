"""The ways a text becomes speech, behind one call: espeak-ng, or a program of one's own.

Speech is a function of what is said and how, never of what was said before, so that a worker that
does a text again makes the same sound. For a program that is the program's own affair.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysers.errors import ClipError, ConfigError
from raysers.models import tts
from raysers.models.tts_command import SpeechProgram
from raysers.seeding import seed_of
from raysers.types import Status

#: Voice names with a meaning: the plain voice of the text's language, and one drawn for each text.
NEUTRAL, RANDOM = "neutral", "random"

DEFAULT_RATE_WPM = 175
DEFAULT_PITCH = 50

#: Language of a text that does not say: what the paper's sentences are in.
_DEFAULT_VOICE = "en-us"
#: What espeak-ng calls languages that others write otherwise, ISO 639-3 above all.
ESPEAK_NAMES = {
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
    *(f"{sex}{number}" for sex, most in (("f", 5), ("m", 8)) for number in range(1, most + 1)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A text and how it is said; numbers that are None are the program's own."""

    text: str
    language: str | None
    voice: str | None
    rate_wpm: int | None
    pitch: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What speaks; picklable.

    Attributes:
        program: the program; None is espeak-ng.
        seed: of the voices that are drawn.
    """

    program: SpeechProgram | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """As it stands in the rows, and in the names of the sound files."""
        return "espeak" if self.program is None else shlex.join(self.program.arguments)

    def check(self, voices: Sequence[str], rates: Sequence[int], pitches: Sequence[int]) -> None:
        """Look at what the flags ask for on the machine that will speak.

        Raises:
            ConfigError: it cannot be done; names the flag.
        """
        if self.program is None:
            _check_espeak(voices, rates, pitches)
        else:
            _check_program(self.program, voices, rates, pitches)

    def voice_for(self, voice: str, text: str, language: str | None) -> str | None:
        """The voice that `voice` stands for with this text; None is the program's own."""
        if self.program is not None:
            return None if voice == NEUTRAL else voice
        if voice == NEUTRAL:
            return _voice_of(language)
        if voice == RANDOM:
            draw = seed_of(self.seed, text, size_bytes=8)
            speaker = _SPEAKERS[draw % len(_SPEAKERS)]
            return "+".join(filter(None, (_voice_of(language), speaker)))
        return voice

    def speak(self, line: Line) -> tuple[npt.NDArray[np.float32], int]:
        """Mono samples in -1..1, shape (samples,), and their rate in Hz.

        Raises:
            ClipError: `empty` for a blank text, or one without anything to pronounce; `too_long`;
                `model_error` for all else, with the reason.
        """
        if not line.text.strip():
            raise ClipError(Status.EMPTY, "the text is blank")
        if len(line.text) > tts.MAX_CHARACTERS:
            message = (
                f"the text has {len(line.text):,} characters, more than {tts.MAX_CHARACTERS:,}"
            )
            raise ClipError(Status.TOO_LONG, message)
        samples, rate_hz = _espeak(line) if self.program is None else self._program(line)
        if not samples.any():
            raise ClipError(Status.EMPTY, "nothing in the text is pronounced: no sound came of it")
        return samples, rate_hz

    def _program(self, line: Line) -> tuple[npt.NDArray[np.float32], int]:
        assert self.program is not None
        values: Mapping[str, object] = {
            "voice": line.voice,
            "rate": line.rate_wpm,
            "pitch": line.pitch,
            "language": line.language,
            "seed": self.seed,
        }
        words = {key: "" if value is None else str(value) for key, value in values.items()}
        return self.program.speak(line.text, words)


def _espeak(line: Line) -> tuple[npt.NDArray[np.float32], int]:
    language, _, variant = (line.voice or _DEFAULT_VOICE).partition("+")
    try:
        return tts.speak(
            line.text,
            voice=language,
            variant=variant,
            rate_wpm=DEFAULT_RATE_WPM if line.rate_wpm is None else line.rate_wpm,
            pitch=DEFAULT_PITCH if line.pitch is None else line.pitch,
        )
    except ConfigError as error:
        # the flags were checked, so it is this text, or the language it says it is in
        raise ClipError(Status.MODEL_ERROR, str(error)) from error


def _voice_of(language: str | None) -> str:
    """The plain voice of a language; an unknown one stays, and its row fails."""
    name = (language or "").strip().lower().replace("_", "-")
    if name in ("", "en", "eng", "english"):
        return _DEFAULT_VOICE
    known, family = tts.voices(), name.partition("-")[0]
    return next((n for n in (name, family, ESPEAK_NAMES.get(family)) if n in known), name)


def _check_espeak(voices: Sequence[str], rates: Sequence[int], pitches: Sequence[int]) -> None:
    known, variants = tts.voices(), tts.variants()
    for voice in voices:
        language, _, variant = voice.partition("+")
        if voice not in (NEUTRAL, RANDOM) and language not in known:
            raise ConfigError(
                f"--voice {voice}: espeak-ng has no {language!r}; give neutral, random, or a "
                f"language such as {', '.join(known[:3])}, en-us, with a speaker as in en-us+f3"
            )
        if variant and variant not in variants:
            raise ConfigError(f"--voice {voice}: espeak-ng has no speaker {variant!r}")
    for flag, values, (low, high) in (
        ("--rate", rates, tts.RATE_RANGE_WPM),
        ("--pitch", pitches, tts.PITCH_RANGE),
    ):
        if off := [value for value in values if not low <= value <= high]:
            raise ConfigError(f"{flag} is {off[0]}: give {low} to {high}")


def _check_program(
    program: SpeechProgram, voices: Sequence[str], rates: Sequence[int], pitches: Sequence[int]
) -> None:
    if shutil.which(program.arguments[0]) is None:
        raise ConfigError(f"--tts-command: there is no program {program.arguments[0]!r}")
    if RANDOM in voices:
        raise ConfigError("--voice random is espeak's: name the program's own voices")
    given = {
        "voice": [voice for voice in voices if voice != NEUTRAL],
        "rate": rates,
        "pitch": pitches,
    }
    for name, values in given.items():
        if values and name not in program.uses:
            raise ConfigError(
                f"--{name} {values[0]}: --tts-command has no {{{name}}} to pass it to the program"
            )
        if name in program.uses and (not values or (name == "voice" and NEUTRAL in voices)):
            raise ConfigError(f"--tts-command has {{{name}}}: say which with --{name}")

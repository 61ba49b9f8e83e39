"""espeak-ng through its C library: small, offline, the same samples for the same text.

It keeps state in the library's globals that none of its calls resets (oscillator phase, noise,
flutter), so every call speaks from a fresh image of the library, with both of its random generators
seeded.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raysers.errors import ClipError, ConfigError
from raysers.types import Status

RATE_RANGE_WPM, DEFAULT_RATE_WPM = (80, 450), 175
PITCH_RANGE, DEFAULT_PITCH = (0, 99), 50
#: Language of a text that does not say: what the paper's sentences are in.
DEFAULT_VOICE = "en-us"
#: What espeak-ng calls languages that others write otherwise, ISO 639-3 above all.
LANGUAGES = {
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
# Names and values of speak_lib.h, revision 12.
_AUDIO_OUTPUT_SYNCHRONOUS, _INITIALIZE_DONT_EXIT = 2, 0x8000
_POS_CHARACTER, _CHARS_UTF8 = 1, 1
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3

# libc's rand(), which some variants draw their breath from, belongs to the whole process
_lock = threading.Lock()

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def speak(
    text: str, voice: str | None, rate_wpm: int | None, pitch: int | None
) -> tuple[npt.NDArray[np.float32], int]:
    """Samples and rate (22050 Hz) of espeak-ng, which reads markup out and does not obey it.

    Text in another language than the voice's may leave 0.2 MB of its dictionary behind in the
    process, other text about 2 kB.
    """
    _installed()
    try:
        name = check_voice(f"voice {voice}", voice or DEFAULT_VOICE)
    except ConfigError as error:
        # the flags were checked, so it is the language that the text says it is in
        raise ClipError(Status.MODEL_ERROR, str(error)) from error
    rate_wpm = DEFAULT_RATE_WPM if rate_wpm is None else rate_wpm
    pitch = DEFAULT_PITCH if pitch is None else pitch
    # a NUL would end the text for C; lone surrogates have no UTF-8
    spoken = text.replace("\0", " ").encode("utf-8", "replace")
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


def check_voice(what: str, voice: str) -> str:
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

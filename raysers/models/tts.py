"""Text to speech with espeak-ng: small, offline, and the same samples for the same words.

espeak-ng keeps state in the library's globals that none of its calls resets (oscillator
phase, noise, flutter), so a sentence sounds different after another one. Every call therefore
speaks from a fresh image of the library, with both of its random generators seeded.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raysers.errors import ConfigError

#: Longest text of one call; about a quarter of an hour of speech, 80 MB of samples.
MAX_CHARACTERS = 20_000

RATE_RANGE_WPM = (80, 450)
PITCH_RANGE = (0, 99)

# Names and values of speak_lib.h, revision 12.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_PARAMETER_RATE = 1
_PARAMETER_PITCH = 3

_SEED = 1

# libc's rand(), which some variants draw their breath from, belongs to the whole process
_lock = threading.Lock()

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def speak(
    text: str, *, voice: str = "en-us", rate_wpm: int = 175, pitch: int = 50, variant: str = ""
) -> tuple[npt.NDArray[np.float32], int]:
    """Speak `text`; the same arguments give the same samples, whatever was spoken before.

    Safe to call from several threads (they take turns). Text in another language than the
    voice's may leave 0.2 MB of its dictionary behind in the process, other text about 2 kB.

    Args:
        text: What to say, at most `MAX_CHARACTERS` characters. Markup is read out, not obeyed.
        voice: Language of the speaker, one of `voices()`.
        rate_wpm: Words per minute, 80..450.
        pitch: Base pitch without unit, 0..99; 50 is the voice's own.
        variant: Speaker and voice quality, one of `variants()`; empty is the plain voice.

    Returns:
        Mono samples in -1..1, shape (samples,), and their rate in Hz (22050).

    Raises:
        ConfigError: Unknown voice or variant, a number out of range, empty or overlong text, or
            the `speech` extra is not installed.
    """
    _require_known("voice", voice, voices())
    if variant:
        _require_known("variant", variant, variants())
    _require_range("rate_wpm", rate_wpm, RATE_RANGE_WPM)
    _require_range("pitch", pitch, PITCH_RANGE)
    spoken = _require_text(text)
    name = "+".join([_voice_files()[voice], *([variant] if variant else [])])
    chunks: list[bytes] = []
    with _lock, _fresh_espeak() as (espeak, sample_rate_hz):
        callback = _collector(chunks)
        espeak.espeak_SetSynthCallback(callback)
        _check(espeak.espeak_SetVoiceByName(name.encode()), f"select voice {name!r}")
        _check(espeak.espeak_SetParameter(_PARAMETER_RATE, rate_wpm, 0), "set the rate")
        _check(espeak.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0), "set the pitch")
        size = ctypes.c_size_t(len(spoken) + 1)
        _check(
            espeak.espeak_Synth(spoken, size, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None),
            f"speak {text[:40]!r}",
        )
    pcm = np.frombuffer(b"".join(chunks), dtype=np.int16)
    return pcm.astype(np.float32) / np.float32(32768), sample_rate_hz


def voices() -> list[str]:
    """Languages that can be spoken, such as `en-us` or `de`, sorted.

    Raises:
        ConfigError: The `speech` extra is not installed.
    """
    return sorted(_voice_files())


@cache
def _voice_files() -> dict[str, str]:
    """Voice file by the names it answers to: its own and its first language."""
    _, data = _installed()
    found: dict[str, str] = {}
    for path in sorted((data / "lang").rglob("*")):
        # a voice without a dictionary is listed by espeak-ng as well, and stays silent
        if path.is_file() and (data / f"{_dictionary(path)}_dict").is_file():
            language = _entry(path, "language") or path.name
            found[language.lower()] = found[path.name.lower()] = path.name
    return found


def _dictionary(voice_file: Path) -> str:
    language = _entry(voice_file, "language") or voice_file.name
    return _entry(voice_file, "dictionary") or language.split("-")[0]


def _entry(voice_file: Path, key: str) -> str | None:
    """First value of `key` in a voice file, whose lines are `key value [number]`."""
    for line in voice_file.read_text("utf-8").splitlines():
        match line.split():
            case [found, value, *_] if found == key:
                return value
    return None


def variants() -> list[str]:
    """Speakers and voice qualities that go with any voice, such as `f3` or `whisper`, sorted.

    Raises:
        ConfigError: The `speech` extra is not installed.
    """
    _, data = _installed()
    return sorted(path.name for path in (data / "voices" / "!v").iterdir())


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
        with library.open("rb") as source:
            shutil.copyfileobj(source, copy)
        copy.flush()
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
        espeak.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
        ctypes.CDLL(None).srand(ctypes.c_uint(_SEED))
        yield espeak, sample_rate_hz
    finally:
        espeak.espeak_Terminate()
        _ctypes.dlclose(espeak._handle)


def _collector(chunks: list[bytes]) -> ctypes._CFunctionType:
    """A synthesis callback that appends 16-bit samples to `chunks`."""

    def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: object) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    return _Callback(collect)


def _check(code: int, action: str) -> None:
    if code != 0:
        raise ConfigError(f"espeak-ng could not {action} (code {code}); try another voice or text")


def _require_known(kind: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known[:12])}, …"
        raise ConfigError(f"unknown {kind} {name!r}; {hint}")


def _require_range(name: str, value: int, limits: tuple[int, int]) -> None:
    low, high = limits
    if not low <= value <= high:
        raise ConfigError(f"{name} must be {low}..{high}, not {value}")


def _require_text(text: str) -> bytes:
    if not text.strip():
        raise ConfigError("the text to speak is empty")
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"the text has {len(text)} characters; split it into pieces of {MAX_CHARACTERS}"
        )
    # a NUL would end the text for C; lone surrogates have no UTF-8
    return text.replace("\0", " ").encode("utf-8", "replace")

"""Moonshine (tiny, English): its weights come inside its package, so it works offline.

The library's own way to cut a recording is switched off: it remembers the clip before, loses short
words and cuts sentences in two. The model gets whole clips instead, with a little silence around
them; only what is longer than 15 s is cut. The library's detector of speech, in a separate stream
for every clip, only decides whether there is any, because the model makes words of every noise.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysers.errors import CheckpointError, ClipError, ConfigError
from raysers.models import checkpoint
from raysers.models.vad import speech_windows
from raysers.types import SAMPLE_RATE_HZ, Status

MOONSHINE = "moonshine"

_PACKAGE = "moonshine_voice"
_FILES = ("decoder_model_merged.ort", "encoder_model.ort", "tokenizer.bin")

#: Samples that one frame of the encoder sees: windows of 127, 7 and 3 with steps of 64, 3 and 2.
_MIN_SAMPLES = 895
#: The library takes whole blocks of this size only.
_BLOCK_SAMPLES = 512
#: Silence before and behind a clip. The library allows 6.5 tokens a second, silence included.
_LEAD_S, _TAIL_S = 0.1, 0.4
#: Longest stretch the library itself would hand to the model.
_LONGEST_S = 15.0
#: What a batch holds: nothing is padded to the longest, so only progress is bound to it.
_BATCH_S = 60.0

#: Flag of the library: look at the audio at once, however little it is.
_NOW = 1

_OPTIONS = (("identify_speakers", "false"), ("return_audio_data", "false"))
#: No detector: all of the audio is one stretch of speech.
_MODEL_OPTIONS = (*_OPTIONS, ("vad_threshold", "0"))
#: Nothing but the detector, one decision every 32 ms: half a second's mean would lose short words.
_DETECTOR_OPTIONS = (*_OPTIONS, ("skip_transcription", "true"), ("vad_window_duration", "0.032"))


class MoonshineRecogniser:
    """As many copies of the model as threads, since each copy takes one clip at a time."""

    name = MOONSHINE
    device = "cpu"
    max_padded_s = _BATCH_S

    def __init__(self, *, dtype: str = "auto", threads: int | None = None) -> None:
        if dtype != "auto":
            raise ConfigError(
                f"--dtype {dtype}: moonshine computes in the format of its weights; leave it auto"
            )
        spec = find_spec(_PACKAGE)
        if spec is None or spec.origin is None:
            raise ConfigError("--asr moonshine needs a package: pip install 'raysers[asr]'")
        folder = Path(spec.origin).parent / "assets" / "tiny-en"
        if missing := [name for name in _FILES if not (folder / name).is_file()]:
            lost = f"{folder} lacks {', '.join(missing)}"
            raise CheckpointError(f"{lost}: pip install 'raysers[asr]' again")
        from moonshine_voice.errors import MoonshineError

        self._failure = MoonshineError
        self.revision = (
            f"{metadata.version('moonshine-voice')}-"
            f"{checkpoint.content_hash([folder / name for name in _FILES])}"
        )
        self._folder = folder
        with self._borrowed(_MODEL_OPTIONS), self._borrowed(_DETECTOR_OPTIONS):
            pass  # now, so that a damaged installation is found before anything is written
        self._pool = ThreadPoolExecutor(threads or 1, thread_name_prefix="moonshine")

    def transcribe(
        self, signals: Sequence[npt.NDArray[np.float32]]
    ) -> list[dict[str, Any] | ClipError]:
        """`text` of each 16 kHz mono signal, or why it has none. Safe from several threads."""
        return list(self._pool.map(self._one, signals))

    def _one(self, signal: npt.NDArray[np.float32]) -> dict[str, Any] | ClipError:
        if len(signal) < _MIN_SAMPLES:
            return ClipError(
                Status.TOO_SHORT,
                f"{len(signal)} samples at 16 kHz; the model needs at least {_MIN_SAMPLES}",
            )
        pieces = speech_windows(signal, _LONGEST_S)
        try:
            texts = [self._text(piece) for piece in pieces]
        except self._failure as error:
            reason = " ".join(str(error).split())[:300]
            return ClipError(Status.MODEL_ERROR, f"moonshine: {reason}")
        return {"text": " ".join(" ".join(texts).split())}

    def _text(self, piece: npt.NDArray[np.float32]) -> str:
        lead, tail = round(_LEAD_S * SAMPLE_RATE_HZ), round(_TAIL_S * SAMPLE_RATE_HZ)
        tail += -(lead + len(piece) + tail) % _BLOCK_SAMPLES
        audio = np.pad(piece, (lead, tail)).tolist()
        with (
            self._borrowed(_DETECTOR_OPTIONS) as detector,
            detector.create_stream(math.inf) as stream,
        ):
            stream.start()
            stream.add_audio(audio, SAMPLE_RATE_HZ)
            if not stream.update_transcription(_NOW).lines:
                return ""
        with self._borrowed(_MODEL_OPTIONS) as model:
            found = model.transcribe_without_streaming(audio, SAMPLE_RATE_HZ)
            return " ".join(line.text for line in found.lines)

    @contextmanager
    def _borrowed(self, options: tuple[tuple[str, str], ...]) -> Iterator[Any]:
        """A copy with these options that no other thread uses meanwhile."""
        key = (self._folder, options)
        with _lock:
            idle = _idle.setdefault(key, [])
            copy = idle.pop() if idle else None
        copy = copy or _transcriber(*key)
        try:
            yield copy
        finally:
            with _lock:
                idle.append(copy)


#: Idle copies, for the next load of moonshine in this process.
_idle: dict[tuple[Path, tuple[tuple[str, str], ...]], list[Any]] = {}
_lock = threading.Lock()


def _transcriber(folder: Path, options: tuple[tuple[str, str], ...]) -> Any:
    """A copy of the model that lives as long as the process: freeing one crashes the library."""
    from moonshine_voice import ModelArch
    from moonshine_voice.errors import MoonshineError
    from moonshine_voice.transcriber import Transcriber

    try:
        copy = Transcriber(str(folder), ModelArch.TINY, options=dict(options))
    except MoonshineError as error:
        raise CheckpointError(f"moonshine cannot be loaded from {folder}: {error}") from error
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(copy))
    return copy

"""Two speech packages that bring their weights along, so that they work offline.

silero-vad (extra `vad`) says where speech is. Only its probabilities are kept (one number per
32 ms), so ten hours take no more memory than ten seconds; block borders leave no trace. Importing
this module is cheap: torch and the packages come with the first use.

Moonshine (tiny, English, extra `asr`) says what was said. The library's own way to cut a recording
is switched off: it remembers the clip before, loses short words and cuts sentences in two. The
model gets whole clips, with a little silence around them; only what is longer than 15 s is cut. The
library's detector only decides whether there is speech: the model makes words of every noise.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysers.errors import CheckpointError, ClipError, ConfigError
from raysers.models import checkpoint
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Status

#: Samples of one decision at 16 kHz; the network accepts no other number.
_WINDOW_SAMPLES = 512
_NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE_HZ
#: Without the detector: length of the quiet stretch to cut in, and step of the search, samples.
_PAUSE_SAMPLES, _STEP_SAMPLES = SAMPLE_RATE_HZ // 5, SAMPLE_RATE_HZ // 50
#: Idle copies of models, as many as were ever in use at the same time.
_idle: dict[object, list[Any]] = {}
# importing the package and loading the network change torch's state for the whole process
_lock = threading.Lock()


def find_speech(
    blocks: Iterable[npt.NDArray[np.float32]], *, min_s: float, max_s: float
) -> list[tuple[int, int]]:
    """Stretches of speech in 16 kHz mono float32 blocks: (start, end) in ns, in order, disjoint.

    Shorter ones than `min_s` are dropped, longer ones than `max_s` split at their longest pause, or
    at `max_s`. Raises ConfigError: the package is not installed, or there is no room for a segment.
    """
    if not 0 <= min_s < max_s:
        raise ConfigError(f"speech segments need 0 <= min ({min_s} s) < max ({max_s} s)")
    package = _package()
    import torch

    probabilities: list[float] = []
    samples = 0
    with _borrowed("silero-vad", partial(_detector, package)) as network:
        network.reset_states()  # it carries state from window to window
        for window, length in _windows(blocks):
            with torch.inference_mode():  # not around the loop: the stream is the caller's code
                speech = network(torch.from_numpy(window), SAMPLE_RATE_HZ)
            probabilities.append(float(speech.item()))
            samples += length
    stretches = package.get_speech_timestamps_from_probs(
        probabilities,
        audio_length_samples=samples,
        sampling_rate=SAMPLE_RATE_HZ,
        min_speech_duration_ms=round(min_s * 1000),
        max_speech_duration_s=max_s,
    )
    return [(s["start"] * _NS_PER_SAMPLE, s["end"] * _NS_PER_SAMPLE) for s in stretches]


def pauses_by() -> str:
    """What finds the pauses of `speech_windows` here."""
    return "silero-vad" if find_spec("silero_vad") else "level"


def speech_windows(signal: npt.NDArray[np.float32], longest_s: float) -> list[Any]:
    """A clip in windows of `longest_s` at most, views that are each but the last cut in a pause.

    The pause is the longest stretch without speech in the last third, else the quietest fifth of a
    second. The windows' texts are the text of the clip.
    """
    longest, start, windows = round(longest_s * SAMPLE_RATE_HZ), 0, []
    if len(signal) <= longest:
        return [signal]
    speech = [(0, len(signal) * _NS_PER_SAMPLE)]
    if find_spec("silero_vad"):
        speech = find_speech([signal], min_s=0.0, max_s=math.inf)
    edges = np.array([0, *np.ravel(speech) // _NS_PER_SAMPLE, len(signal)], np.int64)
    pauses = edges.reshape(-1, 2)
    while len(signal) - start > longest:
        first, last = start + longest * 2 // 3, start + longest
        inside = np.clip(pauses, first, last)
        begin, end = inside[np.diff(inside).argmax()].tolist()
        cut = (begin + end) // 2 if end > begin else first + _quietest(signal[first:last])
        windows.append(signal[start:cut])
        start = cut
    return [*windows, signal[start:]]


def _quietest(stretch: npt.NDArray[np.float32]) -> int:
    """Middle of the stretch's quietest fifth of a second, in samples; of equal ones the last."""
    steps, width = len(stretch) // _STEP_SAMPLES, _PAUSE_SAMPLES // _STEP_SAMPLES
    whole = stretch[: steps * _STEP_SAMPLES].astype(np.float64)
    energy = np.square(whole).reshape(steps, _STEP_SAMPLES).sum(1)
    sums = np.convolve(energy, np.ones(width), mode="valid")
    last = len(sums) - 1 - int(np.argmin(sums[::-1]))
    return (2 * last + width) * _STEP_SAMPLES // 2


def _windows(
    blocks: Iterable[npt.NDArray[np.float32]],
) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """The stream in windows, the last one padded, and how many samples of each are its own."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        stream = np.concatenate((rest, np.asarray(block, np.float32)))
        whole = len(stream) - len(stream) % _WINDOW_SAMPLES
        for start in range(0, whole, _WINDOW_SAMPLES):
            yield stream[start : start + _WINDOW_SAMPLES], _WINDOW_SAMPLES
        rest = stream[whole:]
    if len(rest):
        yield np.pad(rest, (0, _WINDOW_SAMPLES - len(rest))), len(rest)


@contextmanager
def _borrowed(key: object, make: Callable[[], Any]) -> Iterator[Any]:
    """A copy of a model that no other stream or thread uses meanwhile; idle ones are kept."""
    with _lock:
        idle = _idle.setdefault(key, [])
        copy = idle.pop() if idle else None
    copy = make() if copy is None else copy  # others return theirs meanwhile
    try:
        yield copy
    finally:
        with _lock:
            idle.append(copy)


def _detector(package: Any) -> Any:
    with _lock:
        return package.load_silero_vad()


def _package() -> Any:
    """The detector's package, which sets torch to one thread when it is imported."""
    with _lock:
        if (package := sys.modules.get("silero_vad")) is not None:
            return package
        import torch

        threads = torch.get_num_threads()
        try:
            import silero_vad
        except ImportError as error:
            raise ConfigError(
                "--segment vad needs silero-vad: pip install 'raysers[vad]'"
            ) from error
        finally:
            torch.set_num_threads(threads)
        return silero_vad


MOONSHINE = "moonshine"
_FILES = ("decoder_model_merged.ort", "encoder_model.ort", "tokenizer.bin")
#: Samples that one frame of the encoder sees: windows of 127, 7 and 3 with steps of 64, 3 and 2.
_MIN_SAMPLES = 895
#: The library takes whole blocks of this size only.
_BLOCK_SAMPLES = 512
#: Silence before and behind a clip. The library allows 6.5 tokens a second, silence included.
_LEAD_S, _TAIL_S = 0.1, 0.4
#: Longest stretch the library itself would hand to the model.
_LONGEST_S = 15.0
_Options = tuple[tuple[str, str], ...]
_OPTIONS = (("identify_speakers", "false"), ("return_audio_data", "false"))
#: No detector: all of the audio is one stretch of speech.
_MODEL_OPTIONS = (*_OPTIONS, ("vad_threshold", "0"))
#: Nothing but the detector, one decision every 32 ms: half a second's mean would lose short words.
_DETECTOR_OPTIONS = (*_OPTIONS, ("skip_transcription", "true"), ("vad_window_duration", "0.032"))


class MoonshineRecogniser:
    """As many copies of the model as threads, since each copy takes one clip at a time."""

    name = MOONSHINE
    device = "cpu"
    max_padded_s = 60.0  # nothing is padded: only progress is bound to it

    def __init__(self, *, dtype: str = "auto", threads: int | None = None) -> None:
        if dtype != "auto":
            raise ConfigError(
                f"--dtype {dtype}: moonshine computes in the format of its weights; leave it auto"
            )
        spec = find_spec("moonshine_voice")
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
        with self._copy(_MODEL_OPTIONS), self._copy(_DETECTOR_OPTIONS):
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
        with self._copy(_DETECTOR_OPTIONS) as detector, detector.create_stream(math.inf) as stream:
            stream.start()
            stream.add_audio(audio, SAMPLE_RATE_HZ)
            if not stream.update_transcription(1).lines:  # at once, however little it is
                return ""
        with self._copy(_MODEL_OPTIONS) as model:
            found = model.transcribe_without_streaming(audio, SAMPLE_RATE_HZ)
            return " ".join(line.text for line in found.lines)

    def _copy(self, options: _Options) -> AbstractContextManager[Any]:
        return _borrowed((self._folder, options), lambda: _transcriber(self._folder, options))


def _transcriber(folder: Path, options: _Options) -> Any:
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

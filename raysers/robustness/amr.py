"""Speech through the AMR codec of mobile telephony, where the optional package `av` is installed.

Nothing here decides whether to use it: a run does, once for all its workers.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RATE_HZ, _FRAME = 8000, 160
_ENCODER, _DECODER = "libopencore_amrnb", "amrnb"


@cache
def is_installed() -> bool:
    """Whether this process can encode and decode AMR."""
    if importlib.util.find_spec("av") is None:
        return False
    return {_ENCODER, _DECODER} <= set(_av().codecs_available)


def amr(signal: NDArray[np.float32], bit_rate: int = 7400) -> NDArray[np.float32]:
    """Encode and decode.

    Args:
        signal: mono at 8 kHz, shape (samples,); beyond full scale it is clipped.
        bit_rate: bits per second, one of the codec's eight.

    Returns:
        As many samples, float32.

    Raises:
        ModuleNotFoundError: `av` is not installed.
    """
    av = _av()
    encoder = av.CodecContext.create(_ENCODER, "w")
    encoder.sample_rate, encoder.layout, encoder.format = _RATE_HZ, "mono", "s16"
    encoder.bit_rate = bit_rate
    padded = np.zeros(-(-signal.size // _FRAME) * _FRAME + 2 * _FRAME, np.int16)
    padded[: signal.size] = np.rint(signal.clip(-1, 1) * 32767)
    packets = [p for frame in padded.reshape(-1, 1, _FRAME) for p in _encoded(av, encoder, frame)]
    packets += encoder.encode(None)
    decoder = av.CodecContext.create(_DECODER, "r")
    decoded = [frame.to_ndarray().ravel() for p in packets for frame in decoder.decode(p)]
    received = np.concatenate([*decoded, np.zeros(signal.size, np.float32)])[: signal.size]
    return np.asarray(received, np.float32)


def _encoded(av: Any, encoder: Any, samples: NDArray[np.int16]) -> list[Any]:
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
    frame.sample_rate = _RATE_HZ
    return list(encoder.encode(frame))


def _av() -> Any:
    return importlib.import_module("av")

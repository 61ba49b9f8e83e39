"""Speech recognition by name: signals in, the words that were said out.

Every recogniser decodes greedily and looks at one clip at a time, so the text of a clip is the
same in any batch, on any worker, in any order. Speech that is not there is an empty text, not an
error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raysers.errors import CheckpointError, ClipError, ConfigError
from raysers.models import checkpoint
from raysers.models.asr_ctc import CtcRecogniser
from raysers.models.asr_folder import fetch_asr_folder
from raysers.models.asr_whisper import WhisperRecogniser
from raysers.models.backbones import FAMILIES, WHISPER, ModelName, parse_model_name
from raysers.models.moonshine import MOONSHINE, MoonshineRecogniser

#: What `--asr` is without a word from the user: it needs no download.
DEFAULT_ASR = MOONSHINE

_HINT = (
    "give moonshine (offline), the hub id of a Whisper model or of a CTC model of wav2vec2, "
    "HuBERT, WavLM or data2vec-audio (facebook/wav2vec2-base-960h), a folder (./folder) or "
    "s3://bucket/prefix"
)


class Recogniser(Protocol):
    """Who turns speech into text.

    Attributes:
        name: what `--asr` said.
        revision: commit or content hash the texts come from.
        device: where it computes, `cpu` or `cuda`.
        max_padded_s: padded seconds of a batch that it is fastest with.
    """

    name: str
    revision: str
    device: str
    max_padded_s: float

    def transcribe(self, signals: Sequence[npt.NDArray[np.float32]]) -> list[str | ClipError]:
        """Text of each 16 kHz mono signal in [-1, 1], or why it has none; never raises for one.

        Raises:
            DeviceLost: the accelerator is broken for good.
        """


def load_asr(
    name: str, *, device: str = "cpu", dtype: str = "auto", threads: int | None = None
) -> Recogniser:
    """Load a recogniser.

    Args:
        name: `moonshine`, a hub id with an optional `@REVISION`, or a local folder.
        device: `cpu` or `cuda`; moonshine always computes on the CPU.
        dtype: precision of CTC and Whisper models: auto, fp32, bf16 or fp16.
        threads: compute threads of this process on CPUs; None leaves the libraries' setting.

    Raises:
        ConfigError: no such name, no way to fetch it, or a format it does not compute in.
        CheckpointError: the folder is no model whose words can be trusted.
    """
    if is_moonshine(name):
        return MoonshineRecogniser(dtype=dtype, threads=threads)
    parsed = parse_asr_name(name)
    folder, revision = fetch_asr_folder(parsed)
    config = checkpoint.read_json(folder / checkpoint.CONFIG_FILE)
    kind = config.get("model_type")
    if kind == WHISPER:
        return WhisperRecogniser(
            folder, config, name, revision, device=device, dtype=dtype, threads=threads
        )
    if kind in FAMILIES:
        return CtcRecogniser(
            folder, config, name, revision, device=device, dtype=dtype, threads=threads
        )
    known = ", ".join(FAMILIES)
    raise CheckpointError(f"--asr {name}: model_type is {kind!r}; supported: {known}")


def is_moonshine(name: str) -> bool:
    """Whether `--asr` means the recogniser that comes as a package with its weights."""
    return name == MOONSHINE


def parse_asr_name(name: str) -> ModelName:
    """Read an `--asr` text other than `moonshine`.

    Raises:
        ConfigError: it is neither a hub id nor a place.
    """
    try:
        parsed = parse_model_name(name)
    except ConfigError as error:
        raise ConfigError(f"unknown --asr {name!r}: {_HINT}") from error
    if parsed.alias is not None or parsed.random:
        raise ConfigError(f"--asr {name!r} is an emotion model or a bare backbone: {_HINT}")
    if parsed.path is not None and not parsed.is_object_store and not Path(parsed.path).is_dir():
        raise ConfigError(f"--asr {name}: there is no such folder; {_HINT}")
    return parsed

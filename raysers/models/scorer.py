"""Scoring batches of clips: precision, padding, one forward pass, and whose error a failure is.

A clip's scores do not depend on its neighbours: in fp32 they equal a plain single-file pass of
`transformers` to about 1e-6. bf16 rounds differently from one batch shape to the next. Measured
on EmoDB with random full-size weights (w2v2-b, w2v2-L-robust-12; scores spread by 0.03): against
fp32 scores move by up to 0.004 (mean 0.002) and embeddings by 0.02, the same clip in another
batch by up to 0.001 and 0.005. A 2 Hz rumble 500 times as loud as the speech, which leaves little
but the rumble to a group norm, takes this to 0.008 and 0.05 (w2v2-b).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from raysers.errors import ClipError, ConfigError, DeviceLost, RaysersError
from raysers.models.frontend import normalise
from raysers.models.loading import LoadedModel
from raysers.models.onnx import MAX_SAMPLES, ONNX, TORCH, OnnxModel, fits
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ, Status

Floats = npt.NDArray[np.float32]
#: Number formats of a backbone, by their names in `--dtype`.
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_name(requested: str, device: str) -> str:
    """fp32, bf16 or fp16 for `--dtype`: auto is bf16 where there is hardware; or ConfigError."""
    if requested not in ("auto", *PRECISIONS):
        raise ConfigError(f"--dtype {requested!r}: choose from auto, {', '.join(PRECISIONS)}")
    on_cpu = device.startswith("cpu")
    if requested == "fp16" and on_cpu:
        raise ConfigError("--dtype fp16 needs a GPU; on CPUs use auto, bf16 or fp32")
    if requested != "auto":
        return requested
    if on_cpu:
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        has_bf16 = any(getattr(torch.cpu, probe, bool)() for probe in probes)
    else:
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
    return "bf16" if has_bf16 else "fp32"


@contextlib.contextmanager
def exact_convolutions(dtype: torch.dtype) -> Iterator[None]:
    """Keep cuDNN from rounding fp32 convolutions to 10 bits; all else of it stays as it is set."""
    if dtype != torch.float32:
        yield
        return
    cudnn = torch.backends.cudnn
    with cudnn.flags(  # whatever is not passed is reset, `enabled` to False
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        benchmark_limit=cudnn.benchmark_limit,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    ):
        yield


class Row(NamedTuple):
    """One clip's result: scores float32 [3] in the order of `DIMENSIONS`, embedding [hidden].

    `extras` are the numbers of `Outputs.columns`. Scores of untrained dimensions are NaN.
    """

    scores: Floats
    embedding: Floats
    extras: Floats


class Scores(NamedTuple):
    """A batch's results: scores [clips, 3], embeddings [clips, hidden], extras [clips, n]."""

    scores: Floats
    embeddings: Floats
    extras: Floats


class Scorer:
    """A loaded model on its device, ready for batches; ConfigError where that cannot be.

    It takes the model over: precision, device and folded weights change in place. `dtype` (auto,
    fp32, bf16, fp16) is that of the backbone; pooling and head stay in fp32. `threads` are those of
    this process on CPUs. With the `backend` ONNX Runtime (fp32, int8) torch scores models too large
    for one file and clips longer than `onnx.MAX_SAMPLES`, in fp32.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        dtype: str,
        device: str,
        threads: int | None = None,
        backend: str = TORCH,
    ) -> None:
        chosen = PRECISIONS[dtype_name("fp32" if backend == ONNX else dtype, device)]
        if threads is not None:
            torch.set_num_threads(threads)
        self._model = loaded.model
        if self._model.taken:
            raise ConfigError(f"model {loaded.name} already has a scorer; load it again")
        self.device = _usable(device)
        self._model.taken = True
        _fold_weight_norm(self._model)
        self._model.eval().requires_grad_(False).to(self.device)
        self._model.cast(chosen)
        self._dtype = chosen
        self._threads = threading.local()
        self._do_normalize = loaded.do_normalize
        self._onnx: OnnxModel | None = None
        if backend == ONNX and (dtype == "int8" or fits(loaded)):
            self._onnx = OnnxModel(loaded, dtype=dtype, threads=threads)
        self.name = loaded.name
        self.revision = loaded.revision
        self.min_samples = self._model.min_samples
        self.max_samples = self._model.max_samples
        trained = self._model.outputs.trained
        self.untrained = [i for i, name in enumerate(DIMENSIONS) if name not in trained]

    @torch.inference_mode()
    def score(self, signals: Sequence[Floats]) -> Scores:
        """Score 16 kHz mono float32 clips that fit, in one pass, or one by one in ONNX Runtime."""
        with self._own_stream():
            return self._score(signals)

    def _score(self, signals: Sequence[Floats]) -> Scores:
        if self._onnx is None:
            scores, embeddings = self._forward(signals)
        else:
            found = [
                self._onnx(signal) if len(signal) <= MAX_SAMPLES else self._forward([signal])
                for signal in signals
            ]
            scores, embeddings = (torch.cat(part) for part in zip(*found, strict=True))
        extras = self._model.extras(embeddings)
        found_scores = scores.float().cpu().numpy()
        found_scores[:, self.untrained] = np.nan
        return Scores(
            scores=found_scores, embeddings=embeddings.cpu().numpy(), extras=extras.cpu().numpy()
        )

    def _own_stream(self) -> contextlib.AbstractContextManager[object]:
        """On a GPU each thread's batches are copied and computed beside those of the others."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        if not hasattr(self._threads, "stream"):
            torch.cuda.synchronize(self.device)  # the weights are there, whatever brought them
            self._threads.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._threads.stream)

    def _forward(self, signals: Sequence[Floats]) -> tuple[Tensor, Tensor]:
        padded, lengths = pad(signals, pinned=self.device.type == "cuda")
        padded = padded.to(self.device, non_blocking=True)
        if self._do_normalize:
            padded = normalise(padded, lengths.to(self.device, non_blocking=True))
        with exact_convolutions(self._dtype):
            scores, embeddings = self._model(padded, lengths)
        return scores, embeddings


def score_rows(scorer: Scorer, signals: Sequence[Floats]) -> list[Row | ClipError]:
    """A `Row` of each 16 kHz mono float32 clip, or why there is none.

    Out of memory halves the batch, down to single clips (`out_of_memory`). After any other error
    the clips of the batch are tried one by one; those that fail again, or whose scores are not
    numbers, are a `model_error`. Raises DeviceLost: the process has to end; and the project's own
    errors.
    """
    misfits = [_misfit(len(signal), scorer) for signal in signals]
    fitting = [signal for signal, misfit in zip(signals, misfits, strict=True) if misfit is None]
    scored = iter(_score_or_split(scorer, fitting))
    return [misfit or next(scored) for misfit in misfits]


def auto_padded_s(scorer: Scorer) -> float:
    """Padded audio seconds per forward pass: what CPUs' caches or the GPU's free memory hold."""
    if scorer.device.type == "cpu":
        return _CPU_PADDED_S
    free_bytes, _ = torch.cuda.mem_get_info(scorer.device)
    return max(_CPU_PADDED_S, min(_MOST_PADDED_S, free_bytes * _FREE_SHARE / _BYTES_PER_S))


#: Two cores are fastest with 4 s (large models) or 8 s (tiny ones) to 16 s; more costs 5 to 15 %.
_CPU_PADDED_S = 12.0
#: Beyond this a GPU is busy anyway, and results would only come in bigger lumps.
_MOST_PADDED_S = 960.0
#: Share of the free memory to plan with: two batches are there at a time, and others use it too.
_FREE_SHARE = 0.3
#: Activations of a second of padded audio at the widest point of the large models, fp32.
_BYTES_PER_S = 24e6


def _score_or_split(scorer: Scorer, signals: Sequence[Floats]) -> list[Row | ClipError]:
    if not signals:
        return []
    status = Status.OUT_OF_MEMORY
    try:
        return _rows(scorer.score(signals), scorer.untrained)
    except RaysersError:
        raise
    except Exception as error:  # the row boundary: a clip's error fails that clip only
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if not is_out_of_memory(error):
            # every later call would fail as well
            if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
                raise DeviceLost(f"{scorer.device} is lost to this process: {message}") from error
            status = Status.MODEL_ERROR
    # outside the handler: its traceback would keep the failed batch's tensors alive
    if len(signals) == 1:
        return [ClipError(status, f"{len(signals[0]) / SAMPLE_RATE_HZ:.1f} s clip: {message}")]
    if status == Status.OUT_OF_MEMORY and torch.cuda.is_available():
        torch.cuda.empty_cache()
    size = (len(signals) + 1) // 2 if status == Status.OUT_OF_MEMORY else 1
    parts = (signals[start : start + size] for start in range(0, len(signals), size))
    return [row for part in parts for row in _score_or_split(scorer, part)]


def _rows(batch: Scores, untrained: Sequence[int]) -> list[Row | ClipError]:
    finite = np.isfinite(np.concatenate((batch.scores, batch.extras), 1))
    finite[:, untrained] = True
    return [
        Row(*row)
        if good.all()
        else ClipError(Status.MODEL_ERROR, "the model's scores are not finite numbers")
        for *row, good in zip(*batch, finite, strict=True)
    ]


def _misfit(samples: int, scorer: Scorer) -> ClipError | None:
    if samples < scorer.min_samples:
        least = scorer.min_samples
        message = f"{samples} samples at 16 kHz; the model needs at least {least}"
        return ClipError(Status.TOO_SHORT, message)
    if scorer.max_samples is not None and samples > scorer.max_samples:
        most_s = scorer.max_samples // SAMPLE_RATE_HZ
        message = (
            f"{samples / SAMPLE_RATE_HZ:.1f} s; the model has positions for {most_s} s: cut"
            f" recordings with --segment window --window-s {most_s} or shorter"
        )
        return ClipError(Status.TOO_LONG, message)
    return None


#: How torch and ONNX Runtime say that memory ran out.
_OUT_OF_MEMORY = (
    "not enough memory",
    "DefaultCPUAllocator",
    "out of memory",
    "Failed to allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python is a lack of memory."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in text for words in _OUT_OF_MEMORY
    )


def pad(signals: Sequence[Floats], *, pinned: bool = False) -> tuple[Tensor, Tensor]:
    """float32 [clips, samples], zero behind each clip, and int64 [clips], their samples."""
    lengths = [len(signal) for signal in signals]
    padded = torch.zeros((len(signals), max(lengths)), dtype=torch.float32, pin_memory=pinned)
    rows = padded.numpy()
    for row, signal in zip(rows, signals, strict=True):
        row[: len(signal)] = signal
    return padded, torch.tensor(lengths)


def _fold_weight_norm(model: torch.nn.Module) -> None:
    """Replace normalised weights by their product, computed once."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        if isinstance(module, torch.nn.Conv1d):  # channels last in memory, as the data will be
            weight = module.weight.detach().transpose(1, 2).contiguous().transpose(1, 2)
            module.weight = torch.nn.Parameter(weight)


def _usable(device: str) -> torch.device:
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used: {reason}") from error
    return chosen

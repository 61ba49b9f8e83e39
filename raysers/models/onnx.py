"""Scoring on CPUs through ONNX Runtime: export once per machine, then one clip at a time.

The exported graph takes one clip as it is, so there is neither padding nor a mask in it. On CPUs
that is as fast as batches. `int8` quantises the weights of the transformer's linear layers, one
scale per output channel, and their inputs clip by clip; convolutions, pooling and heads stay fp32.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor

import raysers
from raysers.errors import ConfigError
from raysers.models.emotion import EmotionNetwork
from raysers.models.frontend import NORMALISE_EPS
from raysers.models.loading import LoadedModel
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ

Floats = npt.NDArray[np.float32]
TORCH, ONNX = "torch", "onnxruntime"
#: Names of the graph's input and outputs.
SIGNAL, HIDDEN_STATES, LOGITS = "signal", "hidden_states", "logits"
#: Longer clips are left to torch, whose attention stores no frames x frames table.
MAX_SAMPLES = 30 * SAMPLE_RATE_HZ
#: A graph is one protobuf message, which holds 2 GiB.
MAX_PARAMETERS = 500_000_000
_PACKAGES = ("onnx", "onnxruntime")
#: Length of the clip that is traced; the graph takes any.
_TRACED_SAMPLES = 2 * SAMPLE_RATE_HZ


def is_installed() -> bool:
    """Whether the packages of the extra `cpu` are there."""
    return all(importlib.util.find_spec(name) is not None for name in _PACKAGES)


def backend_of(dtype: str, device: str) -> str:
    """What computes a precision on a device: ONNX Runtime on CPUs where it is installed, or torch.

    Measured on one core in fp32, x real time, torch with batches against ONNX Runtime: w2v2-b-2 5
    and 8, whisper-base-2 38 and 68, cnn14 5 and 15, tiny 107 and 215. Raises ConfigError for int8
    on a GPU or without ONNX Runtime.
    """
    on_cpu = device.startswith("cpu")
    if dtype == "int8" and not on_cpu:
        raise ConfigError("--dtype int8 is for CPUs; on a GPU use auto, bf16, fp16 or fp32")
    if dtype == "int8" and not is_installed():
        raise ConfigError("--dtype int8 needs ONNX Runtime: pip install 'raysers[cpu]'")
    return ONNX if on_cpu and dtype in ("fp32", "int8") and is_installed() else TORCH


def fits(loaded: LoadedModel) -> bool:
    """Whether the model's graph fits into one file."""
    return sum(p.numel() for p in loaded.model.parameters()) <= MAX_PARAMETERS


class OnnxModel:
    """A float32 model on the CPU in ONNX Runtime, as fp32 or int8; None leaves `threads` to it."""

    def __init__(self, loaded: LoadedModel, *, dtype: str, threads: int | None = None) -> None:
        with cached_graph(loaded, dtype) as graph:
            self._session = _session(graph, threads)

    def __call__(self, signal: Floats) -> tuple[Tensor, Tensor]:
        """float32 scores [1, 3] and embedding [1, hidden] of a 16 kHz clip, not normalised."""
        scores, embedding = self._session.run([LOGITS, HIDDEN_STATES], {SIGNAL: signal[None]})
        return torch.from_numpy(scores), torch.from_numpy(embedding)


@contextlib.contextmanager
def cached_graph(loaded: LoadedModel, dtype: str) -> Iterator[Path]:
    """The model's graph as a file, exported unless the cache (`~/.cache/raysers/onnx`) has it."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(root) / "raysers" / "onnx"
    graph = cache / f"{_key(loaded)}-{dtype}.onnx"
    if os.path.isfile(graph):
        yield graph
        return
    with contextlib.ExitStack() as stack:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=cache))
        except OSError:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            graph = Path(folder) / graph.name
        made = Path(folder) / "model.onnx"
        write_graph(loaded, made, dtype)
        os.replace(made, graph)  # whole or not at all, whatever other processes do
        yield graph


def write_graph(loaded: LoadedModel, path: Path, dtype: str) -> None:
    """Export a model to an ONNX file whose metadata name it; ConfigError where that cannot be.

    Input `signal` float32 [1, samples], 16 kHz, normalised inside where the model was trained so;
    outputs `hidden_states` float32 [1, hidden], the embedding, and `logits` float32 [1, 3].
    """
    if not is_installed():
        raise ConfigError("ONNX files need ONNX Runtime: pip install 'raysers[cpu]'")
    import onnx

    if not fits(loaded):
        raise ConfigError(
            f"{loaded.name} has more than {MAX_PARAMETERS:,} parameters, too many for an ONNX file"
        )
    _export(loaded, path)
    graph = onnx.load(path)
    about = {
        "model": loaded.name,
        "revision": loaded.revision,
        "dtype": dtype,
        "sampling_rate": str(SAMPLE_RATE_HZ),
        "labels": ",".join(DIMENSIONS),
        "producer": f"raysers {raysers.__version__}",
        "onnx.quant.pre_process": "onnxruntime.quant",  # without it, quantising logs advice
    }
    onnx.helper.set_model_props(graph, about)
    onnx.save(graph if dtype == "fp32" else _quantised(graph, loaded.name), path)


class _OneClip(nn.Module):
    def __init__(self, model: EmotionNetwork, *, do_normalize: bool) -> None:
        super().__init__()
        self._model = model
        self._do_normalize = do_normalize

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        lengths = shape_as_tensor(signal)[1:]
        if self._do_normalize:
            exact = signal.double()
            exact = exact - exact.mean(1, keepdim=True)
            power = exact.square().mean(1, keepdim=True)
            signal = (exact / torch.sqrt(power + NORMALISE_EPS)).float()
        scores, embeddings = self._model(signal, lengths)
        return embeddings, scores


def _export(loaded: LoadedModel, path: Path) -> None:
    one_clip = _OneClip(loaded.model, do_normalize=loaded.do_normalize).eval()
    samples = min(
        max(_TRACED_SAMPLES, loaded.model.min_samples), loaded.model.max_samples or MAX_SAMPLES
    )
    noise = torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.no_grad():
        # the tracer warns of what is constant on purpose: there is one clip, without padding
        warnings.simplefilter("ignore")
        torch.onnx.export(
            one_clip,
            (noise,),
            path,
            input_names=[SIGNAL],
            output_names=[HIDDEN_STATES, LOGITS],
            dynamic_axes={SIGNAL: {1: "samples"}},
            opset_version=17,
            dynamo=False,
        )


def _quantised(graph: Any, name: str) -> Any:
    """`graph` with the weights of its transformer layers in 8 bits.

    Unsigned weights with a zero point of 128 have the values of signed ones, and CPUs without 8-bit
    dot products (VNNI, AMX) add the products exactly instead of saturating: there EmoDB scores of
    random w2v2-b move by .0015 on average; by .008 with signed weights of 7 bits, by .0096 with
    every product quantised as is usual, by .008 to .018 with convolutions in 8 bits.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    linear = [n for n in graph.graph.node if "/layers." in n.name]
    # a Gemm becomes a MatMul of this name first
    names = [n.name + "_MatMul" * (n.op_type == "Gemm") for n in linear]
    if not names:
        raise ConfigError(f"--dtype int8: {name} has no transformer layers to quantise; use fp32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            graph,
            path,
            weight_type=QuantType.QUInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=names,
            extra_options={"WeightSymmetric": True},
        )
        return onnx.load(path)


def _key(loaded: LoadedModel) -> str:
    """Hash of all that decides the graph: weights, network, and the code that exports it."""
    decisive = {
        "revision": loaded.revision,
        "network": loaded.model.config.to_dict(),
        "pooling_mode": loaded.model.pooling_mode,
        "do_normalize": loaded.do_normalize,
        "versions": [metadata.version(name) for name in ("torch", "transformers", *_PACKAGES)],
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode())
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:32]


def _session(path: Path, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.enable_mem_pattern = False  # one is kept per length of clip, for ever
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

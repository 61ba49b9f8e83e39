"""What people write by hand: `transformers` in a loop. Nothing of the project computes here.

Both loops run in the precision that `--dtype auto` means, with scaled-dot-product attention, with
all cores, after a warm-up that is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import soundfile as sf
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrize

from raysers.models.backbones import BACKBONES, parse_model_name
from raysers.models.scorer import PRECISIONS, dtype_name
from tests.benchmarks.measure import Line, cores, device_name


class Plain(nn.Module):
    """A stock backbone, masked mean, and the published head."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        size = backbone.config.hidden_size
        self.backbone: Any = backbone
        self.head = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 3))

    def forward(self, padded: Tensor, mask: Tensor | None) -> Tensor:
        """Scores [clips, 3] of samples [clips, length]; `mask` 1 on samples, or None."""
        hidden = self.backbone(padded, attention_mask=mask).last_hidden_state
        if mask is None:
            return cast(Tensor, self.head(hidden.mean(dim=1)))
        frames = self.backbone._get_feature_vector_attention_mask(hidden.shape[1], mask)
        frames = frames[..., None].to(hidden.dtype)
        return cast(Tensor, self.head((hidden * frames).sum(dim=1) / frames.sum(dim=1)))


@lru_cache(maxsize=1)
def plain_model(name: str) -> tuple[Plain, str, torch.dtype]:
    """Random weights of an alias' shape on the device, weight norm folded as one would."""
    torch.set_num_threads(cores())
    parsed = parse_model_name(name)
    config = dict(BACKBONES[str(parsed.alias)].config(parsed.layers))
    kind = config.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **config)
    backbone = transformers.AutoModel.from_config(config, attn_implementation="sdpa")
    for module in list(backbone.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    device = device_name()
    dtype = PRECISIONS[dtype_name("auto", device)]
    return Plain(backbone).to(device, dtype).eval(), device, dtype


def normalised(signal: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance, as the feature extractor does."""
    return np.asarray((signal - signal.mean()) / np.sqrt(signal.var() + 1e-7))


def batch_scorer(name: str) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Pads clips and scores them in one forward pass."""
    model, device, dtype = plain_model(name)

    @torch.inference_mode()
    def score(signals: Sequence[np.ndarray]) -> np.ndarray:
        padded = np.zeros((len(signals), max(map(len, signals))), np.float32)
        mask = np.zeros(padded.shape, np.int64)
        for i, signal in enumerate(signals):
            padded[i, : len(signal)] = normalised(signal)
            mask[i, : len(signal)] = 1
        batch = torch.from_numpy(padded).to(device, dtype)
        scores: Tensor = model(batch, torch.from_numpy(mask).to(device))
        return scores.float().cpu().numpy()

    return score


def best_loop(name: str, files: Sequence[str], batch_size: int) -> Line:
    """Everything decoded into memory beforehand, sorted by length, then batches: only this timed.

    To be called in a fresh process.
    """
    signals = sorted((sf.read(file, dtype="float32")[0] for file in files), key=len, reverse=True)
    score = batch_scorer(name)
    score(signals[:batch_size])
    return _timed(signals, batch_size, score)


def try_batch_sizes(name: str, files: Sequence[str], sizes: Sequence[int]) -> dict[int, float]:
    """Times real time per batch size, best of two, on a sample. To be called in a fresh process."""
    signals = sorted((sf.read(file, dtype="float32")[0] for file in files), key=len, reverse=True)
    score = batch_scorer(name)
    audio_s = sum(map(len, signals)) / 16_000
    score(signals[: max(sizes)])
    turns = [{n: _timed(signals, n, score)["steady_s"] for n in sizes} for _ in range(2)]
    return {n: audio_s / min(turn[n] for turn in turns) for n in sizes}


def _timed(
    signals: Sequence[np.ndarray], size: int, score: Callable[[Sequence[np.ndarray]], np.ndarray]
) -> Line:
    began = time.perf_counter()
    scores = [score(signals[i : i + size]) for i in range(0, len(signals), size)]
    steady_s = time.perf_counter() - began
    return {"rows": len(np.concatenate(scores)), "steady_s": steady_s}


def one_by_one(name: str, files: Sequence[str]) -> Line:
    """Read a file, score it, next. To be called in a fresh process."""
    model, device, dtype = plain_model(name)

    @torch.inference_mode()
    def score(file: str) -> np.ndarray:
        signal, _ = sf.read(file, dtype="float32")
        batch = torch.from_numpy(normalised(signal))[None].to(device, dtype)
        scores: Tensor = model(batch, None)
        return scores.float().cpu().numpy()

    score(files[0])
    began = time.perf_counter()
    scores = [score(file) for file in files]
    return {"rows": len(np.concatenate(scores)), "steady_s": time.perf_counter() - began}

"""The pipeline of the Ray Data guides: read files, decode, batches of 16 to a model actor, write.

It gets what a guide would not tell: our precision, and all cores for the actor's forward pass (Ray
would leave it one thread).
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from tests.benchmarks.engine import latest, stamp, start_ray
from tests.benchmarks.loops import batch_scorer
from tests.benchmarks.measure import Line, device_name

_BATCH = 16


def decode(row: dict[str, Any]) -> dict[str, Any]:
    """A file's bytes to its samples."""
    signal, _ = sf.read(io.BytesIO(row["bytes"]), dtype="float32")
    return {"path": row["path"], "audio": signal}


class Predictor:
    """The model actor."""

    def __init__(self, model: str, stamps: str) -> None:
        self._score = batch_scorer(model)
        stamp(stamps)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Scores of a batch of clips in the order they come."""
        scores = self._score([np.asarray(audio) for audio in batch["audio"]])
        return {"path": batch["path"], **dict(zip("adv", scores.T, strict=True))}


def pipeline(model: str, files: Sequence[str]) -> Line:
    """Time it. To be called in a fresh process."""
    import ray

    ray_s = start_ray()
    with tempfile.TemporaryDirectory() as folder:
        stamps, output = Path(folder) / "stamps", Path(folder) / "out"
        stamps.mkdir()
        began = time.perf_counter()
        (
            ray.data.read_binary_files(list(files), include_paths=True)
            .map(decode)
            .map_batches(
                Predictor,
                fn_constructor_kwargs={"model": model, "stamps": str(stamps)},
                batch_size=_BATCH,
                compute=ray.data.ActorPoolStrategy(size=1),
                num_cpus=1,
                num_gpus=1 if device_name() == "cuda" else None,
            )
            .write_parquet(str(output))
        )
        wall_s = time.perf_counter() - began
        steady_s = latest(output, "*.parquet") - latest(stamps, "*")
        rows = ray.data.read_parquet(str(output)).count()
    return {"rows": rows, "ray_s": ray_s, "wall_s": wall_s, "steady_s": steady_s}

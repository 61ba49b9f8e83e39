"""Writing the model folder: weights whenever a better epoch comes, the dev predictions at the end.

Every file is replaced whole, so a reader finds the old model or the new one.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysers.engine import output
from raysers.io import storage
from raysers.models.emotion import EmotionNetwork
from raysers.models.loading import load_emotion_model, save_emotion_model
from raysers.models.outputs import Outputs
from raysers.models.scorer import Scorer
from raysers.schemas import ANNOTATIONS, with_outputs
from raysers.training.context import Group
from raysers.training.dev import cut_by_length, predict_all
from raysers.training.feed import Signal, Signals
from raysers.training.initial_model import TrainingJob
from raysers.types import DIMENSIONS, Clip, Status

#: The dev rows by the stored model, below the output.
PREDICTIONS = "predictions/part-00000.parquet"


def store_model(job: TrainingJob, model: EmotionNetwork, *, do_normalize: bool) -> None:
    """Make `model` the one in the output.

    Raises:
        WriteError: disk full, no permission.
    """
    model.outputs = replace(model.outputs, trained=tuple(job.trained))
    dtype = torch.float16 if job.flags.save_dtype == "fp16" else torch.float32
    with tempfile.TemporaryDirectory() as place:
        save_emotion_model(model, place, do_normalize=do_normalize, dtype=dtype)
        for file in sorted(Path(place).iterdir(), key=lambda f: f.suffix == ".json"):
            storage.write_atomic(storage.join(job.output, file.name), file.read_bytes())


def store_predictions(
    job: TrainingJob,
    dev: Signals,
    failed: Mapping[str, str],
    device: torch.device,
    group: Group,
) -> None:
    """Score the dev clips with the model in the output, as annotate would; process 0 writes.

    A collective operation: every worker has to call it.

    Args:
        job: the training.
        dev: feed of its dev clips.
        failed: why a clip could not be decoded, by clip id.
        device: of this worker.
        group: the workers.
    """
    loaded = load_emotion_model(storage.fetch_folder(job.output))
    scorer = Scorer(loaded, dtype=job.flags.dtype, device=str(device), threads=job.threads)

    def predict(signals: Sequence[Signal]) -> Signal:
        scored = scorer.score(signals)
        return np.hstack([scored.scores, scored.extras])

    lengths_s = [clip.duration_s for clip in job.dev.clips]
    outputs = loaded.model.outputs
    found = predict_all(
        dev,
        cut_by_length(lengths_s, job.flags.max_padded_s),
        predict,
        clips=len(lengths_s),
        outputs=len(DIMENSIONS) + len(outputs.columns),
        device=device,
        group=group,
    )
    if group.rank == 0:
        now = datetime.now(UTC)
        common = {
            "model": job.output,
            "model_revision": loaded.revision,
            "run_id": job.run_id,
            "created_at": now,
        }
        rows = [
            _row(clip, values, outputs, failed) | common
            for clip, values in zip(job.dev.clips, found.tolist(), strict=True)
        ]
        schema = with_outputs(ANNOTATIONS, outputs.categories, outputs.columns)
        output.write_part(storage.join(job.output, PREDICTIONS), output.to_table(rows, schema))


def _row(
    clip: Clip, values: Sequence[float], outputs: Outputs, failed: Mapping[str, str]
) -> dict[str, Any]:
    error = failed.get(clip.clip_id, "")
    columns = outputs.row(values[: len(DIMENSIONS)], values[len(DIMENSIONS) :])
    status = Status.UNREADABLE if error else Status.OK
    numbers = [columns[name] for name in (*outputs.trained, *outputs.columns)]
    if not error and not all(map(math.isfinite, numbers)):
        status, error = Status.MODEL_ERROR, "the model's scores are not finite numbers"
    return {
        "file": clip.file,
        "start": clip.start_ns,
        "end": clip.end_ns,
        "clip_id": clip.clip_id,
        "status": str(status),
        "error": error,
        "duration_s": None if error else clip.duration_s,
        **({} if error else columns),
    }

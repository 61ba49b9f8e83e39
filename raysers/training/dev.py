"""The dev set: scored by all workers together, to choose the model and to describe it at the end.

CCC is computed over the whole set on every worker, in float64, so that all of them decide alike
which model is the best.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysers.engine import output
from raysers.evaluation.metrics import ccc, per_dimension
from raysers.io import storage
from raysers.models.emotion import EmotionNetwork
from raysers.models.loading import load_emotion_model, save_emotion_model
from raysers.models.lora import merged
from raysers.models.losses import NO_CATEGORY
from raysers.models.outputs import Outputs
from raysers.models.scorer import Scorer
from raysers.schemas import ANNOTATIONS, with_outputs
from raysers.training import optim
from raysers.training.batch import Floats
from raysers.training.dataloader import SignalCache
from raysers.training.dataset import TrainingJob
from raysers.types import DIMENSIONS, Clip, Status

#: 16 kHz signals of any lengths -> float32 [clips, outputs]
Predict = Callable[[Sequence[Floats]], Floats]

#: The dev rows by the stored model, below the output.
PREDICTIONS = "predictions/part-00000.parquet"


def predict_all(
    job: TrainingJob, signals: SignalCache, predict: Predict, *, outputs: int, device: torch.device
) -> NDArray[np.float64]:
    """Predictions [clips, outputs] of all dev clips; every worker has to call it.

    NaN where a clip could not be decoded, infinite where the network gave no number.
    """
    lengths_s = [clip.duration_s for clip in job.dev.clips]
    pieces = _cut_by_length(lengths_s, job.flags.max_padded_s)
    # the last column tells which rows some worker has filled
    table = torch.zeros(len(lengths_s), outputs + 1, dtype=torch.float64)
    for piece, found in signals.ahead(pieces[optim.rank() :: optim.world_size()], list):
        decoded = {n: s for n, s in zip(piece, found, strict=True) if s is not None}
        if decoded:
            scores = torch.from_numpy(predict([*decoded.values()])).double()
            # a network that fails on a clip must not pass for one that was not asked
            table[[*decoded], :-1] = scores.nan_to_num(nan=math.inf)
            table[[*decoded], -1] = 1.0
    table = table.to(device)
    optim.sum_([table])
    whole = table.cpu().numpy()
    return np.where(whole[:, -1:] > 0, whole[:, :-1], np.nan)


def _cut_by_length(lengths_s: Sequence[float], max_padded_s: float) -> list[list[int]]:
    """Clips by falling length, cut so that clips x longest stays within `max_padded_s`."""
    pieces: list[list[int]] = []
    for number in np.argsort(-np.asarray(lengths_s), kind="stable").tolist():
        if pieces and (len(pieces[-1]) + 1) * lengths_s[pieces[-1][0]] <= max_padded_s:
            pieces[-1].append(number)
        else:
            pieces.append([number])
    return pieces


def dev_ccc(labels: Floats, predictions: NDArray[np.float64]) -> dict[str, float]:
    """CCC of each dimension over the clips with a label and a prediction; NaN where undefined.

    A network that gave no number for a clip with a label has no CCC at all: it must not be judged
    by the other clips.

    Args:
        labels: float32 [clips, 3], NaN where missing.
        predictions: [clips, 3], as of `predict_all`.
    """
    if (np.isinf(predictions) & np.isfinite(labels)).any():
        return dict.fromkeys(DIMENSIONS, math.nan)
    values = per_dimension(ccc, labels.astype(np.float64), predictions)
    return dict(zip(DIMENSIONS, map(float, values), strict=True))


def dev_uar(classes: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Unweighted average recall over the categories of the dev set; NaN where it has none.

    Args:
        classes: category of every clip, `NO_CATEGORY` where it has none of those trained.
        probabilities: [clips, categories]; as of `predict_all`.
    """
    known = (classes != NO_CATEGORY) & ~np.isnan(probabilities).any(axis=1)
    if not known.any() or np.isinf(probabilities[known]).any():
        return math.nan
    truth, right = classes[known], classes[known] == probabilities[known].argmax(axis=1)
    return float(np.mean([right[truth == one].mean() for one in np.unique(truth)]))


def store_model(job: TrainingJob, model: EmotionNetwork, *, do_normalize: bool) -> None:
    """Make `model` the one in the output; a reader finds the old model or the new one.

    Raises:
        WriteError: disk full, no permission.
    """
    model.outputs = replace(model.outputs, trained=tuple(job.trained))
    model = merged(model)
    dtype = torch.float16 if job.flags.save_dtype == "fp16" else torch.float32
    with tempfile.TemporaryDirectory() as place:
        save_emotion_model(model, place, do_normalize=do_normalize, dtype=dtype)
        for file in sorted(Path(place).iterdir(), key=lambda f: f.suffix == ".json"):
            storage.write_atomic(storage.join(job.output, file.name), file.read_bytes())


def store_predictions(
    job: TrainingJob, dev: SignalCache, failed: Mapping[str, str], device: torch.device
) -> None:
    """Score the dev clips with the model in the output, as annotate would; process 0 writes.

    Every worker has to call it.

    Args:
        job: the training.
        dev: its dev clips.
        failed: why a clip could not be decoded, by clip id.
        device: of this worker.
    """
    loaded = load_emotion_model(storage.fetch_folder(job.output))
    scorer = Scorer(loaded, dtype=job.flags.dtype, device=str(device), threads=job.threads)

    def predict(signals: Sequence[Floats]) -> Floats:
        scored = scorer.score(signals)
        return np.hstack([scored.scores, scored.extras])

    outputs = loaded.model.outputs
    width = len(DIMENSIONS) + len(outputs.columns)
    found = predict_all(job, dev, predict, outputs=width, device=device)
    if optim.rank() == 0:
        common = {
            "model": job.output,
            "model_revision": loaded.revision,
            "run_id": job.run_id,
            "created_at": datetime.now(UTC),
        }
        rows = [
            _row(clip, values, outputs, failed.get(clip.clip_id, "")) | common
            for clip, values in zip(job.dev.clips, found.tolist(), strict=True)
        ]
        schema = with_outputs(ANNOTATIONS, outputs.categories, outputs.columns)
        output.write_part(storage.join(job.output, PREDICTIONS), output.to_table(rows, schema))


def _row(clip: Clip, values: Sequence[float], outputs: Outputs, error: str) -> dict[str, Any]:
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

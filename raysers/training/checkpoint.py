"""What a training stores while it runs: the best model, and its state.

A state, `OUTPUT/state/<step>/`, is whole or absent, locally and on S3: `state.json` is written last
and deleted first, and an older state goes only after the new one is complete.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as to_bytes
from torch import Tensor

from raysers.errors import CheckpointError, ObjectMissing
from raysers.evaluation.scores import ccc, per_dimension
from raysers.io import storage
from raysers.models.emotion import EmotionNetwork
from raysers.models.heads import NO_CATEGORY
from raysers.models.initialize import merged
from raysers.models.loading import save_emotion_model
from raysers.training.dataloader import Floats
from raysers.training.learner import SEX_HEAD, Learner
from raysers.training.plan import TrainingPlan
from raysers.types import DIMENSIONS

_MARK = "state.json"
#: Digits of a state's folder: its step.
_DIGITS = 8


@dataclass(slots=True)
class Sums:
    """What adds up over the steps of an epoch; `kept`: whether a model of it was stored."""

    loss: float = 0.0
    steps: int = 0
    audio_s: float = 0.0
    wall_s: float = 0.0
    kept: bool = False

    @property
    def mean_loss(self) -> float:
        """Mean over the steps; NaN before the first."""
        return self.loss / self.steps if self.steps else math.nan

    @property
    def audio_hours_per_s(self) -> float:
        """Audio hours processed in a second, over all workers together."""
        return self.audio_s / 3600 / self.wall_s if self.wall_s else 0.0


def dev_ccc(labels: Floats, predictions: NDArray[np.float64]) -> dict[str, float]:
    """CCC of each dimension over the clips [clips, 3] with a label and a prediction, else NaN.

    A network that gave no number (inf) for a labelled clip must not be judged by the other clips.
    """
    if (np.isinf(predictions) & np.isfinite(labels)).any():
        return dict.fromkeys(DIMENSIONS, math.nan)
    values = per_dimension(ccc, labels.astype(np.float64), predictions)
    return dict(zip(DIMENSIONS, map(float, values), strict=True))


def dev_uar(classes: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Unweighted average recall over the categories of the dev set; NaN where it has none.

    `probabilities` [clips, categories] are NaN and inf as for `dev_ccc`.
    """
    known = (classes != NO_CATEGORY) & ~np.isnan(probabilities).any(axis=1)
    if not known.any() or np.isinf(probabilities[known]).any():
        return math.nan
    truth, right = classes[known], classes[known] == probabilities[known].argmax(axis=1)
    return float(np.mean([right[truth == one].mean() for one in np.unique(truth)]))


def dev_record(ccc: Mapping[str, float] | None, uar: float | None) -> dict[str, Any]:
    """Dev scores and the mean CCC as JSON-ready values, undefined (NaN) ones None."""
    known = None if ccc is None else {name: _known(value) for name, value in ccc.items()}
    defined = [value for value in (known or {}).values() if value is not None]
    mean = sum(defined) / len(defined) if defined else None
    of_categories = {} if uar is None else {"dev_uar": _known(uar)}
    return {"dev_ccc": known, "dev_ccc_mean": mean, **of_categories}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(slots=True)
class TrainProgress:
    """How far a training is: all of its state except tensors.

    `best` is the highest dev score (mean CCC, or UAR where no dimension is trained), `waited` the
    epochs since then; `failed` says why clips could not be decoded, by clip id.
    """

    step: int = 0
    epoch: int = 0
    best: float | None = None
    waited: int = 0
    sums: Sums = field(default_factory=Sums)
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> TrainProgress:
        """The inverse of `dataclasses.asdict`; other keys are ignored."""
        known = {f.name: state[f.name] for f in fields(cls) if f.name in state}
        return cls(**(known | {"sums": Sums(**state["sums"])}))

    def end_step(self, loss: float, audio_s: float, wall_s: float) -> None:
        """Count a step."""
        self.step += 1
        self.sums.steps += 1
        self.sums.loss += loss
        self.sums.audio_s += audio_s
        self.sums.wall_s += wall_s

    def end_evaluation(self, scores: Mapping[str, Any], *, may_keep: bool) -> bool:
        """Record scores between two epochs; returns whether this model is the one to keep."""
        kept = may_keep and self._is_best(scores)
        self.sums.kept |= kept
        place = {"epoch": self.epoch + 1, "step": self.step}
        self.evaluations.append({**place, **scores, "kept": kept})
        return kept

    def end_epoch(self, scores: Mapping[str, Any], *, lr: float, keep_last: bool) -> bool:
        """Close the epoch under way; returns whether its model is the one to keep."""
        self.epoch += 1
        kept = self._is_best(scores) or keep_last
        self.sums.kept |= kept
        self.waited = 0 if self.sums.kept else self.waited + 1
        self.history.append(
            {
                "epoch": self.epoch,
                "step": self.step,
                "train_loss": self.sums.mean_loss,
                "lr": lr,
                **scores,
                "kept": self.sums.kept,
                "audio_s": round(self.sums.audio_s, 3),
                "wall_s": round(self.sums.wall_s, 3),
                "audio_hours_per_s": self.sums.audio_hours_per_s,
                "failed": len(self.failed),
            }
        )
        self.sums = Sums()
        return kept

    def _is_best(self, scores: Mapping[str, Any]) -> bool:
        first = self.best is None
        score = scores.get("dev_uar") if scores["dev_ccc"] is None else scores["dev_ccc_mean"]
        if score is not None and (self.best is None or score > self.best):
            self.best = score
            return True
        return first


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A complete state: where it is, and what it says besides tensors."""

    uri: str
    notes: Mapping[str, Any]

    @property
    def progress(self) -> TrainProgress:
        """How far the training was."""
        return TrainProgress.from_dict(self.notes)

    def restore(self, learner: Learner) -> None:
        """Put the state into a learner built with the same arguments, or raise CheckpointError."""
        try:
            weights, moments, averages = (
                load(storage.read_bytes(storage.join(self.uri, f"{name}.safetensors")))
                for name in _tensors(learner)
            )
            learner.model.load_state_dict(weights)
            by_parameter: dict[int, dict[str, Tensor]] = {}
            for key, value in moments.items():
                number, _, kind = key.partition(".")
                by_parameter.setdefault(int(number), {})[kind] = value
            groups = learner.optimiser.state_dict()["param_groups"]
            learner.optimiser.load_state_dict({"state": by_parameter, "param_groups": groups})
            for place, average in enumerate(learner.average.averages if learner.average else ()):
                average.copy_(averages[str(place)])
            scalars = self.notes["learner"]
        except (ObjectMissing, SafetensorError, RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"the saved state {self.uri} is damaged or does not fit this training ({reason}): "
                "delete it to start again"
            ) from error
        learner.steps = int(scalars["steps"])
        learner.halvings = int(scalars["halvings"])
        if learner.average is not None:
            learner.average.updates = int(scalars["average_updates"])
        if scalars["checkpointing"]:
            learner.checkpoint_gradients()


def save(output: str, progress: TrainProgress, learner: Learner) -> None:
    """Write a state and then delete the others."""
    uri = _folder(output, progress.step)
    storage.delete(storage.join(uri, _MARK))  # a state of this step that is written again
    for name, tensors in _tensors(learner).items():
        cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        storage.write_atomic(storage.join(uri, f"{name}.safetensors"), to_bytes(cpu))
    scalars = {
        "steps": learner.steps,
        "average_updates": learner.average.updates if learner.average else 0,
        "halvings": learner.halvings,
        "checkpointing": learner.checkpointing and not learner.flags.gradient_checkpointing,
    }
    text = json.dumps({**asdict(progress), "learner": scalars}, indent=1)
    storage.write_atomic(storage.join(uri, _MARK), text.encode())
    clear(output, keep=progress.step)


def _tensors(learner: Learner) -> dict[str, dict[str, Tensor]]:
    """Everything that training changes, by file and name."""
    state: Mapping[int, Mapping[str, Any]] = learner.optimiser.state_dict()["state"]
    moments = {
        f"{number}.{kind}": value
        for number, kinds in state.items()
        for kind, value in kinds.items()
        if isinstance(value, Tensor)
    }
    averages = learner.average.averages if learner.average else []
    return {
        "weights": learner.model.state_dict(),
        "optimizer": moments,
        "average": {str(number): tensor for number, tensor in enumerate(averages)},
    }


def store_model(plan: TrainingPlan, model: EmotionNetwork, *, do_normalize: bool) -> None:
    """Make `model` the one in the output; a reader finds the old model or the new one."""
    model.outputs = replace(model.outputs, trained=tuple(plan.data.trained))
    dtype = torch.float16 if plan.flags.save_dtype == "fp16" else torch.float32
    with tempfile.TemporaryDirectory() as place:
        stored = copy.copy(merged(model))
        stored._modules = {n: m for n, m in stored._modules.items() if n != SEX_HEAD}
        save_emotion_model(stored, place, do_normalize=do_normalize, dtype=dtype)
        for file in sorted(Path(place).iterdir(), key=lambda f: f.suffix == ".json"):
            storage.write_atomic(storage.join(plan.output, file.name), file.read_bytes())


def latest(output: str) -> Saved | None:
    """The complete state with the most steps, or None."""
    marks = [uri for uri in _files(output) if uri.endswith(f"/{_MARK}")]
    if not marks:
        return None
    uri = max(marks)
    return Saved(uri=storage.parent(uri), notes=json.loads(storage.read_bytes(uri)))


def clear(output: str, keep: int | None = None) -> None:
    """Delete every state but that of step `keep`; with None all that a training left."""
    files = _files(output)
    if keep is not None:
        kept = _folder(output, keep)
        names = {uri: storage.parent(uri).rpartition("/")[2] for uri in files}
        states = [uri for uri in files if names[uri].isdigit() and len(names[uri]) == _DIGITS]
        files = [uri for uri in states if storage.parent(uri) != kept]
    for uri in sorted(files, key=lambda uri: not uri.endswith(f"/{_MARK}")):
        storage.delete(uri)
    if not storage.is_remote(output):  # with what a killed process left half-written
        root = storage.join(output, "state")
        for folder in {root} if keep is None else {storage.parent(uri) for uri in files}:
            shutil.rmtree(folder, ignore_errors=True)


def _files(output: str) -> list[str]:
    with suppress(ObjectMissing):
        return [found.uri for found in storage.list_objects(storage.join(output, "state"))]
    return []


def _folder(output: str, step: int) -> str:
    return storage.join(output, "state", f"{step:0{_DIGITS}d}")

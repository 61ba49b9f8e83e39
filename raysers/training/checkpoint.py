"""Where a training stands, in `OUTPUT/state/<step>/`: whole or absent, locally and on S3.

`state.json` is written last and deleted first, so a folder without it does not count; an older
state goes only after the new one is complete. One state is always there once one was written.
Tensors are in two safetensors files, so that weights can be read without the optimiser's moments.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as to_bytes
from torch import Tensor

from raysers.errors import CheckpointError, ObjectMissing, RaysersError
from raysers.io import storage
from raysers.training.learner import Learner

_MARK = "state.json"
_WEIGHTS, _OPTIMISER = "weights.safetensors", "optimizer.safetensors"
_MODEL, _AVERAGE = "model.", "average."

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DevScores:
    """CCC by dimension and UAR on the dev set; None: nothing to score, NaN: undefined."""

    ccc: Mapping[str, float] | None = None
    uar: float | None = None

    @property
    def mean_ccc(self) -> float | None:
        """Mean over the dimensions where the CCC is defined, None where there is none."""
        known = [value for value in (self.ccc or {}).values() if not math.isnan(value)]
        return sum(known) / len(known) if known else None

    @property
    def score(self) -> float | None:
        """What models are chosen by: the mean CCC, or the UAR where no dimension is trained."""
        return _known(self.uar) if self.ccc is None else self.mean_ccc

    def record(self) -> dict[str, Any]:
        """As JSON-ready values, undefined ones None."""
        ccc = None if self.ccc is None else {k: _known(v) for k, v in self.ccc.items()}
        uar = {} if self.uar is None else {"dev_uar": _known(self.uar)}
        return {"dev_ccc": ccc, "dev_ccc_mean": self.mean_ccc, **uar}


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


@dataclass(slots=True)
class TrainProgress:
    """How far a training is: all of its state except tensors.

    Attributes:
        step: steps done.
        epoch: epochs done.
        best: highest dev score so far.
        waited: epochs since then.
        sums: of the epoch under way.
        history: records of the epochs done.
        evaluations: records of `--eval-steps`.
        failed: clips that could not be decoded, and why, by clip id.
        finished: the predictions of the stored model are written too.
    """

    step: int = 0
    epoch: int = 0
    best: float | None = None
    waited: int = 0
    sums: Sums = field(default_factory=Sums)
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    finished: bool = False

    def state_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "sums": asdict(self.sums)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TrainProgress:
        """The inverse of `state_dict`; keys of others are ignored."""
        names = {f.name for f in fields(cls)} & state.keys()
        known = {name: state[name] for name in names}
        return cls(**{**known, "sums": Sums(**state["sums"])})

    def end_step(self, loss: float, audio_s: float, wall_s: float) -> None:
        """Count a step."""
        self.step += 1
        self.sums.steps += 1
        self.sums.loss += loss
        self.sums.audio_s += audio_s
        self.sums.wall_s += wall_s

    def end_evaluation(self, scores: DevScores, *, may_keep: bool) -> bool:
        """Record scores between two epochs; returns whether this model is the one to keep."""
        kept = may_keep and self._is_best(scores)
        self.sums.kept |= kept
        place = {"epoch": self.epoch + 1, "step": self.step}
        self.evaluations.append({**place, **scores.record(), "kept": kept})
        return kept

    def end_epoch(self, scores: DevScores, *, lr: float, keep_last: bool) -> bool:
        """Close the epoch under way; returns whether its model is the one to keep.

        Args:
            scores: of the dev set.
            lr: learning rate of its last step.
            keep_last: every epoch replaces the one before, however good.
        """
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
                **scores.record(),
                "kept": self.sums.kept,
                "audio_s": round(self.sums.audio_s, 3),
                "wall_s": round(self.sums.wall_s, 3),
                "audio_hours_per_s": self.sums.audio_hours_per_s,
                "failed": len(self.failed),
            }
        )
        self.sums = Sums()
        return kept

    def _is_best(self, scores: DevScores) -> bool:
        """Whether they are above all before, or the first; they are remembered then."""
        first, score = self.best is None, scores.score
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
        return TrainProgress.from_state_dict(self.notes)

    def restore(self, learner: Learner) -> None:
        """Put the state into a learner that was built with the same arguments.

        Raises:
            CheckpointError: the state is damaged or of another network or optimiser.
            RaysersError: a file is gone, so someone else changed the folder.
        """
        _fill(_weights(learner), self._tensors(_WEIGHTS))
        tensors = self._tensors(_OPTIMISER)
        averages = {k: tensors.pop(k) for k in list(tensors) if k.startswith(_AVERAGE)}
        _fill(dict(_averages(learner)), averages)
        _restore_moments(learner, tensors)
        scalars = self.notes["learner"]
        learner.steps = int(scalars["steps"])
        learner.halvings = int(scalars["halvings"])
        if learner.average is not None:
            learner.average.updates = int(scalars["average_updates"])
        if scalars["checkpointing"]:
            learner.checkpoint_gradients()

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return load(storage.read_bytes(storage.join(self.uri, name)))
        except ObjectMissing as error:
            raise RaysersError(f"{self.uri} was changed from outside: {name} is gone") from error
        except SafetensorError as error:
            raise CheckpointError(f"the saved state is damaged: {error}") from error


def save(output: str, progress: TrainProgress, learner: Learner) -> None:
    """Write a state and then delete the others.

    Raises:
        WriteError: disk full, no permission.
    """
    uri = _folder(output, progress.step)
    storage.delete(storage.join(uri, _MARK))  # a state of this step that is written again
    moments = dict(_moments(learner)) | dict(_averages(learner))
    for name, tensors in ((_WEIGHTS, _weights(learner)), (_OPTIMISER, moments)):
        cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        storage.write_atomic(storage.join(uri, name), to_bytes(cpu))
    write_notes(output, progress, learner)
    clear(output, keep=progress.step)


def write_notes(output: str, progress: TrainProgress, learner: Learner) -> None:
    """Replace what the state of the same step says besides tensors.

    Raises:
        WriteError: disk full, no permission.
    """
    scalars = {
        "steps": learner.steps,
        "average_updates": learner.average.updates if learner.average else 0,
        "halvings": learner.halvings,
        "checkpointing": learner.checkpointing and not learner.flags.gradient_checkpointing,
    }
    text = json.dumps({**progress.state_dict(), "learner": scalars}, indent=1)
    storage.write_atomic(storage.join(_folder(output, progress.step), _MARK), text.encode())


def latest(output: str) -> Saved | None:
    """The complete state with the most steps, or None."""
    marks = [uri for uri in _files(output) if uri.endswith(f"/{_MARK}")]
    if not marks:
        return None
    uri = max(marks)
    return Saved(uri=storage.parent(uri), notes=json.loads(storage.read_bytes(uri)))


def clear(output: str, keep: int | None = None) -> None:
    """Delete every state but that of step `keep`; with None all that a training left."""
    kept = None if keep is None else _folder(output, keep)
    gone = [uri for uri in _files(output) if storage.parent(uri) != kept]
    for uri in sorted(gone, key=lambda uri: not uri.endswith(f"/{_MARK}")):
        storage.delete(uri)
    if keep is None:
        for uri in _files(output, states=False):
            storage.delete(uri)
    if not storage.is_remote(output):
        # with what a killed process left half-written
        root = storage.join(output, "state")
        for folder in {storage.parent(uri) for uri in gone} if keep is not None else {root}:
            shutil.rmtree(folder, ignore_errors=True)


def _files(output: str, *, states: bool = True) -> list[str]:
    """Files of the states, or all below `state`."""
    found: list[str] = []
    with suppress(ObjectMissing):
        found = [one.uri for one in storage.list_objects(storage.join(output, "state"))]
    names = {uri: storage.parent(uri).rpartition("/")[2] for uri in found}
    return [u for u in found if not states or (names[u].isdigit() and len(names[u]) == _DIGITS)]


def _folder(output: str, step: int) -> str:
    return storage.join(output, "state", f"{step:0{_DIGITS}d}")


def _weights(learner: Learner) -> dict[str, Tensor]:
    return {_MODEL + name: value for name, value in learner.model.state_dict().items()}


def _averages(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    if learner.average is not None:
        for number, tensor in enumerate(learner.average.averages):
            yield f"{_AVERAGE}{number}", tensor


def _moments(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    """`<moment>:<parameter>` for every tensor that the optimiser keeps."""
    names: dict[Tensor, str] = {p: _MODEL + n for n, p in learner.model.named_parameters()}
    for parameter, state in learner.optimiser.state.items():
        for kind, value in state.items():
            if isinstance(value, Tensor):
                yield f"{kind}:{names[parameter]}", value


def _restore_moments(learner: Learner, moments: Mapping[str, Tensor]) -> None:
    parameters = {_MODEL + name: value for name, value in learner.model.named_parameters()}
    counts = Counter(key.partition(":")[0] for key in moments)
    if any(count != len(learner.gradients) for count in counts.values()):
        raise CheckpointError("the saved state does not fit this network: moments are missing")
    learner.optimiser.state.clear()
    for key, value in moments.items():
        kind, _, name = key.partition(":")
        parameter = parameters.get(name)
        if parameter is None or (value.dim() and value.shape != parameter.shape):
            raise CheckpointError(f"the saved state does not fit this network: {key}")
        learner.optimiser.state[parameter][kind] = value.to(learner.device, copy=True)


@torch.no_grad()
def _fill(places: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    if places.keys() != values.keys():
        odd = sorted(places.keys() ^ values.keys())[0]
        raise CheckpointError(f"the saved state does not fit this network: {odd}")
    for name, place in places.items():
        if place.shape != values[name].shape:
            raise CheckpointError(f"the saved state does not fit this network: {name}")
        place.copy_(values[name])

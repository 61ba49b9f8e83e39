"""One training step, the same for any number of workers and any cut into micro-batches.

The loss is that of the global batch: predictions are summed into one tensor in every process, the
loss and its gradient with respect to them are computed there, and each process carries that back
through its own clips. Gradients are then summed, and every process makes the same step. Graphs that
do not fit into `graph_bytes` meanwhile are computed again with the same random numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from raysers.errors import ConfigError, TrainingDiverged
from raysers.models.backbones import Outputs
from raysers.models.emotion import EmotionNetwork
from raysers.models.heads import LOSSES, NO_CATEGORY, category_loss
from raysers.models.initialize import InitialModel
from raysers.models.scorer import exact_convolutions, is_out_of_memory
from raysers.training import optim
from raysers.training.config import LearningFlags
from raysers.training.dataloader import Batch, Floats, MicroBatch
from raysers.types import DIMENSIONS

_TARGETS = len(DIMENSIONS)
#: Module of the network in training that its stored model does not have.
SEX_HEAD = "sex_head"
#: What `--dtype` and `--gradient-dtype` name; parameters, optimiser and head stay in fp32.
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Control groups of this machine, and the file that says which of them this process is in.
_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
#: Where version 2 and 1 keep the limit and the usage, and what of the latter is page cache.
_CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class StepResult(NamedTuple):
    """Loss of the global batch before the step, learning rate, whether a process asks to stop."""

    loss: float
    lr: float
    stop: bool


class Learner:
    """A network in training, and everything that moves with it, the same in every process.

    It takes the network of `start` over, without heads beside that of the dimensions, which fit the
    embeddings as they were; heads for `categories` and so many `sexes` come with their weight in
    the loss. Of `graph_bytes`, room for graphs that are kept between the predictions and the
    gradients, any number gives the same bits, and a small one costs a second forward pass.
    `halvings` and `checkpointing` say what was done for lack of memory, `warnings` tell of it.
    Raises ConfigError: nothing is left to train.
    """

    def __init__(
        self,
        start: InitialModel,
        categories: Sequence[str],
        flags: LearningFlags,
        total_steps: int,
        device: str | torch.device,
        *,
        sexes: int = 0,
        graph_bytes: float = 0.0,
    ) -> None:
        self.flags, self.total_steps, self.device = flags, total_steps, torch.device(device)
        self.steps = self.halvings = 0
        self.warnings: list[str] = []
        self.graph_bytes = 0.0 if flags.gradient_checkpointing else graph_bytes
        self._bytes_per_s = 0.0  # of a graph, by padded seconds; the most so far
        self._lack = ""
        self._dtype = _DTYPES[flags.dtype]
        self.do_normalize, self.min_samples = start.do_normalize, start.model.min_samples
        with self._own_random_numbers():
            torch.manual_seed(flags.seed)
            names = tuple(categories) if flags.category_weight else ()
            start.model.attach(Outputs(categories=names))
            #: head, weight in the loss, and its truth in a batch
            self._heads: list[tuple[nn.Linear, float, str]] = []
            if names:
                self._heads.append((start.model.categories, flags.category_weight, "categories"))
            if sexes and flags.sex_weight:
                head = nn.Linear(start.model.embedding_size, sexes)
                start.model.add_module(SEX_HEAD, head)
                self._heads.append((head, flags.sex_weight, "sexes"))
        self.model: EmotionNetwork = start.model.to(self.device)
        self.checkpointing = flags.gradient_checkpointing
        self.model.gradient_checkpointing(self.checkpointing)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            raise ConfigError("--freeze leaves nothing to train: freeze less")
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        optim.broadcast_([tensor.detach() for tensor in tensors])
        exchanged = None if flags.gradient_dtype == "fp32" else _DTYPES[flags.gradient_dtype]
        self.gradients = optim.Gradients(parameters, dtype=exchanged)
        self.optimiser = optim.make_optimiser(
            flags.optimiser, parameters, lr=flags.lr, weight_decay=flags.weight_decay
        )
        self.average: optim.AveragedWeights | None = None
        if flags.ema > 0:  # of what changes: parameters that learn, and running statistics
            buffers = [b for b in self.model.buffers() if b.is_floating_point()]
            self.average = optim.AveragedWeights([*parameters, *buffers], flags.ema)
        self._training_pass: Callable[..., tuple[Tensor, Tensor]] = self.model
        if flags.compile:
            self._training_pass = torch.compile(self.model, dynamic=True)

    def step(self, batch: Batch, *, stop: bool = False) -> StepResult:
        """Learn from a global batch; every process of the group calls it for the same one.

        Clips in no process's micro-batches, and those shorter than `min_samples`, count nowhere. A
        step for which any process lacks memory is made again by all of them: keeping no graphs,
        then with its micro-batches halved (whose dropout differs), down to single clips, then with
        gradient checkpointing. What was needed once stays. With `stop`, this process asks all to
        stop afterwards. Raises MemoryError or TrainingDiverged, in every process, before any
        parameter changes.
        """
        if not self.model.training:
            self.model.train()
        pieces = [p for piece in batch.pieces for p in self._long_enough(piece)]
        pieces.sort(key=lambda piece: piece.number)
        # gradients of convolutions need all their bits too
        with self._own_random_numbers(), exact_convolutions(self._dtype):
            loss, clips, lacking, stopping = self._backward(batch, pieces, stop)
            while lacking:
                self._use_less_memory(pieces)
                loss, clips, lacking, stopping = self._backward(batch, pieces, stop)
        norm = float(self.gradients.norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"step {self.steps}: loss {loss:g}, gradient norm {norm:g}; parameters are as "
                "before it: lower --lr, or let it rise slowly with --warmup"
            )
        flags = self.flags
        factor = optim.lr_factor(self.steps, self.total_steps, flags.schedule, flags.warmup)
        lr = flags.lr * factor
        if clips:
            self._move(norm, lr)
        self.steps += 1
        return StepResult(loss=loss, lr=lr, stop=stopping > 0)

    def checkpoint_gradients(self) -> None:
        """Keep few activations from here on, and compute the others again for gradients."""
        self.checkpointing = True
        self.model.gradient_checkpointing(True)

    def predict(self, signals: Sequence[Floats]) -> Floats:
        """float32 [clips, 3 + categories]: scores and probabilities, by averaged weights if any.

        One forward pass of this process alone; clips shorter than `min_samples` get NaN.
        """
        self.model.eval()
        width = _TARGETS + len(self.model.outputs.categories)
        scores = np.full((len(signals), width), np.nan, np.float32)
        for piece in self._long_enough(MicroBatch.of(0, range(len(signals)), signals)):
            exact = exact_convolutions(self._dtype)
            with self.averaged(), torch.inference_mode(), exact:
                found, embeddings = self._forward(piece, self.model)
                extras = self.model.extras(embeddings.float())
                scores[piece.rows] = torch.cat((found.float(), extras), 1).cpu().numpy()
        return scores

    @contextmanager
    def averaged(self) -> Iterator[EmotionNetwork]:
        """Within, `model` has the weights that are scored and kept: averaged ones with `ema`."""
        with self.average.in_place() if self.average else nullcontext():
            yield self.model

    def _long_enough(self, piece: MicroBatch) -> list[MicroBatch]:
        fitting = piece.lengths >= self.min_samples
        if fitting.all():
            return [piece]
        return [piece.chosen(fitting, piece.number)] if fitting.any() else []

    def _own_random_numbers(self) -> AbstractContextManager[None]:
        devices = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices=devices)

    def _backward(
        self, batch: Batch, pieces: list[MicroBatch], stop: bool
    ) -> tuple[float, float, float, float]:
        """Summed gradients; the loss, the clips, how many processes lack memory or ask to stop."""
        self.gradients.clear()
        pieces = [part for piece in pieces for part in piece.halved(self.halvings)]
        # scores, logits and presence of the whole batch
        width = _TARGETS + sum(head.out_features for head, *_ in self._heads) + 1
        outputs = torch.zeros(len(batch.labels), width, device=self.device)
        graphs: dict[int, Tensor] = {}
        fits = self._fits(lambda: self._predict_pieces(pieces, outputs, graphs))
        optim.sum_([outputs])
        loss, slope = self._loss(outputs, batch)
        fits = fits and self._fits(lambda: self._carry_back(pieces, graphs, slope))
        self.gradients.sum_()
        state = torch.tensor((float(not fits), float(stop)), device=self.device)
        optim.sum_([state])
        clips = (outputs[:, -1] > 0.5).sum()
        found = torch.stack((loss.float(), clips.float(), *state)).tolist()
        return found[0], found[1], found[2], found[3]

    def _fits(self, compute: Callable[[], None]) -> bool:
        try:
            compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._lack = (str(error).splitlines() or ["no memory"])[0]
            return False
        return True

    def _use_less_memory(self, pieces: list[MicroBatch]) -> None:
        """The next measure, the same in every process. Raises MemoryError: there is none."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        statistics = self.model.collected_statistics()
        if statistics is not None:  # those of the failed step
            self.model.apply_statistics(torch.zeros_like(statistics))
        clips = max((len(piece.rows) for piece in pieces), default=0)
        found = optim.gather((clips, self._lack, self.graph_bytes))
        lack = next((text for _, text, _ in found if text), "no memory")
        if any(room for *_, room in found):
            self.graph_bytes, measure = 0.0, "no graphs are kept"
        elif max(number for number, *_ in found) > 1 << self.halvings:
            self.halvings += 1
            measure = "micro-batches are halved, with dropout of their own: less --max-padded-s"
        elif not self.checkpointing:
            self.checkpoint_gradients()
            measure = "activations are computed twice"
        else:
            raise MemoryError(lack)
        self.warnings.append(f"step {self.steps}: out of memory ({lack}); from here on {measure}")

    def _predict_pieces(
        self, pieces: list[MicroBatch], outputs: Tensor, graphs: dict[int, Tensor]
    ) -> None:
        """Predictions of `pieces` into their rows of `outputs`, and the graphs that fit."""
        most = math.ceil(len(pieces) / self.flags.accumulate)
        room_bytes = self.graph_bytes
        for piece in pieces:
            if len(graphs) < most and self._bytes_per_s * piece.padded_s < room_bytes:
                with _graph_storages(self.model) as storages:
                    output = self._run(piece)
                graphs[piece.number] = output
                num_bytes = sum(storages.values())
                self._bytes_per_s = max(self._bytes_per_s, num_bytes / piece.padded_s)
                room_bytes -= num_bytes
            else:
                with torch.no_grad():
                    output = self._run(piece)
            rows = piece.rows.to(self.device)
            outputs[rows, :-1] = output.detach()
            outputs[rows, -1] = 1.0

    def _run(self, piece: MicroBatch) -> Tensor:
        """float32 [rows, 3 + classes], with the dropout of this step and micro-batch."""
        mixed = np.random.SeedSequence((self.flags.seed, self.steps, piece.number))
        torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        scores, embeddings = self._forward(piece, self._training_pass)
        logits = [head(embeddings.float()) for head, *_ in self._heads]
        return torch.cat((scores.float(), *logits), 1)

    def _forward(
        self, piece: MicroBatch, network: Callable[..., tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        padded = piece.on(self.device, normalised=self.do_normalize)
        # one context a pass: weights cast without a graph must not be taken for a pass with one
        shorter = self._dtype != torch.float32
        with torch.autocast(self.device.type, self._dtype, enabled=shorter):
            return network(padded, piece.lengths)

    def _loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of the batch, and its gradient float32 [clips, 3 + classes]."""
        absent = outputs[:, -1] < 0.5
        labels = batch.labels.to(self.device).masked_fill(absent[:, None], math.nan)
        # double: every process gets its digits from these few numbers
        found = outputs[:, :-1].double().requires_grad_()
        sizes = [head.out_features for head, *_ in self._heads]
        scores, *logits = torch.split(found, [_TARGETS, *sizes], 1)
        loss = LOSSES[self.flags.loss](scores, labels, self.flags.target_weights)
        for (_, weight, name), own in zip(self._heads, logits, strict=True):
            classes = getattr(batch, name).to(self.device).masked_fill(absent, NO_CATEGORY)
            loss = loss + weight * category_loss(own, classes)
        (slope,) = torch.autograd.grad(loss, found)
        return loss.detach(), slope.float()

    def _carry_back(
        self, pieces: list[MicroBatch], graphs: dict[int, Tensor], slope: Tensor
    ) -> None:
        """Gradients of `pieces`, in their order; a graph is freed before the next is computed."""
        for piece in pieces:
            if piece.number not in graphs:
                graphs[piece.number] = self._run(piece)
            with self.gradients.last_pass() if piece is pieces[-1] else nullcontext():
                rows = piece.rows.to(self.device)
                torch.autograd.backward(graphs.pop(piece.number), slope[rows])

    def _move(self, norm: float, lr: float) -> None:
        if self.flags.clip_norm:
            self.gradients.clip(norm, self.flags.clip_norm)
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = lr
        self.optimiser.step()
        statistics = self.model.collected_statistics()
        if statistics is not None:
            optim.sum_([statistics])
            self.model.apply_statistics(statistics)
        if self.average is not None:
            self.average.update()


@contextmanager
def _graph_storages(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes by address of what the graphs that are built within keep beside the weights."""
    storages: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


def available_bytes(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Memory that this process can still get: the machine's, or what its container leaves."""
    left = int(psutil.virtual_memory().available)
    groups: list[Path] = []  # of this process and those around it; a limit of any of them counts
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                mount = cgroups / "memory" if controllers else cgroups
                group = Path(path.lstrip("/"))
                groups += [mount / place for place in (group, *group.parents)]
    for (limit, usage, cache), folder in itertools.product(_CGROUP_FILES, groups):
        with suppress(OSError, ValueError, KeyError):  # of the other version, or without limit
            most = int((folder / limit).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            used = int((folder / usage).read_text())
            left = min(left, most - used + int(dict(line.split() for line in lines)[cache]))
    return max(left, 0)

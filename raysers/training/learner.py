"""One training step, the same for any number of workers and any cut into pieces.

The loss is that of the global batch: predictions are summed into one tensor in every process, the
loss and its slope are computed there, and each process carries the slope back through its own
clips. Gradients are then summed, and every process makes the same step.

The slope needs the predictions alone, so the graphs of all pieces need not exist at once: those
that fit into `graph_bytes` are kept, the others are computed again, with the same random numbers.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from raysers.errors import ConfigError, TrainingDiverged
from raysers.models.emotion import EmotionNetwork
from raysers.models.initialize import InitialModel
from raysers.models.losses import LOSSES, NO_CATEGORY, category_loss
from raysers.models.outputs import Outputs
from raysers.models.scorer import exact_convolutions, is_out_of_memory
from raysers.training.batch import Batch, Floats, MicroBatch, StepResult, batch_ccc, pad
from raysers.training.context import Group
from raysers.training.optim import (
    AUTOCAST,
    AveragedWeights,
    Gradients,
    TrainSettings,
    lr_factor,
    make_optimiser,
)
from raysers.types import DIMENSIONS

_TARGETS = len(DIMENSIONS)

_log = logging.getLogger(__name__)


class Learner:
    """A network in training, and everything that moves with it.

    Every process of the group builds one from the same arguments; what differs all the same is
    replaced by process 0's. `halvings` says how often pieces are halved because they did not fit
    into the memory, `checkpointing` whether activations are computed twice.

    Args:
        start: of `start_model`; its network is taken over and moved to the device. Its heads
            beside that of the dimensions are dropped: they fit the embeddings as they were.
        categories: emotion categories to train a head for; none without a weight in the loss.
        settings: how to train.
        total_steps: steps of the whole training, for the schedule.
        device: `cpu`, `cuda` or `cuda:N`.
        group: the processes that train together.
        graph_bytes: room for graphs that are kept between the predictions and the gradients; any
            number gives the same bits, and a small one costs a second forward pass.

    Raises:
        ConfigError: nothing is left to train.
    """

    def __init__(
        self,
        start: InitialModel,
        categories: Sequence[str],
        settings: TrainSettings,
        total_steps: int,
        device: str | torch.device,
        group: Group,
        *,
        graph_bytes: float = 0.0,
    ) -> None:
        self.settings = settings
        self.total_steps = total_steps
        self.device = torch.device(device)
        self.group = group
        self.steps = 0
        self.graph_bytes = 0.0 if settings.gradient_checkpointing else graph_bytes
        self.halvings = 0
        self._bytes_per_s = 0.0  # of a graph, by padded seconds; the most so far
        self._lack = ""
        self._dtype = AUTOCAST[settings.dtype]
        self.do_normalize = start.do_normalize
        self.min_samples = start.min_samples
        with self._own_random_numbers():
            torch.manual_seed(settings.seed)
            start.model.attach(
                Outputs(categories=tuple(categories) if settings.category_weight else ())
            )
        self.model: EmotionNetwork = start.model.to(self.device)
        self.checkpointing = False
        self.model.gradient_checkpointing(False)
        if settings.gradient_checkpointing:
            self.checkpoint_gradients()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            raise ConfigError("--freeze leaves nothing to train: freeze less")
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        group.broadcast_([tensor.detach() for tensor in tensors])
        self.gradients = Gradients(parameters)
        self.optimiser = make_optimiser(
            settings.optimiser, parameters, lr=settings.lr, weight_decay=settings.weight_decay
        )
        self.average: AveragedWeights | None = None
        if settings.ema > 0:
            self.average = AveragedWeights(list(averaged_tensors(self.model)), settings.ema)

    def step(self, batch: Batch) -> StepResult:
        """Learn from a global batch; every process of the group calls it for the same one.

        Clips in no process's pieces, and those shorter than `min_samples`, are absent: they count
        nowhere. A batch with no clip left changes no parameter.

        A step for which any process lacks memory is made again by all of them: keeping no graphs,
        then with its pieces halved, down to single clips, then with gradient checkpointing. The
        halves draw dropout of their own. What was needed once stays for the steps that follow.

        Raises:
            MemoryError: all of that is not enough; raised in every process alike.
            TrainingDiverged: the loss or its gradient is not finite; raised in every process
                alike, before any parameter changes.
        """
        self._mode(training=True)
        pieces = [p for p in map(self._long_enough, batch.pieces) if p.rows]
        pieces.sort(key=lambda piece: piece.number)
        # gradients of convolutions need all their bits too
        with self._own_random_numbers(), exact_convolutions(self._dtype):
            outputs, loss, lacking = self._backward(batch, pieces)
            while lacking:
                self._use_less_memory(pieces)
                outputs, loss, lacking = self._backward(batch, pieces)
        numbers = [loss, float(self.gradients.norm())]
        self._refuse_if_not_finite(*numbers)
        factor = lr_factor(
            self.steps, self.total_steps, self.settings.schedule, self.settings.warmup_share
        )
        seen = outputs.cpu().numpy()
        present = seen[:, -1] > 0.5
        if present.any():
            self._move(numbers[1], self.settings.lr * factor)
        self.steps += 1
        predictions = np.where(present[:, None], seen[:, :_TARGETS], np.nan)
        return StepResult(
            loss=numbers[0],
            ccc=batch_ccc(predictions, batch.labels),
            predictions=predictions,
            present=present,
            gradient_norm=numbers[1],
            lr=self.settings.lr * factor,
        )

    def checkpoint_gradients(self) -> None:
        """Keep few activations from here on, and compute the others again for gradients."""
        self.checkpointing = True
        self.model.gradient_checkpointing(True)

    def predict(self, signals: Sequence[Floats]) -> Floats:
        """float32 [clips, 3 + categories]: scores and probabilities in evaluation mode.

        By the averaged weights where there are. One forward pass; clips shorter than `min_samples`
        get NaN. Concerns this process alone.
        """
        self._mode(training=False)
        width = _TARGETS + len(self.model.outputs.categories)
        scores = np.full((len(signals), width), np.nan, np.float32)
        fitting = [i for i, signal in enumerate(signals) if len(signal) >= self.min_samples]
        if fitting:
            exact = exact_convolutions(self._dtype)
            with self.averaged(), torch.inference_mode(), exact:
                found, embeddings = self._forward([signals[i] for i in fitting])
                extras = self.model.extras(embeddings.float())
                scores[fitting] = torch.cat((found.float(), extras), 1).cpu().numpy()
        return scores

    @contextmanager
    def averaged(self) -> Iterator[EmotionNetwork]:
        """Within, `model` has the weights that are scored and kept: averaged ones with `ema`."""
        if self.average is None:
            yield self.model
            return
        with self.average.in_place():
            yield self.model

    def _mode(self, *, training: bool) -> None:
        if self.model.training != training:
            self.model.train(training)

    def _long_enough(self, piece: MicroBatch) -> MicroBatch:
        keep = [i for i, signal in enumerate(piece.signals) if len(signal) >= self.min_samples]
        return MicroBatch(
            number=piece.number,
            rows=[piece.rows[i] for i in keep],
            signals=[piece.signals[i] for i in keep],
        )

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Leave torch's generators as they were."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield

    def _backward(self, batch: Batch, pieces: list[MicroBatch]) -> tuple[Tensor, float, bool]:
        """Gradients of the batch, summed over the processes, into `gradients`.

        Returns:
            [clips, 3 + categories + 1] of the whole batch: scores, logits, presence. The loss. And
            whether any process ran out of memory: then all of it is void.
        """
        self.gradients.clear()
        pieces = [part for piece in pieces for part in piece.halved(self.halvings)]
        outputs = self._blank(len(batch.labels))
        graphs: dict[int, Tensor] = {}
        fits = self._fits(lambda: self._predict_pieces(pieces, outputs, graphs))
        self.group.sum_([outputs])
        loss, slope = self._loss(outputs, batch)
        fits = fits and self._fits(lambda: self._carry_back(pieces, graphs, slope))
        lacking = torch.full((1,), float(not fits), device=self.device)
        self.group.sum_([*self.gradients.buckets, lacking])
        numbers = torch.stack((loss.float(), lacking[0])).tolist()
        return outputs, numbers[0], numbers[1] > 0

    def _fits(self, compute: Callable[[], None]) -> bool:
        """Whether there is memory for that."""
        try:
            compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._lack = (str(error).splitlines() or ["no memory"])[0]
            return False
        return True

    def _use_less_memory(self, pieces: list[MicroBatch]) -> None:
        """The next measure, the same in every process.

        Raises:
            MemoryError: there is none.
        """
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        statistics = self.model.collected_statistics()
        if statistics is not None:  # those of the failed step
            self.model.apply_statistics(torch.zeros_like(statistics))
        clips = max((len(piece.rows) for piece in pieces), default=0)
        found = self.group.gather((clips, self._lack, self.graph_bytes))
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
        if self.group.rank == 0:
            _log.warning("step %d: out of memory (%s); from here on %s", self.steps, lack, measure)

    def _blank(self, clips: int) -> Tensor:
        logits = len(self.model.outputs.categories)
        return torch.zeros(clips, _TARGETS + logits + 1, device=self.device)

    def _predict_pieces(
        self, pieces: list[MicroBatch], outputs: Tensor, graphs: dict[int, Tensor]
    ) -> None:
        """Predictions of `pieces` into their rows of `outputs`, and the graphs that fit."""
        most = math.ceil(len(pieces) / self.settings.accumulate)
        room_bytes = self.graph_bytes
        for piece in pieces:
            seconds = piece.padded_s
            if len(graphs) < most and self._bytes_per_s * seconds < room_bytes:
                with _graph_storages(self.model) as storages:
                    output = self._run(piece)
                graphs[piece.number] = output
                num_bytes = sum(storages.values())
                self._bytes_per_s = max(self._bytes_per_s, num_bytes / seconds)
                room_bytes -= num_bytes
            else:
                with torch.no_grad():
                    output = self._run(piece)
            rows = torch.tensor(piece.rows, device=self.device)
            outputs[rows, :-1] = output.detach()
            outputs[rows, -1] = 1.0

    def _run(self, piece: MicroBatch) -> Tensor:
        """float32 [rows, 3 + categories], with the dropout of this step and piece."""
        torch.manual_seed(piece_seed(self.settings.seed, self.steps, piece.number))
        scores, embeddings = self._forward(piece.signals)
        if not self.model.outputs.categories:
            return scores.float()
        return torch.cat((scores.float(), self.model.categories(embeddings.float())), 1)

    def _forward(self, signals: Sequence[Floats]) -> tuple[Tensor, Tensor]:
        padded, lengths = pad(signals, do_normalize=self.do_normalize, device=self.device)
        # one context a pass: weights cast without a graph must not be taken for a pass with one
        shorter = self._dtype != torch.float32
        with torch.autocast(self.device.type, self._dtype, enabled=shorter):
            scores, embeddings = self.model(padded, lengths)
        return scores, embeddings

    def _loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of the batch, and its slope float32 [clips, 3 + categories]."""
        absent = outputs[:, -1] < 0.5
        labels = (
            torch.from_numpy(batch.labels).to(self.device).masked_fill(absent[:, None], math.nan)
        )
        # double: every process gets its digits from these few numbers
        found = outputs[:, :-1].double().requires_grad_()
        loss = LOSSES[self.settings.loss](found[:, :_TARGETS], labels, self.settings.target_weights)
        if self.model.outputs.categories:
            classes = torch.from_numpy(batch.classes).to(self.device)
            classes = classes.masked_fill(absent, NO_CATEGORY)
            logits = found[:, _TARGETS:]
            loss = loss + self.settings.category_weight * category_loss(logits, classes)
        (slope,) = torch.autograd.grad(loss, found)
        return loss.detach(), slope.float()

    def _carry_back(
        self, pieces: list[MicroBatch], graphs: dict[int, Tensor], slope: Tensor
    ) -> None:
        """Gradients of `pieces`, in their order; a graph is freed before the next is computed."""
        for piece in pieces:
            if piece.number not in graphs:
                graphs[piece.number] = self._run(piece)
            rows = torch.tensor(piece.rows, device=self.device)
            torch.autograd.backward(graphs.pop(piece.number), slope[rows])

    def _refuse_if_not_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise TrainingDiverged(
            f"step {self.steps}: loss {loss:g}, gradient norm {norm:g}; parameters are as before "
            "it: lower --lr, or let it rise slowly with --warmup"
        )

    def _move(self, norm: float, lr: float) -> None:
        """The optimiser's step, and what follows every step."""
        if self.settings.clip_norm is not None:
            self.gradients.clip(norm, self.settings.clip_norm)
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = lr
        self.optimiser.step()
        statistics = self.model.collected_statistics()
        if statistics is not None:
            self.group.sum_([statistics])
            self.model.apply_statistics(statistics)
        if self.average is not None:
            self.average.update()


def averaged_tensors(model: nn.Module) -> Iterator[Tensor]:
    """What changes in training: parameters that learn, and running statistics."""
    yield from (p for p in model.parameters() if p.requires_grad)
    yield from (b for b in model.buffers() if b.is_floating_point())


def piece_seed(seed: int, step: int, piece: int) -> int:
    """Seed of torch's generator for one piece of one step: 63 well-mixed bits."""
    words = np.random.SeedSequence((seed, step, piece)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


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

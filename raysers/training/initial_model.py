"""What every training worker needs to know: settings, references to clips, and where things go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raysers.io import storage
from raysers.models.initialize import InitialModel, start_model
from raysers.training.config import TrainingFlags
from raysers.training.dataset import Examples
from raysers.training.optim import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One training, the same for all its workers.

    Attributes:
        flags: with the recipe filled in, precision and padded seconds settled.
        backbone: what to load, pinned to the revision that was checked.
        run_id: of the record in the output, which every worker must see.
        train: what the parameters are fitted to.
        dev: what chooses the epoch; may be empty.
        categories: emotion categories of the head that is trained; none without one.
        trained: dimensions with labels.
        threads: compute threads of a worker.
        io_threads: threads of a worker that fetch and decode.
        pieces: least micro-batches of a batch, whatever the number of workers; they decide the
            dropout.
    """

    flags: TrainingFlags
    backbone: str
    run_id: str
    train: Examples
    dev: Examples
    categories: tuple[str, ...]
    trained: Sequence[str]
    threads: int
    io_threads: int
    pieces: int

    @property
    def output(self) -> str:
        """The run's folder."""
        return self.flags.output


def start_network(flags: TrainingFlags, backbone: str) -> InitialModel:
    """The network that training starts from, the same in every process.

    Raises:
        ConfigError, CheckpointError: it cannot be built or trained like that.
    """
    return start_model(
        storage.fetch_folder(backbone, "--backbone"),
        seed=flags.seed,
        layers=flags.layers or None,
        freeze=flags.freeze,
        pooling=flags.pooling,
        head_dropout=flags.head_dropout,
        front=flags.front,
    )


def train_settings(flags: TrainingFlags) -> TrainSettings:
    """What of the flags concerns the steps themselves."""
    return TrainSettings(
        loss=flags.loss,
        target_weights=flags.target_weights,
        category_weight=flags.category_weight,
        optimiser=flags.optimiser,
        lr=flags.lr,
        weight_decay=flags.weight_decay,
        schedule=flags.schedule,
        warmup_share=flags.warmup,
        clip_norm=flags.clip_norm or None,
        ema=flags.ema,
        accumulate=flags.accumulate,
        dtype=flags.dtype,
        gradient_checkpointing=flags.gradient_checkpointing,
        seed=flags.seed,
    )

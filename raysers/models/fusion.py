"""Fusion of audio and text: heads on frozen vectors, their training, and their folder.

A folder holds no encoder. Vectors of another model or revision fit the heads' shapes all the same
and mean nothing, so it names both, to be checked. The same vectors, labels and settings give the
same head: order and dropout follow from the seed and the epoch, on one thread.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysers.errors import CheckpointError, TrainingDiverged
from raysers.models import checkpoint, loading
from raysers.models.backbones import Outputs
from raysers.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from raysers.models.heads import EmotionHead, ccc_loss
from raysers.types import DIMENSIONS, seed_of

Floats = npt.NDArray[np.float32]
MODEL_TYPE = "raysers-fusion"
#: Inputs of a head: which vectors are side by side, in this order.
SOUND, WORDS = "sound", "words"
SOURCES = {"fused": (SOUND, WORDS), "audio": (SOUND,), "text": (WORDS,)}
#: A dimension with fewer labels is not learned; it scores the middle of the scale.
LEAST_LABELS = 2
#: Clips scored at a time: beyond, memory grows and speed does not.
_BLOCK = 8_192
#: Numbers that hardly ever change would be blown up by their own scale.
_LEAST_SD = 1e-5
#: Published seeds are of this size.
_SEED_BYTES = 7
_MOST_NUMBERS = 65_536


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """Training of the heads."""

    epochs: int = 100
    """Passes of the heads over the training clips; the best on dev is kept."""
    batch_size: int = 0
    """Clips whose CCC is the loss of a step; 0: a sixteenth of the training clips, 16 to 256."""
    lr: float = 1e-3
    """Learning rate of Adam at the start."""
    schedule: Literal["linear", "constant"] = "linear"
    """Of the learning rate: a straight line to 0 over the epochs, or constant."""
    weight_decay: float = 0.0
    """Weight decay, decoupled from the gradient."""
    dropout: float = 0.3
    """Dropout of the heads' input and hidden layer, 0 to below 1."""
    patience: int = 0
    """Stop after N epochs without a better dev CCC; 0 never stops early."""
    seed: int = 0
    """Decides the heads' initial weights, order and dropout, and the bootstrap draws."""


class Vectors(NamedTuple):
    """Vectors float32 [clips, size] with labels float32 [clips, 3], NaN where unknown."""

    values: Floats
    labels: Floats


class EpochOfHead(NamedTuple):
    """Mean loss of an epoch's steps, and CCC over the whole dev set."""

    epoch: int
    train_loss: float
    dev_ccc: float


class FusionHead(nn.Module):
    """Standardises its vectors; a hidden layer as wide as they are (Wagner et al. 2022, 4.8)."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.layers = EmotionHead(size, size, dropout, 0.02)
        self.mean = nn.Buffer(torch.zeros(size))
        self.scale = nn.Buffer(torch.ones(size))

    def forward(self, vectors: Tensor) -> Tensor:
        """Scores [clips, 3] of raw vectors [clips, size]."""
        return cast(Tensor, self.layers((vectors - self.mean) / self.scale))

    @torch.inference_mode()
    def score(self, vectors: Floats) -> Floats:
        """Scores float32 [clips, 3] of vectors [clips, size], without dropout."""
        given = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
        return np.asarray(self.eval()(given.to(self.mean.device)).cpu().numpy(), np.float32)

    @torch.no_grad()
    def silence(self, places: Sequence[int]) -> None:
        """Let dimensions without labels score the middle of the scale, not noise."""
        for place in places:
            self.layers.out_proj.weight[place] = 0.0
            self.layers.out_proj.bias[place] = 0.5


def side_by_side(head: str, vectors: Mapping[str, Floats]) -> Floats:
    """Input of the head of that name, [clips, sum of sizes], from vectors by source."""
    return np.concatenate([vectors[source] for source in SOURCES[head]], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """What a fusion was trained on; `asr` recognised the text of clips without a transcript.

    It is `manifest` where there were none; with `recognise_all` it recognised that of all clips.
    """

    acoustic_model: str
    acoustic_revision: str
    text_model: str
    text_revision: str
    text_pooling: str
    asr: str
    asr_revision: str
    recognise_all: bool
    sound_size: int
    words_size: int
    dropout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """The trained heads by name, on the CPU; `trained` names the dimensions with outputs."""

    config: FusionConfig
    heads: Mapping[str, FusionHead]
    trained: Sequence[str] = DIMENSIONS
    revision: str = ""

    def score(self, vectors: Mapping[str, Floats]) -> dict[str, Floats]:
        """Scores [clips, 3] of every head, NaN if not trained, from vectors [clips, size]."""
        untrained = [name not in self.trained for name in DIMENSIONS]
        starts = range(0, max(len(vectors[SOUND]), 1), _BLOCK)
        found = {}
        for name, head in self.heads.items():
            whole = side_by_side(name, vectors)
            scores = np.concatenate([head.score(whole[at : at + _BLOCK]) for at in starts])
            found[name] = np.where(untrained, np.float32(np.nan), scores)
        return found


def save_fusion(fusion: Fusion, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": MODEL_TYPE,
        **asdict(fusion.config),
        "heads": list(fusion.heads),
        "id2label": {str(index): label for index, label in enumerate(DIMENSIONS)},
        **Outputs(trained=tuple(fusion.trained)).config(),
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    loading.write_weights(nn.ModuleDict(dict(fusion.heads)).state_dict(), folder / WEIGHTS_FILE)


def load_fusion(folder: str | Path) -> Fusion:
    """Read a folder that `save_fusion` wrote; CheckpointError where it is not to be trusted."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"--fusion {folder} does not exist: give the output of fuse train")
    checkpoint.check_folder(folder)
    content = checkpoint.read_json(folder / CONFIG_FILE)
    if content.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"--fusion {folder}: its model_type is {content.get('model_type')!r}, not "
            f"{MODEL_TYPE}: give the output of fuse train"
        )
    kinds = {field.name: str(field.type) for field in fields(FusionConfig)}
    values: dict[str, Any] = {name: content.get(name) for name in kinds}
    most = {"sound_size": _MOST_NUMBERS, "words_size": _MOST_NUMBERS, "dropout": 1}
    odd = [
        name
        for name, kind in kinds.items()
        if type(values[name]).__name__ != kind
        or (name in most and not 0 <= values[name] <= most[name])
    ]
    if odd:
        raise CheckpointError(f"{folder}: {CONFIG_FILE} has no usable {', '.join(odd)}")
    if checkpoint.label_order(content, folder) != list(range(len(DIMENSIONS))):
        raise CheckpointError(f"{folder}: id2label has another order than {', '.join(DIMENSIONS)}")
    config = FusionConfig(**values)
    sizes = {SOUND: config.sound_size, WORDS: config.words_size}
    with torch.device("meta"):  # sizes a stranger wrote down cost nothing until the weights fit
        heads = {
            name: FusionHead(sum(sizes[source] for source in sources), config.dropout)
            for name, sources in SOURCES.items()
        }
    together = nn.ModuleDict(heads)
    loading.load_weights(together, loading.read_weights([folder / WEIGHTS_FILE]), folder)
    together.eval().requires_grad_(False)
    return Fusion(
        config=config,
        heads=heads,
        trained=Outputs.from_config(content, folder).trained,
        revision=checkpoint.content_hash([folder / CONFIG_FILE, folder / WEIGHTS_FILE]),
    )


def train_head(
    name: str, train: Vectors, dev: Vectors, settings: HeadSettings, device: str = "cpu"
) -> tuple[FusionHead, list[EpochOfHead]]:
    """The head of the epoch with the best mean dev CCC, and all epochs; or TrainingDiverged.

    Clips of `train` without any label are left out, and a dimension with fewer than `LEAST_LABELS`
    always gets the middle of the scale.
    """
    labelled = np.isfinite(train.labels).any(axis=1)
    values, labels = (torch.from_numpy(one[labelled]).to(device) for one in train)
    dev_values, dev_labels = (torch.from_numpy(one).to(device) for one in dev)
    counts = (~labels.isnan()).sum(0).tolist()
    unlabelled = [place for place, count in enumerate(counts) if count < LEAST_LABELS]
    size = settings.batch_size or min(max(len(values) // 16, 16), 256)
    # batches of nearly equal size: a rest of two clips has no correlation
    steps = max(1, round(len(values) / size))
    history: list[EpochOfHead] = []
    with _alone(seed_of(name, settings.seed, 0, size_bytes=_SEED_BYTES)):
        head = FusionHead(values.shape[1], settings.dropout).to(device)
        spread = values.double().std(0, unbiased=False)
        head.mean.copy_(values.double().mean(0))
        head.scale.copy_(torch.where(spread > _LEAST_SD, spread, 1.0))
        optimiser = torch.optim.AdamW(
            head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        head.silence(unlabelled)
        kept: dict[str, Tensor] = {}
        for epoch in range(1, settings.epochs + 1):
            torch.manual_seed(seed_of(name, settings.seed, epoch, size_bytes=_SEED_BYTES))
            if settings.schedule == "linear":
                for group in optimiser.param_groups:
                    group["lr"] = settings.lr * (1 - (epoch - 1) / settings.epochs)
            losses = []
            head.train()
            for part in torch.randperm(len(values)).tensor_split(steps):
                loss = ccc_loss(head(values[part]), labels[part])
                if not torch.isfinite(loss):
                    raise TrainingDiverged(
                        "the loss of a head is not a finite number: give a smaller --lr"
                    )
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
                optimiser.step()
                losses.append(loss.item())
            with torch.no_grad():
                ccc = 1.0 - ccc_loss(head.eval()(dev_values).double(), dev_labels).item()
            history.append(EpochOfHead(epoch, float(np.mean(losses)), ccc))
            best = best_epoch(history).epoch
            if best == epoch:
                kept = copy.deepcopy(head.state_dict())
            if settings.patience and epoch - best >= settings.patience:
                break
    head.load_state_dict(kept)
    head.silence(unlabelled)  # weight decay has moved them
    return head.cpu().eval(), history


def best_epoch(history: Sequence[EpochOfHead]) -> EpochOfHead:
    """The epoch that was kept: the first of those with the highest dev CCC."""
    return max(history, key=lambda one: (one.dev_ccc, -one.epoch))


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Torch's own generator at `seed` and one thread; both are given back as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

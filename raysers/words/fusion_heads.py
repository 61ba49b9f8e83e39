"""Training the heads where the hardware is: a worker with a GPU where there is one, else here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from raysers.engine.cluster import call_on_worker
from raysers.engine.plan import Placement
from raysers.models.fusion import SOURCES, FusionHead, side_by_side
from raysers.models.fusion_training import EpochOfHead, HeadSettings, Vectors, train_head
from raysers.words.fusion_data import DEV, TRAIN
from raysers.words.fusion_features import Features


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedHeads:
    """Heads by name, and what every epoch of each came to."""

    heads: Mapping[str, FusionHead]
    history: Mapping[str, list[EpochOfHead]]


def train_heads(features: Features, settings: HeadSettings, placement: Placement) -> TrainedHeads:
    """The three heads on the training clips' vectors, each at its best epoch on dev."""
    found = {}
    for name in SOURCES:
        train, dev = (_vectors(features, name, split) for split in (TRAIN, DEV))
        work = partial(train_head, name, train, dev, settings, device=placement.device)
        if placement.num_gpus and not placement.local:
            found[name] = call_on_worker(placement, work)
        else:
            found[name] = work()
    return TrainedHeads(
        heads={name: head for name, (head, _) in found.items()},
        history={name: history for name, (_, history) in found.items()},
    )


def _vectors(features: Features, head: str, split: str) -> Vectors:
    rows = features.places(split)
    chosen = {source: values[rows] for source, values in features.vectors.items()}
    return Vectors(values=side_by_side(head, chosen), labels=features.labels[rows])

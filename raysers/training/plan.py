"""What a training has to do, checked before anything is written: network, data, folder, cluster.

The driver builds the network once, only to learn that it can be built and what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from raysers.data.corpora.emotions import EMOTION_MAPS
from raysers.data.manifest import read_manifest
from raysers.engine.placement import Placement, io_threads, settled_dtype
from raysers.errors import ConfigError, ObjectMissing, RefusedError
from raysers.io import storage
from raysers.models.backbones import CNN14, parse_model_name
from raysers.models.initialize import InitialModel, start_model
from raysers.models.lora import ADAPTERS, add_adapters
from raysers.models.outputs import Outputs
from raysers.run import Run, RunRecord, absolute_output
from raysers.training import checkpoint, dataset
from raysers.training.checkpoint import TrainProgress
from raysers.training.config import FlagsT, TrainingFlags, deciding, with_recipe
from raysers.training.dataset import Indexed, TrainingData, TrainingJob
from raysers.types import SAMPLE_RATE_HZ

#: Version of what a training does with its settings; another one never resumes from a state.
TRAINING_VERSION = 3

#: `--max-padded-s 0`: what CPUs' caches like, and what training the large models leaves of a GPU
#: of 24 GB. The same on every machine, because the micro-batches decide the dropout.
_PADDED_S = {"cpu": 16.0, "cuda": 60.0}
#: Least micro-batches of a batch, so that one, two and four workers cut it alike.
LEAST_PIECES = 4
#: With fewer there is nothing to tell apart.
_LEAST_CATEGORIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What is known of the network that training starts from.

    `kind` is a key of `RECIPES`; `hub_id` is where its weights came from, if from there; the
    others are as in `models.initialize.InitialModel`.
    """

    kind: str
    model_type: str
    load_from: str
    revision: str
    min_samples: int
    embedding_size: int
    parameters: int
    trained: int
    freeze: str
    head_kept: bool
    hub_id: str | None
    licence: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """A training that can begin or resume.

    Attributes:
        flags: with absolute paths, the recipe filled in, and `auto` settled.
        network: what it starts from.
        data: train and dev clips.
        placement: workers and their resources.
        settings: everything that decides the parameters.
        earlier: the record of the run that is resumed, if any.
        progress: what is done already.
    """

    flags: TrainingFlags
    network: Network
    data: TrainingData
    placement: Placement
    settings: Mapping[str, Any]
    earlier: RunRecord | None
    progress: TrainProgress

    def job(self, run_id: str) -> TrainingJob:
        """What the workers of run `run_id` get."""
        return TrainingJob(
            flags=self.flags,
            backbone=self.network.load_from,
            run_id=run_id,
            train=self.data.train,
            dev=self.data.dev,
            categories=self.data.categories if self.flags.category_weight else (),
            trained=self.data.trained,
            threads=self.placement.threads,
            io_threads=io_threads(self.data.table, self.placement),
            pieces=self.settings.get("pieces", LEAST_PIECES),
        )


def with_absolute_paths(flags: FlagsT) -> FlagsT:
    """The flags, checked, with places that mean the same in every process of the cluster.

    Raises:
        ConfigError: a flag has an impossible value.
    """
    flags.check()
    is_file = bool(flags.emotion_map) and flags.emotion_map not in EMOTION_MAPS
    return replace(
        flags,
        output=absolute_output(flags.output),
        data=tuple(map(storage.absolute, flags.data)),
        train=tuple(map(storage.absolute, flags.train)),
        dev=tuple(map(storage.absolute, flags.dev)),
        speakers=flags.speakers and storage.absolute(flags.speakers),
        emotion_map=storage.absolute(flags.emotion_map) if is_file else flags.emotion_map,
    )


def refuse_unknown_model(run: Run) -> None:
    """Raises RefusedError when the folder holds a model but no record of its run."""
    if run.earlier is None:
        with suppress(ObjectMissing):
            storage.stat(storage.join(run.output, "config.json"))
            raise RefusedError(
                f"--output {run.output} holds a model but no run.json: choose another folder"
            )


def start_network(flags: TrainingFlags, backbone: str) -> InitialModel:
    """The network that training starts from, the same in every process.

    Raises:
        ConfigError, CheckpointError: it cannot be built or trained like that.
    """
    start = start_model(
        storage.fetch_folder(backbone, "--backbone"),
        seed=flags.seed,
        layers=flags.layers or None,
        freeze=flags.freeze,
        pooling=flags.pooling,
        head_dropout=flags.head_dropout,
        front=flags.front,
    )
    if flags.lora:
        add_adapters(start.model, flags.lora, flags.seed)
        start = replace(start, freeze="backbone")
    return start


def inspect(flags: TrainingFlags) -> tuple[TrainingFlags, Network]:
    """Build the network here, settle the recipe of its kind, and drop it again.

    Raises:
        ConfigError, CheckpointError: it cannot be built or trained like that.
    """
    name = parse_model_name(flags.backbone, "--backbone")
    if name.path is not None and name.alias is None and not name.is_object_store:
        # workers have working folders of their own
        prefix = "random:" if name.random else ""
        place = prefix + storage.absolute(flags.backbone.removeprefix("random:"))
        flags = replace(flags, backbone=place)
    start = start_network(flags, flags.backbone)
    if start.max_samples is not None:  # longer clips are left out like those of --max-clip-s
        longest_s = start.max_samples / SAMPLE_RATE_HZ
        flags = replace(flags, max_clip_s=min(flags.max_clip_s, longest_s))
    pinned = name.hub_id is not None and not name.random
    unversioned = flags.backbone.partition("@")[0]
    parameters = dict(start.model.named_parameters())
    model_type = start.model.config.model_type
    network = Network(
        kind="cnn14" if model_type == CNN14 else "transformer",
        model_type=model_type,
        load_from=f"{unversioned}@{start.revision}" if pinned else flags.backbone,
        revision=start.revision,
        min_samples=start.min_samples,
        embedding_size=start.embedding_size,
        parameters=sum(p.numel() for n, p in parameters.items() if not n.endswith(ADAPTERS)),
        trained=sum(p.numel() for p in parameters.values() if p.requires_grad),
        freeze=start.freeze,
        head_kept=start.head_kept,
        hub_id=name.hub_id if pinned else None,
        licence=start.licence,
    )
    return with_recipe(flags, network.kind), network


def is_finished(flags: TrainingFlags, network: Network, run: Run) -> bool:
    """Whether the output holds the finished result of the same command.

    Raises:
        RefusedError: it was begun with other settings.
    """
    if run.earlier is None:
        return False
    known = {"data_fingerprint": run.earlier.settings.get("data_fingerprint")}
    settings = _settings(_as_begun(flags, run.earlier), network, run.earlier)
    run.refuse_other_settings(settings | known)
    return run.earlier.status == "done"


def make_plan(
    flags: TrainingFlags,
    network: Network,
    run: Run,
    placement: Placement,
    *,
    indexed: Indexed | None = None,
) -> TrainingPlan:
    """Read the data and see what is done already.

    Args:
        flags: settled as far as `inspect` does.
        network: what training starts from.
        run: of the output.
        placement: of the workers.
        indexed: the data of the flags, if they have been indexed before.

    Raises:
        ConfigError: the data cannot be used.
        RefusedError: the output was begun with other settings.
        TooManyFailed: too many clips cannot be used.
    """
    if indexed is None:
        table, notes = dataset.index_data(flags)
    else:
        table, notes = read_manifest(indexed.manifest), [*indexed.notes]
    data = dataset.choose(
        flags,
        table,
        notes,
        seed=flags.seed,
        min_samples=network.min_samples,
        dev_needed=flags.keep != "last",
        weights=flags.target_weights,
        categories=flags.category_weight > 0,
    )
    flags = _as_begun(flags, run.earlier)
    flags = replace(
        flags,
        dtype=_settled_dtype(flags.dtype, placement),
        max_padded_s=flags.max_padded_s or _PADDED_S[placement.device],
    )
    if flags.category_weight:
        _check_categories(data.categories, "categories" if flags.categories else "category-weight")
    settings = _settings(flags, network, run.earlier) | {"data_fingerprint": data.fingerprint}
    if run.earlier is None and placement.workers > LEAST_PIECES:
        settings["pieces"] = placement.workers
    run.refuse_other_settings(settings)
    saved = checkpoint.latest(flags.output) if run.earlier else None
    return TrainingPlan(
        flags=flags,
        network=network,
        data=data,
        placement=placement,
        settings=settings,
        earlier=run.earlier,
        progress=saved.progress if saved else TrainProgress(),
    )


def _check_categories(names: Sequence[str], flag: str) -> None:
    if len(names) < _LEAST_CATEGORIES:
        raise ConfigError(
            f"--{flag}: the training clips have {len(names)} emotion categories, "
            f"{_LEAST_CATEGORIES} are needed: leave it out, or give data with a column emotion"
        )
    Outputs.from_config({"categories": names}, f"--{flag}")  # too many, or too long


def _as_begun(flags: TrainingFlags, earlier: RunRecord | None) -> TrainingFlags:
    """What was left to the device means what it meant when the run was begun."""
    known = {} if earlier is None else earlier.settings
    dtype = known.get("dtype", "auto") if flags.dtype == "auto" else flags.dtype
    return replace(
        flags, dtype=dtype, max_padded_s=flags.max_padded_s or known.get("max_padded_s", 0.0)
    )


def _settings(flags: TrainingFlags, network: Network, earlier: RunRecord | None) -> dict[str, Any]:
    """The settings that decide the parameters, as far as they follow from the flags."""
    settings = deciding(flags) | {
        "backbone_revision": network.revision,
        "training_version": TRAINING_VERSION,
    }
    if earlier is not None and "pieces" in earlier.settings:
        settings["pieces"] = earlier.settings["pieces"]  # with any number of workers
    return settings


def _settled_dtype(dtype: str, placement: Placement) -> Literal["fp32", "bf16"]:
    if dtype == "auto" and placement.device == "cpu":
        dtype = "fp32"  # rounding costs more on CPUs than bf16 wins there in training
    return "bf16" if settled_dtype(dtype, placement, None) == "bf16" else "fp32"

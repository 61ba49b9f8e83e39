"""What a training has to do, checked before anything is written: network, data, folder, cluster."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from raysers.data.manifest import read_manifest
from raysers.engine.placement import Placement, settled_dtype
from raysers.engine.progress import clips_and_audio, print_pairs, print_warning
from raysers.errors import ConfigError, ObjectMissing, RefusedError
from raysers.io import storage
from raysers.models.backbones import CNN14, Outputs, parse_model_name
from raysers.models.initialize import ADAPTERS, InitialModel, add_adapters, start_model
from raysers.run import Run, RunRecord
from raysers.training import dataset
from raysers.training.config import TrainingFlags, deciding, with_recipe
from raysers.training.dataset import Indexed, TrainingData
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
    """The network that training starts from, after `InitialModel`; `kind` is a key of `RECIPES`."""

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
    """A training that can begin or resume, the same for the driver and all workers."""

    flags: TrainingFlags
    network: Network
    data: TrainingData
    placement: Placement
    settings: Mapping[str, Any]
    run_id: str

    @property
    def output(self) -> str:
        """The run's folder."""
        return self.flags.output

    @property
    def categories(self) -> tuple[str, ...]:
        """Emotion categories of the head that is trained; none without one."""
        return self.data.categories if self.flags.category_weight else ()

    @property
    def pieces(self) -> int:
        """Least micro-batches of a batch, whatever the number of workers now."""
        return int(self.settings.get("pieces", LEAST_PIECES))

    def print(self, earlier: RunRecord | None, steps_done: int) -> None:
        """Data, network and way of training; and everything worth a warning."""
        flags, network, data = self.flags, self.network, self.data
        train, dev = (clips_and_audio(len(part), part.audio_s) for part in (data.train, data.dev))
        pairs = {
            "train": train,
            "dev": dev if len(data.dev) else "none (--keep last)",
            "network": (
                f"{flags.backbone}, {network.trained / 1e6:.2f} of {network.parameters / 1e6:.2f} "
                "M parameters are trained"
            ),
            "recipe": (
                f"{flags.optimiser} {flags.lr:g} {flags.schedule}, {flags.epochs} epochs, "
                f"batch {flags.batch_size}, {flags.loss} loss, {flags.dtype}"
            ),
            "workers": f"{self.placement.workers} on {self.placement.device}",
        }
        if self.categories:
            pairs["categories"] = f"{', '.join(self.categories)}, weight {flags.category_weight:g}"
        if data.sexes:
            pairs["sexes"] = f"{', '.join(data.sexes)}, weight {flags.sex_weight:g}, not stored"
        if earlier is not None:
            pairs["resuming"] = f"the run of {earlier.started_at}, {steps_done} steps done"
        print_pairs("train", pairs)
        warnings = list(data.notes)
        if data.left_out:
            counts = ", ".join(f"{reason} {n:,}" for reason, n in data.left_out.items())
            warnings.append(f"clips left out: {counts}")
        if data.leakage:
            warnings.append(
                f"leakage allowed, the results are marked: {data.leakage[0]}"
                f" ({len(data.leakage)} such groups)"
            )
        if flags.shuffle_labels:
            warnings.append("--shuffle-labels: a control, the model means nothing")
        for warning in warnings:
            print_warning(warning)


def refuse_unknown_model(run: Run) -> None:
    """Raises RefusedError when the folder holds a model but no record of its run."""
    if run.earlier is None:
        with suppress(ObjectMissing):
            storage.stat(storage.join(run.output, "config.json"))
            raise RefusedError(
                f"--output {run.output} holds a model but no run.json: choose another folder"
            )


def start_network(flags: TrainingFlags, backbone: str) -> InitialModel:
    """The network that training starts from, the same in every process, or a ConfigError."""
    start = start_model(
        storage.fetch_folder(backbone, "--backbone"),
        seed=flags.seed,
        layers=flags.layers or None,
        freeze=flags.freeze,
        pooling=flags.pooling,
        head_dropout=flags.head_dropout,
        layer_weights=flags.layer_weights,
        front=flags.front,
    )
    if flags.lora:
        add_adapters(start.model, flags.lora, flags.seed)
        start = replace(start, freeze="backbone")
    return start


def inspect(flags: TrainingFlags) -> tuple[TrainingFlags, Network]:
    """Build the network here, settle the recipe of its kind, and drop it again."""
    name = parse_model_name(flags.backbone, "--backbone")
    if name.path is not None and name.alias is None and not name.is_object_store:
        # workers have working folders of their own
        prefix = "random:" if name.random else ""
        place = prefix + storage.absolute(flags.backbone.removeprefix("random:"))
        flags = replace(flags, backbone=place)
    start = start_network(flags, flags.backbone)
    if start.model.max_samples is not None:  # longer clips are left out like those of --max-clip-s
        longest_s = start.model.max_samples / SAMPLE_RATE_HZ
        flags = replace(flags, max_clip_s=min(flags.max_clip_s, longest_s))
    if getattr(start.model, "layer_weights", None) is not None:  # also those that came with it
        flags = replace(flags, layer_weights=True)
    pinned = name.hub_id is not None and not name.random
    unversioned = flags.backbone.partition("@")[0]
    parameters = dict(start.model.named_parameters())
    model_type = start.model.config.model_type
    network = Network(
        kind="cnn14" if model_type == CNN14 else "transformer",
        model_type=model_type,
        load_from=f"{unversioned}@{start.revision}" if pinned else flags.backbone,
        revision=start.revision,
        min_samples=start.model.min_samples,
        embedding_size=start.model.embedding_size,
        parameters=sum(p.numel() for n, p in parameters.items() if not n.endswith(ADAPTERS)),
        trained=sum(p.numel() for p in parameters.values() if p.requires_grad),
        freeze=start.freeze,
        head_kept=start.head_kept,
        hub_id=name.hub_id if pinned else None,
        licence=start.licence,
    )
    return with_recipe(flags, network.kind), network


def is_finished(flags: TrainingFlags, network: Network, run: Run) -> bool:
    """Whether the output holds the result of the same command; RefusedError for that of another."""
    if run.earlier is None:
        return False
    known = {"data_fingerprint": run.earlier.settings.get("data_fingerprint")}
    run.refuse_other_settings(_settings(_as_begun(flags, run), network, run) | known)
    return run.earlier.status == "done"


def make_plan(
    flags: TrainingFlags,
    network: Network,
    run: Run,
    placement: Placement,
    *,
    indexed: Indexed | None = None,
) -> TrainingPlan:
    """Read the data, or what is `indexed` of them, and settle what the flags leave open.

    Raises ConfigError, TooManyFailed: for the data; RefusedError: begun with other settings.
    """
    if indexed is None:
        table, notes = dataset.index_data(flags)
    else:
        table, notes = read_manifest(indexed.manifest), [*indexed.notes]
    data = dataset.choose(flags, table, notes, min_samples=network.min_samples)
    flags = _as_begun(flags, run)
    flags = replace(
        flags,
        dtype=_settled_dtype(flags.dtype, placement),
        max_padded_s=flags.max_padded_s or _PADDED_S[placement.device],
    )
    if flags.category_weight:
        flag, names = "categories" if flags.categories else "category-weight", data.categories
        if len(names) < _LEAST_CATEGORIES:
            raise ConfigError(
                f"--{flag}: the training clips have {len(names)} emotion categories, "
                f"{_LEAST_CATEGORIES} are needed: leave it out, or give data with a column emotion"
            )
        Outputs.from_config({"categories": names}, f"--{flag}")  # too many, or too long
    if flags.sex_weight and len(data.sexes) < _LEAST_CATEGORIES:
        raise ConfigError(
            f"--sex-weight: the training clips are of {len(data.sexes)} sexes, "
            f"{_LEAST_CATEGORIES} are needed: leave it out, or give data with a column sex"
        )
    settings = _settings(flags, network, run) | {"data_fingerprint": data.fingerprint}
    if run.earlier is None and placement.workers > LEAST_PIECES:
        settings["pieces"] = placement.workers
    run.refuse_other_settings(settings)
    return TrainingPlan(
        flags=flags,
        network=network,
        data=data,
        placement=placement,
        settings=settings,
        run_id=run.run_id,
    )


def _as_begun(flags: TrainingFlags, run: Run) -> TrainingFlags:
    """What was left to the device means what it meant when the run was begun."""
    known = {} if run.earlier is None else run.earlier.settings
    dtype = known.get("dtype", "auto") if flags.dtype == "auto" else flags.dtype
    return replace(
        flags, dtype=dtype, max_padded_s=flags.max_padded_s or known.get("max_padded_s", 0.0)
    )


def _settings(flags: TrainingFlags, network: Network, run: Run) -> dict[str, Any]:
    """The settings that decide the parameters, as far as they follow from the flags."""
    known = {} if run.earlier is None else run.earlier.settings
    return {
        **deciding(flags),
        "backbone_revision": network.revision,
        "training_version": TRAINING_VERSION,
        **({"pieces": known["pieces"]} if "pieces" in known else {}),  # with any number of workers
    }


def _settled_dtype(dtype: str, placement: Placement) -> Literal["fp32", "bf16"]:
    if dtype == "auto" and placement.device == "cpu":
        dtype = "fp32"  # rounding costs more on CPUs than bf16 wins there in training
    return "bf16" if settled_dtype(dtype, placement, None) == "bf16" else "fp32"

"""What a study would take: operations counted from the networks' shapes, speed measured here.

It is an estimate of the hours models have devices for; starting up, reading audio and the jobs of
the fuse, probe and evaluate cells are not in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from rich.console import Console

from raysers.engine.cluster import get_with_notice
from raysers.engine.progress import duration
from raysers.evaluation.tables import report_console
from raysers.models.backbones import BACKBONES, CNN14, WHISPER, keep_layers
from raysers.robustness.suites import SUITES
from raysers.studies import networks as study_networks
from raysers.studies import speech
from raysers.studies.experiments import PRETRAIN, Cell, Experiment
from raysers.studies.plan import StudyPlan, load_corpora, made_up_corpora, place_of
from raysers.studies.units import IN_TRIALS, flags_without_paths
from raysers.training.config import with_recipe
from raysers.tuning.resources import TrialResources, find_resources
from raysers.tuning.trials import stored
from raysers.types import SAMPLE_RATE_HZ

#: Share of the measured speed of one large matrix product that a training reaches (CPUs: measured
#: for networks of 0.2 and 165 million parameters; GPUs: assumed).
_EFFICIENCY = {"cpu": 0.5, "cuda": 0.35}
_MATRIX = {"cpu": 1024, "cuda": 8192}
_MEASURE_S = 0.5
#: Frames of a clip see each other; of clips as long as the paper's corpora have them.
_CLIP_S = 6.0
_WIDTH = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusHours:
    """Seconds of audio in the parts of the corpora, and of synthetic speech by name."""

    train_s: float
    dev_s: float
    evaluation_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one run: passes of audio through the network, and operations."""

    audio_s: float
    operations: float
    epochs: int = 0


def corpus_hours(plan: StudyPlan) -> CorpusHours:
    """How much audio the corpora have; synthetic ones are estimated, not spoken.

    Raises:
        ConfigError: data that cannot be used.
    """
    made_up = made_up_corpora(plan.flags)
    if plan.earlier is None and made_up and not plan.flags.data:
        home, abroad = (c.clips * speech.MEAN_CLIP_S for c in made_up)
        shares = speech.HOME.splits
        each = home / sum(shares.values())
        return CorpusHours(
            train_s=each * shares["train"],
            dev_s=each * shares["dev"],
            evaluation_s=each * shares["test"] + abroad,
        )
    corpora = load_corpora(plan, speak=False)
    return CorpusHours(
        train_s=_seconds(corpora.training, "train"),
        dev_s=_seconds(corpora.training, "dev"),
        evaluation_s=_seconds(corpora.judged),
    )


def print_cost(plan: StudyPlan, found: CorpusHours, console: Console | None = None) -> None:
    """A line a cell, and the sum with its basis; needs the connected cluster."""
    console = console or report_console()
    runs = [run for run in plan.grid.runs.values() if run.job in IN_TRIALS]
    resources = find_resources(
        max(len(runs), 1), plan.flags.workers_per_trial, plan.flags.max_concurrent
    )
    device, speed = measured(resources)
    used = speed * _EFFICIENCY[device] * max(1, plan.flags.workers_per_trial)
    ended = _ended(plan)
    costs = {
        name: Cost(audio_s=0.0, operations=0.0) if name in ended else cost_of(run, plan, found)
        for name, run in plan.grid.runs.items()
    }
    console.print(f"{'study, cell':{_WIDTH}} {'run':12}{'epochs':>7}{'audio h':>9}{'hours':>9}")
    for line in _lines(plan.grid.cells, costs, ended, used):
        console.print(line, soft_wrap=True)
    total_s = sum(cost.operations for cost in costs.values()) / used
    for line in _sums(plan, resources, costs, total_s, device, speed, found):
        console.print(line)


def _ended(plan: StudyPlan) -> Mapping[str, str]:
    """How runs ended of which nothing is left to do, by name."""
    place = place_of(plan, "")
    records = [stored(place.uri(name)) for name in plan.grid.runs] if plan.earlier else []
    return {r.name: r.status for r in records if r is not None and r.is_final(place.retries)}


def _lines(
    cells: Sequence[Cell], costs: Mapping[str, Cost], ended: Mapping[str, str], used: float
) -> Iterator[str]:
    first: dict[str, Cell] = {}
    for cell in cells:
        cost, known = costs[cell.run], first.setdefault(cell.run, cell)
        head = f"{cell.study}, {cell.cell}"
        if known is not cell:
            yield f"{head:{_WIDTH}} that of {known.study}, {known.cell}"
        elif cell.run in ended:
            yield f"{head:{_WIDTH}} {cell.job:12} {ended[cell.run]} before"
        elif not cost.operations:
            yield f"{head:{_WIDTH}} {cell.job:12} not estimated"
        else:
            hours = cost.operations / used / 3600
            epochs = str(cost.epochs) if cost.epochs else ""
            numbers = f"{epochs:>7}{cost.audio_s / 3600:>9.2f}{hours:>9.3g}"
            yield f"{head:{_WIDTH}} {cell.job:12}{numbers}"


def _sums(
    plan: StudyPlan,
    resources: TrialResources,
    costs: Mapping[str, Cost],
    total_s: float,
    device: str,
    speed: float,
    found: CorpusHours,
) -> Iterator[str]:
    yield (
        f"corpora: {found.train_s / 3600:.2f} h train, {found.dev_s / 3600:.2f} h dev, "
        f"{found.evaluation_s / 3600:.2f} h judged"
    )
    yield f"{len(plan.grid.cells)} cells, {len(costs)} runs, {resources.words}"
    kind = "GPU" if device == "cuda" else "CPU"
    hours = total_s / 3600
    yield (
        f"estimate: {hours:.3g} hours of one place ({kind}), about "
        f"{duration(total_s / resources.share.at_once)} in all"
    )
    if plan.flags.usd_per_hour:
        yield f"cost: ${hours * plan.flags.usd_per_hour:.2f}"
    yield (
        f"basis: operations counted from the networks' shapes (three passes' worth for what is "
        f"trained, one for what is frozen or only scored), at {_EFFICIENCY[device]:.0%} of the "
        f"{speed / 1e12:.3g} TFLOP/s of a matrix product measured here; starting up, and the jobs "
        "not estimated, come on top"
    )
    yield "nothing was written"


def cost_of(run: Experiment, plan: StudyPlan, found: CorpusHours) -> Cost:
    """Audio and operations of a run; none where its network is not known without loading it."""
    if run.job in (PRETRAIN, "train"):
        return _training_cost(run, found)
    of_models = [cost_of(plan.grid.runs[name], plan, found) for name in run.needs]
    rounds = {"annotate": 1, "robustness": _versions(run)}.get(run.job, 0)
    networks = [_network(plan.grid.runs[name]) for name in run.needs]
    if not rounds or not of_models or networks[0] is None:
        return Cost(audio_s=0.0, operations=0.0)
    audio_s = rounds * found.evaluation_s
    return Cost(audio_s=audio_s, operations=audio_s * sum(operations_per_s(networks[0])))


def _versions(run: Experiment) -> int:
    flags = run.settings["flags"]
    names = flags.get("perturbations") or SUITES[flags.get("suite", "paper")]
    return 1 + len(names) * int(flags.get("repeats", 1))


def _training_cost(run: Experiment, found: CorpusHours) -> Cost:
    network = _network(run)
    if network is None:
        return Cost(audio_s=0.0, operations=0.0)
    kind = "cnn14" if network["model_type"] == CNN14 else "transformer"
    flags = with_recipe(flags_without_paths(run), kind)
    front, rest = operations_per_s(network)
    freeze = flags.freeze
    if freeze == "auto":
        freeze = "none" if run.settings["random"] else "cnn"
    train_s, dev_s, evaluation_s = (
        found.train_s * flags.train_fraction,
        found.dev_s,
        found.evaluation_s,
    )
    if run.job == PRETRAIN:
        corpora = speech.PRETRAININGS[run.settings["speech"]]
        train_s = sum(one.clips for one in corpora) * speech.MEAN_CLIP_S
        dev_s = evaluation_s = 0.0
    passes = (1 if freeze != "none" else 3) * front + (1 if freeze == "backbone" else 3) * rest
    scored_s = flags.epochs * dev_s + evaluation_s
    operations = flags.epochs * train_s * passes + scored_s * (front + rest)
    return Cost(
        audio_s=flags.epochs * train_s + scored_s, operations=operations, epochs=flags.epochs
    )


def _network(run: Experiment) -> Mapping[str, Any] | None:
    """`config.json` of a run's network, None when it is not one of ours."""
    name = str(run.settings["backbone"])
    if run.settings["small"]:
        network = study_networks.small_config(name)
    elif name in BACKBONES:
        network = BACKBONES[name].config()
    else:
        return None
    return keep_layers(network, run.settings["train"].get("layers"), name)


def operations_per_s(network: Mapping[str, Any]) -> tuple[float, float]:
    """Floating-point operations of a forward pass per second of audio: of the front, of the rest.

    A multiplication and an addition are two.
    """
    if network["model_type"] == CNN14:
        return 0.0, _cnn14_operations(network)
    if network["model_type"] == WHISPER:
        return _whisper_operations(network)
    rate, channels, front = float(SAMPLE_RATE_HZ), 1, 0.0
    shapes = zip(network["conv_dim"], network["conv_kernel"], network["conv_stride"], strict=True)
    for width, kernel, stride in shapes:
        rate /= stride
        front += 2 * kernel * channels * width * rate
        channels = width
    hidden, inner = network["hidden_size"], network["intermediate_size"]
    positional = hidden // network["num_conv_pos_embedding_groups"]
    once = channels * hidden + hidden * positional * network["num_conv_pos_embeddings"]
    layer = _layer_operations(hidden, inner, rate)
    return front, 2 * rate * once + network["num_hidden_layers"] * layer


def _whisper_operations(network: Mapping[str, Any]) -> tuple[float, float]:
    mels_per_s, rate = SAMPLE_RATE_HZ / 160, SAMPLE_RATE_HZ / 320
    hidden, inner = network["d_model"], network["encoder_ffn_dim"]
    front = 2 * 3 * hidden * (network["num_mel_bins"] * mels_per_s + hidden * rate)
    return front, network["encoder_layers"] * _layer_operations(hidden, inner, rate)


def _layer_operations(hidden: int, inner: int, rate: float) -> float:
    """Operations per second of audio of one transformer layer at `rate` frames a second."""
    products = 4 * hidden * hidden + 2 * hidden * inner + 2 * hidden * rate * _CLIP_S
    return 2 * rate * products


def _cnn14_operations(network: Mapping[str, Any]) -> float:
    widths = network.get("widths", (64, 128, 256, 512, 1024, 2048))
    places, channels, total = SAMPLE_RATE_HZ / 160 * 64, 1, 0.0
    for width in widths:
        total += 2 * 9 * (channels + width) * width * places
        places, channels = places / 4, width
    return total


def measured(resources: TrialResources) -> tuple[str, float]:
    """Device of a place, and the operations per second of a large matrix product there."""
    gpus = resources.share.gpus_each or (resources.placement.num_gpus if resources.placement else 0)
    if gpus:
        ask = ray.remote(num_gpus=1)(_matrix_speed)
        return "cuda", float(get_with_notice(ask.remote("cuda", 1), "one worker with a GPU"))
    threads = (
        resources.placement.threads
        if resources.placement
        else resources.local.threads
        if resources.local
        else 1
    )
    return "cpu", _matrix_speed("cpu", threads)


def _matrix_speed(device: str, threads: int) -> float:
    size = _MATRIX[device]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    half = torch.bfloat16 if device == "cuda" else torch.float32
    matrix = torch.rand(size, size, device=device, dtype=half)
    matrix @ matrix
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < _MEASURE_S:
        product = matrix @ matrix
        float(product[0, 0])  # waits for the device
        done += 1
    speed = 2 * size**3 * done / (time.perf_counter() - began)
    torch.set_num_threads(before)
    return speed


def _seconds(table: pa.Table, split: str | None = None) -> float:
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    return float(pc.sum(table["duration_s"]).as_py() or 0.0)

"""What a sweep is going to do, and what it would take: measured on a little of the data.

ASHA's savings depend on the results, so the cost is printed with and without it.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from raysers.data.manifest import write_manifest
from raysers.engine.cluster import get_with_notice
from raysers.engine.progress import duration, hours, print_pairs, print_warning
from raysers.io import storage
from raysers.training import dataset
from raysers.training.config import TrainingFlags
from raysers.training.dataset import Indexed
from raysers.training.trainer import LocalResources, run_training
from raysers.tuning.resources import TrialResources
from raysers.tuning.tuner import Sweep, is_left, make_scheduler, recorded_trials

#: Batches and dev clips that are trained on for the measurement.
_BATCHES = 3
_DEV_CLIPS = 32
#: Points shown of a long list.
_MOST_POINTS = 40


def print_plan(sweep: Sweep, resources: TrialResources) -> None:
    """Space, search and places, before it starts."""
    flags = sweep.flags
    pairs = {
        "space": ", ".join(f"{k.replace('_', '-')}: {v}" for k, v in sweep.space.written().items()),
        "search": f"{flags.search}, {sweep.trials} trials of up to {sweep.most_epochs} epochs",
        "stopping": _stopping(sweep),
        "places": resources.words,
    }
    if sweep.earlier is not None:
        state = "goes on" if is_left(sweep) else "finished, nothing is left to train"
        pairs["resuming"] = f"the sweep of {sweep.earlier.started_at}: {state}"
    print_pairs("tune", pairs)


def _stopping(sweep: Sweep) -> str:
    if make_scheduler(sweep) is not None:
        return f"ASHA, {sweep.flags.asha_reduction:g} to 1"
    too_short = " (too few epochs for ASHA)" if sweep.flags.asha == "on" else ""
    return f"no early stopping{too_short}"


def print_estimate(sweep: Sweep, resources: TrialResources, clips: pa.Table) -> None:
    """The trials, as far as they are known, and their cost."""
    known = sweep.flags.search != "optuna"
    count = sweep.trials if known else sweep.search.start  # type: ignore[attr-defined]
    shown = min(count, _MOST_POINTS)
    points = {f"trial {n}": _told(sweep.search.point(n, [])) for n in range(shown)}
    if shown < sweep.trials:
        points["..."] = f"{sweep.trials - shown} more" + ("" if known else ", chosen on the way")
    print_pairs("trials", points)
    left = sum(not is_over for is_over in _over(sweep))
    costs = _costs(sweep, resources, clips, left) if left else {"trials left": "none"}
    print_pairs("estimate (nothing was written)", costs)
    if left and len(sweep.starts) > 1:
        print_warning("measured with the first backbone only: others take another time")


def _told(point: dict[str, Any]) -> str:
    words = []
    for name, value in point.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        words.append(f"{name.replace('_', '-')} {text}")
    return ", ".join(words)


def _costs(sweep: Sweep, resources: TrialResources, clips: pa.Table, left: int) -> dict[str, str]:
    flags = sweep.flags_of(0, sweep.search.point(0, []))
    data = dataset.choose(flags, clips, [], seed=flags.seed, min_samples=1, dev_needed=True)
    epochs = _epochs(sweep, left)
    audio_s = data.train.audio_s
    speed = _measured_speed(flags, data.table, resources)
    trials_s = {name: n * audio_s / speed for name, n in epochs.items() if speed}
    pairs = {
        "an epoch": f"{len(data.train):,} clips, {hours(audio_s)} of audio",
        "speed": f"{speed:.3g} x real time a trial, measured in training{_of_one(resources)}",
    }
    if left < sweep.trials:
        pairs["trials left"] = f"{left} of {sweep.trials}"
    for name, seconds in trials_s.items():
        words = f"{epochs[name]:.0f} epochs, {duration(seconds / resources.share.at_once)}"
        if price := sweep.flags.usd_per_hour:
            words += f", {price * seconds / 3600:,.2f} USD"
        pairs[name] = words
    return pairs


def _of_one(resources: TrialResources) -> str:
    workers = resources.placement.workers if resources.placement else 1
    return f" with one worker, times {workers}" if workers > 1 else ""


def _over(sweep: Sweep) -> list[bool]:
    """By trial, whether nothing is left to do for it."""
    known = recorded_trials(sweep.output, sweep.trials)
    return [one is not None and one.is_final(sweep.flags.retries) for one in known]


def _epochs(sweep: Sweep, trials: int) -> dict[str, float]:
    """Epochs of so many trials together, to the end and as ASHA would leave them."""
    flags, most = sweep.flags, sweep.most_epochs
    found = {"all to the end": float(trials * most)}
    if make_scheduler(sweep) is not None:
        stop, share, spent = float(flags.asha_grace or max(1, most // 10)), 1.0, 0.0
        before = 0.0
        while stop < most:
            spent += share * (stop - before)
            before, stop, share = stop, stop * flags.asha_reduction, share / flags.asha_reduction
        found["with ASHA about"] = trials * (spent + share * (most - before))
    return found


def _measured_speed(flags: TrainingFlags, table: pa.Table, resources: TrialResources) -> float:
    """Audio seconds trained on in a second of one trial, over a few real batches.

    Measured where trials train, which may be other machines than this one. Several workers divide
    each batch among them, so one of them is as many times slower.
    """
    train = table.filter(pc.equal(table["split"], "train"))
    dev = table.filter(pc.equal(table["split"], "dev"))
    some = pa.concat_tables([_spread(train, _BATCHES * flags.batch_size), _spread(dev, _DEV_CLIPS)])
    place, share = resources.placement, resources.share
    cpus, gpus = (place.num_cpus, place.num_gpus) if place else (share.cpus_each, share.gpus_each)
    local = resources.local or LocalResources(threads=place.threads if place else 1)
    measure = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_speed_here)
    speed = float(get_with_notice(measure.remote(flags, some, local), "the place of a trial"))
    return speed * (place.workers if place else 1)


def _speed_here(flags: TrainingFlags, some: pa.Table, local: LocalResources) -> float:
    """As `_measured_speed`, of a training in this process on these clips."""
    with tempfile.TemporaryDirectory() as place:
        write_manifest(storage.join(place, "manifest"), some)
        small = replace(
            flags, output=storage.join(place, "out"), epochs=1, front_steps=0, folds=0,
            train_fraction=1.0, allow_leakage=True,
        )  # fmt: skip
        found: list[float] = []
        with redirect_stdout(io.StringIO()):  # what it says of itself is of no use here
            run_training(
                small,
                {},
                on_epoch=lambda record: found.append(_speed(record)),
                in_process=True,
                local=local,
                indexed=Indexed(manifest=storage.join(place, "manifest")),
            )
        return found[0]


def _speed(record: Mapping[str, Any]) -> float:
    return float(record["audio_s"] / max(record["wall_s"], 1e-9))


def _spread(table: pa.Table, most: int) -> pa.Table:
    """At most so many rows, spread evenly."""
    step = max(1, len(table) // max(most, 1))
    return table.take(list(range(0, len(table), step))[:most])

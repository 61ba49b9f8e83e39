"""What a sweep prints and leaves: plan, cost, tables, a picture, the best model, run.json.

The score of a trial is that of its best epoch. The best trial was chosen by it, so it flatters that
trial; the card says so.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import ray

from raysers import display
from raysers.data.manifest import write_manifest
from raysers.engine import output as parts
from raysers.engine.cluster import get_with_notice
from raysers.engine.placement import Placement
from raysers.engine.progress import duration, hours, print_pairs, print_warning
from raysers.io import marks, storage
from raysers.schemas import CURVES
from raysers.training import dataset
from raysers.training.config import TrainingFlags
from raysers.training.dataset import Indexed
from raysers.training.results import Epoch
from raysers.training.trainer import run_training
from raysers.tuning.space import SEARCHABLE, Point, Space
from raysers.tuning.sweep import Sweep, make_scheduler, point_of
from raysers.tuning.trials import TrialRecord, TrialResources
from raysers.types import DIMENSIONS

TRIALS_PART, CURVES_PART = "trials/part-00000.parquet", "curves/part-00000.parquet"
#: Files of a trial's folder that are not part of its model folder.
_NOT_PUBLISHED = ("state/", "tensorboard/", "trial.json", marks.CLAIM_NAME)
#: Fewer trials than this say nothing about several flags.
_MIN_TRIALS, _FEW_TRIALS = 6, 20
_PARAMETER = "param_"
_COLUMNS = (
    ("trial", pa.string(), "name of the trial"),
    ("number", pa.int64(), "of the trial, from 0; with the seed it decides a random point"),
    ("status", pa.string(), "done, stopped (early, by ASHA) or failed"),
    ("error", pa.string(), "why it failed; empty when it did not"),
    ("epochs", pa.int64(), "epochs trained"),
    ("best_epoch", pa.int64(), "epoch with the best mean CCC on dev, whose model was kept"),
    ("dev_ccc_mean", pa.float64(), "mean CCC on dev of that epoch; null: none"),
    *((f"dev_ccc_{name}", pa.float64(), f"its CCC of {name}") for name in DIMENSIONS),
    ("wall_s", pa.float64(), "seconds the trial ran, over attempts that came to an end"),
    ("attempts", pa.int64(), "how often it was started"),
    ("path", pa.string(), "its folder, relative to the output"),
)
#: Trials, one a row; a column for each flag that is searched follows.
TRIALS = pa.schema([pa.field(n, kind, metadata={"meaning": m}) for n, kind, m in _COLUMNS])
_ARROW = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_MAX_POINTS_SHOWN = 40
#: Batches and dev clips of a measurement.
_BATCHES, _DEV_CLIPS = 3, 32


def best_epoch(trial: TrialRecord) -> Epoch | None:
    """The epoch a trial is judged by: the first one with its highest mean dev CCC."""
    known = [epoch for epoch in trial.history if epoch["dev_ccc_mean"] is not None]
    return max(known, key=lambda epoch: epoch["dev_ccc_mean"], default=None)


def told(point: Point) -> str:
    """`lr 0.00031, freeze cnn`."""
    return ", ".join(
        f"{name.replace('_', '-')} {f'{v:.3g}' if isinstance(v, float) else v}"
        for name, v in point.items()
    )


def describe(trial: TrialRecord) -> str:
    """`dev CCC 0.512 at epoch 4 of 5, lr 0.00031, freeze cnn`."""
    words = told(trial.notes["point"])
    if best := best_epoch(trial):
        where = f"at epoch {best['epoch']} of {len(trial.history)}"
        words = f"dev CCC {best['dev_ccc_mean']:z.3f} {where}, {words}"
    return words


def print_plan(sweep: Sweep, resources: TrialResources) -> None:
    """Space, search and places, before the sweep starts."""
    flags = sweep.flags
    stopping = f"ASHA, {flags.asha_reduction:g} to 1"
    if make_scheduler(flags, sweep.most_epochs) is None:
        too_short = " (too few epochs for ASHA)" if flags.asha == "on" else ""
        stopping = f"no early stopping{too_short}"
    pairs = {
        "space": ", ".join(f"{k.replace('_', '-')}: {v}" for k, v in sweep.space.written().items()),
        "search": f"{flags.search}, {sweep.trials} trials of up to {sweep.most_epochs} epochs",
        "stopping": stopping,
        "places": resources.words,
    }
    if sweep.earlier is not None:
        state = "resumed" if sweep.left() else "finished, nothing is left to train"
        pairs["resuming"] = f"the sweep of {sweep.earlier.started_at}: {state}"
    print_pairs("tune", pairs)


def print_estimate(sweep: Sweep, resources: TrialResources, clips: pa.Table) -> None:
    """The trials, as far as they are known, and their cost with and without ASHA."""
    shown = sweep.points[: min(sweep.trials, _MAX_POINTS_SHOWN)]
    points = {f"trial {number}": told(point) for number, point in enumerate(shown)}
    if len(shown) < sweep.trials:
        chosen = ", chosen on the way" if sweep.flags.search == "optuna" else ""
        points["..."] = f"{sweep.trials - len(shown)} more{chosen}"
    print_pairs("trials", points)
    numbers = sweep.left()
    costs = {"trials left": f"{len(numbers)} of {sweep.trials}" if numbers else "none"}
    if numbers:
        flags = sweep.flags_of(0, sweep.points[0])
        data = dataset.choose(flags, clips, [], min_samples=1)
        speed = measure_speed(flags, data.table, resources)
        workers = resources.placement
        of_one = f" with one worker, times {workers.workers}" if not workers.local else ""
        costs["an epoch"] = f"{len(data.train):,} clips, {hours(data.train.audio_s)} of audio"
        costs["speed"] = f"{speed:.3g} x real time a trial, measured in training{of_one}"
        for name, epochs in _epochs(sweep, len(numbers)).items():
            seconds = epochs * data.train.audio_s / speed
            costs[name] = f"{epochs:.0f} epochs, {duration(seconds / resources.at_once)}"
            if price := sweep.flags.usd_per_hour:
                costs[name] += f", {price * seconds / 3600:,.2f} USD"
    print_pairs("estimate (nothing was written)", costs)
    if numbers and len(sweep.networks) > 1:
        print_warning("measured with the first backbone only: others take another time")


def measure_speed(flags: TrainingFlags, table: pa.Table, resources: TrialResources) -> float:
    """Audio seconds that one trial trains on per second, over a few batches of real clips.

    Measured where trials train, which may be other machines than this one, with one worker; several
    workers divide each batch among them, so the speed is multiplied by their number. The flags have
    the recipe filled in, the clips the splits train and dev.
    """
    chosen = []
    for split, most in (("train", _BATCHES * flags.batch_size), ("dev", _DEV_CLIPS)):
        own = table.filter(pc.equal(table["split"], split))
        chosen.append(own.take(list(range(0, len(own), max(1, len(own) // most)))[:most]))
    one = replace(resources.placement, workers=1, local=True)
    measure = ray.remote(num_cpus=one.num_cpus, num_gpus=one.num_gpus, max_retries=0)(_speed_here)
    task = measure.remote(flags, pa.concat_tables(chosen), one)
    return float(get_with_notice(task, "the place of a trial")) * resources.placement.workers


def _speed_here(flags: TrainingFlags, some: pa.Table, placement: Placement) -> float:
    """Of one epoch in this process."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        manifest = storage.join(folder, "manifest")
        write_manifest(manifest, some)
        small = replace(
            flags, output=storage.join(folder, "out"), epochs=1, front_steps=0, folds=0,
            train_fraction=1.0, allow_leakage=True,
        )  # fmt: skip
        outcome = run_training(small, {}, placement=placement, indexed=Indexed(manifest=manifest))
        epoch = outcome.history[0]
        return float(epoch["audio_s"] / max(epoch["wall_s"], 1e-9))


def _epochs(sweep: Sweep, trials: int) -> dict[str, float]:
    """Epochs of so many trials together, to the end and as ASHA would leave them."""
    most, reduction = sweep.most_epochs, sweep.flags.asha_reduction
    found = {"all to the end": float(trials * most)}
    if make_scheduler(sweep.flags, most):
        stop, share = float(sweep.flags.asha_grace or max(1, most // 10)), 1.0
        spent = stop
        while stop < most:
            share /= reduction
            spent += share * (min(stop * reduction, most) - stop)
            stop *= reduction
        found["with ASHA about"] = trials * spent
    return found


def on_ended(sweep: Sweep, trial: TrialRecord, trials: Sequence[TrialRecord]) -> str:
    """Replace the table when a trial has ended; returns what its line says of it."""
    write_trials(trials, sweep)
    return describe(trial)


def write_trials(trials: Sequence[TrialRecord], sweep: Sweep) -> pa.Table:
    """Replace the table of trials: a row each, with a column `param_<flag>` per searched flag."""
    schema = TRIALS
    for name in sweep.space.written():
        meaning = {"meaning": f"--{name.replace('_', '-')} of the trial; null: not searched in it"}
        kind = _ARROW.get(SEARCHABLE[name], pa.string())
        schema = schema.append(pa.field(_PARAMETER + name, kind, metadata=meaning))
    table = parts.to_table(list(map(_row, trials)), schema)
    parts.write_part(storage.join(sweep.flags.output, TRIALS_PART), table)
    return table


def _row(trial: TrialRecord) -> dict[str, Any]:
    best = best_epoch(trial) or {}
    return {
        "trial": trial.name,
        "number": trial.notes["number"],
        "status": trial.status,
        "error": trial.error,
        "epochs": len(trial.history),
        "best_epoch": best.get("epoch"),
        "dev_ccc_mean": best.get("dev_ccc_mean"),
        **{f"dev_ccc_{name}": (best.get("dev_ccc") or {}).get(name) for name in DIMENSIONS},
        "wall_s": trial.wall_s,
        "attempts": trial.attempts,
        "path": f"runs/{trial.name}",
        **{
            # a value without a column type is text
            _PARAMETER + name: v
            if SEARCHABLE[name] in _ARROW or v is None or isinstance(v, str)
            else json.dumps(v)
            for name, v in trial.notes["point"].items()
        },
    }


def curve_rows(
    key: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Rows of `schemas.CURVES`: CCC on dev by epoch and dimension, and their mean."""
    for epoch in epochs:
        values = {**(epoch["dev_ccc"] or {}), "mean": epoch["dev_ccc_mean"]}
        for name in (*DIMENSIONS, "mean"):
            at = {"epoch": epoch["epoch"], "step": epoch.get("step"), "dimension": name}
            yield {**key, **at, "ccc": values.get(name)}


def conclude(sweep: Sweep, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """Write tables, the learning curves and the best model; returns the figures for run.json."""
    output, base = sweep.flags.output, sweep.base
    table = write_trials(trials, sweep)
    rows: list[dict[str, Any]] = []
    for trial in trials:
        point, number = trial.notes["point"], str(trial.notes["number"])
        key = {"study": output.rstrip("/").rpartition("/")[2], "cell": trial.name}
        key |= {"model": point.get("backbone", base.backbone), "seed": point.get("seed", base.seed)}
        rows += curve_rows({**key, "factor": "trial", "factor_value": number}, trial.history)
    curves = parts.to_table(rows, CURVES)
    parts.write_part(storage.join(output, CURVES_PART), curves)
    found = importance(trials, sweep.space, sweep.flags.seed)
    means = curves.filter(pc.equal(curves["dimension"], "mean")).to_pandas().dropna(subset=["ccc"])
    if len(means):
        picture = display.picture(partial(_draw_curves, table.to_pandas(), means))
        for kind, content in picture.items():
            storage.write_atomic(storage.join(output, f"learning_curves.{kind}"), content)
    ranked = _ranked(trials)
    chosen = None
    for best in ranked[:1]:
        point = best.notes["point"]
        chosen = {"trial": best.name, "dev_ccc_mean": _score(best), "point": point}
        values = ", ".join(f"{name} {point[name]}" for name in sorted(point))
        _publish(
            best,
            storage.join(output, "best"),
            f"\n## Selection\n\nThis is {best.name}, the best of the {len(trials)} trials of a "
            f"{sweep.flags.search} search ({values}). It was chosen by its dev score, which is "
            "therefore too high by some chance: only clips that took no part in the choice, as a "
            "test split, say how good it is.\n",
        )
    epochs = [epoch for trial in trials for epoch in trial.history]
    return {
        "trials": len(trials),
        "statuses": dict(Counter(trial.status for trial in trials).most_common()),
        "best": chosen,
        "importance": found,
        "epochs": len(epochs),
        "audio_hours": round(sum(epoch["audio_s"] for epoch in epochs) / 3600, 4),
        "trial_s": round(sum(trial.wall_s for trial in trials), 1),
    }


def _score(trial: TrialRecord) -> float:
    best = best_epoch(trial)
    return float(best["dev_ccc_mean"]) if best else float("nan")


def _ranked(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Those that are done, the best first; the earlier of equals."""
    done = [trial for trial in trials if trial.status == "done" and best_epoch(trial)]
    return sorted(done, key=_score, reverse=True)


def _publish(best: TrialRecord, target: str, note: str) -> None:
    """Copy the model folder of a trial, with `note` at the end of its card."""
    names = [found.uri.removeprefix(best.path + "/") for found in storage.list_objects(best.path)]
    # the description last, so that the folder never promises weights that are not there yet
    for name in sorted(names, key=lambda name: name == "config.json"):
        if not name.startswith(_NOT_PUBLISHED):
            content = storage.read_bytes(storage.join(best.path, name))
            content += note.encode() if name == "README.md" else b""
            storage.write_atomic(storage.join(target, name), content)


def print_outcome(sweep: Sweep, trials: Sequence[TrialRecord], outcome: Mapping[str, Any]) -> None:
    """The best trials, what mattered, and where everything is."""
    ranked, shares = _ranked(trials), outcome["importance"]["shares"]
    counts = ", ".join(f"{n} {status}" for status, n in outcome["statuses"].items())
    pairs = {"trials": counts} | {trial.name: describe(trial) for trial in ranked[:3]}
    if shares:
        words = ", ".join(f"{row['name'].replace('_', '-')} {row['value']:.2f}" for row in shares)
        pairs["importance"] = f"{words} ({outcome['importance']['method']})"
    if ranked:
        pairs["best"] = storage.join(sweep.flags.output, "best")
    pairs["table"] = storage.join(sweep.flags.output, "trials")
    print_pairs("sweep", pairs)
    if failed := [trial for trial in trials if trial.status == "failed"]:
        first = failed[0]
        print_warning(f"{len(failed)} trials failed; the first is {first.name}: {first.error}")


def importance(trials: Sequence[TrialRecord], space: Space, seed: int) -> dict[str, Any]:
    """Share of the differences between trials by flag: functional ANOVA (Hutter et al. 2014).

    Stopped trials count with what they had reached; flags that not every trial has are left out.
    `shares` is a list of `name` and `value` (0..1), the largest first.
    """
    found: dict[str, Any] = {"method": "fANOVA", "shares": [], "note": ""}
    used = [trial for trial in trials if trial.status != "failed" and best_epoch(trial)]
    if len(used) < _MIN_TRIALS or len({_score(trial) for trial in used}) == 1:
        return found | {"note": f"{len(used)} trials with a score: too few to say what mattered"}
    if not all(map(importlib.util.find_spec, ("optuna", "sklearn"))):
        note = "needs the packages optuna and scikit-learn: raysers[search,report]"
        return found | {"note": note}
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for trial in used:
        study.enqueue_trial(space.for_optuna(point_of(trial)))
        asked = study.ask()
        space.suggested(asked)
        study.tell(asked, _score(trial))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    stopped = sum(trial.status == "stopped" for trial in used)
    note = f"{len(used)} trials" + (f", {stopped} of them stopped early" if stopped else "")
    note += "; few, so take it as a hint" if len(used) < _FEW_TRIALS else ""
    return found | {"shares": [{"name": k, "value": v} for k, v in shares.items()], "note": note}


def _draw_curves(trials: pd.DataFrame, means: pd.DataFrame) -> Any:
    """Mean CCC on dev by epoch of every trial, the best in orange."""
    from matplotlib.ticker import MaxNLocator

    figure = display.new_figure(3.2)
    panel = figure.subplots()
    display.panel_title(panel, "Mean CCC on dev")
    done = trials[trials["status"] == "done"].sort_values("dev_ccc_mean")["trial"].to_list()
    for trial, curve in means.groupby("cell"):
        is_best = trial in done[-1:]
        rest = display.BLUE if trial in done else display.SOFT
        colour = display.VERMILION if is_best else rest
        width, alpha = (2.2, 1.0) if is_best else (0.9, 0.55)
        style = {"linewidth": width, "alpha": alpha, "marker": "o" if len(curve) == 1 else None}
        display.line(panel, curve["epoch"], curve["ccc"], colour, markersize=3, **style)
        if is_best:
            display.end_label(panel, curve["ccc"].iloc[-1], str(trial), colour)
    panel.set_xlim(1, max(means["epoch"].max(), 1.5))
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    display.value_grid(panel)
    panel.set_xlabel("epoch; stopped trials grey", loc="right")
    return figure

"""What a sweep leaves: tables, pictures, the best model as a folder, and what run.json says.

The best trial was chosen by its dev score, so that score flatters it; the card says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raysers.engine import output as parts
from raysers.engine.progress import print_pairs, print_warning
from raysers.io import claim, storage
from raysers.run import Exit
from raysers.training.config import TrainingFlags, with_recipe
from raysers.tuning import figure
from raysers.tuning.importance import Axis, Importance, Tried, importance
from raysers.tuning.points import Range
from raysers.tuning.table import (
    CURVES_PART,
    best_epoch,
    best_trial,
    curves_table,
    history_of,
    number_of,
    point_of,
    score_of,
    write_trials,
)
from raysers.tuning.trials import TrialRecord
from raysers.tuning.tuner import Sweep, describe

#: What of a trial's folder is not part of its model folder.
_NOT_PUBLISHED = ("state/", "tensorboard/", "trial.json", claim.NAME)

#: What run.json says for each way to end.
STATUSES = {
    Exit.DONE: "done",
    Exit.TOO_MANY_FAILED: "done_with_failures",
    Exit.FAILED: "failed",
}


def conclude(sweep: Sweep, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """Write tables, pictures and the best model; returns the figures for run.json.

    Raises:
        WriteError: the output cannot be written.
    """
    output, base = sweep.output, sweep.base
    write_trials(trials, sweep.space, output)
    name = output.rstrip("/").rpartition("/")[2]
    curves = curves_table(trials, model=base.backbone, seed=base.seed, study=name)
    parts.write_part(storage.join(output, CURVES_PART), curves)
    tried, axes = [_tried(sweep, trial) for trial in trials], _axes(sweep)
    found = importance(tried, axes, seed=base.seed)
    _write_pictures(output, tried, axes, found)
    best = best_trial(trials)
    if best is not None:
        publish(best, storage.join(output, "best"), _selection(sweep, trials, best))
    return _outcome(trials, best, found)


def publish(best: TrialRecord, target: str, note: str) -> None:
    """Copy the model folder of a trial, with `note` at the end of its card.

    Raises:
        WriteError: the output cannot be written.
    """
    names = [found.uri.removeprefix(best.path + "/") for found in storage.list_objects(best.path)]
    # the description last, so that the folder never promises weights that are not there yet
    for name in sorted(names, key=lambda name: name == "config.json"):
        if not name.startswith(_NOT_PUBLISHED):
            content = storage.read_bytes(storage.join(best.path, name))
            if name == "README.md":
                content += note.encode()
            storage.write_atomic(storage.join(target, name), content)


def exit_code(trials: Sequence[TrialRecord], max_failed: float) -> Exit:
    """0; 1 without any trial that is done; 3 with more failed ones than allowed."""
    counts = Counter(trial.status for trial in trials)
    if not counts["done"]:
        return Exit.FAILED
    return Exit.TOO_MANY_FAILED if counts["failed"] > max_failed * len(trials) else Exit.DONE


def print_outcome(sweep: Sweep, trials: Sequence[TrialRecord], outcome: Mapping[str, Any]) -> None:
    """The best trials, what mattered, and where everything is."""
    ranked = [trial for trial in trials if trial.status == "done" and best_epoch(trial)]
    ranked.sort(key=score_of, reverse=True)
    counts = ", ".join(f"{n} {status}" for status, n in outcome["statuses"].items())
    pairs = {"trials": counts} | {trial.name: describe(trial) for trial in ranked[:3]}
    if outcome["importance"]["shares"]:
        shares = outcome["importance"]["shares"]
        words = ", ".join(f"{row['name'].replace('_', '-')} {row['value']:.2f}" for row in shares)
        pairs["importance"] = f"{words} ({outcome['importance']['method']})"
    if ranked:
        pairs["best"] = storage.join(sweep.output, "best")
    pairs["table"] = storage.join(sweep.output, "trials")
    print_pairs("sweep", pairs)
    failed = outcome["statuses"].get("failed", 0)
    if failed:
        first = next(trial for trial in trials if trial.status == "failed")
        print_warning(f"{failed} trials failed; the first is {first.name}: {first.error}")


def _tried(sweep: Sweep, trial: TrialRecord) -> Tried:
    """A trial with the values it really had, those that were not searched in it too."""
    point, base = point_of(trial), _settled_base(sweep)
    values = {n: _plain(point.get(n, getattr(base, n))) for n in sweep.space.names}
    best = best_epoch(trial)
    return Tried(
        number=number_of(trial),
        status=trial.status,
        score=best["dev_ccc_mean"] if best else None,
        values=values,
        curve=[(epoch["epoch"], epoch["dev_ccc_mean"]) for epoch in history_of(trial)],
    )


def _settled_base(sweep: Sweep) -> TrainingFlags:
    """What flags are in trials in which they are not searched."""
    return with_recipe(sweep.base, next(iter(sweep.starts.values())).kind)


def _axes(sweep: Sweep) -> list[Axis]:
    axes, base = [], _settled_base(sweep)
    for flag in sorted(sweep.space.flags, key=lambda flag: flag.name):
        if flag.varies:
            values = flag.values
            numeric = isinstance(values, Range) or all(map(_is_number, values))
            if flag.when:  # then the command line's value is one of them
                numeric = numeric and _is_number(getattr(base, flag.name))
            log = isinstance(values, Range) and values.log
            axes.append(Axis(name=flag.name, numeric=numeric, log=log))
    return axes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """As records have it, whether it comes from one or not."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


def _write_pictures(
    output: str, tried: Sequence[Tried], axes: Sequence[Axis], found: Importance
) -> None:
    pictures = {
        "parallel_coordinates": figure.parallel_coordinates(tried, axes),
        "importance": figure.importance_bars(found),
        "learning_curves": figure.learning_curves(tried),
    }
    for name, picture in pictures.items():
        for kind, content in picture.items():
            storage.write_atomic(storage.join(output, f"{name}.{kind}"), content)


def _selection(sweep: Sweep, trials: Sequence[TrialRecord], best: TrialRecord) -> str:
    changed = [name for name in sweep.space.names if name in point_of(best)]
    values = ", ".join(f"{name} {point_of(best)[name]}" for name in sorted(changed))
    return (
        f"\n## Selection\n\nThis is {best.name}, the best of the {len(trials)} trials of a "
        f"{sweep.flags.search} search ({values}). It was chosen by its dev score, which is "
        "therefore too high by some chance: only clips that took no part in the choice, as a test "
        "split, say how good it is.\n"
    )


def _outcome(
    trials: Sequence[TrialRecord], best: TrialRecord | None, found: Importance
) -> dict[str, Any]:
    epochs = [epoch for trial in trials for epoch in history_of(trial)]
    chosen = None
    if best is not None:
        chosen = {"trial": best.name, "dev_ccc_mean": score_of(best), "point": point_of(best)}
    return {
        "trials": len(trials),
        "statuses": dict(Counter(trial.status for trial in trials).most_common()),
        "best": chosen,
        "importance": asdict(found),
        "epochs": len(epochs),
        "audio_hours": round(sum(epoch["audio_s"] for epoch in epochs) / 3600, 4),
        "trial_s": round(sum(trial.wall_s for trial in trials), 1),
    }

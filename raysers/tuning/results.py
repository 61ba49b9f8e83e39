"""What a sweep leaves: tables, pictures, the best model as a folder, and what run.json says.

The score of a trial is that of its best epoch. The best trial was chosen by it, so it flatters that
trial; the card says so.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_origin

import pyarrow as pa

from raysers.engine import output as parts
from raysers.engine.progress import print_pairs, print_warning
from raysers.io import claim, storage
from raysers.run import Exit
from raysers.schemas import CURVES
from raysers.tuning.figures import PARAMETER, pictures
from raysers.tuning.plan import Sweep, point_of
from raysers.tuning.space import SEARCHABLE, Space
from raysers.tuning.trials import TrialRecord
from raysers.tuning.tuner import best_epoch, describe
from raysers.types import DIMENSIONS

TRIALS_PART, CURVES_PART = "trials/part-00000.parquet", "curves/part-00000.parquet"
#: Files of a trial's folder that are not part of its model folder.
_NOT_PUBLISHED = ("state/", "tensorboard/", "trial.json", claim.NAME)
#: What run.json says for each way to end.
STATUSES = {
    Exit.DONE: "done",
    Exit.TOO_MANY_FAILED: "done_with_failures",
    Exit.FAILED: "failed",
}
#: Fewer trials than this say nothing about several flags.
_MIN_TRIALS = 6
_FEW_TRIALS = 20

_MEANINGS = (
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
_ARROW = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def trials_table(trials: Sequence[TrialRecord], space: Space) -> pa.Table:
    """A row per trial by number, with a column `param_<flag>` per flag of the space."""
    schema = [pa.field(n, kind, metadata={"meaning": m}) for n, kind, m in _MEANINGS]
    for name in space.names:
        meaning = {"meaning": f"--{name.replace('_', '-')} of the trial; null: not searched in it"}
        kind = _ARROW.get(SEARCHABLE[name], pa.string())
        schema.append(pa.field(PARAMETER + name, kind, metadata=meaning))
    return parts.to_table([_row(trial) for trial in trials], pa.schema(schema))


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
        **{PARAMETER + name: _cell(name, v) for name, v in trial.notes["point"].items()},
    }


def _cell(name: str, value: Any) -> Any:
    """Lists and other values without a column type as text."""
    kind = SEARCHABLE[name]
    if kind in _ARROW or value is None:
        return value
    return value if isinstance(value, str) and get_origin(kind) is not tuple else json.dumps(value)


def curves_table(sweep: Sweep, trials: Sequence[TrialRecord]) -> pa.Table:
    """CCC on dev by trial, epoch and dimension, as studies have it."""
    rows = []
    for trial in trials:
        point = trial.notes["point"]
        for epoch in trial.history:
            values = {**(epoch["dev_ccc"] or {}), "mean": epoch["dev_ccc_mean"]}
            rows += [
                {
                    "study": sweep.flags.output.rstrip("/").rpartition("/")[2],
                    "cell": trial.name,
                    "model": point.get("backbone", sweep.base.backbone),
                    "factor": "trial",
                    "factor_value": str(trial.notes["number"]),
                    "seed": point.get("seed", sweep.base.seed),
                    "epoch": epoch["epoch"],
                    "step": epoch.get("step"),
                    "dimension": name,
                    "ccc": value,
                }
                for name, value in values.items()
            ]
    return parts.to_table(rows, CURVES)


def write_trials(trials: Sequence[TrialRecord], sweep: Sweep) -> pa.Table:
    """Replace the table of trials; returns it.

    Raises:
        WriteError: the output cannot be written.
    """
    table = trials_table(trials, sweep.space)
    parts.write_part(storage.join(sweep.flags.output, TRIALS_PART), table)
    return table


def conclude(sweep: Sweep, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """Write tables, pictures and the best model; returns the figures for run.json.

    Raises:
        WriteError: the output cannot be written.
    """
    table, curves = write_trials(trials, sweep), curves_table(sweep, trials)
    parts.write_part(storage.join(sweep.flags.output, CURVES_PART), curves)
    found = importance(trials, sweep.space, sweep.flags.seed)
    for name, picture in pictures(table.to_pandas(), curves.to_pandas(), found).items():
        for kind, content in picture.items():
            storage.write_atomic(storage.join(sweep.flags.output, f"{name}.{kind}"), content)
    ranked = _ranked(trials)
    chosen = None
    if ranked:
        best, point = ranked[0], ranked[0].notes["point"]
        chosen = {"trial": best.name, "dev_ccc_mean": _score(best), "point": point}
        values = ", ".join(f"{name} {point[name]}" for name in sorted(point))
        _publish(
            best,
            storage.join(sweep.flags.output, "best"),
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


def exit_code(trials: Sequence[TrialRecord], max_failed: float) -> Exit:
    """0; 1 without any trial that is done; 3 with more failed ones than allowed."""
    counts = Counter(trial.status for trial in trials)
    if not counts["done"]:
        return Exit.FAILED
    return Exit.TOO_MANY_FAILED if counts["failed"] > max_failed * len(trials) else Exit.DONE


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
    failed = [trial for trial in trials if trial.status == "failed"]
    if failed:
        first = failed[0]
        print_warning(f"{len(failed)} trials failed; the first is {first.name}: {first.error}")


def importance(trials: Sequence[TrialRecord], space: Space, seed: int) -> dict[str, Any]:
    """Share of the differences between trials by flag: functional ANOVA (Hutter et al. 2014).

    Stopped trials count with what they had reached; flags that not every trial has are left out.

    Returns:
        `method`; `shares`, a list of `name` and `value` (0..1), the largest first; `note`.
    """
    found: dict[str, Any] = {"method": "fANOVA", "shares": [], "note": ""}
    used = [trial for trial in trials if trial.status != "failed" and best_epoch(trial)]
    if len(used) < _MIN_TRIALS or len({_score(trial) for trial in used}) == 1:
        return found | {"note": f"{len(used)} trials with a score: too few to say what mattered"}
    if not all(map(importlib.util.find_spec, ("optuna", "sklearn"))):
        return found | {
            "note": "needs the packages optuna and scikit-learn: raysers[search,report]"
        }
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

"""The tables of a sweep: its trials, one a row, and their learning curves.

The score of a trial is that of its best epoch, whose model it keeps; of a failed trial what it had
shown before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_origin

import pyarrow as pa

from raysers.engine import output as parts
from raysers.io import storage
from raysers.schemas import CURVES
from raysers.tuning.points import Space
from raysers.tuning.trials import TrialRecord
from raysers.tuning.values import SEARCHABLE
from raysers.types import DIMENSIONS

TRIALS_PART, CURVES_PART = "trials/part-00000.parquet", "curves/part-00000.parquet"

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

#: A record of an epoch.
Epoch = Mapping[str, Any]


def history_of(trial: TrialRecord) -> Sequence[Epoch]:
    """The epochs of a trial: all of one that is done, else those it told of."""
    found: Sequence[Epoch] = trial.result.get("history", trial.reports)
    return found


def best_epoch(trial: TrialRecord) -> Epoch | None:
    """The epoch a trial is judged by: the first one with its highest mean dev CCC."""
    known = [epoch for epoch in history_of(trial) if epoch["dev_ccc_mean"] is not None]
    return max(known, key=lambda epoch: epoch["dev_ccc_mean"], default=None)


def best_trial(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Of those that are done, the one with the best epoch; the earlier of equals."""
    done = [trial for trial in trials if trial.status == "done" and best_epoch(trial)]
    return max(done, key=score_of, default=None)


def score_of(trial: TrialRecord) -> float:
    """Mean dev CCC of its best epoch; NaN where there is none."""
    best = best_epoch(trial)
    return float(best["dev_ccc_mean"]) if best else float("nan")


def trials_table(trials: Sequence[TrialRecord], space: Space, output: str) -> pa.Table:
    """A row per trial by number, with a column `param_<flag>` per flag of the space."""
    fields = [pa.field(n, kind, metadata={"meaning": m}) for n, kind, m in _MEANINGS]
    for name in sorted(space.names):
        meaning = {"meaning": f"--{name.replace('_', '-')} of the trial; null: not searched in it"}
        fields.append(pa.field(f"param_{name}", _arrow_kind(name), metadata=meaning))
    rows = [_row(trial, space, output) for trial in sorted(trials, key=number_of)]
    return parts.to_table(rows, pa.schema(fields))


def number_of(trial: TrialRecord) -> int:
    """The trial's number."""
    return int(trial.notes["number"])


def point_of(trial: TrialRecord) -> Mapping[str, Any]:
    """Values of its searched flags, as JSON has them."""
    found: Mapping[str, Any] = trial.notes["point"]
    return found


def _row(trial: TrialRecord, space: Space, output: str) -> dict[str, Any]:
    best = best_epoch(trial)
    scores = (best["dev_ccc"] or {}) if best else {}
    params = {
        f"param_{name}": _cell(name, point_of(trial)[name])
        for name in space.names
        if name in point_of(trial)
    }
    return params | {
        "trial": trial.name,
        "number": number_of(trial),
        "status": trial.status,
        "error": trial.error,
        "epochs": len(history_of(trial)),
        "best_epoch": best["epoch"] if best else None,
        "dev_ccc_mean": best["dev_ccc_mean"] if best else None,
        **{f"dev_ccc_{name}": scores.get(name) for name in DIMENSIONS},
        "wall_s": trial.wall_s,
        "attempts": trial.attempts,
        "path": trial.path.removeprefix(output.rstrip("/") + "/"),
    }


_ARROW = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _arrow_kind(name: str) -> pa.DataType:
    return _ARROW.get(SEARCHABLE[name], pa.string())


def _cell(name: str, value: Any) -> Any:
    """Lists and other values without a column type as text."""
    kind = SEARCHABLE[name]
    if kind in _ARROW or value is None:
        return value
    return value if isinstance(value, str) and get_origin(kind) is not tuple else json.dumps(value)


def curves_table(trials: Sequence[TrialRecord], *, model: str, seed: int, study: str) -> pa.Table:
    """CCC on dev by trial, epoch and dimension, as studies have it."""
    rows = []
    for trial in sorted(trials, key=number_of):
        common = {
            "study": study,
            "cell": trial.name,
            "model": point_of(trial).get("backbone", model),
            "factor": "trial",
            "factor_value": str(number_of(trial)),
            "seed": point_of(trial).get("seed", seed),
        }
        for epoch in history_of(trial):
            values = {**(epoch["dev_ccc"] or {}), "mean": epoch["dev_ccc_mean"]}
            rows += [
                {**common, "epoch": epoch["epoch"], "dimension": name, "ccc": value}
                for name, value in values.items()
            ]
    return parts.to_table(rows, CURVES)


def write_trials(trials: Sequence[TrialRecord], space: Space, output: str) -> None:
    """Replace the table of trials.

    Raises:
        WriteError: the output cannot be written.
    """
    table = trials_table(trials, space, output)
    parts.write_part(storage.join(output, TRIALS_PART), table)

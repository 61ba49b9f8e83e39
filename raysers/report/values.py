"""Values of the metrics tables of all runs, and which of them stand for a dataset.

A dataset is shown by one split only, its (first) test split where there is one; the dev split of a
training stands in for it where nothing else was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from raysers.evaluation.baseline import NAME as RANDOM
from raysers.words.fusion_scores import FUSED, OTHERS

NAN = math.nan
#: The studies the paper's figures are of; others are the user's.
PAPER_STUDIES = (
    "backbones", "pretraining", "frozen", "seeds", "layers", "fraction", "robustness",
    "fairness", "speakers", "embeddings", "fusion", "probe", "respoken",
)  # fmt: skip
#: What a study varies when it trains the same several times.
SEED = "seed"
#: Models of the rows of a fusion, which are parts of one and the same.
CONTESTANTS = (FUSED, *OTHERS)
#: Splits a dataset is shown by, the first that is there.
_MAIN_SPLITS = ("test1", "test", "all", "dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A row of the metrics table, with the cell of a study it is of; NaN: undefined.

    `backbone` is what the cell's model is called; the `model` of a row may be a part of it. `seeds`
    counts the trainings a value is the mean of.
    """

    study: str = ""
    cell: str = ""
    backbone: str = ""
    factor: str = ""
    factor_value: str = ""
    seed: int = 0
    seeds: int = 1
    model: str
    dataset: str
    split: str
    group: str = ""
    group_value: str = ""
    dimension: str
    metric: str
    value: float
    ci_low: float = NAN
    ci_high: float = NAN
    n: int = 0
    speakers: int = 0
    paper: float = NAN


def values_of(table: pa.Table, names: Mapping[tuple[str, str], str] | None = None) -> list[Value]:
    """Rows of a metrics table, or of a study's.

    Args:
        table: of `schemas.METRICS` or `STUDY_METRICS`; other columns are ignored.
        names: what to call the models of a study, by study and cell.
    """
    known = [name for name in Value.__slots__ if name in table.column_names]
    rows = table.select(known).to_pylist()
    found = [Value(**{k: _plain(k, v) for k, v in row.items()}) for row in rows]
    several = _with_several_models(found)
    calls = {key: name for key, name in (names or {}).items() if key not in several}
    return [_named(value, calls.get((value.study, value.cell), "")) for value in found]


def _with_several_models(values: Sequence[Value]) -> set[tuple[str, str]]:
    """Cells that look at several models side by side, each of which has its own name."""
    models: dict[tuple[str, str], set[str]] = {}
    for v in values:
        if v.model != RANDOM and v.model not in CONTESTANTS:
            models.setdefault((v.study, v.cell), set()).add(v.model)
    return {key for key, found in models.items() if len(found) > 1}


def _plain(name: str, value: Any) -> Any:
    if name in ("value", "ci_low", "ci_high", "paper"):
        return NAN if value is None else float(value)
    if name in ("n", "seed", "speakers"):
        return 0 if value is None else int(value)
    return "" if value is None else str(value)


def _named(value: Value, name: str) -> Value:
    keeps = not name or value.model == RANDOM or value.model in CONTESTANTS
    return replace(value, backbone=name, model=value.model if keeps else name)


def of_studies(values: Sequence[Value], *studies: str) -> list[Value]:
    """The values of these studies and of no study.

    Other studies train the same models in other ways, under the same names.
    """
    return [v for v in values if not v.study or v.study in studies]


def by_study(values: Sequence[Value]) -> dict[str, list[Value]]:
    """The values that are of a study, by study."""
    found: dict[str, list[Value]] = {}
    for v in values:
        if v.study:
            found.setdefault(v.study, []).append(v)
    return found


def own_studies(values: Sequence[Value]) -> dict[str, list[Value]]:
    """The values of every study that is none of the paper's, by study."""
    return {name: own for name, own in by_study(values).items() if name not in PAPER_STUDIES}


def is_network(value: Value) -> bool:
    """Whether the value is of a model itself, neither random nor a part of a fusion."""
    return value.model != RANDOM and value.model not in CONTESTANTS


def factor_values(values: Sequence[Value]) -> list[str]:
    """Values of what a study varies within a model; none where it only compares models or seeds."""
    by_model: dict[str, dict[str, None]] = {}
    for v in values:
        if v.factor_value and v.factor != SEED and is_network(v):
            by_model.setdefault(v.model, {})[v.factor_value] = None
    if all(len(found) < 2 for found in by_model.values()):
        return []
    return list(dict.fromkeys(name for found in by_model.values() for name in found))


def by_themselves(values: Sequence[Value]) -> list[Value]:
    """The values of one study as if of none, each model called by what tells it from the others."""
    varies = bool(factor_values(values))
    several = len({v.model for v in values if is_network(v)}) > 1
    return [
        replace(v, study="", factor_value="", model=_told_apart(v, several) if varies else v.model)
        for v in values
    ]


def _told_apart(v: Value, several: bool) -> str:
    if not is_network(v) or not v.factor_value:
        return v.model
    return f"{v.model}, {v.factor_value}" if several else v.factor_value


def main_splits(values: Sequence[Value]) -> list[Value]:
    """Of every model and dataset only the main split, so that no dataset is shown twice."""
    splits: dict[tuple[str, str], set[str]] = {}
    for v in values:
        splits.setdefault((v.model, v.dataset), set()).add(v.split)
    main = {key: _main(found) for key, found in splits.items()}
    return [v for v in values if v.split == main[v.model, v.dataset]]


def _main(splits: set[str]) -> str:
    return next((split for split in _MAIN_SPLITS if split in splits), min(splits))


def number_in(text: str) -> float:
    """The number a factor's value stands for; NaN when it is none.

    >>> number_in("12"), number_in("25 %"), number_in("all")
    (12.0, 0.25, nan)
    """
    share = text.strip().endswith("%")
    try:
        number = float(text.strip().rstrip("% "))
    except ValueError:
        return NAN
    return number / 100 if share else number

"""Original clips beside the same words spoken by a synthetic voice, with every model's scores.

Only clips that a model scored in both are compared, so that both sides are of the same words. A
clip that was re-spoken by several voices has the mean of their scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from raysers.errors import ConfigError
from raysers.evaluation.join import COLUMNS, dimensions_of
from raysers.evaluation.metrics import Floats
from raysers.evaluation.scores import Scores
from raysers.types import DIMENSIONS, Status


def _column(name: str, meaning: str, kind: pa.DataType | None = None) -> pa.Field:
    return pa.field(name, kind or pa.string(), metadata={"meaning": meaning})


#: Labels and both scores of every clip and model.
RESPOKEN = pa.schema(
    [
        _column("clip_id", "the original clip"),
        _column("model", "model that scored both"),
        *(
            _column(name, f"{name} label of the original, 0..1", pa.float32())
            for name in DIMENSIONS
        ),
        *(
            _column(f"{name}_{speech}", f"predicted {name} of the {speech} clip", pa.float32())
            for speech in ("original", "respoken")
            for name in DIMENSIONS
        ),
        _column("run_id", "run that wrote the row"),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Clips with labels and, by model, scores of the original and of the re-spoken clip.

    Attributes:
        clip_id: the original clips, sorted, [n].
        truth: labels of the originals, [n, 3]; NaN: none.
        original: by model, [n, 3]; NaN where either side has no score.
        respoken: by model, as `original`.
        columns: what is known of the originals (`clips.Scores.columns`).
    """

    clip_id: Sequence[str]
    truth: Floats
    original: Mapping[str, Floats]
    respoken: Mapping[str, Floats]
    columns: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def scores(self, predictions: Mapping[str, Floats], truth: Floats | None = None) -> Scores:
        """These predictions beside the labels, or beside other values."""
        return Scores(
            clip_id=self.clip_id,
            truth=self.truth if truth is None else truth,
            predictions=predictions,
            columns=self.columns,
        )

    def table(self, run_id: str = "") -> pa.Table:
        """One row per model and clip with both scores, a table of `RESPOKEN`."""
        return pa.concat_tables(
            [RESPOKEN.empty_table(), *(self._of_model(model, run_id) for model in self.original)]
        )

    def _of_model(self, model: str, run_id: str) -> pa.Table:
        both = np.isfinite(self.respoken[model]).any(axis=1)
        parts = [self.truth[both], self.original[model][both], self.respoken[model][both]]
        values = np.concatenate(parts, axis=1)
        ids = np.array(self.clip_id, object)[both].tolist()
        numbers = [pa.array(column, pa.float32(), mask=np.isnan(column)) for column in values.T]
        arrays = [pa.array(ids, pa.string()), pa.array([model] * len(ids), pa.string()), *numbers]
        return pa.table([*arrays, pa.array([run_id] * len(ids), pa.string())], schema=RESPOKEN)


def respoken_pairs(
    labels: pa.Table,
    originals: Mapping[str, pa.Table],
    respoken: Mapping[str, pa.Table],
    link: Mapping[str, str],
) -> Pairs:
    """Bring labels, scores of the originals and of the re-spoken clips together.

    Args:
        labels: clips with `clip_id`, the dimensions where there are labels, and what is known of
            `joining.COLUMNS`; clips that no model scored twice are left out.
        originals: by model, tables with `clip_id`, `status` (or all are good) and the dimensions.
        respoken: by model, tables of the re-spoken clips.
        link: re-spoken clip to the original it was made from.

    Raises:
        ConfigError: no model scored a clip in both.
    """
    models = [model for model in originals if model in respoken]
    row_of = {clip: row for row, clip in enumerate(labels["clip_id"].to_pylist())}
    ours = {clip: clip for clip in row_of}
    first = {m: _aligned(originals[m], ours, row_of) for m in models}
    second = {m: _aligned(respoken[m], link, row_of) for m in models}
    both = {m: np.isfinite(first[m]) & np.isfinite(second[m]) for m in models}
    used = np.any([there.any(axis=1) for there in both.values()], axis=0) if models else np.zeros(0)
    ids = labels["clip_id"].to_pylist()
    rows = sorted(np.flatnonzero(used).tolist(), key=lambda row: str(ids[row]))
    if not rows:
        raise ConfigError(
            f"no clip has scores of both its original and its re-spoken speech (models with "
            f"originals: {sorted(originals)}; with re-spoken clips: {sorted(respoken)})"
        )
    known = [name for name in COLUMNS if name in labels.column_names]
    return Pairs(
        clip_id=[ids[row] for row in rows],
        truth=dimensions_of(labels)[rows],
        original={m: np.where(both[m], first[m], np.nan)[rows] for m in models},
        respoken={m: np.where(both[m], second[m], np.nan)[rows] for m in models},
        columns={name: labels[name].take(rows).to_pylist() for name in known},
    )


def _aligned(table: pa.Table, link: Mapping[str, str], row_of: Mapping[str, int]) -> Floats:
    """Mean score by row of the labels, [labels, 3]; NaN where there is none."""
    values = dimensions_of(table)
    if "status" in table.column_names:
        ok = [status == Status.OK for status in table["status"].to_pylist()]
        values[~np.array(ok, bool)] = np.nan
    by_row: dict[int, list[int]] = defaultdict(list)
    for i, clip in enumerate(table["clip_id"].to_pylist()):
        row = row_of.get(link.get(clip, ""))
        if row is not None:
            by_row[row].append(i)
    found: Floats = np.full((len(row_of), len(DIMENSIONS)), np.nan)
    for row, voices in by_row.items():
        good = values[voices][np.isfinite(values[voices]).all(axis=1)]
        if len(good):  # sorted, so that the sum does not depend on the order of the rows
            found[row] = np.sort(good, axis=0).mean(axis=0)
    return found

"""Tables 1 to 3 of the report: related work as the paper prints it, and the models.

Our rows stand in them only where data and measure are the same; a lead says why there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raysers.evaluation.baseline import NAME as RANDOM
from raysers.models.backbones import FAMILIES
from raysers.report.evidence import ReportData, RunFacts
from raysers.report.figures import paper_document
from raysers.report.numbers import correctness
from raysers.report.parts import Cell, Exhibit, Grid, shown, with_bounds
from raysers.report.values import by_themselves, own_studies
from raysers.types import DIMENSIONS

_MSP = "msp-podcast"


def paper_tables(found: ReportData) -> list[Exhibit]:
    """The three tables."""
    return [_table_1(), _table_2(found), _table_3([*found.runs, *found.cell_runs])]


def _table_1() -> Exhibit:
    rows: list[list[Cell]] = [
        [
            row["work"],
            row["model"],
            "yes" if row["recogniser"] else "no",
            "yes" if row["tuned"] else "no",
            _percent(row["uar"]),
            _percent(row["war"]),
        ]
        for row in paper_document()["table_1"]
    ]
    columns = ["work", "model", "tuned to speech recognition", "tuned to emotion", "UAR", "WAR"]
    return Exhibit(
        key="table-1",
        name="Table 1",
        title="Related work on IEMOCAP, four categories",
        lead="Recall of anger, happiness, sadness and neutral in per cent, unweighted and "
        "weighted. These are categories: no number of ours, which are of dimensions, belongs "
        "beside them.",
        grids=[Grid(caption="As printed in the paper", columns=columns, rows=rows)],
    )


def _table_2(found: ReportData) -> Exhibit:
    rows: list[list[Cell]] = [
        [row["work"], row["model"] or "–", "related work", *(shown(row.get(d)) for d in DIMENSIONS)]
        for row in paper_document()["table_2"]
    ]
    ours = list(_our_rows(found))
    missing = (
        "" if ours else " No run here was evaluated on MSP-Podcast, so there is no row of ours."
    )
    return Exhibit(
        key="table-2",
        name="Table 2",
        title="Related work on MSP-Podcast, three dimensions",
        lead="CCC on releases of MSP-Podcast, not always the same ones, so small differences mean "
        "little." + missing,
        grids=[
            Grid(
                caption="As printed in the paper, and the runs of this report",
                columns=["work", "model", "data", *DIMENSIONS],
                rows=[*rows, *ours],
            )
        ],
    )


def _our_rows(found: ReportData) -> Iterator[list[Cell]]:
    lines: dict[tuple[str, str], dict[str, str]] = {}
    own = own_studies(found.values)
    for study, values in {
        "": found.values,
        **{n: by_themselves(v) for n, v in own.items()},
    }.items():
        for dot in correctness(values):
            if dot.block.startswith(_MSP) and dot.row != RANDOM:
                name = f"{dot.row} ({study})" if study else dot.row
                cells = lines.setdefault((name, dot.block), {})
                cells[dot.column] = with_bounds(dot.value, dot.low, dot.high)
    for (model, data), cells in lines.items():
        yield ["here", model, data, *(cells.get(d, "–") for d in DIMENSIONS)]


def _table_3(runs: Sequence[RunFacts]) -> Exhibit:
    rows: list[list[Cell]] = [
        [
            row["model"],
            _whole(row["layers"]),
            _whole(row["hidden"]),
            _millions(row["parameters_m"]),
            _whole(row["hours"]) if row["hours"] else "none",
            row["languages"] or "–",
        ]
        for row in paper_document()["table_3"]
    ]
    trained: dict[tuple[Cell, ...], list[Cell]] = {}
    for row in (_ours(run) for run in runs if run.training):
        trained.setdefault(tuple(row[:4]), row)
    columns = ["model", "layers", "hidden", "parameters", "pre-training, h", "languages"]
    return Exhibit(
        key="table-3",
        name="Table 3",
        title="The models",
        lead="The paper's models as it describes them, and those trained in the given runs.",
        grids=[
            Grid(
                caption="Size, and pre-training speech",
                columns=columns,
                rows=[*rows, *trained.values()],
            )
        ],
    )


def _ours(run: RunFacts) -> list[Cell]:
    config = _mapping(run.training.get("config"))
    network = _mapping(run.training.get("network"))
    backbone = str(config.get("backbone") or run.folder)
    random = backbone.startswith("random:")
    name = run.model or backbone.rstrip("/").rpartition("/")[2] or backbone
    family = FAMILIES.get(str(run.network.get("model_type")), FAMILIES["wav2vec2"])
    return [
        f"{name} (here)",
        _whole(run.network.get(family.layers_key)),
        _whole(run.network.get(family.size_key)),
        _millions((network.get("parameters") or 0) / 1e6 or None),
        "none" if random else "–",
        "–",
    ]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def _millions(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} M" if value >= 10 else f"{value:.2g} M"


def _percent(value: float | None) -> str:
    return shown(value, 1)

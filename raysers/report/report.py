"""From evidence to files: the page, and every figure beside it as SVG and PNG.

The same runs give the same bytes; when and by whom the page was made stands in `run.json` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import raysers
from raysers.evaluation.baseline import NAME as RANDOM
from raysers.evaluation.paper import with_paper
from raysers.io import storage
from raysers.report.cost import cost_exhibit, speed
from raysers.report.data import archive_exhibits
from raysers.report.evidence import ReportData
from raysers.report.figures import FIGURES, paper_figures
from raysers.report.numbers import correctness
from raysers.report.own import comparability, spoken_exhibits, together, training_exhibits
from raysers.report.page import page
from raysers.report.parts import Chart, Missing, Section, Tile, shown
from raysers.report.studies_section import study_exhibits, study_gaps
from raysers.report.sweep_section import sweep_exhibits
from raysers.report.tables import paper_tables
from raysers.report.values import CONTESTANTS

PAGE, FIGURES_FOLDER = "index.html", "figures"
_TITLE = "Speech emotion recognition: report of the runs"


def write_report(found: ReportData, output: str) -> tuple[list[str], list[Missing]]:
    """Write the page and its figures.

    Returns:
        Names of the figures' files, and what is missing.

    Raises:
        WriteError: the output cannot be written.
    """
    figures, missing = paper_figures(found)
    missing += study_gaps(found)
    sections = [
        Section(
            key="paper-figures",
            title="The figures of the paper",
            lead="From these runs, not the paper's: read the note on what can be compared.",
            exhibits=[comparability(_notes(found)), *figures],
        ),
        Section(
            key="studies",
            title="Other studies",
            lead="Studies that are none of the paper's, each by itself.",
            exhibits=study_exhibits(found),
        ),
        Section(key="paper-tables", title="The tables of the paper", exhibits=paper_tables(found)),
        Section(key="archives", title="Annotated archives", exhibits=archive_exhibits(found)),
        Section(
            key="trainings",
            title="Trainings and searches",
            exhibits=[*training_exhibits(found), *sweep_exhibits(found)],
        ),
        Section(key="words", title="Words", exhibits=spoken_exhibits(found)),
        Section(key="costs", title="Cost", exhibits=[cost_exhibit(found)]),
    ]
    runs = f"{len(found.runs)} run{'s' if len(found.runs) > 1 else ''}"
    lead = (
        f"{runs}, {len(figures)} of the paper's {len(FIGURES)} figures. Every value has "
        "its 95 % interval where one can be had."
    )
    text = page(_TITLE, lead, _tiles(found), sections, missing, _closing(found))
    names = list(_write_figures([e.charts for s in sections for e in s.exhibits], output))
    _remove_stale(output, names)
    storage.write_atomic(storage.join(output, PAGE), text.encode("utf-8", "replace"))
    return names, missing


def _write_figures(charts: Sequence[Sequence[Chart]], output: str) -> Iterator[str]:
    for chart in (c for several in charts for c in several):
        for suffix, data in chart.picture.items():
            name = f"{chart.key}.{suffix}"
            storage.write_atomic(storage.join(output, FIGURES_FOLDER, name), data)
            yield name


def _remove_stale(output: str, names: Sequence[str]) -> None:
    """Figures of an earlier report that this one does not have."""
    folder = storage.join(output, FIGURES_FOLDER)
    if not storage.is_folder(folder):
        return
    for found in list(storage.list_objects(folder, suffixes={".svg", ".png"})):
        if found.uri.rpartition("/")[2] not in names:
            storage.delete(found.uri)


def _notes(found: ReportData) -> list[str]:
    rows = [row for row in found.rows() if row.metric == "ccc" and row.model not in CONTESTANTS]
    _, notes = with_paper(rows)
    return together(list(dict.fromkeys([*notes, *found.notes])))


def _tiles(found: ReportData) -> list[Tile]:
    return [*_archive_tiles(found), *_best(found), *_speed(found)]


def _archive_tiles(found: ReportData) -> Iterator[Tile]:
    if found.archives:
        clips = sum(a.archive.clips for a in found.archives)
        failed = sum(a.archive.failed for a in found.archives)
        hours = sum(a.archive.hours for a in found.archives)
        yield Tile(label="Audio annotated", value=f"{hours:,.1f} h", note=f"{clips:,} clips")
        share = f"{failed / clips:.1%}" if clips else "–"
        yield Tile(
            label="Without scores", value=share, note=f"{failed:,} clips, each with a reason"
        )


def _best(found: ReportData) -> Iterator[Tile]:
    dots = [d for d in correctness(found.values) if d.row != RANDOM and d.value == d.value]
    if dots:
        best = max(dots, key=lambda d: d.value)
        note = f"{best.row}, {best.column}, {best.block}"
        yield Tile(label="Highest CCC", value=shown(best.value, 2), note=note)


def _speed(found: ReportData) -> Iterator[Tile]:
    speeds = {r.folder: s for r in found.runs if (s := speed(r)) == s and r.job == "annotate"}
    if speeds:
        folder, fastest = max(speeds.items(), key=lambda kv: kv[1])
        note = f"in {folder.rstrip('/').rpartition('/')[2]}"
        yield Tile(label="Audio hours per device hour", value=shown(fastest, 1), note=note)


def _closing(found: ReportData) -> str:
    ids = ", ".join(str(run.record.get("run_id", "")) for run in found.runs)
    return (
        f"Made by raysers {raysers.__version__} from the runs {ids}. The figures are beside this "
        "page as SVG and PNG. The paper is Wagner et al., Dawn of the transformer era in speech "
        "emotion recognition: closing the valence gap, arXiv 2203.07378."
    )

"""From evidence to files: the page, and every figure beside it as SVG and PNG.

The page works from a disk, without a network, on paper, in light and dark. One template escapes
whatever it shows, and allows itself only its own style sheet and script, named by their hashes, and
pictures and audio beside it: markup that slipped through could load and run nothing.

The same runs give the same bytes; when and by whom the page was made stands in `run.json` only.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import raysers
from raysers.display import Picture, printable
from raysers.engine.progress import duration, hours
from raysers.evaluation.scores import RANDOM
from raysers.io import storage
from raysers.models.backbones import FAMILIES
from raysers.report import archive
from raysers.report.charts import (
    Cell,
    Chart,
    Exhibit,
    Missing,
    Section,
    frame_table,
    shown,
    table,
    with_bounds,
)
from raysers.report.evidence import (
    Archive,
    Evidence,
    ReportRun,
    by_themselves,
    frame_of,
    last_part,
    mapping,
    own_studies,
    read_archives,
)
from raysers.report.figures import (
    correctness,
    paper_document,
    paper_figures,
    pictures_of,
    study_exhibits,
)
from raysers.types import DIMENSIONS, Status

PAGE, FIGURES_FOLDER = "index.html", "figures"
_COST = ("status", "wall", "workers", "device", "audio, h", "audio h per device h")


def write_report(
    found: Evidence, output: str, audio: archive.AudioMode
) -> tuple[list[str], list[Missing]]:
    """Write the page, its figures, and of archives excerpts of audio and tables to rate.

    Returns the names of the figures' files, and what is missing.
    """
    archives = read_archives(found)
    sections, excerpts = [], []
    for number, one in enumerate(archives, 1):
        key = f"archive-{number}"
        exhibits = list(archive.archive_exhibits(one, key))
        if chosen := archive.listen_exhibit(one, number, output, audio):
            exhibits.append(chosen)
            excerpts += [row["audio"].rpartition("/")[2] for row in chosen.clips["rows"]]
        lengths = [hours(archive.covered_s(rows)) for rows in (one.clips, one.ok)]
        lead = f"{len(one.clips):,} clips, {lengths[0]}; {lengths[1]} scored by {one.model}."
        sections.append(Section(key, one.name, exhibits, lead))
    is_evaluated = bool(len(found.metrics))
    figures, missing = paper_figures(found)
    studies, gaps = study_exhibits(found)
    missing += gaps
    notes = [*(paper_document()["comparable"] if is_evaluated else []), *found.notes]
    title = "What can be compared with the paper, and what cannot" if is_evaluated else "Notes"
    noted = [Exhibit("comparable", title, notes=notes)] if notes else []
    for key, title, exhibits in (
        ("paper-figures", "The figures of the paper", [*noted * is_evaluated, *figures]),
        ("studies", "Other studies", studies),
        ("paper-tables", "The tables of the paper", [*_paper_tables(found)] * is_evaluated),
        ("trainings", "Trainings and searches", [*_trainings(found)]),
        ("words", "Transcripts", [*_transcripts(found)]),
        ("costs", "Runs", [*noted * (not is_evaluated), _cost(found)]),
    ):
        if exhibits:
            sections.append(Section(key, title, exhibits))
    ids = ", ".join(str(run.record.get("run_id", "")) for run in found.runs)
    text = page(
        **_heading(found, archives),
        tiles=list(_tiles(archives)),
        sections=sections,
        missing=missing,
        gap="Not in these runs: " + ", ".join(one.name for one in missing),
        closing=f"Made by raysers {raysers.__version__} from the runs {ids}. The figures are "
        "beside this page as SVG and PNG. The paper is Wagner et al., Dawn of the transformer era "
        "in speech emotion recognition: closing the valence gap, arXiv 2203.07378.",
    )
    files = {
        f"{key}.{kind}": data
        for chart in (c for section in sections for e in section.exhibits for c in e.charts)
        for key, picture in chart.pictures.items()
        for kind, data in picture.items()
    }
    for name, data in files.items():
        storage.write_atomic(storage.join(output, FIGURES_FOLDER, name), data)
    _remove_stale(storage.join(output, FIGURES_FOLDER), {".svg", ".png"}, files)
    _remove_stale(storage.join(output, archive.AUDIO_FOLDER), {".flac"}, excerpts)
    storage.write_atomic(storage.join(output, PAGE), text.encode("utf-8", "replace"))
    return list(files), missing


def _remove_stale(folder: str, suffixes: set[str], kept: Collection[str]) -> None:
    """Files of an earlier report that this one does not have."""
    if storage.is_folder(folder):
        for one in list(storage.list_objects(folder, suffixes=suffixes)):
            if one.uri.rpartition("/")[2] not in kept:
                storage.delete(one.uri)


def _heading(found: Evidence, archives: Sequence[Archive]) -> Mapping[str, str]:
    if archives and not len(found.metrics):
        title = "Speech emotion in " + ", ".join(dict.fromkeys(one.name for one in archives))
        lead = "Scores are about 0 to 1: arousal from calm to excited, dominance from weak to "
        lead += "strong, valence from negative to positive."
    else:
        title, runs = "Speech emotion recognition: report of the runs", len(found.runs)
        lead = f"{runs} run{'s' * (runs > 1)}. "
        lead += "Values are shown with 95 % confidence intervals where available."
    return {"title": title, "lead": lead}


def _tiles(archives: Sequence[Archive]) -> Iterator[tuple[str, str, str]]:
    """Label, value and note of the figures to see first."""
    if not archives:
        return
    clips = pd.concat([one.clips for one in archives], ignore_index=True)
    ok = clips[clips.status == str(Status.OK)]
    statuses = clips.status[clips.status != str(Status.OK)].value_counts()
    failed = ", ".join(f"{count:,} {status}" for status, count in statuses.head(2).items())
    yield "Recorded", hours(archive.covered_s(clips)), f"{clips.file.nunique():,} files"
    scored = hours(archive.covered_s(ok))
    yield "Scored", scored, f"{len(ok):,} of {len(clips):,} clips"
    yield "Failed clips", f"{1 - len(ok) / len(clips):.1%}", failed or "none"
    for name in ("valence", "arousal"):
        low, middle, high = ok[name].quantile([0.1, 0.5, 0.9])
        if middle == middle:
            yield f"Median {name}", shown(middle, 2), f"8 of 10 clips {low:.2f} to {high:.2f}"


def _paper_tables(found: Evidence) -> Iterator[Exhibit]:
    """Tables 1 to 3 as printed in the paper, with our rows where data and measure are the same."""
    models = {tuple(row[:4]): row for row in map(_model_row, found.of_job("train"))}
    ours: Sequence[Sequence[Sequence[Cell]]] = ([], [*_msp_rows(found)], [*models.values()])
    for number, (one, rows) in enumerate(zip(paper_document()["tables"], ours, strict=True), 1):
        lead = one["lead"]
        if number == 2 and not rows:
            lead += " No run here was evaluated on MSP-Podcast, so no row is ours."
        made = table(one["caption"], one["columns"], [*one["rows"], *rows])
        yield Exhibit(f"table-{number}", one["title"], lead, f"Table {number}", [made])


def _msp_rows(found: Evidence) -> Iterator[list[Cell]]:
    own = {name: by_themselves(rows) for name, rows in own_studies(found.metrics).items()}
    for study, metrics in {"": found.metrics, **own}.items():
        marks = correctness(metrics)
        marks = marks[marks.block.str.startswith("msp-podcast") & (marks.row != RANDOM)]
        for (model, data), rows in marks.groupby(["row", "block"], sort=False):
            by = {row["column"]: with_bounds(row) for row in rows.to_dict("records")}
            name = f"{model} ({study})" if study else model
            yield ["here", name, data, *(by.get(d, "–") for d in DIMENSIONS)]


def _model_row(run: ReportRun) -> list[Cell]:
    config, network = mapping(run.training.get("config")), mapping(run.training.get("network"))
    backbone = str(config.get("backbone") or run.folder)
    family = FAMILIES.get(str(run.network.get("model_type")), FAMILIES["wav2vec2"])
    sizes = (run.network.get(key) for key in (family.layers_key, family.size_key))
    millions = (network.get("parameters") or 0) / 1e6
    return [
        f"{run.model or last_part(backbone)} (here)",
        *(f"{size:,}" if isinstance(size, int) else "–" for size in sizes),
        f"{millions:,.0f} M" if millions >= 10 else f"{millions:.2g} M" if millions else "–",
        "none" if backbone.startswith("random:") else "–",
        "–",
    ]


def _trainings(found: Evidence) -> Iterator[Exhibit]:
    """Learning curves and searches as their jobs drew them, with their numbers."""
    for number, run in enumerate(found.runs, 1):
        config = mapping(run.training.get("config"))
        if run.job == "train" and run.training.get("history"):
            epochs = pd.json_normalize(run.training["history"])
            epochs = epochs.rename(columns=lambda name: name.removeprefix("dev_ccc."))
            known = [c for c in ("epoch", "train_loss", *DIMENSIONS) if c in epochs]
            numbers = frame_table("Epochs", epochs[known])
            title = f"Training of {run.name}"
            network, seed = config.get("backbone", "The network"), config.get("seed", "–")
            lead = f"{network}, {len(epochs)} epochs, seed {seed}. "
            lead += "One training: its curve has no interval."
        elif run.job == "tune" and len(trials := frame_of(run.folder, "trials")):
            trials = trials.sort_values("dev_ccc_mean", ascending=False, kind="stable")
            searched = [name for name in trials if name.startswith("param_")]
            trials = trials[["trial", "status", "dev_ccc_mean", *searched, "error"]]
            numbers = frame_table("Trials, the best first", trials)
            title = f"Search of {run.name}: {len(trials)} trials"
            lead = (
                "The dev CCC of the best of many trials is too good by chance: evaluate it on "
                "clips that no trial has seen."
            )
        else:
            continue
        key = f"{run.job}-{number}"
        pictures = {f"{key}-{name}": one for name, one in pictures_of(run.folder).items()}
        alt = f"{title}: the numbers are in the table."
        yield Exhibit(key, title, lead, charts=[Chart("", alt, pictures, numbers)])


def _transcripts(found: Evidence) -> Iterator[Exhibit]:
    """Some of what was recognised, by run."""
    for number, run in enumerate(found.runs, 1):
        said = frame_of(run.folder, "transcripts", ("file", "status", "text"))
        if run.job == "transcribe" and len(said):
            said = said[said.status == str(Status.OK)].sort_values("file").head(12)
            files = said.file.map(last_part)
            said = pd.DataFrame({"file": files, "text": said.text.replace("", "(no speech)")})
            made = frame_table("Recognised words, the first clips by name", said)
            yield Exhibit(f"transcripts-{number}", f"Transcripts of {run.name}", tables=[made])


def _cost(found: Evidence) -> Exhibit:
    """Wall time, workers, devices, and audio hours per device hour of runs and cells.

    A device hour is an hour in which a model had a device, added up over the workers; waiting for
    audio and starting up are in the wall time only.
    """
    rows: list[list[Cell]] = []
    for run in found.runs:
        # a training says it in its own record, a job over clips in its outcome
        outcome = run.outcome
        place = mapping(run.training.get("placement")) or outcome
        workers = place.get("workers") or mapping(run.record.get("config")).get("workers")
        audio_s = _number(outcome.get("audio_s")) or _number(outcome.get("audio_hours")) * 3600
        training_s = _number(outcome.get("training_s")) * (_number(place.get("workers")) or 1)
        device_s = _number(outcome.get("model_s")) or training_s
        status = str(run.record.get("status", "")).replace("_", " ")
        cost = _cost_cells(wall_s(run), workers, place.get("device"), audio_s, device_s)
        rows.append([run.name, run.job, status, *cost])
    tables = [table("Runs, in the order they were given", ["run", "job", *_COST], rows)]
    rows = []
    for one in found.cells.to_dict("records"):
        wall, workers, audio_s = (_number(one[name]) for name in ("wall_s", "workers", "audio_s"))
        status = str(one["status"]) + (f": {one['error']}" if one["error"] else "")
        cost = _cost_cells(wall, int(workers), one["device"], audio_s, wall * (workers or 1))
        rows.append([one["cell"], one["study"], status, *cost])
    if rows:
        tables.append(table("Runs of the studies", ["run", "study", *_COST], rows))
    lead = (
        "Audio hours per device hour predict the cost of a longer run; wall time includes start-up."
    )
    return Exhibit("cost", "Cost", lead, tables=tables)


def _cost_cells(
    wall: float, workers: Any, device: Any, audio_s: float, device_s: float
) -> list[Cell]:
    rate = audio_s / device_s if audio_s and device_s else None
    said = [str(value or "–") for value in (duration(wall) if wall else "", workers, device)]
    return [*said, shown(audio_s / 3600 or None, 2), shown(rate, 1)]


def wall_s(run: ReportRun) -> float:
    """From start to end, with the earlier parts of a run that was resumed; 0: not ended."""
    total = 0.0
    for part in (run.record, *run.record.get("history", ())):
        with contextlib.suppress(ValueError):
            times = (str(part.get(name)) for name in ("started_at", "finished_at"))
            started, ended = map(datetime.fromisoformat, times)
            total += max((ended - started).total_seconds(), 0.0)
    return total


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value == value else 0.0


def page(**content: Any) -> str:
    """The document; see `report.html.j2` for the content.

    Text from the data is escaped, and a character that is no text gets a visible mark.
    """
    sheet, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(sheet)}'; script-src '{_hash(script)}'; "
        "img-src data:; media-src 'self' file:; base-uri 'none'; form-action 'none'"
    )
    made = {"policy": policy, "sheet": Markup(sheet), "script": Markup(script)}
    return _environment().get_template("report.html.j2").render(made | content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("raysers", "assets/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
    )
    environment.filters |= {"cell": _cell, "data_uri": _data_uri}
    return environment


def _cell(value: Cell) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else f"{value:,.3g}"


def _data_uri(picture: Picture) -> str:
    """Shown as an image, where an SVG can neither run nor load anything."""
    kind = "svg" if "svg" in picture else "png"
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64,{base64.b64encode(picture[kind]).decode()}"


def _asset(name: str) -> str:
    return resources.files("raysers").joinpath(f"assets/report/{name}").read_text("utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"

"""An annotated archive: what it holds, how it scores, and where it failed.

The whole table is one frame; a million clips take less than a gigabyte. Overlapping windows count
once in hours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raysers import display
from raysers.display import COLOURS, SOFT, Picture, word_colour
from raysers.report.evidence import Evidence, ReportRun, columns_of, mapping, table_of
from raysers.report.page import Chart, Exhibit, frame_table, last_part, shown, table
from raysers.types import DIMENSIONS, NS_PER_S, Status

#: Out of domain beyond this: farther from the training speech than 99 % of it.
OOD_LIMIT = 0.5
_COLUMNS = (
    "file", "start", "end", "clip_id", "status", "error", *DIMENSIONS, "emotion", "ood",
    "duration_s", "rms_db", "clipped_ratio", "model", "channel", "audio_stream",
)  # fmt: skip
_KNOWN = ("corpus", "speaker", "sex", "language")
_QUANTILES = {0.05: "5 %", 0.25: "25 %", 0.5: "median", 0.75: "75 %", 0.95: "95 %"}
_BINS, _SMALL_IN, _MOST_GROUPS, _MOST_STEPS = 50, 2.35, 25, 240
_TIMELINES, _FEWEST_WINDOWS = 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """An annotation.

    Attributes:
        clips: its rows with `start_ns`, `end_ns` (of failed clips where the header says so),
            `folder`, and of `speaker`, `sex`, `language`, `corpus` what the manifest knows.
        numbers: columns of probabilities `p_*` and of deviations `*_sd`.
    """

    run: ReportRun
    clips: pd.DataFrame
    numbers: Sequence[str]

    @property
    def name(self) -> str:
        """What was annotated: the last part of the input's place, or else of the output's."""
        inputs = mapping(self.run.record.get("config")).get("input")
        places = inputs if isinstance(inputs, list | tuple) else []
        return last_part(str(places[0])) if len(places) == 1 else self.run.name

    @property
    def model(self) -> str:
        """The model that scored it."""
        return str(next(iter(self.clips.model.dropna()), "an unnamed model"))

    @property
    def ok(self) -> pd.DataFrame:
        """The scored clips."""
        return self.clips[self.clips.status == str(Status.OK)]


def read_archives(found: Evidence) -> list[Archive]:
    """The annotations among the given runs."""
    runs = [run for run in found.runs if run.job in ("annotate", "fuse-predict")]
    return [one for run in runs if (one := read_archive(run)) is not None]


def read_archive(run: ReportRun) -> Archive | None:
    """A run's rows; None where there are none."""
    names = columns_of(run.folder, "annotations")
    numbers = [n for n in names if n.startswith("p_") or n.endswith("_sd")]
    rows = table_of(run.folder, "annotations", [*_COLUMNS, *numbers])
    if rows is None or not len(rows):
        return None
    for name, unknown in (("start", 0), ("end", -1)):  # integers cannot overflow a frame's times
        times = pc.fill_null(rows[name].cast(pa.int64()), unknown)
        rows = rows.set_column(rows.column_names.index(name), f"{name}_ns", times)
    clips = rows.to_pandas()
    known = table_of(run.folder, "manifest", ("clip_id", "duration_s", *_KNOWN))
    if known is not None and "clip_id" in known.column_names:
        manifest = known.to_pandas().drop_duplicates("clip_id")
        clips = clips.merge(manifest, on="clip_id", how="left", suffixes=("", "_header"))
    length_s = clips.duration_s.fillna(clips.get("duration_s_header", np.nan)).fillna(0.0)
    end = clips.start_ns + (length_s * NS_PER_S).astype("int64")
    clips["end_ns"] = clips.end_ns.where(clips.end_ns > 0, end)
    clips = clips.assign(folder=folders(rows["file"]), error=clips.error.fillna(""))
    for name in ("emotion", "ood", *_KNOWN):
        if name not in clips:
            clips[name] = np.nan if name == "ood" else ""
    return Archive(run=run, clips=clips, numbers=numbers)


def folders(files: pa.ChunkedArray) -> Any:
    """Of every file the first folder (or tar) below the one that all files share; "" for none."""
    is_member = pc.match_substring_regex(files, r"(?i)\.tar#")
    tars = pc.replace_substring_regex(files, r"(?i)(\.tar)#.*$", r"\1/")
    place = pc.if_else(is_member, tars, pc.replace_substring_regex(files, r"[^/]*$", ""))
    low, high = pc.min_max(place).as_py().values()
    differ = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    shared = low[: next(differ, min(len(low), len(high)))].rpartition("/")[0] + "/"
    below = pc.utf8_slice_codeunits(place, len(shared))
    return pc.replace_substring_regex(below, r"/.*$", "").to_pandas().to_numpy()


def covered_s(clips: pd.DataFrame) -> float:
    """Seconds of audio in the clips; what several clips of a file share counts once.

    >>> rows = {"file": ["a", "a", "b"], "start_ns": [0, 2e9, 0], "end_ns": [4e9, 6e9, 1e9]}
    >>> covered_s(pd.DataFrame(rows))
    7.0
    """
    if clips.empty:
        return 0.0
    code = pd.factorize(clips.file)[0].astype(np.float64)
    start, end = (clips[n].to_numpy(np.float64) / NS_PER_S for n in ("start_ns", "end_ns"))
    order = np.lexsort((start, code))
    offset = code * (end.max() + 1.0)  # files one after the other on one line
    start, end = (start + offset)[order], (end + offset)[order]
    reached = np.concatenate([[-np.inf], np.maximum.accumulate(end)[:-1]])
    return float(np.clip(end - np.maximum(start, reached), 0, None).sum())


def archive_exhibits(archive: Archive, key: str) -> Iterator[Exhibit]:
    """What there is to say about an archive."""
    is_scored = len(archive.ok) > 0
    if is_scored:
        yield _scores(archive, f"{key}-scores")
    yield _statuses(archive, f"{key}-status")
    if is_scored:
        yield from _trust(archive, f"{key}-trust")
        yield _sound(archive, f"{key}-sound")
        yield from _groups(archive, f"{key}-groups")
        yield from _timelines(archive, f"{key}-timelines")


def _quantiles(columns: Mapping[str, pd.Series], head: str) -> pd.DataFrame:
    """A row of quantiles for every column."""
    found = pd.DataFrame(columns).quantile(list(_QUANTILES)).T.rename(columns=_QUANTILES)
    return found.reset_index(names=head)


def _scores(archive: Archive, key: str) -> Exhibit:
    ok = archive.ok
    there = [d for d in DIMENSIONS if ok[d].notna().any()]
    means, sds = ok[there].mean(), ok[there].std(ddof=0)
    pictures = {
        f"{key}-{d}": _histogram(ok[d], (0.0, 1.0), d, COLOURS[d], f"mean {means[d]:.2f}")
        for d in there
    }
    numbers = _quantiles({d: ok[d] for d in there}, "dimension")
    numbers.insert(1, "mean", means.to_numpy())
    numbers.insert(2, "sd", sds.to_numpy())
    said = "; ".join(f"{d} mean {means[d]:.2f}, standard deviation {sds[d]:.2f}" for d in there)
    made = frame_table("Scores of the clips", numbers)
    return Exhibit(key, "Scores", charts=[Chart("", f"Histograms: {said}.", pictures, made)])


def _histogram(
    values: pd.Series,
    limits: tuple[float, float],
    title: str,
    colour: str = SOFT,
    note: str = "",
    tick: Callable[[float], str] = "{:g}".format,
) -> Picture:
    """A small histogram; values beyond the limits are counted at the edge."""
    there = np.clip(values.dropna().to_numpy(np.float64), *limits)

    def draw() -> Any:
        figure = display.new_figure(1.5, _SMALL_IN)
        axis = figure.subplots()
        counts, edges = np.histogram(there, bins=_BINS, range=limits)
        axis.stairs(counts, edges, fill=True, color=colour, alpha=0.28, linewidth=0)
        axis.stairs(counts, edges, color=colour, linewidth=1.2)
        axis.set_ylim(0, max(counts.max(), 1) * 1.08)
        axis.set_yticks([])
        at = np.linspace(*limits, 5)
        axis.set_xticks(at, [tick(float(x)) for x in at])
        display.panel_title(axis, title, colour=word_colour(colour), pad_pt=6)
        display.above(axis, (1.0, 1.0), "axes fraction", 0, note, ha="right")
        return figure

    return display.picture(draw)


def _statuses(archive: Archive, key: str) -> Exhibit:
    clips, rows = archive.clips, []
    counts = clips.status.value_counts()
    for status in sorted(counts.index, key=lambda s: (s != str(Status.OK), -counts[s], s)):
        own, said = clips[clips.status == status], ""
        if status != str(Status.OK):  # a file for each different error, the first by name
            first = own.groupby(own.error).file.min().head(3)
            said = "; ".join(f"{last_part(file)}: {error}" for error, file in first.items())
        share, hours = f"{len(own) / len(clips):.1%}", covered_s(own) / 3600
        rows.append([status, len(own), share, shown(hours, 2), said])
    failed = len(clips) - len(archive.ok)
    title = f"{failed:,} of {len(clips):,} clips failed" if failed else "All clips have scores"
    columns = ["status", "clips", "share", "hours", "examples"]
    made = table("Overlapping clips count once in hours", columns, rows)
    return Exhibit(key, title, tables=[made])


def _trust(archive: Archive, key: str) -> Iterator[Exhibit]:
    """Categories, deviations and distance from the training speech, of models that have them."""
    ok, tables, lead = archive.ok, [], ""
    emotions = ok.emotion[ok.emotion.fillna("") != ""]
    if len(emotions):
        counts = emotions.value_counts()
        means = [ok[f"p_{n}"].mean() if f"p_{n}" in ok else np.nan for n in counts.index]
        shares = [f"{share:.1%}" for share in counts / len(ok)]
        found = {"most probable": counts.index, "clips": counts.to_numpy(), "share": shares}
        found["mean probability"] = means
        tables.append(frame_table("Emotion categories", pd.DataFrame(found), 2))
    columns = {f"sd of {n[:-3]}": ok[n] for n in archive.numbers if n.endswith("_sd")}
    if ok.ood.notna().any():
        columns["out of domain"] = ok.ood
        lead = f"{(ok.ood > OOD_LIMIT).sum():,} of {len(ok):,} scored clips are out of domain (ood "
        lead += f"above {OOD_LIMIT:g}): farther from the training speech than 99 % of it."
    if columns:
        caption = "Expected error of the scores, and distance from the training speech (0 to 1)"
        tables.append(frame_table(caption, _quantiles(columns, "of")))
    if tables:
        yield Exhibit(key, "Categories and trust", lead, tables=tables)


def _sound(archive: Archive, key: str) -> Exhibit:
    ok, clipped = archive.ok, archive.ok.clipped_ratio.fillna(0.0)
    columns = {"level, dB re full scale": ok.rms_db, "length, s": ok.duration_s}
    columns["samples at full scale, %"] = 100 * clipped
    logs, powers = np.log10(np.maximum(ok.duration_s, 0.1)), lambda x: f"{10**x:.6g}"
    pictures = {
        f"{key}-level": _histogram(ok.rms_db, (-60.0, 0.0), "level, dB"),
        f"{key}-length": _histogram(logs, (-1.0, 3.0), "length, s", tick=powers),
    }
    lead = f"{int((clipped > 0).sum()):,} of {len(ok):,} scored clips reach full scale, "
    lead += f"{int((clipped > 0.001).sum()):,} with more than one sample in a thousand."
    made = frame_table("Scored clips", _quantiles(columns, "of"))
    alt = "Histograms of level and length; the numbers are in the table."
    title = "Level, clipping and length"
    return Exhibit(key, title, lead, charts=[Chart("", alt, pictures, made)])


def _groups(archive: Archive, key: str) -> Iterator[Exhibit]:
    """Hours and mean scores per folder, and per speaker, sex, language, corpus where known."""
    tables = []
    for name in ("folder", *_KNOWN):
        clips = archive.clips.assign(value=archive.clips[name].fillna(""))
        counts = clips.value.value_counts()
        if len(counts) < 2:
            continue
        rows = []
        for value, count in counts.head(_MOST_GROUPS).items():
            own = clips[clips.value == value]
            scored = own[own.status == str(Status.OK)]
            hours, means = shown(covered_s(own) / 3600, 2), scored[[*DIMENSIONS]].mean()
            failed = len(own) - len(scored)
            rows.append([value or "(none)", count, failed, hours, *(shown(m, 2) for m in means)])
        left = f": the {len(rows)} largest of {len(counts):,}" if len(counts) > len(rows) else ""
        columns = [name, "clips", "failed", "hours", *(f"mean {d}" for d in DIMENSIONS)]
        tables.append(table(f"By {name}{left}", columns, rows))
    if tables:
        yield Exhibit(key, "Parts of the archive", tables=tables)


def _timelines(archive: Archive, key: str) -> Iterator[Exhibit]:
    """Scores along the recordings with most clips."""
    counts = archive.clips.file.value_counts()
    counts = counts[counts >= _FEWEST_WINDOWS].sort_index()
    charts = []
    for number, file in enumerate(counts.nlargest(_TIMELINES).index):
        own = archive.clips[archive.clips.file == file].sort_values("start_ns")
        if own[[*DIMENSIONS]].notna().any(axis=None):
            charts.append(_timeline(f"{key}-{number}", str(file), own))
    if charts:
        lead = (
            "Grey stretches have no score. Where windows are many, the line is the mean of "
            "neighbours and the band their lowest and highest tenth."
        )
        yield Exhibit(key, "Along the longest recordings", lead, charts=charts)


def _timeline(key: str, file: str, own: pd.DataFrame) -> Chart:
    spans = own[["start_ns", "end_ns"]] / NS_PER_S
    stretch = np.arange(len(own)) // -(-len(own) // _MOST_STEPS)
    grouped = own.assign(minutes=spans.mean(axis=1) / 60).groupby(stretch)
    bare = spans[own[[*DIMENSIONS]].isna().all(axis=1)] / 60

    def draw() -> Any:
        figure = display.new_figure(3.6)
        axes = figure.subplots(3, 1, sharex=True)
        for axis, d in zip(axes, DIMENSIONS, strict=True):
            x = grouped.minutes.mean()
            if stretch[-1] < len(own) - 1:
                low, high = grouped[d].quantile(0.1), grouped[d].quantile(0.9)
                display.band(axis, x, low, high, COLOURS[d])
            display.line(axis, x, grouped[d].mean(), COLOURS[d], linewidth=1.4)
            axis.set_ylim(min(0.0, own[d].min()), max(1.0, own[d].max()))
            display.value_grid(axis, "y", most=2)
            display.panel_title(axis, d, colour=word_colour(COLOURS[d]), pad_pt=3)
            for ends in bare.itertuples(index=False):
                axis.axvspan(*ends, color=SOFT, alpha=0.15, linewidth=0)
        axes[-1].set_xlabel("minutes", loc="right")
        return figure

    numbers = own[[*DIMENSIONS]].copy()
    seconds = [f"{start:,.1f} to {end:,.1f}" for start, end in spans.itertuples(index=False)]
    numbers.insert(0, "seconds", seconds)
    name = display.short(last_part(file), 60)
    made = frame_table(f"Windows of {name}", numbers, 2)
    alt = f"Scores of {len(own):,} windows along {name}."
    return Chart(name, alt, {key: display.picture(draw)}, made)

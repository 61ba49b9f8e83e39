"""An annotated archive: what it holds, how it scores, where it failed, clips to listen to.

The whole table is one frame; a million clips take less than a gigabyte. Overlapping windows count
once in hours. The clips to listen to are the ends and the middle of the scores, doubtful and failed
ones, and a random sample that follows from the clips' identities. A table names exactly these, to
be rated by hand and read back as labels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pandas as pd
import soundfile as sf

from raysers import display
from raysers.audio.decode import AudioReader
from raysers.display import COLOURS, SOFT, Picture, word_colour
from raysers.errors import ClipError, StorageError
from raysers.io import storage
from raysers.io.objects import is_member, is_remote
from raysers.report.charts import Chart, Exhibit, frame_table, shown, table
from raysers.report.evidence import Archive, last_part, stream
from raysers.schemas import PARTS_OF_FILE
from raysers.types import DIMENSIONS, NS_PER_S, SAMPLE_RATE_HZ, Status

#: Out of domain beyond this: farther from the training speech than 99 % of it.
OOD_LIMIT = 0.5
_QUANTILES = {0.05: "5 %", 0.25: "25 %", 0.5: "median", 0.75: "75 %", 0.95: "95 %"}
_BINS, _SMALL_IN, _MOST_GROUPS, _MOST_STEPS = 50, 2.35, 25, 240
_TIMELINES, _FEWEST_WINDOWS = 4, 8
AudioMode = Literal["copy", "link", "none"]
AUDIO_FOLDER = "audio"
#: Clips of a kind, of the random sample, and of failed ones; seconds of an excerpt.
_EACH, _RANDOM, _FAILED, _EXCERPT_S = 3, 12, 12, 12.0
_NUMBERS = {d: (d, 2) for d in DIMENSIONS} | {
    "ood": ("ood", 2), "rms_db": ("dB", 1), "duration_s": ("s", 1)
}  # fmt: skip
_CANDIDATES, _THREADS = 200, 8
_WAY = {"copy": "Each player has at most the first 12 s of its clip.",
        "link": "The players read the archive's own files, which must stay where they are.",
        "none": "No audio was asked for (--audio)."}  # fmt: skip


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
    for name in ("folder", "corpus", "speaker", "sex", "language"):
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


def listen_exhibit(archive: Archive, number: int, output: str, audio: AudioMode) -> Exhibit | None:
    """A table of clips with players; writes the excerpts and the table of clips to rate."""
    clips = chosen(archive)
    if clips.empty:
        return None
    ratings = f"rate-{number}.csv" if number > 1 else "rate.csv"
    storage.write_atomic(storage.join(output, ratings), ratings_csv(clips))
    places = _places(archive, clips) if audio == "copy" else {}
    rows = clips.to_dict("records")
    with ThreadPoolExecutor(_THREADS) as pool:
        sources = list(pool.map(lambda row: _player(row, output, audio, places), rows))
    columns = {name: how for name, how in _NUMBERS.items() if clips[name].notna().any()}
    made = [
        {
            "why": row["why"],
            "audio": source,
            "silent": silent,
            "numbers": {
                name: (float(row[column]), shown(row[column], digits))
                for column, (name, digits) in columns.items()
            },
            "file": _name(row),
            "error": row["error"],
        }
        for row, (source, silent) in zip(rows, sources, strict=True)
    ]
    doubt = "expected error" if any(n.endswith("_sd") for n in archive.numbers) else "probability"
    lead = (
        f"The ends and the middle of the scores, the doubtful (by {doubt}), out-of-domain, clipped "
        f"and failed clips, and a random sample. {_WAY[audio]}"
    )
    listed = {
        "rows": made,
        "reasons": list(dict.fromkeys(why for row in rows for why in row["why"])),
        "columns": ["why", "listen", *(name for name, _ in columns.values()), "clip"],
        "ratings": ratings,
    }
    return Exhibit(f"listen-{number}", "Listen and check", lead, clips=listed)


def _name(row: Mapping[str, Any]) -> str:
    start, end = row["start_ns"] / NS_PER_S, row["end_ns"] / NS_PER_S
    span = f" ({start:.1f} to {end:.1f} s)" if start > 0 else ""
    side = "" if pd.isna(row.get("channel")) else f", channel {row['channel']:.0f}"
    stream = f", stream {row['audio_stream']:.0f}" if row.get("audio_stream", 0) > 0 else ""
    return f"{row['folder']}/{last_part(row['file'])}{stream}{side}{span}".removeprefix("/")


def chosen(archive: Archive) -> pd.DataFrame:
    """The clips, each once, with all reasons for it (`why`)."""
    why: dict[int, list[str]] = {}
    for reason, rows in _kinds(archive):
        for place in rows:
            why.setdefault(place, []).append(reason)
    return archive.clips.loc[list(why)].assign(why=list(why.values()))


def _kinds(archive: Archive) -> Iterator[tuple[str, Sequence[int]]]:
    ok, clips = archive.ok, archive.clips
    for d in DIMENSIONS:
        if ok[d].notna().any():
            yield f"highest {d}", _first(ok, -ok[d])
            yield f"lowest {d}", _first(ok, ok[d])
    scores = ok[[d for d in DIMENSIONS if ok[d].notna().any()]]
    if scores.size:
        distance = (scores - scores.median()) / (scores.std(ddof=0) + 1e-9)
        yield "most typical", _first(ok, (distance**2).sum(axis=1))
    sd = [n for n in archive.numbers if n.endswith("_sd")]
    probable = [n for n in archive.numbers if n.startswith("p_")]
    if sd or probable:
        doubt = -ok[sd].mean(axis=1) if sd else ok[probable].max(axis=1)
        yield "most doubtful", _first(ok, doubt)
    yield "out of domain", _first(ok, -ok.ood.where(ok.ood > OOD_LIMIT))
    yield "clipped", _first(ok, -ok.clipped_ratio.where(ok.clipped_ratio > 0))
    failed = clips[clips.status != str(Status.OK)]
    turn = failed.groupby("status").cumcount()
    for place in turn.sort_values(kind="stable").index[:_FAILED]:
        yield f"failed: {failed.status[place]}", [place]
    rank = pd.util.hash_array(ok.clip_id.to_numpy(object))
    yield "random sample", list(ok.index[np.argsort(rank, kind="stable")[:_RANDOM]])


def _first(ok: pd.DataFrame, rank: pd.Series) -> list[int]:
    """Rows of the lowest ranks, of different files as far as there are."""
    nearest = rank.dropna().nsmallest(_CANDIDATES)
    again = ok.file.loc[nearest.index].duplicated()
    return list(again.sort_values(kind="stable").index[:_EACH])


def _places(archive: Archive, clips: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Where members of tars begin, and their sizes, by clip."""
    columns = ("clip_id", "byte_offset", "byte_size")
    wanted = set(clips.clip_id[clips.file.map(is_member)])
    found = {}
    for part in stream(archive.run.folder, "manifest", columns) if wanted else ():
        rows = part.to_pandas()
        for row in rows[rows.clip_id.isin(wanted)].dropna().itertuples():
            found[row.clip_id] = (int(row.byte_offset), int(row.byte_size))
    return found


def _player(
    row: Mapping[str, Any], output: str, audio: AudioMode, places: Mapping[str, tuple[int, int]]
) -> tuple[str, str]:
    """Address of the clip's audio, or an empty one and why there is none."""
    if audio == "none":
        return "", "–"
    start_ns, end_ns = int(row["start_ns"]), int(row["end_ns"])
    if audio == "link":
        if is_remote(row["file"]) or is_member(row["file"]):
            return "", "no link"
        span = f"#t={start_ns / NS_PER_S:.3f},{end_ns / NS_PER_S:.3f}"
        return Path(row["file"]).as_uri() + (span if end_ns > start_ns else ""), ""
    last_ns = min(end_ns, start_ns + round(_EXCERPT_S * NS_PER_S))
    offset, size = places.get(row["clip_id"], (None, None))
    stream, channel = (
        None if pd.isna(row.get(name)) else int(row[name]) for name in ("audio_stream", "channel")
    )
    try:
        source = storage.open_source(row["file"], byte_offset=offset, byte_size=size)
        with AudioReader(source, name=row["file"], stream=stream or 0) as reader:
            until_ns = last_ns if last_ns > start_ns else None
            signal = reader.read(start_ns, until_ns, max_s=_EXCERPT_S + 1, channel=channel)
    except (ClipError, StorageError, OSError):
        return "", "no audio"
    sound = io.BytesIO()
    sf.write(sound, signal, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    name = f"{quote(row['clip_id'], safe='')}.flac"
    storage.write_atomic(storage.join(output, AUDIO_FOLDER, name), sound.getvalue())
    return f"{AUDIO_FOLDER}/{quote(name)}", ""


def ratings_csv(clips: pd.DataFrame) -> bytes:
    """The clips with empty labels, 0 to 1, as `train` and `evaluate` read them."""
    spans = clips[["start_ns", "end_ns"]].set_axis(["start", "end"], axis=1) / NS_PER_S
    parts = [f.name for f in PARTS_OF_FILE if f.name in clips and clips[f.name].notna().any()]
    columns = dict.fromkeys(DIMENSIONS, "") | {"why": clips.why.str.join("; ")}
    rows = clips[["file"]].join(spans.where(spans.end > spans.start))
    rows = rows.join(clips[parts].astype("Int64")).assign(**columns)
    text: str = rows.to_csv(index=False, float_format="%.9f", lineterminator="\n")
    return text.encode("utf-8", "surrogateescape")

"""Clips worth listening to: the ends and the middle of an archive, its doubtful and failed clips.

The random sample follows from the clips' identities, so the same archive gives the same one. A
table names exactly these clips, to be rated by hand and read back as labels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pandas as pd
import soundfile as sf

from raysers.audio.decode import AudioReader
from raysers.errors import ClipError, StorageError
from raysers.io import storage
from raysers.io.objects import is_member, is_remote
from raysers.report.archive import OOD_LIMIT, Archive
from raysers.report.evidence import stream
from raysers.report.page import Exhibit, last_part, shown
from raysers.types import DIMENSIONS, NS_PER_S, SAMPLE_RATE_HZ, Status

AudioMode = Literal["copy", "link", "none"]
FOLDER = "audio"
#: Clips of a kind, of the random sample, and of failed ones; seconds of an excerpt.
_EACH, _RANDOM, _FAILED, _EXCERPT_S = 3, 12, 12, 12.0
_COLUMNS = {d: (d, 2) for d in DIMENSIONS} | {
    "ood": ("ood", 2), "rms_db": ("dB", 1), "duration_s": ("s", 1)
}  # fmt: skip
_CANDIDATES, _THREADS = 200, 8
_WAY = {"copy": "Each player has at most the first 12 s of its clip.",
        "link": "The players read the archive's own files, which must stay where they are.",
        "none": "No audio was asked for (--audio)."}  # fmt: skip


def listen_exhibit(archive: Archive, number: int, output: str, audio: AudioMode) -> Exhibit | None:
    """A table of clips with players; writes the excerpts and the table of clips to rate.

    Raises WriteError: the output cannot be written.
    """
    clips = chosen(archive)
    if clips.empty:
        return None
    ratings = f"rate-{number}.csv" if number > 1 else "rate.csv"
    storage.write_atomic(storage.join(output, ratings), ratings_csv(clips))
    places = _places(archive, clips) if audio == "copy" else {}
    with ThreadPoolExecutor(_THREADS) as pool:
        rows = clips.to_dict("records")
        sources = list(pool.map(lambda row: _player(row, output, audio, places), rows))
    columns = {name: how for name, how in _COLUMNS.items() if clips[name].notna().any()}
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
    return f"{row['folder']}/{last_part(row['file'])}{span}".removeprefix("/")


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
    start_ns, end_ns = int(row["start_ns"]), int(row["end_ns"])
    if audio == "none":
        return "", "–"
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
    storage.write_atomic(storage.join(output, FOLDER, name), sound.getvalue())
    return f"{FOLDER}/{quote(name)}", ""


def ratings_csv(clips: pd.DataFrame) -> bytes:
    """The clips with empty labels, 0 to 1, as `train` and `evaluate` read them."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["file", "start", "end", *DIMENSIONS, "why"])
    for row in clips.to_dict("records"):
        start, end = row["start_ns"], row["end_ns"]
        times = [f"{ns / NS_PER_S:.9f}" if end > start else "" for ns in (start, end)]
        rows.writerow([row["file"], *times, "", "", "", "; ".join(row["why"])])
    return file.getvalue().encode("utf-8", "surrogateescape")

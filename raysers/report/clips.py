"""What the report takes from tables of clips: counts, timelines, a sample of embeddings, words.

The sample is of the clips whose hashed ids are smallest: the same whatever the order of the parts,
and no clip is likelier than another.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.report.archive import COLUMNS, Archive, add, longest_files, timelines
from raysers.report.evidence import ArchiveFacts
from raysers.report.map_figure import MOST, Embedded
from raysers.report.run_tables import first_columns, stream
from raysers.types import Status

_TABLE = "annotations"
_MOST_TIMELINES, _MOST_SPOKEN = 4, 12
_KNOWN = ("corpus", "sex", "speaker")
#: Folders of a run that may hold a manifest with what is known of clips.
_MANIFESTS = ("manifest", "clips")
_LABELS = ("clip_id", "file", "start", *_KNOWN, "valence")


def read_archive(folder: str, table: str, job: str) -> ArchiveFacts | None:
    """The counts of an archive's rows and its longest timelines; None without such a table."""
    columns = first_columns(folder, table)
    if not columns:
        return None
    archive, model = Archive(), ""
    for part in stream(folder, table, [*COLUMNS, "model"]):
        add(archive, part)
        model = model or next(iter(pc.unique(part["model"]).to_pylist()), None) or ""
    files = longest_files(archive, _MOST_TIMELINES)
    lines = timelines(stream(folder, table, COLUMNS), files) if files else []
    return ArchiveFacts(folder=folder, job=job, model=model, archive=archive, timelines=lines)


def read_spoken(folder: str) -> list[tuple[str, str]]:
    """The first transcripts by file name."""
    kept: list[tuple[str, str]] = []
    for part in stream(folder, "transcripts", ("file", "status", "text")):
        good = part.filter(pc.equal(part["status"], str(Status.OK)))
        pairs = zip(good["file"].to_pylist(), good["text"].to_pylist(), strict=True)
        kept = heapq.nsmallest(_MOST_SPOKEN, [*kept, *((f, t or "") for f, t in pairs)])
    return kept


def read_map(folder: str, manifests: Sequence[str], *, most: int = MOST) -> Embedded | None:
    """A sample of the clips with embeddings; None when the run has none.

    Args:
        folder: of the annotation.
        manifests: folders of runs whose manifests may know the clips.
        most: clips in the sample.
    """
    if "embedding" not in first_columns(folder, _TABLE):
        return None
    chosen = _sample(stream(folder, _TABLE, ("clip_id", "status")), most)
    if not chosen:
        return None
    columns = ("clip_id", "file", "start", "embedding", "valence")
    wanted = pa.array(sorted(chosen))
    kept = [p.filter(pc.is_in(p["clip_id"], wanted)) for p in stream(folder, _TABLE, columns)]
    clips = pa.concat_tables(kept).sort_by("clip_id")
    return _embedded(clips, _labels(clips, manifests))


def _sample(parts: Iterator[pa.Table], most: int) -> set[str]:
    """Ids of at most `most` clips with scores."""
    kept: list[tuple[bytes, str]] = []
    for part in parts:
        good = part.filter(pc.equal(part["status"], str(Status.OK)))
        ids = good["clip_id"].to_pylist()
        kept = heapq.nsmallest(most, [*kept, *((_hash(i), i) for i in ids)])
    return {clip for _, clip in kept}


def _hash(clip: str) -> bytes:
    return hashlib.blake2b(clip.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _labels(clips: pa.Table, manifests: Sequence[str]) -> Mapping[object, Mapping[str, Any]]:
    """What manifests know of the clips, by id and by file and start."""
    ids, files = clips["clip_id"].combine_chunks(), pc.unique(clips["file"])
    found: dict[object, Mapping[str, Any]] = {}
    for folder in dict.fromkeys(manifests):
        for name in _MANIFESTS:
            if not set(first_columns(folder, name)) & {*_KNOWN, "valence"}:
                continue
            for part in stream(folder, name, _LABELS):
                near = pc.or_(pc.is_in(part["clip_id"], ids), pc.is_in(part["file"], files))
                for row in part.filter(near).to_pylist():
                    for key in (row["clip_id"], _place(row)):
                        found.setdefault(key, row)
    return found


def _place(row: Mapping[str, Any]) -> tuple[str, Any]:
    return row["file"], row["start"] or 0


def _embedded(clips: pa.Table, labels: Mapping[object, Mapping[str, Any]]) -> Embedded:
    rows = clips.select(["clip_id", "file", "start", "valence"]).to_pylist()
    known = [labels.get(r["clip_id"]) or labels.get(_place(r)) or {} for r in rows]
    truth = np.array([_number(k.get("valence")) for k in known])
    labelled = bool(np.isfinite(truth).any())
    predicted = np.array([_number(r["valence"]) for r in rows])
    embedding = np.stack(clips["embedding"].to_pylist()) if rows else np.zeros((0, 1))
    return Embedded(
        clip_id=[r["clip_id"] for r in rows],
        embedding=embedding.astype(np.float64),
        known={name: [str(k.get(name) or "") for k in known] for name in _KNOWN},
        valence=truth if labelled else predicted,
        labelled=labelled,
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)

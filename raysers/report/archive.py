"""What is in an annotated archive, added up part by part, so that its size does not matter.

Rows are counted, never kept: a million of them take the memory of one part. Only the windows of
the few longest recordings are read again, for their timelines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.evaluation.metrics import Floats
from raysers.types import DIMENSIONS, NS_PER_S, Status

#: Columns of a part that `add` looks at.
COLUMNS = (
    "file", "start", "end", "status", "error", *DIMENSIONS, "duration_s", "rms_db", "clipped_ratio",
)  # fmt: skip
BINS = 50
#: Scores are about 0..1; what lies beyond is counted at the edge.
SCORE_RANGE, LEVEL_RANGE_DB, LENGTH_RANGE_S = (0.0, 1.0), (-60.0, 0.0), (0.1, 1000.0)
_EXAMPLES, _KEPT_FILES, _FEWEST_WINDOWS = 3, 4096, 8


@dataclass(slots=True)
class Archive:
    """Figures of an archive so far.

    Attributes:
        rows: clips by status.
        seconds: audio of those clips, as far as their length is known.
        examples: by status, up to three different errors with their files.
        scores: histograms of the three dimensions, [3, BINS].
        moments: by dimension, count, sum and sum of squares, [3, 3].
        levels: histogram of the level, [BINS].
        lengths: histogram of the length, on a logarithmic scale, [BINS].
        windows: windows by file, of the files with most of them.
        clipped: clips with a sample at full scale.
    """

    rows: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    examples: dict[str, dict[str, str]] = field(default_factory=dict)
    scores: Floats = field(default_factory=lambda: np.zeros((3, BINS)))
    moments: Floats = field(default_factory=lambda: np.zeros((3, 3)))
    levels: Floats = field(default_factory=lambda: np.zeros(BINS))
    lengths: Floats = field(default_factory=lambda: np.zeros(BINS))
    windows: Counter[str] = field(default_factory=Counter)
    clipped: int = 0

    @property
    def clips(self) -> int:
        """All rows."""
        return sum(self.rows.values())

    @property
    def hours(self) -> float:
        """Audio of all rows."""
        return math.fsum(self.seconds.values()) / 3600

    @property
    def failed(self) -> int:
        """Rows that are not ok."""
        return self.clips - self.rows[Status.OK]

    def mean_and_sd(self, dimension: int) -> tuple[float, float]:
        """Mean and standard deviation (of the population) of a dimension's scores."""
        count, total, squares = self.moments[dimension]
        if not count:
            return math.nan, math.nan
        mean = total / count
        return float(mean), math.sqrt(max(squares / count - mean**2, 0.0))


def add(archive: Archive, part: pa.Table) -> None:
    """Count the rows of one part (`COLUMNS`)."""
    by_status = part.group_by("status").aggregate([([], "count_all"), ("duration_s", "sum")])
    for row in by_status.to_pylist():
        archive.rows[row["status"]] += row["count_all"]
        before = archive.seconds.get(row["status"], 0.0)
        archive.seconds[row["status"]] = before + (row["duration_s_sum"] or 0.0)
    _add_examples(archive, part)
    good = part.filter(pc.equal(part["status"], str(Status.OK)))
    for number, dimension in enumerate(DIMENSIONS):
        values = _numbers(good, dimension)
        archive.scores[number] += _histogram(values, SCORE_RANGE)
        archive.moments[number] += len(values), values.sum(), (values**2).sum()
    archive.levels += _histogram(_numbers(good, "rms_db"), LEVEL_RANGE_DB)
    low, high = np.log10(LENGTH_RANGE_S)
    lengths = np.log10(np.maximum(_numbers(good, "duration_s"), LENGTH_RANGE_S[0]))
    archive.lengths += _histogram(lengths, (float(low), float(high)))
    archive.clipped += int((_numbers(good, "clipped_ratio") > 0).sum())
    _add_windows(archive, part)


def _add_examples(archive: Archive, part: pa.Table) -> None:
    failed = part.filter(pc.not_equal(part["status"], str(Status.OK)))
    for status in pc.unique(failed["status"]).to_pylist():
        known = archive.examples.setdefault(status, {})
        if len(known) >= _EXAMPLES:
            continue
        mine = failed.filter(pc.equal(failed["status"], status))
        # one file for each different error, the first by name: the same whatever the order
        first = mine.group_by("error").aggregate([("file", "min")]).sort_by("error")
        for row in first.slice(0, _EXAMPLES).to_pylist():
            if len(known) < _EXAMPLES:
                known.setdefault(row["error"] or "", row["file_min"])


def _add_windows(archive: Archive, part: pa.Table) -> None:
    """Count windows (clips that do not begin their file), keeping the files with most."""
    start = part["start"].cast(pa.int64())
    cut = part.filter(pc.greater(pc.fill_null(start, 0), 0))
    counts = cut.group_by("file").aggregate([([], "count_all")])
    for file, count in zip(
        counts["file"].to_pylist(), counts["count_all"].to_pylist(), strict=True
    ):
        archive.windows[file] += count
    if len(archive.windows) > 2 * _KEPT_FILES:
        archive.windows = Counter(dict(archive.windows.most_common(_KEPT_FILES)))


def longest_files(archive: Archive, most: int) -> list[str]:
    """Files with the most windows, at least eight, in the order of that and then of the name."""
    ranked = sorted(archive.windows.items(), key=lambda kv: (-kv[1], kv[0]))
    return [file for file, count in ranked[:most] if count + 1 >= _FEWEST_WINDOWS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Scores along a recording.

    Attributes:
        file: its name.
        start_s: where each window begins, ascending, [n].
        end_s: where it ends, [n].
        scores: [n, 3]; NaN where the window has none.
    """

    file: str
    start_s: Floats
    end_s: Floats
    scores: Floats


def timelines(parts: Iterator[pa.Table], files: Sequence[str]) -> list[Timeline]:
    """The timelines of `files`, from all parts again."""
    wanted = pa.array(list(files), pa.string())
    kept = [part.filter(pc.is_in(part["file"], wanted)) for part in parts]
    rows = pa.concat_tables(kept) if kept else None
    if rows is None or not len(rows):
        return []
    found = []
    for file in files:
        mine = rows.filter(pc.equal(rows["file"], file)).sort_by("start")
        found.append(_timeline(file, mine))
    return found


def _timeline(file: str, rows: pa.Table) -> Timeline:
    start = pc.fill_null(rows["start"].cast(pa.int64()), 0).to_numpy() / NS_PER_S
    length = pc.fill_null(rows["duration_s"], 0.0).to_numpy()
    scores = [pc.fill_null(rows[d].cast(pa.float64()), math.nan).to_numpy() for d in DIMENSIONS]
    return Timeline(file=file, start_s=start, end_s=start + length, scores=np.stack(scores, axis=1))


def hours_by_status(archive: Archive) -> Mapping[str, float]:
    """Audio hours by status, ok first, then the most frequent failure."""
    order = sorted(archive.rows, key=lambda s: (s != Status.OK, -archive.rows[s], s))
    return {status: archive.seconds[status] / 3600 for status in order}


def _numbers(table: pa.Table, name: str) -> Floats:
    values = pc.fill_null(table[name].cast(pa.float64()), math.nan).to_numpy()
    return np.asarray(values[np.isfinite(values)], np.float64)


def _histogram(values: Floats, limits: tuple[float, float]) -> Floats:
    counts, _ = np.histogram(np.clip(values, *limits), bins=BINS, range=limits)
    return counts.astype(np.float64)

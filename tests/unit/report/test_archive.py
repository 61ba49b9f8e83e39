"""An archive counted part by part: the same as all at once, whatever its size or order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raysers.report.archive import (
    BINS,
    Archive,
    add,
    hours_by_status,
    longest_files,
    timelines,
)
from raysers.schemas import ANNOTATIONS
from raysers.types import DIMENSIONS, NS_PER_S
from tests.made_runs import shaped

RNG = np.random.default_rng(4)


def rows_of_files(files: int, windows: int, window_s: float = 2.0) -> list[dict]:
    rows = []
    for f in range(files):
        for w in range(windows + f):
            bad = (f + w) % 5 == 3
            row = {
                "file": f"f{f}",
                "start": int(w * window_s * NS_PER_S),
                "clip_id": f"{f}-{w}",
                "status": "empty" if bad else "ok",
                "error": f"error {w % 4}" if bad else "",
                "duration_s": window_s,
                "rms_db": None if bad else -20.0,
                "clipped_ratio": None if bad else float(w % 2),
            }
            scores = dict(zip(DIMENSIONS, RNG.random(3).tolist(), strict=True))
            rows.append(row if bad else row | scores)
    return rows


ROWS = rows_of_files(5, 8)


def counted(rows, size):
    archive = Archive()
    for first in range(0, len(rows), size):
        add(archive, shaped(rows[first : first + size], ANNOTATIONS))
    return archive


def test_counts_hours_and_moments_are_those_of_the_rows():
    archive = counted(ROWS, 7)
    good = [r for r in ROWS if r["status"] == "ok"]
    assert archive.rows == {"ok": len(good), "empty": len(ROWS) - len(good)}
    assert archive.hours == pytest.approx(2.0 * len(ROWS) / 3600)
    assert list(hours_by_status(archive)) == ["ok", "empty"]
    for k, dimension in enumerate(DIMENSIONS):
        values = np.float32([r[dimension] for r in good])
        assert archive.mean_and_sd(k) == pytest.approx((values.mean(), values.std()), rel=1e-5)
        expected, _ = np.histogram(values, bins=BINS, range=(0, 1))
        assert archive.scores[k].tolist() == expected.tolist()
    assert archive.clipped == sum(r["clipped_ratio"] > 0 for r in good)


def test_parts_of_any_size_give_the_same_figures():
    whole, pieces = counted(ROWS, len(ROWS)), counted(ROWS, 3)
    assert (whole.rows, whole.windows) == (pieces.rows, pieces.windows)
    assert np.array_equal(whole.scores, pieces.scores)
    assert {status: len(found) for status, found in pieces.examples.items()} == {"empty": 3}


def test_the_longest_recordings_are_found_and_read_along_their_time():
    archive = counted(ROWS, 6)
    assert longest_files(archive, 2) == ["f4", "f3"]
    shuffled = [ROWS[i] for i in RNG.permutation(len(ROWS))]
    parts = (shaped(shuffled[i : i + 9], ANNOTATIONS) for i in range(0, len(shuffled), 9))
    first, second = timelines(parts, ["f4", "f3"])
    own = [r for r in ROWS if r["file"] == "f4"]
    assert first.start_s.tolist() == [r["start"] / NS_PER_S for r in own]
    expected = np.float32([r.get("valence", np.nan) for r in own])
    assert np.allclose(first.scores[:, 2], expected, equal_nan=True)
    assert len(second.start_s) == 11


def test_memory_is_bounded_by_files_kept_and_a_long_recording_is_not_lost():
    archive = Archive()
    long = rows_of_files(1, 60)
    for part in range(25):
        starts = np.full(1000, NS_PER_S)
        names = [f"{part}-{i}" for i in range(1000)]
        table = shaped(long[part * 2 : part * 2 + 2], ANNOTATIONS)
        many = pa.table(
            {"file": names, "start": pa.array(starts, pa.duration("ns")), "status": ["ok"] * 1000}
        )
        add(archive, pa.concat_tables([table, many], promote_options="default"))
        assert len(archive.windows) <= 8192
    assert longest_files(archive, 1) == ["f0"]

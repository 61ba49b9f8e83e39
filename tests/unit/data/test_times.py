"""Times as tables write them, checked against pandas, which audformat users write with."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.data.times import TimeColumnError, parse_ns, to_durations


@given(st.integers(0, 10**15))
def test_reads_what_pandas_writes(ns: int) -> None:
    delta = pd.Timedelta(ns, unit="ns")
    assert parse_ns(str(delta)) == ns
    assert parse_ns(delta.isoformat()) == ns


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5", 1.5),
        ("0", 0),
        ("2", 2),
        ("1,25", 1.25),
        ("3s", 3),
        (" 1.5 ", 1.5),
        ("1e-1", 0.1),
        ("00:01:02.5", 62.5),
        ("1:02:03", 3723),
        ("01:02,500", 62.5),
        ("100:00:00", 360_000),
        ("1 day", 86_400),
        ("2 days 00:00:01", 172_801),
        ("PT1M2.5S", 62.5),
        ("P1DT1S", 86_401),
        ("0.1234567891", 0.123456789),
    ],
)
def test_forms(text: str, seconds: float) -> None:
    assert parse_ns(text) == round(seconds * 1e9)


@pytest.mark.parametrize("text", ["", " ", "NaT", "nan", "None", "<NA>"])
def test_empty(text: str) -> None:
    assert parse_ns(text) is None


@pytest.mark.parametrize(
    "text",
    ["-1", "abc", "1:2:3:4", "-1 days +23:59:59", "inf", "1500000000", "1 2", "P", "PT", "1.5.5"],
)
def test_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|seconds"):
        parse_ns(text)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0, 1_500_000, None], pa.duration("us")),
        pa.array([0.0, 1.5, float("nan")]),
        pa.array([0.0, 1.5, None], pa.float32()),
        pa.array(["0", "0 days 00:00:01.5", "NaT"]),
        pa.array(["0", "1.5", ""], pa.large_string()),
        pa.array(["0", "1.5", None]).dictionary_encode(),
    ],
)
def test_columns_of_every_type(column: pa.Array) -> None:
    found = to_durations(pa.chunked_array([column[:1], column[1:]]))
    assert found.type == pa.duration("ns")
    assert found.cast(pa.int64()).to_pylist() == [0, 1_500_000_000, None]


def test_whole_seconds_and_empty_columns() -> None:
    assert to_durations(pa.chunked_array([[3]])).cast(pa.int64()).to_pylist() == [3 * 10**9]
    assert to_durations(pa.chunked_array([pa.nulls(2)])).null_count == 2
    assert len(to_durations(pa.chunked_array([], pa.string()))) == 0


@pytest.mark.parametrize(
    "values", [[0.0, -1.0], [0, 1_500_000_000], ["0", "x"], pa.array([0, -5], pa.duration("ns"))]
)
def test_bad_value_names_its_row(values: object) -> None:
    with pytest.raises(TimeColumnError) as raised:
        to_durations(pa.chunked_array([values]))
    assert raised.value.row == 1


def test_columns_that_are_no_times() -> None:
    with pytest.raises(TimeColumnError, match="not times"):
        to_durations(pa.chunked_array([[True]]))

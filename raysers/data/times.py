"""Times as tables write them, in whole nanoseconds."""

from __future__ import annotations

import math
import re
from typing import Any

import pyarrow as pa

from raysers.types import NS_PER_S

#: Cells that say nothing, in lower case.
EMPTY_WORDS = ("", "nat", "nan", "none", "null", "<na>", "na", "n/a", "-")
_NS_PER_UNIT = {"s": NS_PER_S, "ms": 1_000_000, "us": 1000, "ns": 1}
#: A plain number of seconds or of the column's unit.
_NUMBER = re.compile(r"\+?((?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?)\s*s?")
_TIME_MARKS = (":", "day", "p", "s", "m", "h")
#: A recording of more than eleven days is milliseconds, samples or nanoseconds by mistake.
_MAX_PLAIN_NS = 1_000_000 * NS_PER_S
_MAX_NS = 2**63 - 1
_TOO_LARGE = "is too large for seconds: divide it, or store the column as a duration"


class TimeColumnError(ValueError):
    """A value that is no time; `row` counts from 0."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def parse_ns(text: str, unit_ns: int = NS_PER_S) -> int | None:
    """Nanoseconds of one written time; None for an empty one.

    Args:
        text: a plain number, a time such as `1:02.5` (minutes) or `01:02:03,250`, or what pandas
            reads as a timedelta, such as `0 days 00:00:01` or `PT1.5S`.
        unit_ns: what a plain number counts.

    Raises:
        ValueError: not a time, or a negative one.

    >>> parse_ns("0 days 00:00:01.500000"), parse_ns("1:02.25"), parse_ns("1e-1"), parse_ns("NaT")
    (1500000000, 62250000000, 100000000, None)
    """
    text = text.strip()
    if text.lower() in EMPTY_WORDS:
        return None
    if found := _NUMBER.fullmatch(text):
        ns = round(float(found[1].replace(",", ".")) * unit_ns)
        if ns > _MAX_PLAIN_NS:
            raise ValueError(f"{text} {_TOO_LARGE}")
        return ns
    from pandas import Timedelta

    plain = text.replace(", ", " ").replace(",", ".")
    try:
        # pandas reads no minutes without hours, and joins numbers without units
        known = any(mark in plain.lower() for mark in _TIME_MARKS)
        time = Timedelta(f"0:{plain}" if plain.count(":") == 1 else plain) if known else None
        ns = -1 if time is None else time.as_unit("ns").value
    except (ValueError, OverflowError):
        ns = -1
    if ns < 0:
        raise ValueError(f"{text!r} is not a time of 0 seconds or more")
    return ns


def to_durations(column: pa.ChunkedArray, unit_ns: int = NS_PER_S) -> pa.Array:
    """A column of times as duration[ns], empty values as null.

    Takes durations of any unit, numbers (of `unit_ns`) and strings (`parse_ns`).

    Raises:
        TimeColumnError: a value that is no time, or negative.
    """
    kind, most = column.type, _MAX_NS
    if pa.types.is_dictionary(kind):
        return to_durations(column.cast(kind.value_type), unit_ns)
    found: list[Any] = [None] * len(column)
    if pa.types.is_duration(kind):
        factor = _NS_PER_UNIT[kind.unit]
        found = [v if v is None else v * factor for v in column.cast(pa.int64()).to_pylist()]
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        most = _MAX_PLAIN_NS
        seconds = column.cast(pa.float64(), safe=False).to_pylist()
        found = [None if v is None or math.isnan(v) else v * unit_ns for v in seconds]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        for row, text in enumerate(column.to_pylist()):
            try:
                found[row] = None if text is None else parse_ns(text, unit_ns)
            except ValueError as error:
                raise TimeColumnError(row, str(error)) from error
    elif not pa.types.is_null(kind):
        raise TimeColumnError(0, f"columns of type {kind} are not times: use seconds or durations")
    for row, ns in enumerate(found):
        if ns is not None and not 0 <= ns <= most:
            fault = "is negative" if ns < 0 else _TOO_LARGE
            raise TimeColumnError(row, f"{ns / NS_PER_S:g} s {fault}")
    whole = pa.array([ns if ns is None else round(ns) for ns in found], pa.int64())
    return whole.cast(pa.duration("ns"))

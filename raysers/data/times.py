"""Start and end columns as people write them, to whole nanoseconds.

A bare number is seconds (audformat itself would read it as nanoseconds, and quietly make every
segment empty), so numbers too large to be seconds are refused rather than guessed.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.types import NS_PER_S

_EMPTY = frozenset({"", "nat", "nan", "none", "null", "<na>"})
_SECONDS = r"(?P<s>\d+)(?:[.,](?P<fraction>\d*))?"
_FORMS = (
    # 1.5 or 1.5s
    re.compile(_SECONDS + r"\s*s?$"),
    # 0 days 00:00:01.500000 or 01:02:03,250 or 1:02.5
    re.compile(r"(?:(?P<d>\d+)\s*days?,?\s*\+?)?(?:(?P<h>\d+):)?(?P<m>\d+):" + _SECONDS + "$"),
    re.compile(r"(?P<d>\d+)\s*days?$"),
    # PT1.5S or P0DT0H1M2.5S
    re.compile(
        rf"P(?=T?\d)(?:(?P<d>\d+)D)?(?:T(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:{_SECONDS}S)?)?$",
        re.IGNORECASE,
    ),
)
_SECONDS_PER = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
#: A recording of more than eleven days is milliseconds, samples or nanoseconds by mistake.
_MAX_PLAIN_S = 1_000_000
_TOO_LARGE = "is too large for seconds: divide it, or store the column as a duration"
_FRACTION_DIGITS = 9
_MAX_NS = 2**63 - 1
_NS_PER_UNIT = {"s": NS_PER_S, "ms": 1_000_000, "us": 1000, "ns": 1}


class TimeColumnError(ValueError):
    """A value that is no time; `row` counts from 0."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def parse_ns(text: str) -> int | None:
    """Nanoseconds of one written time; None for an empty one.

    Raises:
        ValueError: not a time, or a negative one.

    >>> parse_ns("0 days 00:00:01.500000"), parse_ns("1:02.25"), parse_ns("1e-1"), parse_ns("NaT")
    (1500000000, 62250000000, 100000000, None)
    """
    text = text.strip()
    if text.lower() in _EMPTY:
        return None
    found = next((match for form in _FORMS if (match := form.match(text))), None)
    if found is None:
        return _float_ns(text)
    parts = found.groupdict()
    whole_s = sum(int(parts[unit]) * s for unit, s in _SECONDS_PER.items() if parts.get(unit))
    if whole_s > (_MAX_PLAIN_S if found.re is _FORMS[0] else _MAX_NS // NS_PER_S - 1):
        raise ValueError(f"{text} {_TOO_LARGE}")
    digits = (parts.get("fraction") or "")[:_FRACTION_DIGITS]
    return whole_s * NS_PER_S + int(digits.ljust(_FRACTION_DIGITS, "0"))


def _float_ns(text: str) -> int:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MAX_PLAIN_S:
        raise ValueError(f"{text!r} is not a time of 0 seconds or more")
    return round(seconds * NS_PER_S)


def to_durations(column: pa.ChunkedArray) -> pa.Array:
    """A column of times as duration[ns], empty values as null.

    Takes durations of any unit, numbers (seconds) and strings (`parse_ns`).

    Raises:
        TimeColumnError: a value that is no time, or negative.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_duration(kind):
        values = _from_durations(column)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = _from_seconds(column)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = _from_strings(column)
    elif pa.types.is_null(kind):
        values = pa.nulls(len(column), pa.int64())
    else:
        raise TimeColumnError(0, f"columns of type {kind} are not times: use seconds or durations")
    negative = np.flatnonzero(np.asarray(pc.fill_null(pc.less(values, 0), False)))
    if len(negative):
        row = int(negative[0])
        raise TimeColumnError(row, f"{values[row].as_py() / NS_PER_S} s is negative")
    return values.cast(pa.duration("ns"))


def _from_durations(column: pa.ChunkedArray) -> pa.Array:
    values, factor = _whole(column).cast(pa.int64()), _NS_PER_UNIT[column.type.unit]
    most = _MAX_NS // factor
    within = pc.fill_null(pc.and_(pc.less_equal(values, most), pc.greater(values, -most)), True)
    large = np.flatnonzero(~within.to_numpy(zero_copy_only=False))
    if len(large):
        row = int(large[0])
        raise TimeColumnError(row, f"{values[row].as_py()} {column.type.unit} is too long a time")
    return pc.multiply(values, factor)


def _from_seconds(column: pa.ChunkedArray) -> pa.Array:
    seconds = _whole(column).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    large = np.flatnonzero(seconds > _MAX_PLAIN_S)
    if len(large):
        raise TimeColumnError(int(large[0]), f"{seconds[large[0]]:g} {_TOO_LARGE}")
    empty = np.isnan(seconds)
    ns = np.rint(np.where(empty, 0.0, seconds) * NS_PER_S).astype(np.int64)
    return pa.array(ns, mask=empty)


def _from_strings(column: pa.ChunkedArray) -> pa.Array:
    values: list[int | None] = []
    for row, text in enumerate(column.to_pylist()):
        try:
            values.append(None if text is None else parse_ns(text))
        except ValueError as error:
            raise TimeColumnError(row, str(error)) from error
    return pa.array(values, pa.int64())


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined

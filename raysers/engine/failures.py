"""Errors that workers raise on purpose, carried to the driver as rows.

Ray Data keeps only the text of an exception from a worker, and the driver has to know its class.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import pyarrow as pa

from raysers import errors
from raysers.errors import ClipError, RaysersError

_CLASS, _MESSAGE = "error_class", "error_message"


def carried(work: Callable[..., pa.Table]) -> Callable[..., pa.Table]:
    """`work`, returning its RaysersError as a table for `raise_carried` instead of raising it."""

    @wraps(work)
    def careful(*args: object, **kwargs: object) -> pa.Table:
        try:
            return work(*args, **kwargs)
        except ClipError:
            raise  # a clip's fate has no business here: a bug
        except RaysersError as error:
            return pa.table({_CLASS: [type(error).__name__], _MESSAGE: [str(error)]})

    return careful


def raise_carried(table: pa.Table) -> pa.Table:
    """The table itself, or the error it carries, raised."""
    if _CLASS in table.column_names:
        kind = getattr(errors, table[_CLASS][0].as_py(), RaysersError)
        raise kind(table[_MESSAGE][0].as_py())
    return table

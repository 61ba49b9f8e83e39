"""Rows of what a listing finds, before headers are read.

A null status means "not known yet"; only rows whose fate is sealed already carry one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raysers.data.tar import TarMember
from raysers.io.uris import ObjectInfo
from raysers.schemas import MANIFEST, OBJECTS
from raysers.types import Status

#: Schema of every listed batch, before the label columns of tables; status null: not known yet.
LISTING = pa.schema([*OBJECTS, MANIFEST.field("status"), MANIFEST.field("error")])


def object_rows(infos: Sequence[ObjectInfo]) -> pa.Table:
    """Rows of plain files; a name that Arrow cannot hold is spelled out and refused."""
    names = [info.uri.encode("utf-8", "backslashreplace").decode("utf-8") for info in infos]
    odd = [name != info.uri for name, info in zip(names, infos, strict=True)]
    return _rows(
        file=names,
        num_bytes=[info.num_bytes for info in infos],
        etag=[info.etag for info in infos],
        status=[str(Status.UNSUPPORTED) if bad else None for bad in odd],
        error=["the file name is not valid UTF-8: rename it" if bad else None for bad in odd],
    )


def member_rows(members: Sequence[TarMember]) -> pa.Table:
    """Rows of tar members."""
    bad = [member.status != Status.OK for member in members]
    return _rows(
        file=[member.file for member in members],
        num_bytes=[member.byte_size for member in members],
        etag=[member.etag for member in members],
        byte_offset=[member.byte_offset for member in members],
        byte_size=[member.byte_size for member in members],
        status=[str(m.status) if b else None for m, b in zip(members, bad, strict=True)],
        error=[m.error if b else None for m, b in zip(members, bad, strict=True)],
    )


def refused_row(info: ObjectInfo, status: Status, error: str) -> pa.Table:
    """The one row of a file whose content could not even be listed."""
    return _rows(
        file=[info.uri],
        num_bytes=[info.num_bytes],
        etag=[info.etag],
        status=[str(status)],
        error=[error],
    )


def _rows(**columns: Sequence[Any]) -> pa.Table:
    length = len(columns["file"])
    arrays = [pa.array(columns.get(f.name, [None] * length), f.type) for f in LISTING]
    return pa.table(arrays, schema=LISTING)

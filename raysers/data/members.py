"""Finds the tar members that a table names, so that labelled shards need no offsets.

The name alone does not make a member: `x.tar#1/a.wav` may as well be a file in a folder, and stays
one where no such tar exists.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.tar import TarMember, index_tar
from raysers.errors import ObjectMissing
from raysers.io import storage
from raysers.io.uris import is_member, tar_uri_of
from raysers.schemas import MANIFEST
from raysers.types import Status


def resolve_members(clips: pa.Table, *, suffixes: Collection[str]) -> pa.Table:
    """`clips` with offsets, sizes and etags of tar members, and `status` and `error` columns.

    A member that its tar does not hold is `missing`; status is null for all other rows.
    """
    length = len(clips)
    rows_of = _member_rows(clips)
    found: list[TarMember | None] = [None] * length
    for uri, rows in rows_of.items():
        files = clips["file"].take(rows).to_pylist()
        for row, member in zip(rows, _look_up(uri, files, suffixes), strict=True):
            found[row] = member
    fill = {
        "num_bytes": [m and m.byte_size for m in found],
        "etag": [m and m.etag for m in found],
        "byte_offset": [m and m.byte_offset for m in found],
        "byte_size": [m and m.byte_size for m in found],
    }
    for name, values in fill.items():
        if rows_of:
            new = pc.coalesce(clips[name], pa.array(values, MANIFEST.field(name).type))
            clips = clips.set_column(clips.schema.get_field_index(name), MANIFEST.field(name), new)
    bad = [m if m and m.status != Status.OK else None for m in found]
    status = pa.array([m and str(m.status) for m in bad], pa.string())
    error = pa.array([m and m.error for m in bad], pa.string())
    return clips.append_column(MANIFEST.field("status"), status).append_column(
        MANIFEST.field("error"), error
    )


def _member_rows(clips: pa.Table) -> dict[str, list[int]]:
    """Rows to look up, by tar."""
    named = pc.match_substring(clips["file"], ".tar#", ignore_case=True)
    unplaced = pc.and_(named, pc.is_null(clips["byte_offset"]))
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row in np.flatnonzero(unplaced.to_numpy(zero_copy_only=False)).tolist():
        file = clips["file"][row].as_py()
        if is_member(file):
            rows_of[tar_uri_of(file)].append(row)
    return rows_of


def _look_up(
    uri: str, files: Sequence[str], suffixes: Collection[str]
) -> Sequence[TarMember | None]:
    try:
        info = storage.stat(uri)
    except ObjectMissing:
        return [None] * len(files)
    wanted = set(files)
    members = {m.file: m for m in index_tar(info, suffixes=suffixes) if m.file in wanted}
    return [members.get(file) or _absent(file, uri) for file in files]


def _absent(file: str, uri: str) -> TarMember:
    return TarMember(
        file=file,
        byte_offset=0,
        byte_size=0,
        etag="",
        status=Status.MISSING,
        error=f"{uri} has no such audio member",
    )

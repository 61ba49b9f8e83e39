"""Audio inside Parquet tables, as Hugging Face stores it: a row's bytes.

A row group is the least that Parquet reads, so the last ones are kept; rows of a shard are
neighbours (see `manifest.plan_shards`), which then costs one reading a group.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from raysers.errors import ObjectMissing, ObjectUnreadable
from raysers.io.ranged import RangedFile

#: Bytes of row groups that a process keeps; the last one stays, whatever its size.
_KEPT_BYTES = 256 << 20

_lock = threading.Lock()
_groups: OrderedDict[tuple[str, str, int], pa.Array] = OrderedDict()
_footers: dict[tuple[str, str], pq.FileMetaData] = {}


def open_row(table: str, row: int, file: RangedFile, etag: str) -> BinaryIO:
    """The audio of a row of the table that `file` reads.

    Raises:
        ObjectMissing: no such row, or no audio in it.
        ObjectUnreadable: no Parquet table with a column of audio.
        StorageError: as reading the table.
    """
    with _lock:  # threads of a worker mostly need the same group
        try:
            footer = _footers.get((table, etag))
            if footer is None:
                footer = _footers[table, etag] = pq.read_metadata(file)
            group, first = 0, 0
            while group < footer.num_row_groups and first + footer.row_group(group).num_rows <= row:
                first += footer.row_group(group).num_rows
                group += 1
            if group == footer.num_row_groups:
                raise ObjectMissing(f"{table} has no row {row}")
            key = table, etag, group
            if key not in _groups:
                _groups[key] = _read(pq.ParquetFile(file, metadata=footer), group)
            _groups.move_to_end(key)
            while len(_groups) > 1 and sum(g.nbytes for g in _groups.values()) > _KEPT_BYTES:
                _groups.popitem(last=False)
            data = _groups[key][row - first].as_py()
        except (pa.ArrowException, OSError) as error:
            raise ObjectUnreadable(f"{table}, row {row}: {str(error).splitlines()[0]}") from error
    if data is None:
        raise ObjectMissing(f"{table}, row {row} has no audio")
    return io.BytesIO(data)


def _read(file: pq.ParquetFile, group: int) -> pa.Array:
    names = [field.name for field in file.schema_arrow if pa.types.is_struct(field.type)]
    name = "audio" if "audio" in names else (names or ["audio"])[0]
    found = file.read_row_group(group, columns=[f"{name}.bytes"])[name].combine_chunks()
    return found.field("bytes")

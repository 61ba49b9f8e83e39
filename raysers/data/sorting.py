"""Clip rows in the order of a manifest, in memory or, for long lists, in runs on the local disk."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.schemas import CHANNEL, LABEL_FIELDS, MANIFEST

_ORDER = ("file", "start", "end")

#: Rows and bytes that are sorted in memory.
RUN_ROWS = 1_000_000
RUN_BYTES = 512 << 20

#: Rows of a run that a merge has in memory.
BATCH_ROWS = 20_000


def sort_manifest(table: pa.Table) -> pa.Table:
    """Rows by file, start and end, an open end last; a clip that appears twice is kept once.

    A table's open end and its explicit one, or a window, may be the same clip. The row with labels
    stays, and among several of those the content decides.
    """
    names = [*_ORDER, CHANNEL.name, *(f.name for f in LABEL_FIELDS), *MANIFEST.names]
    present = [name for name in dict.fromkeys(names) if name in table.column_names]
    order = pc.sort_indices(table, [(name, "ascending") for name in present])
    if not pc.all(pc.equal(order, pa.array(np.arange(len(table), dtype=np.uint64)))).as_py():
        table = table.take(order)
    if len(table) < 2:
        return table
    repeated = pc.equal(table["clip_id"].slice(1), table["clip_id"].slice(0, len(table) - 1))
    fresh = np.append(True, ~repeated.to_numpy())
    return table if fresh.all() else table.filter(pa.array(fresh))


def shaped(table: pa.Table, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns of a manifest and its labels (of `columns`) in our order and types."""
    names = set(table.column_names).intersection(columns or table.column_names)
    ours = [field for field in (*MANIFEST, *LABEL_FIELDS, CHANNEL) if field.name in names]
    return table.select([field.name for field in ours]).cast(pa.schema(ours))


def in_runs(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables that are large, but can be sorted in memory."""
    held: list[pa.Table] = []
    rows = num_bytes = 0
    for table in tables:
        held.append(table)
        rows, num_bytes = rows + len(table), num_bytes + table.nbytes
        if rows >= RUN_ROWS or num_bytes >= RUN_BYTES:
            yield shaped(pa.concat_tables(held, promote_options="default"))
            held, rows, num_bytes = [], 0, 0
    if held:
        yield shaped(pa.concat_tables(held, promote_options="default"))


def in_parts(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows`, the last one shorter."""
    held = None
    for table in tables:
        held = table if held is None else pa.concat_tables([held, table], promote_options="default")
        while len(held) >= rows:
            yield held.slice(0, rows)
            held = held.slice(rows)
    if held is not None and len(held):
        yield held


def write_run(path: str, table: pa.Table) -> str:
    """Sort a table into a file for `merged`; returns its path."""
    table = sort_manifest(table.combine_chunks()).combine_chunks()
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table, max_chunksize=BATCH_ROWS)
    return path


def merged(paths: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of all runs as one sorted sequence of tables; a file is never in two of them.

    All runs are cut at the same files, so that each cut sorts by itself.
    """
    runs = [_Run(path) for path in paths]
    borders = sorted(file for run in runs for file in run.first_files[1:])
    # each table has one to two batches of every run
    for border in [*dict.fromkeys(borders[:: len(runs)]), None]:
        pieces = [piece for run in runs for piece in run.take_before(border)]
        together = pa.concat_tables(pieces, promote_options="default")
        yield sort_manifest(together.combine_chunks())


class _Run:
    """A sorted file, read batch by batch."""

    def __init__(self, path: str) -> None:
        self._reader = pa.ipc.open_file(path)
        self._next = 0
        self._rest = self._reader.schema.empty_table()
        #: The file of the first row of each batch.
        self.first_files = [
            self._reader.get_batch(i)["file"][0].as_py()
            for i in range(self._reader.num_record_batches)
        ]

    def take_before(self, border: str | None) -> Iterator[pa.Table]:
        """The next rows whose file is before `border`; None: all that are left."""
        while True:
            files = self._rest["file"]
            end = len(files)
            if border is not None:
                end = bisect_left(range(end), border, key=lambda place: files[place].as_py())
            yield self._rest.slice(0, end)
            self._rest = self._rest.slice(end)
            if len(self._rest) or self._next == len(self.first_files):
                return
            self._rest = pa.Table.from_batches([self._reader.get_batch(self._next)])
            self._next += 1

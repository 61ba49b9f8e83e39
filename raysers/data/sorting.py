"""Clip rows in the order of a manifest: in memory, or in runs on the local disk that are merged."""

from __future__ import annotations

import shutil
import tempfile
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysers.errors import WriteError
from raysers.schemas import LABEL_FIELDS, MANIFEST, PARTS_OF_FILE

Item = TypeVar("Item")
Result = TypeVar("Result")

_ORDER = ("file", "start", "end")
#: Rows and bytes that are sorted in memory.
RUN_ROWS = 1_000_000
RUN_BYTES = 512 << 20
#: Rows of each run that a merge has in memory, and batches that it sorts at a time.
BATCH_ROWS, MERGED_BATCHES = 2_000, 50
#: Parts read or written ahead of the one in use.
_PARTS_AHEAD = 2


def sort_manifest(table: pa.Table) -> pa.Table:
    """Rows by file, start and end, an open end last; a clip that appears twice is kept once.

    A table's open end and its explicit one, or a window, may be the same clip. The row with labels
    stays, and among several of those the content decides.
    """
    names = [*_ORDER, *(f.name for f in (*PARTS_OF_FILE, *LABEL_FIELDS)), *MANIFEST.names]
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
    ours = [field for field in (*MANIFEST, *LABEL_FIELDS, *PARTS_OF_FILE) if field.name in names]
    return table.select([field.name for field in ours]).cast(pa.schema(ours))


def to_parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def sorted_parts(
    tables: Iterable[pa.Table], part_rows: int, limit: int
) -> tuple[list[pa.Table | str], list[int], str, int]:
    """Tables in any order as sorted parts of `part_rows` rows, of the first `limit` (0: all).

    Returns the parts, their rows, the folder of those that are files (empty: none is), and how many
    rows are left out as repeated. WriteError: the local disk is full.
    """
    runs = _in_runs(tables)
    first = next(runs, MANIFEST.empty_table())
    second = next(runs, None)
    if second is None:
        table = sort_manifest(first)
        taken = table.slice(0, limit or None)
        parts = [taken.slice(at, part_rows) for at in range(0, len(taken) or 1, part_rows)]
        return parts, [len(part) for part in parts], "", len(first) - len(table)
    folder = tempfile.mkdtemp(prefix="raysers-")
    try:
        files: list[str] = []
        rows: list[int] = []
        given = kept = 0

        def write(part: tuple[str, pa.Table]) -> str:
            Path(part[0]).write_bytes(to_parquet(part[1]))
            return part[0]

        def wanted() -> Iterator[tuple[str, pa.Table]]:
            nonlocal kept
            for full in in_parts(_merged(files), part_rows):
                kept += len(full)
                part = full.slice(0, max(0, limit - sum(rows)) if limit else None)
                if len(part):
                    rows.append(len(part))
                    yield f"{folder}/part-{len(rows):05d}.parquet", part

        for run in chain([first, second], runs):
            given += len(run)
            files.append(_write_run(f"{folder}/run-{len(files)}.arrow", run))
        places = list(ahead(write, wanted()))
        for file in files:
            Path(file).unlink()
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            fix = "free some space, or set TMPDIR to another disk"
            raise WriteError(f"sorting clips in {folder}: {error.strerror}: {fix}") from error
        raise
    return places, rows, folder, given - kept


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int = _PARTS_AHEAD
) -> Iterator[Result]:
    """`work` on each item in order, in threads that are a few items ahead of the caller."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _in_runs(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables that are large, but can be sorted in memory."""
    held: list[pa.Table] = []
    rows = num_bytes = 0
    for table in chain(tables, [None]):
        if table is not None:
            held.append(table)
            rows, num_bytes = rows + len(table), num_bytes + table.nbytes
        if held and (table is None or rows >= RUN_ROWS or num_bytes >= RUN_BYTES):
            yield shaped(pa.concat_tables(held, promote_options="default"))
            held, rows, num_bytes = [], 0, 0


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


def _write_run(path: str, table: pa.Table) -> str:
    table = sort_manifest(table.combine_chunks()).combine_chunks()
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table, max_chunksize=BATCH_ROWS)
    return path


def _merged(paths: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of all runs as one sorted sequence of tables; a file is never in two of them.

    All runs are cut at the same files, so that each cut sorts by itself.
    """
    runs = [_Run(path) for path in paths]
    borders = sorted(file for run in runs for file in run.first_files[1:])
    for border in [*dict.fromkeys(borders[::MERGED_BATCHES]), None]:
        pieces = [piece for run in runs for piece in run.take_before(border)]
        together = pa.concat_tables(pieces, promote_options="default")
        yield sort_manifest(together.combine_chunks())


class _Run:
    """A sorted file, read batch by batch; `first_files` are those of each batch's first row."""

    def __init__(self, path: str) -> None:
        self._reader = pa.ipc.open_file(path)
        self._next = 0
        self._rest = self._reader.schema.empty_table()
        batches = map(self._reader.get_batch, range(self._reader.num_record_batches))
        self.first_files = [batch["file"][0].as_py() for batch in batches]

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

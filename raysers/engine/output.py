"""The output objects of a run: one Parquet part per shard, whole or absent, and `db.yaml`.

A part's name is a function of the plan alone, so writing it twice leaves one object. A part counts
as done only if its metadata says that this job wrote it with these settings for this shard.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

import raysers
from raysers.data.manifest import shard_name
from raysers.errors import ObjectMissing, RaysersError
from raysers.io import storage

_READERS = 16
_STAMP = b"raysers"

#: Column that tells several rows of a clip apart, in the tables that have them.
VARIANT = "perturbation"


#: What audformat calls the types of our columns, except those of its index.
_INDEX = {"file", "start", "end"}
_DTYPES = {
    pa.string(): "str",
    pa.float32(): "float",
    pa.float64(): "float",
    pa.int32(): "int",
    pa.int64(): "int",
    pa.timestamp("us", tz="UTC"): "date",
}


def part_uri(output: str, table: str, shard: int) -> str:
    """Where the rows of `shard` go."""
    return storage.join(output, table, shard_name(shard))


def stamp_of(job: str, settings: Mapping[str, Any]) -> str:
    """What identifies the rows of a run: a digest of its job and settings, model revision included.

    Parts of two runs are interchangeable exactly when their stamps are equal.
    """
    text = json.dumps([job, settings], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def part_stamp(stamp: str, shard: int) -> str:
    """The stamp of one part of a run."""
    return f"{stamp}-{shard}"


def to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`; columns a row does not have are null."""
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in schema]
    return pa.table(columns, schema=schema)


def replace_rows(earlier: pa.Table, again: pa.Table) -> pa.Table:
    """`earlier` with the rows of `again` in the places of the same clips and variants."""
    position = {key: i for i, key in enumerate(_keys(again))}
    both = pa.concat_tables([earlier, again.cast(earlier.schema)])
    take = [
        earlier.num_rows + position[key] if key in position else i
        for i, key in enumerate(_keys(earlier))
    ]
    return both.take(take)


def _keys(table: pa.Table) -> list[tuple[str, ...]]:
    """What names each row: its clip, and its variant where the table has variants."""
    columns = [name for name in ("clip_id", VARIANT) if name in table.column_names]
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def write_part(uri: str, table: pa.Table, *, stamp: str = "") -> None:
    """Write one part atomically, with the stamp in its metadata.

    Raises:
        WriteError: disk full, no permission.
    """
    if stamp:
        table = table.replace_schema_metadata({_STAMP: stamp})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_atomic(uri, sink.getvalue().to_pybytes())


def read_part(
    uri: str, columns: Sequence[str] | None = None, *, stamp: str = ""
) -> pa.Table | None:
    """A part's rows (of `columns`, reading no others); None when it is not there.

    With a `stamp`, a part that carries another one counts as not there.

    Raises:
        RaysersError: the object is not a whole Parquet file.
    """
    try:
        storage.stat(uri)
        # ParquetFile, not read_table: a folder named `a=b` must not become a column
        with pq.ParquetFile(storage.open_source(uri)) as file:
            found = (file.schema_arrow.metadata or {}).get(_STAMP, b"").decode()
            if stamp and found != stamp:
                return None
            table = file.read(columns=None if columns is None else [*columns])
            return table.replace_schema_metadata(None)
    except ObjectMissing:
        return None
    except (pa.ArrowInvalid, OSError) as error:
        # parts are written whole or not at all, so this one was damaged by something else
        raise RaysersError(
            f"{uri} is damaged ({error}): delete it and run the same command"
        ) from error


def read_parts(
    output: str, table: str, shards: int, columns: Sequence[str], *, stamp: str = ""
) -> dict[int, pa.Table]:
    """Columns of all parts that are there, by shard, read in parallel."""

    def read(shard: int) -> pa.Table | None:
        mark = part_stamp(stamp, shard) if stamp else ""
        return read_part(part_uri(output, table, shard), columns, stamp=mark)

    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(read, range(shards))
        return {i: part for i, part in enumerate(found) if part is not None}


def read_all(
    output: str, table: str, shards: int, columns: Sequence[str], *, stamp: str = ""
) -> pa.Table:
    """Columns of all parts that are there, as one table.

    Raises:
        RaysersError: none is there.
    """
    found = read_parts(output, table, shards, columns, stamp=stamp)
    if not found:
        raise RaysersError(f"no part of {table} is in {output}: was it removed?")
    return pa.concat_tables(found.values())


def parts_there(output: str, table: str) -> set[str]:
    """Names of the parts that are there, whoever wrote them."""
    found = storage.list_parts(storage.join(output, table))
    return {part.uri.rpartition("/")[2] for part in found}


def shards_done(output: str, table: str, shards: int, stamp: str) -> set[int]:
    """Shards with a finished part of the run that `stamp` identifies."""
    there = parts_there(output, table)
    if not there:
        return set()
    numbers = [i for i in range(shards) if shard_name(i) in there]

    def is_own(shard: int) -> bool:
        uri, mark = part_uri(output, table, shard), part_stamp(stamp, shard)
        return read_part(uri, [], stamp=mark) is not None

    with ThreadPoolExecutor(_READERS) as pool:
        return {i for i, own in zip(numbers, pool.map(is_own, numbers), strict=True) if own}


def check_rows(
    expected: pa.ChunkedArray, rows: pa.Table, names: Sequence[str], output: str
) -> None:
    """Raises RaysersError unless every clip is exactly one row under each variant's name."""
    if names == ("",):
        return check_complete(expected, rows["clip_id"], output)
    for name in names:
        found = rows.filter(pc.equal(rows[VARIANT], name))
        check_complete(expected, found["clip_id"], output)
    if rows.num_rows != len(expected) * len(names):
        raise RaysersError(
            f"{output} holds rows that its run did not ask for: delete the table's folder and run "
            "the same command"
        )
    return None


def check_names(output: str, table: str, shards: int) -> None:
    """Raises RaysersError when the table's folder holds parts that the plan does not name."""
    foreign = sorted(parts_there(output, table) - {shard_name(i) for i in range(shards)})
    if foreign:
        raise RaysersError(
            f"{storage.join(output, table)} holds {foreign[0]}, which this run did not write: "
            "remove it and run the same command"
        )


def check_complete(expected: pa.ChunkedArray, found: pa.ChunkedArray, output: str) -> None:
    """Raises RaysersError unless every clip id of the manifest is exactly one row of the output."""
    want = np.sort(expected.combine_chunks().to_numpy(zero_copy_only=False).astype("S32"))
    have = np.sort(found.combine_chunks().to_numpy(zero_copy_only=False).astype("S32"))
    if np.array_equal(want, have):
        return
    lost, extra = np.setdiff1d(want, have).size, have.size - np.intersect1d(want, have).size
    raise RaysersError(
        f"{output} does not match its manifest: {want.size} clips but {have.size} rows "
        f"({lost} clips without a row, {extra} rows too many). Its parts were changed from "
        "outside: delete the table's folder and run the same command"
    )


def write_header(output: str, tables: dict[str, pa.Schema], *, description: str) -> None:
    """Write `db.yaml` and, on a local disk, the links from audformat's table names.

    audformat looks for `db.<table>.parquet`; a relative link of that name to the table's folder
    lets it read all parts at once, without a second copy of the rows.

    Raises:
        WriteError: the folder cannot be written.
    """
    header: dict[str, Any] = {
        "name": "raysers",
        "source": f"raysers {raysers.__version__}",
        "usage": "unrestricted",
        "languages": [],
        "description": description,
        "schemes": {k: v for schema in tables.values() for k, v in _schemes(schema).items()},
        "tables": {name: _table(schema) for name, schema in tables.items()},
    }
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    storage.write_atomic(storage.join(output, "db.yaml"), text.encode())
    if not storage.is_remote(output):
        for name in tables:
            _link(Path(output) / f"db.{name}.parquet", name)


def remove_header(output: str, tables: Sequence[str]) -> None:
    """Remove what `write_header` wrote."""
    with suppress(RaysersError):
        storage.delete(storage.join(output, "db.yaml"))
    if not storage.is_remote(output):
        for name in tables:
            with suppress(OSError):
                (Path(output) / f"db.{name}.parquet").unlink(missing_ok=True)


def _schemes(schema: pa.Schema) -> dict[str, dict[str, str]]:
    """A scheme per column whose type audformat knows, with the column's meaning and unit."""
    schemes = {}
    for field in schema:
        dtype = _DTYPES.get(field.type)
        if dtype and field.name not in _INDEX:
            notes = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
            unit = f" ({notes['unit']})" if "unit" in notes else ""
            meaning = notes.get("meaning", field.name) + unit
            schemes[field.name] = {"description": meaning, "dtype": dtype}
    return schemes


def _table(schema: pa.Schema) -> dict[str, Any]:
    schemes = _schemes(schema)
    columns = [field.name for field in schema if field.name not in _INDEX]
    return {
        "type": "segmented",
        "columns": {name: {"scheme_id": name} if name in schemes else {} for name in columns},
    }


def _link(link: Path, folder: str) -> None:
    if link.is_symlink() and os.readlink(link) == folder:
        return
    with suppress(OSError):  # a disk without links: the tables are there all the same
        link.unlink(missing_ok=True)
        link.symlink_to(folder, target_is_directory=True)

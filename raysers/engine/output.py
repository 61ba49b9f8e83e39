"""The output objects of a run: one Parquet part per shard, whole or absent, and `db.yaml`.

A part's name is a function of the plan alone, so writing it twice leaves one object. A part counts
as done only if its metadata says that this job wrote it with these settings for this shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

import raysers
from raysers.data.manifest import Manifest
from raysers.data.shards import ShardPlan, shard_name
from raysers.display import one_line, plain
from raysers.errors import ConfigError, ObjectMissing, RaysersError
from raysers.io import storage
from raysers.schemas import CLIP_FIELDS, PARTS_OF_FILE

_READERS = 16
#: Licences of models whose output is for research only.
_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial|research")
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


def row_schema(schema: pa.Schema, manifest: Sequence[str]) -> pa.Schema:
    """`schema` of a job's rows, with channel and audio stream where the manifest has them."""
    given = [field for field in PARTS_OF_FILE if field.name in manifest]
    place, fields = len(CLIP_FIELDS), list(schema)
    return pa.schema([*fields[:place], *given, *fields[place:]], schema.metadata)


def to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`, with `start_s` and `end_s`; what a row does not have is null."""
    columns = {f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in schema}
    for name in ("start", "end") if "end_s" in columns else ():
        columns[f"{name}_s"] = pc.divide(columns[name].cast(pa.int64()).cast(pa.float64()), 1e9)
    return pa.table(list(columns.values()), schema=schema)


def replace_rows(earlier: pa.Table, again: pa.Table) -> pa.Table:
    """`earlier` with the rows of `again` in the places of the same clips and variants."""

    def keys(table: pa.Table) -> list[tuple[str, ...]]:
        columns = [name for name in ("clip_id", VARIANT) if name in table.column_names]
        return list(zip(*(table[name].to_pylist() for name in columns), strict=True))

    place = {key: len(earlier) + i for i, key in enumerate(keys(again))}
    both = pa.concat_tables([earlier, again.cast(earlier.schema)])
    return both.take([place.get(key, i) for i, key in enumerate(keys(earlier))])


def write_part(uri: str, table: pa.Table, *, stamp: str = "") -> None:
    """Write one part atomically; its metadata hold the stamp and the shard."""
    if stamp:
        table = table.replace_schema_metadata({_STAMP: _stamp_of_part(uri, stamp)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_atomic(uri, sink.getvalue().to_pybytes())


def read_part(
    uri: str, columns: Sequence[str] | None = None, *, stamp: str = ""
) -> pa.Table | None:
    """A part's rows (of `columns`, reading no others); None when it is not there.

    With a `stamp`, a part that a run of another stamp or another shard wrote counts as not there.
    Raises RaysersError: the object is not a whole Parquet file.
    """
    try:
        storage.stat(uri)
        # ParquetFile, not read_table: a folder named `a=b` must not become a column
        with pq.ParquetFile(storage.open_source(uri)) as file:
            found = (file.schema_arrow.metadata or {}).get(_STAMP, b"").decode()
            if stamp and found != _stamp_of_part(uri, stamp):
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


def _stamp_of_part(uri: str, stamp: str) -> str:
    number = uri.rpartition("part-")[2].partition(".")[0]
    return f"{stamp}-{int(number)}"


def read_parts(
    output: str, table: str, shards: Sequence[int], columns: Sequence[str], *, stamp: str = ""
) -> Iterator[tuple[int, pa.Table]]:
    """Columns of the parts of `shards` that are there, with their shards, read in parallel."""
    there = parts_there(output, table)
    numbers = iter([shard for shard in shards if shard_name(shard) in there])

    def read(shard: int) -> tuple[int, pa.Table | None]:
        return shard, read_part(part_uri(output, table, shard), columns, stamp=stamp)

    with ThreadPoolExecutor(_READERS) as pool:
        while some := list(islice(numbers, 4 * _READERS)):
            for shard, part in pool.map(read, some):
                if part is not None:
                    yield shard, part


def read_all(
    output: str, table: str, shards: int, columns: Sequence[str], *, stamp: str = ""
) -> pa.Table:
    """Columns of all parts that are there, as one table; RaysersError where none is."""
    found = [part for _, part in read_parts(output, table, range(shards), columns, stamp=stamp)]
    if not found:
        raise RaysersError(f"no part of {table} is in {output}: was it removed?")
    return pa.concat_tables(found)


def parts_there(output: str, table: str) -> set[str]:
    """Names of the parts that are there, of any run."""
    found = storage.list_parts(storage.join(output, table))
    return {part.uri.rpartition("/")[2] for part in found}


def check_rows(
    output: str, table: str, clips: Manifest, plan: ShardPlan, names: Sequence[str], *, stamp: str
) -> Counter[str]:
    """Rows by status; RaysersError unless every clip is one row under each variant's name."""
    columns = ["clip_id", "status"] + ([VARIANT] if tuple(names) != ("",) else [])
    empty = pa.table({name: pa.array([], pa.string()) for name in columns})
    statuses: Counter[str] = Counter()
    where = storage.join(output, table)
    for number, part in enumerate(clips.parts(["clip_id"])):
        shards = range(plan.firsts[number], plan.firsts[number + 1])
        found = [rows for _, rows in read_parts(output, table, shards, columns, stamp=stamp)]
        rows = pa.concat_tables([empty, *found])
        for name in names:
            mine = rows.filter(pc.equal(rows[VARIANT], name)) if name else rows
            check_complete(part["clip_id"], mine["clip_id"], output)
        if len(rows) != len(part) * len(names):
            raise RaysersError(
                f"{where} holds rows that its run did not ask for: delete it and run the same "
                "command"
            )
        statuses.update(rows["status"].to_pylist())
    planned = set(map(shard_name, range(len(plan))))
    if foreign := sorted(parts_there(output, table) - planned):
        raise RaysersError(
            f"{where} holds {foreign[0]}, which this run did not write: remove it and run the same "
            "command"
        )
    return statuses


def check_complete(expected: pa.ChunkedArray, found: pa.ChunkedArray, output: str) -> None:
    """Raises RaysersError unless every clip id of the manifest is exactly one row of the output."""
    planned, found_ids = (
        np.sort(ids.combine_chunks().to_numpy(zero_copy_only=False).astype("S32"))
        for ids in (expected, found)
    )
    if np.array_equal(planned, found_ids):
        return
    lost = np.setdiff1d(planned, found_ids).size
    extra = found_ids.size - np.intersect1d(planned, found_ids).size
    raise RaysersError(
        f"{output} does not match its manifest: {planned.size} clips but {found_ids.size} rows "
        f"({lost} clips without a row, {extra} rows too many). Its parts were changed from "
        "outside: delete the table's folder and run the same command"
    )


def write_header(
    output: str, tables: dict[str, pa.Schema], *, description: str, licence: str = ""
) -> None:
    """Write `db.yaml` for audformat and a README that tells Hugging Face `datasets` the tables.

    `usage` follows from `licence`, the model's; that of the recordings is not known. audformat
    looks for `db.<table>.parquet`: a local disk gets links of these names to the tables' folders.
    A table that is not of clips is in the README alone.
    """
    columns = {
        name: {f.name: _scheme(f) for f in schema if f.name not in _INDEX}
        for name, schema in tables.items()
        if _INDEX.issubset(schema.names)
    }
    header: dict[str, Any] = {
        "name": "raysers",
        "source": f"raysers {raysers.__version__}",
        "usage": "research" if _NON_COMMERCIAL.search(licence.lower()) else "other",
        "languages": [],
        "description": description,
        "schemes": {k: v for own in columns.values() for k, v in own.items() if v},
        "tables": {
            name: {
                "type": "segmented",
                "columns": {k: {"scheme_id": k} if v else {} for k, v in own.items()},
            }
            for name, own in columns.items()
        },
    }
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    storage.write_atomic(storage.join(output, "db.yaml"), text.encode())
    card = _card(tables, description, licence)
    storage.write_atomic(storage.join(output, "README.md"), card.encode())
    if not storage.is_remote(output):
        for name in columns:
            _link(Path(output) / f"db.{name}.parquet", name)


def remove_header(output: str, tables: Sequence[str]) -> None:
    """Remove what `write_header` wrote."""
    for name in ("db.yaml", "README.md"):
        with suppress(RaysersError):
            storage.delete(storage.join(output, name))
    if not storage.is_remote(output):
        for name in tables:
            with suppress(OSError):
                (Path(output) / f"db.{name}.parquet").unlink(missing_ok=True)


def _card(tables: Mapping[str, pa.Schema], description: str, licence: str) -> str:
    """A dataset card: front matter that `datasets.load_dataset` reads, and what lies where."""
    names = sorted(tables, key=lambda name: name == "manifest")  # the job's own table first
    configs = [
        {"config_name": name, "data_files": f"{name}/part-*.parquet"}
        | ({"default": True} if name == names[0] else {})
        for name in names
    ]
    front = yaml.safe_dump({"configs": configs}, sort_keys=False)
    lines = [
        f"---\n{front}---\n",
        "# Output of raysers\n",
        f"{plain(description)}.\n",
        *(f"- `{name}`: {len(tables[name])} columns" for name in names),
        "\n`run.json` has the command, its settings and how it ended.\n",
        f"The model's licence is {plain(licence)}; the recordings have their own terms."
        if licence
        else "The terms of the model and of the recordings apply to these tables.",
    ]
    return "\n".join(lines) + "\n"


def _scheme(field: pa.Field) -> dict[str, str]:
    """A column's audformat scheme, with its meaning and unit; empty for types it does not know."""
    if field.type not in _DTYPES:
        return {}
    notes = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
    unit = f" ({notes['unit']})" if "unit" in notes else ""
    return {"description": notes.get("meaning", field.name) + unit, "dtype": _DTYPES[field.type]}


def _link(link: Path, folder: str) -> None:
    if link.is_symlink() and os.readlink(link) == folder:
        return
    with suppress(OSError):  # a disk without links: the tables are there all the same
        link.unlink(missing_ok=True)
        link.symlink_to(folder, target_is_directory=True)


_MISSING = "--{} needs a package ({}): pip install 'raysers[lake]'"


def write_iceberg(name: str, parts: Sequence[str]) -> int:
    """Replace the rows of the Iceberg table `[CATALOG.]NAMESPACE.TABLE`; returns their number.

    The catalog is one of PyIceberg's configuration (`~/.pyiceberg.yaml` or `PYICEBERG_CATALOG__*`).
    It is one transaction; `start_s` and `end_s` replace durations, which neither Iceberg nor Delta
    has. Rows are copied: `--retry` writes a part anew under its name, and files of such tables must
    never change. Raises ConfigError: no such catalog, a name of other form, a refusal.
    """
    try:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NamespaceAlreadyExistsError
    except ImportError as error:
        raise ConfigError(_MISSING.format("iceberg", error.name)) from error
    *catalog, namespace, table = name.split(".") if "." in name else ("", "", "")
    if not (namespace and table) or len(catalog) > 1:
        raise ConfigError(f"--iceberg {name}: give [CATALOG.]NAMESPACE.TABLE")
    try:
        known = load_catalog(*catalog)
        with suppress(NamespaceAlreadyExistsError):
            known.create_namespace(namespace)
        schema, rows = _schema(parts), 0
        found = known.create_table_if_not_exists(f"{namespace}.{table}", schema=schema)
        with found.transaction() as transaction:
            with transaction.update_schema() as update:
                update.union_by_name(schema)
            if found.current_snapshot() is not None:
                transaction.delete("True")
            for part in _tables(parts, schema):
                transaction.append(part)
                rows += len(part)
        return rows
    except Exception as error:  # catalogs of all kinds raise errors of their own
        raise ConfigError(f"--iceberg {name}: {one_line(error) or type(error).__name__}") from error


def write_delta(place: str, parts: Sequence[str]) -> int:
    """Replace the rows of the Delta table in a folder or prefix, as `write_iceberg` does."""
    try:
        import deltalake
    except ImportError as error:
        raise ConfigError(_MISSING.format("delta", error.name)) from error
    schema, rows = _schema(parts), 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for part in _tables(parts, schema):
            rows += len(part)
            yield from part.to_batches()

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    try:
        deltalake.write_deltalake(place, reader, mode="overwrite", schema_mode="overwrite")
    except Exception as error:  # its errors and those of its stores have no common class
        raise ConfigError(f"--delta {place}: {one_line(error) or type(error).__name__}") from error
    return rows


def _schema(parts: Sequence[str]) -> pa.Schema:
    first = read_part(parts[0])
    assert first is not None, "a part that was listed"
    kept: list[Any] = [field for field in first.schema if not pa.types.is_duration(field.type)]
    return pa.schema(kept)


def _tables(parts: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
    for uri in parts:
        if (part := read_part(uri, schema.names)) is not None:
            yield part.cast(schema)

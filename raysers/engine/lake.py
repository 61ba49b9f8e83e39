"""Rows of an output as an Iceberg or Delta table, written whole in one transaction.

Neither format has durations, so `start_s` and `end_s` replace `start` and `end`. Rows are
copied: `--retry` writes a part anew under its name, and files of such tables must never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from raysers.engine import output
from raysers.errors import ConfigError

_MISSING = "--{} needs a package ({}): pip install 'raysers[lake]'"


def write_iceberg(name: str, parts: Sequence[str]) -> int:
    """Replace the rows of the Iceberg table `[CATALOG.]NAMESPACE.TABLE`; returns their number.

    The catalog is one of PyIceberg's configuration (`~/.pyiceberg.yaml` or `PYICEBERG_CATALOG__*`).

    Raises:
        ConfigError: no such catalog, a name of other form, or the catalog refuses.
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
        raise ConfigError(f"--iceberg {name}: {_line(error)}") from error


def write_delta(place: str, parts: Sequence[str]) -> int:
    """Replace the rows of the Delta table in a folder or prefix; returns their number.

    Raises:
        ConfigError: the place cannot be written.
    """
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
        raise ConfigError(f"--delta {place}: {_line(error)}") from error
    return rows


def _schema(parts: Sequence[str]) -> pa.Schema:
    first = output.read_part(parts[0])
    assert first is not None, "a part that was listed"
    kept: list[Any] = [field for field in first.schema if not pa.types.is_duration(field.type)]
    return pa.schema(kept)


def _tables(parts: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
    for uri in parts:
        if (part := output.read_part(uri, schema.names)) is not None:
            yield part.cast(schema)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

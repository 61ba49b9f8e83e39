"""The header that makes an output folder an audformat database.

audformat looks for `db.<table>.parquet`; a relative link of that name to the table's folder lets
it read all parts at once, without a second copy of the rows.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

import raysers
from raysers.io import storage

_INDEX = {"file", "start", "end"}
_DTYPES = {
    pa.string(): "str",
    pa.float32(): "float",
    pa.float64(): "float",
    pa.int32(): "int",
    pa.int64(): "int",
    pa.timestamp("us", tz="UTC"): "date",
}


def write_header(output: str, tables: dict[str, pa.Schema], *, description: str) -> None:
    """Write `db.yaml` and, on a local disk, the links from audformat's table names.

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

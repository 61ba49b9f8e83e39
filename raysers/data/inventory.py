"""S3 Inventory as an input: the list that S3 keeps of a bucket, which costs no listing.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.objects import ObjectInfo, is_shown

NAME = "manifest.json"
_MOST_BYTES = 64 << 20
_COLUMNS = ("bucket", "key", "size", "e_tag", "is_latest", "is_delete_marker")


def inventory_objects(uri: str, skipped: Callable[[str, str], None]) -> Iterator[ObjectInfo]:
    """Every object that the inventory of a `manifest.json` names, as `storage.list_objects`.

    Raises:
        ConfigError: it is no inventory in CSV or Parquet.
        StorageError: as reading its files.
    """
    try:
        manifest = json.loads(storage.read_bytes(uri, max_bytes=_MOST_BYTES))
        bucket = manifest["destinationBucket"].rpartition(":")[2]
        kind, schema = manifest["fileFormat"].upper(), manifest["fileSchema"]
        places = [f"s3://{bucket}/{file['key']}" for file in manifest["files"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--input {uri} is no manifest of an S3 Inventory ({error!r})") from error
    if kind not in ("CSV", "PARQUET"):
        raise ConfigError(f"--input {uri}: an inventory in {kind}: let S3 write CSV or Parquet")
    for place in places:
        try:
            for rows in _of_csv(place, schema) if kind == "CSV" else _of_parquet(place):
                yield from _objects(rows, kind == "CSV", skipped)
        except (pa.ArrowException, OSError, EOFError, KeyError) as error:
            raise ConfigError(f"--input {uri}: {place} cannot be read: {error}") from error


def _of_csv(place: str, schema: str) -> Iterator[pa.RecordBatch]:
    names = [name.strip() for name in schema.split(",")]
    known = {name.replace("_", ""): name for name in _COLUMNS}
    names = [known.get(name.lower(), name) for name in names]
    options = {
        "read_options": pa.csv.ReadOptions(column_names=names),
        "parse_options": pa.csv.ParseOptions(newlines_in_values=True),
        "convert_options": pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=[name for name in names if name in _COLUMNS],
        ),
    }
    with gzip.open(storage.open_file(place)) as file:
        yield from pa.csv.open_csv(file, **options)


def _of_parquet(place: str) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(storage.open_file(place)) as file:
        there = [name for name in _COLUMNS if name in file.schema_arrow.names]
        yield from file.iter_batches(columns=there)


def _objects(
    rows: pa.RecordBatch, is_encoded: bool, skipped: Callable[[str, str], None]
) -> Iterator[ObjectInfo]:
    """The newest version of each object of a batch."""
    for name, wanted in (("is_latest", "true"), ("is_delete_marker", "false")):
        if name in rows.schema.names:
            rows = rows.filter(pc.equal(pc.utf8_lower(rows[name].cast(pa.string())), wanted))
    names = [name for name in _COLUMNS[:4] if name in rows.schema.names]
    for row in rows.select(names).to_pylist():
        key = unquote_plus(row["key"]) if is_encoded else row["key"]
        uri = f"s3://{row['bucket']}/{key}"
        if not key.endswith("/") and is_shown(key, uri, skipped):
            yield ObjectInfo(uri, int(row["size"] or 0), (row.get("e_tag") or "").strip('"'))

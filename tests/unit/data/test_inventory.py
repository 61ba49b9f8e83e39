"""An S3 Inventory gives what listing the bucket gives."""

from __future__ import annotations

import csv
import gzip
import io
import json
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysers.data.sources import list_inputs
from raysers.errors import ConfigError
from tests.s3 import Bucket

KEYS = ["a b/ü+1.wav", "x.flac", "100%.wav", 'new"quote,.wav', "notes.txt", ".git/y.wav", "folder/"]


def of_csv(rows: list[dict[str, object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    for row in rows:
        writer.writerow([row["bucket"], quote_plus(str(row["key"])), *list(row.values())[2:]])
    return gzip.compress(text.getvalue().encode())


def of_parquet(rows: list[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    plain = [{**row, "is_latest": row["is_latest"] == "true"} for row in rows]
    pq.write_table(pa.Table.from_pylist(plain), sink)
    return sink.getvalue()


def listed(place: str) -> tuple[list[dict[str, object]], list[str]]:
    notes: list[str] = []
    rows = [row for batch in list_inputs([place], notes=notes) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: row["file"]), [note.split(": ", 1)[1] for note in notes]


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_an_inventory_lists_what_the_bucket_holds(s3: Bucket, kind: str) -> None:
    for key in KEYS:
        s3.put(key, key.encode())
    expected = listed(s3.uri)
    found = s3.client.list_objects_v2(Bucket=s3.name)["Contents"]
    rows: list[dict[str, object]] = [
        {"bucket": s3.name, "key": o["Key"], "is_latest": "true", "size": o["Size"],
         "e_tag": o["ETag"].strip('"')}
        for o in found
    ]  # fmt: skip
    rows.append({**rows[0], "key": "old.wav", "is_latest": "false"})
    data = of_csv(rows) if kind == "CSV" else of_parquet(rows)
    s3.put("inventory/data/1", data)
    manifest = {
        "sourceBucket": s3.name,
        "destinationBucket": f"arn:aws:s3:::{s3.name}",
        "fileFormat": kind,
        "fileSchema": "Bucket, Key, IsLatest, Size, ETag",
        "files": [{"key": "inventory/data/1", "size": len(data)}],
    }
    place = s3.put("inventory/manifest.json", json.dumps(manifest).encode())
    assert listed(place) == expected
    assert len(expected[0]) == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "no manifest of an S3 Inventory"),
        ("{", "no manifest of an S3 Inventory"),
        (
            '{"destinationBucket": "x", "fileFormat": "ORC", "fileSchema": "", "files": []}',
            "let S3 write CSV or Parquet",
        ),
    ],
)
def test_another_manifest_is_refused_in_one_line(s3: Bucket, content: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        listed(s3.put("manifest.json", content.encode()))

"""The rows of an output: the first ones on the screen, or all of them in another format.

    raysers read emotions/
    raysers read s3://bucket/emotions --csv emotions.csv
    raysers read evaluated/ --table metrics --xlsx metrics.xlsx
    raysers read emotions/ --iceberg speech.emotions

In other programs: pandas.read_parquet("emotions/annotations"), polars.read_parquet, in DuckDB
SELECT * FROM 'emotions/annotations/*.parquet', datasets.load_dataset("emotions/").
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa

from raysers.arguments import Flag
from raysers.cli import command
from raysers.engine import output as parts
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.run import Exit

if TYPE_CHECKING:
    import pandas as pd

#: Tables of outputs; of those in a folder, the first is what its job is about.
TABLES = (
    "annotations", "transcripts", "robustness", "predictions", "metrics", "trials", "cells",
    "manifest",
)  # fmt: skip
#: Columns of little use on a screen.
_LONG = ("clip_id", "model_revision", "run_id", "created_at", "embedding", "etag")
_READERS = 8
#: Rows that a sheet of Excel holds, its heading included.
_SHEET_ROWS = 1_048_576


@dataclass(frozen=True, kw_only=True)
class ReadFlags:
    """What is read, and where it goes."""

    source: Annotated[str, Flag("OUTPUT")]
    """Output of a job, local or s3://."""
    table: str = ""
    """Table to read, a sub-folder; default: the main one of the job."""
    csv: Annotated[str, Flag("FILE")] = ""
    """Write all rows to this file, as CSV."""
    xlsx: Annotated[str, Flag("FILE")] = ""
    """Write all rows to this file, as an Excel sheet."""
    iceberg: Annotated[str, Flag("NAME")] = ""
    """Write all rows to this table, [CATALOG.]NAMESPACE.TABLE, in place of those it has."""
    delta: Annotated[str, Flag("URI")] = ""
    """Write all rows to the Delta table in this folder or prefix, in place of those it has."""
    push_to_hub: Annotated[str, Flag("OWNER/NAME")] = ""
    """Upload card and tables, with names of files, as a private dataset of the Hugging Face hub."""
    rows: int = 10
    """Rows on the screen."""


def _parts(source: str, table: str) -> list[str]:
    """The parts of a table in an output; ConfigError where there are none."""
    place = storage.absolute(source)
    names = (table,) if table else (*TABLES, "")
    folders = (storage.join(place, name) if name else place for name in names)
    found = next(filter(None, map(storage.list_parts, folders)), [])
    if not found:
        expected = table or " or ".join(TABLES)
        raise ConfigError(f"{source} has no {expected} (part-*.parquet): give a job's output")
    return [part.uri for part in found]


def read_rows(output: str | os.PathLike[str], table: str = "") -> pd.DataFrame:
    """See `raysers.read`."""
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(filter(None, pool.map(parts.read_part, _parts(os.fspath(output), table))))
    frame: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
    for after, name in (("end", "end"), ("end", "start")):
        if name in frame and f"{name}_s" not in frame:
            seconds = frame[name].dt.total_seconds()
            frame.insert(frame.columns.get_loc(after) + 1, f"{name}_s", seconds)
    return frame


def read(flags: ReadFlags) -> int:
    """Read, print or write; returns the exit code."""
    if flags.rows < 0:
        raise ConfigError(f"--rows is {flags.rows}: give 0 or more")
    if flags.push_to_hub:
        return _push(flags.source, flags.push_to_hub)
    for place, write in ((flags.iceberg, parts.write_iceberg), (flags.delta, parts.write_delta)):
        if place:
            rows = write(place, _parts(flags.source, flags.table))
            print(f"{rows:,} rows in {place}")
    if (flags.iceberg or flags.delta) and not (flags.csv or flags.xlsx):
        return Exit.DONE
    frame = read_rows(flags.source, flags.table)
    # durations mean nothing to spreadsheets, and their times have no zones
    plain = frame.drop(columns=[name for name in ("start", "end") if name in frame])
    for name in plain.select_dtypes("datetimetz"):
        plain[name] = plain[name].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        if flags.csv:
            plain.to_csv(flags.csv, index=False)
        if flags.xlsx:
            _write_sheet(plain, flags.xlsx)
    except OSError as error:
        place = error.filename or flags.csv or flags.xlsx
        raise ConfigError(f"{place}: {error.strerror}") from error
    files = " and ".join(filter(None, (flags.csv, flags.xlsx)))
    if not files:
        shown = [name for name in plain if plain[name].notna().any() and name not in _LONG]
        print(plain[shown].head(flags.rows).round(3).to_string(index=False))
    where = f" in {files}" if files else ""
    print(f"{len(plain):,} rows, {len(plain.columns)} columns{where}")
    return Exit.DONE


def _write_sheet(frame: pd.DataFrame, file: str) -> None:
    if len(frame) >= _SHEET_ROWS:
        raise ConfigError(f"--xlsx: {len(frame):,} rows are more than a sheet holds: give --csv")
    try:
        import openpyxl  # noqa: F401
    except ImportError as error:
        raise ConfigError("--xlsx needs openpyxl: pip install 'raysers[tables]'") from error
    # text that a spreadsheet would take for a formula stays text
    safe = frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell[:1] == "=" else cell)
    safe.to_excel(file, index=False)


def _push(source: str, name: str) -> int:
    """Upload an output on this machine; runs, claims and audio stay here."""
    from huggingface_hub import HfApi, errors

    place = storage.absolute(source)
    if storage.is_remote(place) or not os.path.isfile(os.path.join(place, "README.md")):
        raise ConfigError(f"{source} has no README.md here: give an output on this machine")
    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        where = api.upload_folder(
            repo_id=name,
            folder_path=place,
            repo_type="dataset",
            allow_patterns=["README.md", "*/part-*.parquet"],
            ignore_patterns=["db.*"],
        )
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        raise ConfigError(f"--push-to-hub {name}: {error}; log in with: hf auth login") from error
    print(f"uploaded: {where.repo_url}")
    return Exit.DONE


main = command(ReadFlags, read, __doc__ or "", positional="source")

"""Outputs open in other programs: rows as CSV, Excel and frames, the dataset card, the usage."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import huggingface_hub
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects

import raysers
from raysers import commands
from raysers.engine import output
from raysers.schemas import ANNOTATIONS, MANIFEST

ROWS = [
    {
        "file": file, "start": start_s * 10**9, "end": end_s, "clip_id": file, "status": status,
        "error": error, "arousal": arousal, "model": "m",
        "created_at": datetime(2026, 1, 31, 12, tzinfo=UTC),
    }
    for file, start_s, end_s, status, error, arousal in (
        ("a.wav", 1, 3_500_000_000, "ok", "", 0.5),
        ("=cmd().wav", 0, None, "missing", 'no "such", file', None),
    )
]  # fmt: skip


@pytest.fixture
def made(tmp_path) -> str:
    """An output of two parts with a header."""
    place = str(tmp_path / "out")
    for shard, row in enumerate(ROWS):
        part = output.to_table([row], ANNOTATIONS)
        output.write_part(output.part_uri(place, "annotations", shard), part, stamp="x")
    tables = {"manifest": MANIFEST, "annotations": ANNOTATIONS}
    output.write_header(place, tables, description="annotate of *calls*", licence="cc-by-nc-sa-4.0")
    return place


def run(*args: str) -> None:
    assert commands.main(["read", *args]) == 0


def test_seconds_stand_beside_durations(made):
    frame = raysers.read(made)
    assert list(frame.columns[:6]) == ["file", "start", "end", "clip_id", "start_s", "end_s"]
    assert frame["start_s"].tolist() == [1.0, 0.0]
    assert frame["end_s"].isna().tolist() == [False, True]
    assert frame["end_s"][0] == 3.5


def test_csv_holds_every_row_and_value(made, tmp_path, capsys):
    run(made, "--csv", str(tmp_path / "rows.csv"))
    assert "2 rows" in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "rows.csv", keep_default_na=False)
    assert found["file"].tolist() == ["a.wav", "=cmd().wav"]
    assert found["error"].tolist() == ["", 'no "such", file']
    assert found["end_s"].tolist() == ["3.5", ""]
    assert found["created_at"][0] == "2026-01-31T12:00:00Z"


def test_excel_holds_every_row_and_no_formula(made, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    run(made, "--xlsx", str(tmp_path / "rows.xlsx"))
    head, *rows = openpyxl.load_workbook(tmp_path / "rows.xlsx").active.iter_rows()
    column = [cell.value for cell in head].index("file")
    assert [row[column].value for row in rows] == ["a.wav", "'=cmd().wav"]
    assert {cell.data_type for row in rows for cell in row} <= {"s", "n", "inlineStr"}


@pytest.mark.parametrize(
    ("flag", "place"),
    [("--csv", "no/such/a.csv"), ("--csv", "s3://b/a.csv"), ("--xlsx", "s3://b/a.xlsx"),
     ("--xlsx", "a.foo"), ("--csv", "out"), ("--xlsx", "no/such/a.xlsx")],
)  # fmt: skip
def test_a_place_that_cannot_be_written_is_one_line(
    made, flag, place, capsys, tmp_path, monkeypatch
):
    pytest.importorskip("openpyxl")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert commands.main(["read", made, flag, place]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {flag} {place}: ")
    assert not line.endswith("None")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sheet_holds_rows_with_control_characters(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    row = {**ROWS[1], "error": "a\x01b\x1b[0m"}
    part = output.to_table([row], ANNOTATIONS)
    output.write_part(output.part_uri(str(tmp_path), "annotations", 0), part)
    run(str(tmp_path), "--xlsx", str(tmp_path / "rows.xlsx"))
    head, (*cells,) = openpyxl.load_workbook(tmp_path / "rows.xlsx").active.iter_rows(
        values_only=True
    )
    assert cells[head.index("error")] == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[0m"


def test_iceberg_tables_hold_the_rows_of_the_last_call(made, tmp_path, monkeypatch):
    """In a real catalog, in SQLite, read again by PyIceberg."""
    catalog = pytest.importorskip("pyiceberg.catalog")
    monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__WAREHOUSE", f"file://{tmp_path}/warehouse")
    (tmp_path / "warehouse").mkdir()
    monkeypatch.setattr(catalog, "_ENV_CONFIG", catalog.Config())  # read once, at import
    for _ in range(2):
        run(made, "--iceberg", "speech.emotions")
    found = catalog.load_catalog().load_table("speech.emotions").scan().to_pandas()
    assert sorted(found["file"]) == ["=cmd().wav", "a.wav"]
    assert found.set_index("file")["end_s"]["a.wav"] == 3.5
    assert commands.main(["read", made, "--iceberg", "emotions"]) == 2


def test_delta_tables_hold_the_rows_of_the_last_call(made, tmp_path):
    deltalake = pytest.importorskip("deltalake")
    for version in range(2):
        run(made, "--delta", str(tmp_path / "delta"))
        table = deltalake.DeltaTable(tmp_path / "delta")
        assert table.version() == version
        rows = table.to_pyarrow_table().sort_by("file").to_pylist()
        assert [row["file"] for row in rows] == ["=cmd().wav", "a.wav"]
        assert [row["end_s"] for row in rows] == [None, 3.5]
    assert commands.main(["read", made, "--delta", str(tmp_path / "out/README.md")]) == 2


def test_first_rows_are_printed(made, capsys):
    run(made, "--rows", "1")
    text = capsys.readouterr().out
    assert "a.wav" in text
    assert "=cmd" not in text
    assert "clip_id" not in text
    run(made, "--rows", "0")
    assert capsys.readouterr().out.startswith("2 rows")


def test_duckdb_reads_the_parts(made):
    found = duckdb.sql(f"SELECT file, arousal FROM '{made}/annotations/*.parquet' ORDER BY file")
    assert found.fetchall() == [("=cmd().wav", None), ("a.wav", 0.5)]


def test_the_card_names_every_table_for_load_dataset(made, tmp_path):
    _, front, text = (tmp_path / "out" / "README.md").read_text().split("---\n")
    configs = yaml.safe_load(front)["configs"]
    assert [(one["config_name"], one.get("default", False)) for one in configs] == [
        ("annotations", True),
        ("manifest", False),
    ]
    found = list((tmp_path / "out").glob(configs[0]["data_files"]))
    assert sum(pa.parquet.read_table(path).num_rows for path in found) == len(ROWS)
    assert r"\*calls\*" in text  # a name is text, not Markdown
    assert "cc-by-nc-sa-4.0" in text


@pytest.mark.parametrize(
    ("licence", "usage"),
    [
        ("cc-by-nc-sa-4.0", "research"),
        ("CC BY-NC-SA 4.0", "research"),
        ("apache-2.0", "other"),
        ("", "other"),
    ],
)
def test_usage_follows_from_the_models_licence(licence, usage, tmp_path):
    tables = {"annotations": ANNOTATIONS}
    output.write_header(str(tmp_path), tables, description="x", licence=licence)
    assert yaml.safe_load((tmp_path / "db.yaml").read_text())["usage"] == usage


def test_card_and_tables_alone_go_to_a_private_dataset(made, tmp_path, monkeypatch, capsys):
    sent: dict[str, Any] = {}

    class Hub:
        def create_repo(self, name: str, **how: Any) -> None:
            sent.update(name=name, **how)

        def upload_folder(self, *, folder_path: str, **how: Any) -> Any:
            chosen = filter_repo_objects(
                [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*")],
                allow_patterns=how["allow_patterns"],
                ignore_patterns=how["ignore_patterns"],
            )
            sent["files"] = sorted(chosen)
            return SimpleNamespace(repo_url="https://hub/x")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    (tmp_path / "out" / "run.json").write_text("{}")
    run(made, "--push-to-hub", "me/calls")
    assert "uploaded: https://hub/x" in capsys.readouterr().out
    assert (sent["name"], sent["repo_type"], sent["private"]) == ("me/calls", "dataset", True)
    parts = sorted((tmp_path / "out/annotations").iterdir())
    names = [f"annotations/{part.name}" for part in parts]
    assert sent["files"] == ["README.md", *names]


def test_what_has_no_card_is_not_uploaded(tmp_path, capsys):
    assert commands.main(["read", str(tmp_path), "--push-to-hub", "me/calls"]) == 2
    assert "no README.md" in capsys.readouterr().err

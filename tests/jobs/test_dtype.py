"""`--dtype` on CPUs: int8 and fp32 through ONNX Runtime, never mixed, and what int8 costs."""

from __future__ import annotations

import re

import numpy as np
import pytest

from raysers.commands.archive import annotate as main
from raysers.commands.archive import transcribe
from tests.jobs.conftest import record_of, rows_of
from tests.places import needs_shared
from tests.published import score_files

pytestmark = [needs_shared, pytest.mark.usefixtures("no_cluster")]
DIMENSIONS = ("arousal", "dominance", "valence")


@pytest.fixture
def command(tmp_path, emodb_files, checkpoint) -> list[str]:
    """Annotation of six labelled clips."""
    rows = [f"{file},{place / 6},0.5,{1 - place / 6}" for place, file in enumerate(emodb_files[:6])]
    table = tmp_path / "clips.csv"
    table.write_text("\n".join(["file,arousal,dominance,valence", *rows]) + "\n")
    output = ["--output", str(tmp_path / "out"), "--workers", "local"]
    return ["--input", str(table), "--model", checkpoint[0], *output]


def scores_of(output) -> dict[str, list[float]]:
    return {row["file"]: [row[name] for name in DIMENSIONS] for row in rows_of(output)}


def test_int8_stays_close_to_fp32_and_is_not_mixed_with_it(
    command, checkpoint, emodb_files, tmp_path, capsys
) -> None:
    assert main([*command, "--dtype", "int8"]) == 0
    settings = record_of(tmp_path / "out")["settings"]
    assert (settings["dtype"], settings["backend"]) == ("int8", "onnxruntime")
    found, expected = scores_of(tmp_path / "out"), score_files(checkpoint[1], emodb_files[:6])
    moved = [np.abs(np.subtract(found[file], expected[file][:3])) for file in found]
    assert 0 < np.max(moved) < 0.01
    assert main([*command, "--dtype", "fp32"]) == 2
    assert "dtype was 'int8', now 'fp32'" in capsys.readouterr().err
    assert main([*command, "--dtype", "int8"]) == 0


def test_an_output_begun_by_torch_is_finished_by_torch(command, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("raysers.models.onnx.is_installed", lambda: False)
    assert main([*command, "--dtype", "fp32"]) == 0
    begun = scores_of(tmp_path / "out")
    assert "backend" not in record_of(tmp_path / "out")["settings"]
    for part in (tmp_path / "out" / "annotations").glob("part-*.parquet"):
        part.unlink()
    monkeypatch.undo()
    monkeypatch.setattr("raysers.engine.listing.has_cluster", lambda: False)
    assert main([*command, "--dtype", "fp32"]) == 0
    assert scores_of(tmp_path / "out") == begun
    assert "backend" not in record_of(tmp_path / "out")["settings"]


def test_an_output_begun_by_onnx_runtime_needs_it(command, monkeypatch, capsys) -> None:
    assert main([*command, "--dtype", "fp32"]) == 0
    monkeypatch.setattr("raysers.models.onnx.is_installed", lambda: False)
    assert main([*command, "--dtype", "fp32"]) == 2
    assert "backend was 'onnxruntime', now None" in capsys.readouterr().err


def test_int8_without_onnx_runtime_names_the_extra(command, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("raysers.models.onnx.is_installed", lambda: False)
    assert main([*command, "--dtype", "int8"]) == 2
    assert re.search(r"pip install .*\[cpu\]", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_check_dtype_prints_deviations_and_writes_nothing(command, tmp_path, capsys) -> None:
    assert main([*command, "--dtype", "int8", "--check-dtype", "5"]) == 0
    printed = capsys.readouterr().out
    assert "int8 (onnxruntime) against fp32 (torch), 5 clips (nothing was written)" in printed
    number = r"(\d\.\d+)"
    line = rf"(\w+) +mean {number}, p95 {number}, max {number}; CCC \S+ to \S+ \(([+-]{number})\)"
    found = {m[1]: [float(m[i]) for i in (2, 3, 4)] for m in re.finditer(line, printed)}
    assert set(found) == set(DIMENSIONS)
    assert all(0 < mean <= p95 <= most < 0.01 for mean, p95, most in found.values())
    assert not (tmp_path / "out").exists()


def test_transcribe_refuses_int8(command, tmp_path, capsys) -> None:
    inputs = ["--input", str(tmp_path / "clips.csv"), "--output", str(tmp_path / "texts")]
    assert transcribe([*inputs, "--dtype", "int8", "--workers", "local"]) == 2
    assert "--dtype" in capsys.readouterr().err

"""Pages that are written from the code are current."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from typing import Any

import pytest

from tests.places import REPO

PAGES = runpy.run_path(str(REPO / "docs/generate.py"))["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_current(name):
    assert PAGES[name]() == (REPO / "docs" / name).read_text(), "run: python docs/generate.py"


def test_the_site_is_built_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "schema" / "index.html").is_file()


def test_guarantees_name_tests_that_exist():
    named = re.findall(r"`(test_\w+)`", (REPO / "docs/guarantees.md").read_text())
    sources = "\n".join(path.read_text() for path in (REPO / "tests").rglob("test_*.py"))
    assert len(named) > 50
    assert [name for name in named if f"def {name}(" not in sources] == []


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book = json.loads((REPO / "docs/quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell, "quickstart.ipynb", "exec"), names)
    table = names["table"].set_index(names["table"]["file"].str.rpartition("/")[2])
    assert table["status"].to_dict() == {
        "broken.wav": "unreadable", "loud.wav": "ok", "quiet.wav": "ok",
    }  # fmt: skip
    assert (table["ood"].dropna() > 0.5).all()  # as the text says of noise
    assert names["scores"]["arousal"] == pytest.approx(table["arousal"]["loud.wav"], abs=1e-3)
    assert {"ccc"} <= set(names["metrics"]["metric"])

"""Pages that are written from the code are current."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys

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

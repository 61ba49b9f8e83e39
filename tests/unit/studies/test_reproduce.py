"""`docs/reproduce.md` says what the studies do, statement by statement of the paper."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from raysers.models.backbones import ASSETS
from raysers.studies.study import PAPER_STUDIES
from raysers.training.config import RECIPES
from tests.places import REPO

TEXT = (REPO / "docs" / "reproduce.md").read_text()
#: `STUDY: KEY > KEY = VALUE`
SETTINGS = re.findall(r"`([\w-]+(?: \w+)?): ([^=`]+) = ([^`]+)`", TEXT)


@pytest.mark.parametrize(("name", "path", "value"), SETTINGS)
def test_a_study_does_what_the_table_says_of_the_paper(name, path, value):
    found: Any
    if name.startswith("recipe "):
        found = RECIPES[name.removeprefix("recipe ")]
    else:
        found = yaml.safe_load((ASSETS / "studies" / f"{name}.yaml").read_text())
        found.setdefault("seeds", [0])
    for key in path.split(" > "):
        found = {str(k): v for k, v in found.items()}[key]
    wanted = yaml.safe_load(value)
    if isinstance(found, dict):
        found, wanted = [str(key) for key in found], [str(one) for one in wanted]
    assert found == wanted


def test_the_table_speaks_of_every_study():
    assert {name for name, _, _ in SETTINGS if not name.startswith("recipe")} == {*PAPER_STUDIES}

"""The report end to end: made runs of every job become a page that a browser shows as it should."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from raysers.commands.report import main
from raysers.report.figures import FIGURES as FIGURE_ROWS
from tests.browser import Browser, needs_browser
from tests.jobs.conftest import record_of
from tests.made_runs import EVIL, everything, fused, tuned


def run(runs, output) -> int:
    return main(["--runs", *map(str, runs), "--output", str(output)])


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("report")
    assert run(everything(root / "runs"), root / "out") == 0
    return root / "out"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def test_with_every_kind_of_run_every_figure_and_table_is_there_and_nothing_is_missing(report):
    text = (report / "index.html").read_text()
    for number in range(2, 15):
        assert f'id="figure-{number}"' in text
    for number in (1, 2, 3):
        assert f'id="table-{number}"' in text
    assert 'id="missing"' not in text
    outcome = record_of(report)["outcome"]
    assert outcome["missing"] == []
    saved = {path.name for path in (report / "figures").iterdir()}
    assert saved == set(outcome["figures"])
    assert {name.rpartition(".")[2] for name in saved} == {"svg", "png"}
    assert len({name.rpartition(".")[0] for name in saved}) * 2 == len(saved)


def test_the_page_says_hostile_names_and_words_without_doing_what_they_ask(report):
    text = (report / "index.html").read_text()
    assert text.count("<script") == 1
    assert not re.search(r"<img\b", text)
    assert "&lt;script&gt;document.title" in text


def test_the_same_runs_give_the_same_page_and_stale_figures_go(tmp_path):
    runs = [tuned(tmp_path / "tuned"), fused(tmp_path / "fused")]
    out = tmp_path / "out"
    assert run(runs, out) == 0
    files = {path: path.read_bytes() for path in [*out.glob("figures/*"), out / "index.html"]}
    (out / "figures" / "figure-99.svg").write_text("old")
    assert run(runs, out) == 0
    assert {path: path.read_bytes() for path in files} == files
    assert not (out / "figures" / "figure-99.svg").exists()


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path, capsys):
    assert run([fused(tmp_path / "fused")], tmp_path / "out") == 0
    said = capsys.readouterr().out
    text = (tmp_path / "out" / "index.html").read_text()
    assert "missing: Figure 3" in said
    assert "raysers robustness" in said
    assert "raysers study --study layers" in text
    missing = record_of(tmp_path / "out")["outcome"]["missing"]
    assert [int(name.split(":")[0].split()[1]) for name in missing] == [2, 3, 4, 5, *range(7, 15)]


def test_a_bad_command_is_one_line_and_writes_nothing(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run([empty], tmp_path / "out") == 2
    assert "run.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    one, other = fused(tmp_path / "one"), fused(tmp_path / "other")
    assert run([one], one) == 2
    assert run([one], tmp_path / "out") == 0
    capsys.readouterr()
    assert run([other], tmp_path / "out") == 2
    assert "holds rows of other settings (runs was" in capsys.readouterr().err


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_opens_the_page_without_a_complaint(report, browser, theme, width):
    browser.troubles.clear()
    browser.prefer(theme)
    browser.size(width, 800, phone=width < 500)
    browser.open((report / "index.html").as_uri())
    assert browser.troubles == []
    assert browser.says("document.documentElement.scrollWidth") == width
    assert browser.says("document.title") == "Speech emotion recognition: report of the runs"
    paper = browser.says("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 29)"}[theme]
    shown = "[...document.querySelectorAll('figure')].every(f => [...f.querySelectorAll('svg')]"
    shown += ".filter(s => s.getBoundingClientRect().width > 200).length === 1)"
    assert browser.says(shown)
    strokes = "[...new Set([...document.querySelectorAll('#figure-2 svg use')]"
    strokes += ".map(n => getComputedStyle(n).fill))].length"
    assert browser.says(strokes) >= 2


@needs_browser
def test_the_theme_is_switched_and_numbers_are_opened_by_keyboard(report, browser):
    browser.troubles.clear()
    browser.prefer("light")
    browser.size(1280, 800)
    browser.open((report / "index.html").as_uri())
    browser.press("Tab", 9)
    assert browser.says("document.activeElement.className") == "skip"
    browser.press("Tab", 9)
    assert browser.says("document.activeElement.textContent") == "Dark theme"
    browser.press(" ", 32)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert browser.says(paper) == "rgb(21, 24, 29)"
    assert browser.says("document.activeElement.textContent") == "Light theme"
    browser.says("document.querySelector('#figure-2 summary').focus()")
    browser.press(" ", 32)
    assert browser.says("document.querySelector('#figure-2 details').open")
    browser.prefer("light", media="print")
    assert browser.says(paper) == "rgb(255, 255, 255)"
    assert browser.says("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.prefer("light")
    assert browser.troubles == []


@needs_browser
def test_a_browser_shows_hostile_text_as_it_is(report, browser):
    browser.prefer("light")
    browser.open((report / "index.html").as_uri())
    words = browser.says("document.body.textContent")
    for evil in EVIL[:5]:
        assert evil in words


@pytest.mark.parametrize("figure", FIGURE_ROWS, ids=lambda figure: f"figure {figure.number}")
def test_the_named_commands_are_of_jobs_and_flags_there_are(figure):
    name, *words = figure.command.removeprefix("raysers ").split()
    job = importlib.import_module(f"raysers.commands.{name}")
    classes = [found for found in vars(job).values() if is_dataclass(found)]
    known = {field.name for found in classes for field in fields(found)}
    given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    assert given <= known

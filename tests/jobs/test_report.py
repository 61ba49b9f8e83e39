"""The report end to end: runs of every job become a page that a browser shows as it should."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import fields
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from raysers.commands import find
from raysers.commands.analyses import evaluate
from raysers.commands.analyses import report as main
from raysers.commands.fusion import FUSE
from raysers.data.labelled import read_labelled
from raysers.report.figures import CHARTS, paper_document
from raysers.schemas import ANNOTATIONS
from raysers.types import DIMENSIONS, NS_PER_S
from tests.browser import Browser, needs_browser
from tests.jobs.conftest import record_of
from tests.made_runs import EVIL, annotated, everything, fused, record, shaped, write


def run(runs, output, *more) -> int:
    return main(["--runs", *map(str, runs), "--output", str(output), *more])


class Reader(HTMLParser):
    """Tags, attributes and text of a document, as a browser would have them."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


def recorded(folder: Path, clips: int = 20) -> Path:
    """An archive whose files exist: tones of growing pitch and valence, and one broken file."""
    (folder / "audio").mkdir(parents=True)
    rows = []
    for i in range(clips):
        file = folder / "audio" / f"{i:02d} #50% & é.wav"
        times = np.arange(16000 + 800 * i) / 16000
        sf.write(file, 0.1 * np.sin(2 * np.pi * (200 + 20 * i) * times), 16000)
        row = {"file": str(file), "start": 0, "end": int(len(times) / 16000 * NS_PER_S)}
        row |= {"clip_id": f"id{i:030d}", "status": "ok", "error": "", "clipped_ratio": 0.0}
        row |= {"duration_s": len(times) / 16000, "rms_db": -23.0, "model": "m"}
        rows.append(row | dict.fromkeys(DIMENSIONS, i / clips))
    Path(rows[-1]["file"]).write_bytes(b"")
    rows[-1] |= {"status": "empty", "error": EVIL[0]} | dict.fromkeys(DIMENSIONS)
    write(folder, "annotations", shaped(rows, ANNOTATIONS))
    return record(folder, "annotate", audio_s=30.0)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("report")
    runs = [*everything(root / "runs"), recorded(root / "recorded")]
    assert run(runs, root / "out") == 0
    return root / "out"


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


def test_untrusted_text_stays_text_and_the_policy_allows_the_page_s_own_parts_only(report):
    text = (report / "index.html").read_text()
    read = Reader(text)
    tags = [tag for tag, _ in read.tags]
    assert tags.count("script") == tags.count("style") == 1
    sources = {str(a["src"])[:15] for tag, a in read.tags if tag == "img"}
    assert sources == {"data:image/svg+"}
    names = {name for _, attributes in read.tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    assert all(evil in read.words for evil in EVIL[:5])
    assert "\x00" not in text
    (policy,) = [a["content"] for tag, a in read.tags if tag == "meta" and "http-equiv" in a]
    allowed = dict(part.strip().split(" ", 1) for part in str(policy).split(";"))
    assert allowed["default-src"] == "'none'"
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed[f"{tag}-src"] == f"'sha256-{digest}'"
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [a["id"] for _, a in read.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [str(a["href"]) for _, a in read.tags if "href" in a]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_the_same_runs_give_the_same_page_and_stale_files_go(tmp_path):
    runs = [recorded(tmp_path / "recorded"), fused(tmp_path / "fused")]
    out = tmp_path / "out"
    assert run(runs, out) == 0
    files = {path: path.read_bytes() for path in out.rglob("*") if path.suffix in (".svg", ".flac")}
    files |= {path: path.read_bytes() for path in (out / "index.html", out / "rate.csv")}
    for old in ("figures/figure-99.svg", "audio/old.flac"):
        (out / old).write_text("old")
    assert run(runs, out) == 0
    assert {path: path.read_bytes() for path in files} == files
    assert not [*out.glob("*/figure-99.svg"), *out.glob("audio/old*")]


def test_an_archive_alone_is_about_itself_and_names_what_is_missing_in_one_line(tmp_path, capsys):
    assert run([annotated(tmp_path / "calls", embeddings=False)], tmp_path / "out") == 0
    text = (tmp_path / "out" / "index.html").read_text()
    assert re.findall("<title>(.*)</title>", text) == ["Speech emotion in calls"]
    assert not re.search(r'id="(figure|table)-', text)
    assert "raysers study --study layers" in text
    assert "Figure 3" in capsys.readouterr().out
    missing = record_of(tmp_path / "out")["outcome"]["missing"]
    assert [int(name.split(":")[0].split()[1]) for name in missing] == [*range(2, 15)]


@pytest.mark.parametrize("audio", ["copy", "link", "none"])
def test_chosen_clips_have_a_player_and_a_table_whose_ratings_are_read_back(tmp_path, audio):
    folder = recorded(tmp_path / "recorded")
    assert run([folder], tmp_path / "out", "--audio", audio) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    players = re.findall(r'<audio [^>]*src="([^"]*)"', text)
    ratings = pd.read_csv(tmp_path / "out" / "rate.csv")
    assert len(players) == (0 if audio == "none" else len(ratings) - (audio == "copy"))
    if audio == "copy":
        seconds = [sf.info(tmp_path / "out" / src).duration for src in players]
        assert min(seconds) == pytest.approx(1.0)
    heard = ~ratings.why.str.contains("failed")
    for d in DIMENSIONS:  # the rater agrees with the model
        ratings[d] = (ratings.file.str.extract(r"(\d\d) #50")[0].astype(int) / 20).where(heard)
    table = tmp_path / "rated.csv"
    ratings.to_csv(table, index=False)
    read = read_labelled([str(table)]).table  # what train reads
    assert read["valence"].drop_null().to_pylist() == pytest.approx(ratings.valence[heard].tolist())
    command = ["--predictions", str(folder), "--labels", str(table), "-o", str(tmp_path / "e")]
    assert evaluate(command) == 0
    metrics = pd.read_parquet(tmp_path / "e" / "metrics")
    ccc = metrics[(metrics.metric == "ccc") & (metrics.group == "") & (metrics.model == "m")]
    assert ccc.value.tolist() == pytest.approx([1.0] * 3)
    assert (ccc.n == heard.sum()).all()


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
def test_a_browser_shows_plays_sorts_filters_and_prints_the_page(report, tmp_path):
    browser = Browser(tmp_path)
    browser.prefer("dark")
    browser.size(390, 844, phone=True)
    browser.open((report / "index.html").as_uri())
    assert browser.says("document.documentElement.scrollWidth") == 390
    paper = "getComputedStyle(document.body).backgroundColor"
    assert browser.says(paper) == "rgb(21, 24, 29)"
    browser.prefer("light")
    browser.size(1280, 800)
    assert browser.says(paper) == "rgb(255, 255, 255)"
    assert browser.says("document.title") == "Speech emotion recognition: report of the runs"
    words = browser.says("document.body.textContent")
    assert all(evil in words for evil in EVIL[:5])
    assert browser.says("[...document.images].every(i => i.complete && i.naturalWidth > 50)")

    table = "document.querySelector('#listen-2 table')"
    rows = f"[...{table}.tBodies[0].rows].filter(r => !r.hidden)"
    valence = f"{rows}.map(r => parseFloat(r.cells[4].dataset.value)).filter(v => v === v)"
    for order in (1, -1):
        browser.says(f"{table}.querySelectorAll('thead button')[4].click()")
        values = browser.says(valence)
        assert values == sorted(values, reverse=order < 0)
    every = browser.says(f"{rows}.length")
    choice = "document.querySelector('#listen-2 select')"
    browser.says(f"{choice}.value = 'highest valence'")
    browser.says(f"{choice}.dispatchEvent(new Event('input'))")
    assert 0 < browser.says(f"{rows}.length") < every
    player = f"{table}.querySelector('audio')"
    browser.says(f"window.heard = []; {player}.muted = true; {player}.play(); 0")
    assert browser.waits_for(f"{player}.currentTime > 0")

    browser.prefer("dark", media="print")
    assert browser.says(paper) == "rgb(255, 255, 255)"
    assert browser.says("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.says("dispatchEvent(new Event('beforeprint'))")
    assert browser.says("[...document.querySelectorAll('figure details')].every(d => d.open)")
    assert browser.troubles == []
    browser.close()


@pytest.mark.parametrize("row", paper_document()["figures"], ids=lambda row: row["number"])
def test_the_named_commands_are_of_jobs_and_flags_there_are(row):
    assert row["number"] in CHARTS
    name, *words = row["command"].removeprefix("raysers ").split()
    command = FUSE[words[0]][0] if name == "fuse" else find(name)
    known = {field.name for field in fields(command.flags)}
    given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    assert given <= known

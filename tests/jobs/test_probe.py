"""The probe end to end, on a corpus whose answer is known: speech of the very voice of the probe.

Spoken again by the same voice, every clip is the same sound, so its scores must not move at all.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raysers.commands.analyses import probe
from raysers.commands.speech import synthesize
from raysers.types import DIMENSIONS
from tests.jobs.conftest import record_of, rows_of

pytest.importorskip("espeakng_loader")
pytest.importorskip("wordcloud")

WORDS = {"garden": 0.9, "concert": 0.6, "meeting": 0.3, "funeral": 0.1}
SAID = ("We saw the {}", "The {} was long", "Nobody left the {}", "A {}, they said")


def run(*args: object) -> int:
    return probe([str(a) for a in args])


@pytest.fixture(scope="module", autouse=True)
def scored_here() -> Iterator[None]:
    """What is spoken is scored in this process; speaking itself needs Ray."""
    with pytest.MonkeyPatch.context() as here:
        here.setattr("raysers.engine.listing.has_cluster", lambda: False)
        yield


@pytest.fixture(scope="module")
def corpus(ray_session, tmp_path_factory) -> Path:
    """Sixteen test clips with labels, one of them without a transcript, and a training clip."""
    folder = tmp_path_factory.mktemp("probe")
    rows = [
        (said.format(word), label, 0.5, 0.5, f"spk{i % 3}", "test")
        for word, label in WORDS.items()
        for i, said in enumerate(SAID)
    ]
    rows.append(("never heard", 0.0, 0.5, 0.5, "spk9", "train"))
    with (folder / "texts.csv").open("w", newline="") as file:
        names = ("text", "valence", "arousal", "dominance", "speaker", "split")
        csv.writer(file).writerows([names, *rows])
    flags = ["--texts", folder / "texts.csv", "--output", folder / "corpus", "--workers", 1]
    assert synthesize([str(f) for f in flags]) == 0
    return folder


FLAGS = ("--model", "raysers-base", "--limit", 16, "--least-occurrences", 4, "--bootstrap", 50,
         "--dtype", "fp32")  # fmt: skip


@pytest.fixture(scope="module")
def probed(corpus) -> Path:
    out = corpus / "probed"
    assert run(*FLAGS, "--data", corpus / "corpus", "--output", out) == 0
    return out


def rows(out: Path, **wanted: object) -> list[dict]:
    return [r for r in rows_of(out, "metrics") if all(r[k] == v for k, v in wanted.items())]


def test_clips_spoken_again_by_the_same_voice_keep_their_scores(probed):
    found = rows_of(probed, "respoken")
    assert len(found) == 16
    for row in found:
        for name in DIMENSIONS:
            # another micro-batch may be another sum in the last place
            assert row[f"{name}_respoken"] == pytest.approx(row[f"{name}_original"], abs=1e-5)
    for row in rows(probed, group_value="respoken, original", metric="ccc"):
        assert row["value"] == pytest.approx(1, abs=1e-3)
    assert {row["transcript"] for row in rows_of(probed, "clips")} == {
        said.format(word) for word in WORDS for said in SAID
    }


def test_labels_rate_the_words_as_they_were_labelled(probed):
    found = {w["word"]: w for w in rows_of(probed, "words") if w["source"] == "labels"}
    for word, label in WORDS.items():
        assert found[word]["occurrences"] == 4
        assert found[word]["valence"] == pytest.approx(label, abs=1e-6)
    record = record_of(probed)
    assert record["status"] == "done"
    for name in ("sentiment", "words-labels", "words-raysers-base", "respoken-distribution",
                 "respoken-ccc"):  # fmt: skip
        assert f"{name}.png" in record["outcome"]["pictures"]
        assert (probed / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert found["garden"]["side"] == "high"
    assert found["funeral"]["side"] == "low"
    assert "never" not in found


def test_shifts_are_those_of_the_sentences_scores(probed):
    sentences = rows_of(probed, "sentences")
    assert len(sentences) == 16
    assert {(s["model"], s["language"], s["template"]) for s in sentences} == {
        ("raysers-base", "en", "This is {word}")
    }
    scores = {r["clip_id"]: r for r in rows_of(probed / "scores/raysers-base/sentences")}
    for sentence in sentences:
        assert sentence["text"] == f"This is {sentence['word']}"
        for name in DIMENSIONS:
            assert sentence[name] == scores[sentence["clip_id"]][name]
    means = rows(probed, metric="sentiment_mean", dimension="valence", group_value="negative")
    negative = [s["valence"] for s in sentences if s["sentiment"] == "negative"]
    assert means[0]["value"] == pytest.approx(np.mean(negative), abs=1e-5)


def test_the_same_command_again_scores_nothing_and_finds_the_same(probed, corpus):
    def made() -> dict[Path, int]:
        files = [*probed.glob("scores/*/*/annotations/*"), *probed.glob("synthesised/*/audio/*")]
        return {f: f.stat().st_mtime_ns for f in files}

    def values() -> list[dict]:
        return [{k: v for k, v in r.items() if k != "run_id"} for r in rows(probed)]

    before, found, picture = made(), values(), (probed / "words-labels.png").read_bytes()
    assert run(*FLAGS, "--data", corpus / "corpus", "--output", probed) == 0
    assert made() == before
    assert values() == found
    assert (probed / "words-labels.png").read_bytes() == picture


def test_other_settings_in_the_same_folder_are_refused(probed, corpus, capsys):
    flags = [*FLAGS, "--data", corpus / "corpus", "--output", probed, "--voice", "de"]
    assert run(*flags) == 2
    assert "voice was ['neutral'], now ['de']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "raysers-base", "--voice", "xx"], "--voice xx"),
        (["--model", "raysers-base", "raysers-base"], "same model twice"),
        (["--model", "raysers-base", "--split", "test"], "it chooses clips of --data"),
        (["--model", "nothing-like-it"], "nothing-like-it"),
        (["--model", "raysers-base", "--texts", "TEXTS"], "no column 'sentiment'"),
        (["--model", "raysers-base", "--texts", "ODD"], "sentiment 'glad'"),
        (
            ["--model", "raysers-base", "--data", "CORPUS", "--split", "dev"],
            "no such split, but test",
        ),
    ],
)
def test_bad_commands_write_nothing(corpus, tmp_path, capsys, flags, message):
    odd = corpus / "odd.csv"
    odd.write_text("text,sentiment\nWell done.,positive\nOh dear.,glad\n")
    places = {"TEXTS": corpus / "texts.csv", "CORPUS": corpus / "corpus", "ODD": odd}
    out = tmp_path / "out"
    assert run(*(places.get(f, f) for f in flags), "--output", out) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_data_models_are_compared_on_the_sentences_alone(corpus, checkpoint, capsys):
    out = corpus / "sentences only"
    flags = ["--model", "raysers-base", checkpoint[0], "--bootstrap", 50]
    flags += ["--texts", corpus / "sentences.csv"]
    (corpus / "sentences.csv").write_text(
        "text,sentiment,noun\nI love it,1,it\nI hate it,-1,it\nI print it,0,it\n"
        "They love it,1,it\nThey hate it,-1,it\nThey print it,0,it\n"
    )
    assert run(*flags, "--output", out) == 0
    assert "no --data" in capsys.readouterr().out
    assert {row["model"] for row in rows(out)} == {"raysers-base", checkpoint[0]}
    assert {row["dataset"] for row in rows(out)} == {"sentences"}
    assert {row["group"] for row in rows(out)} == {"sentiment"}
    assert not (out / "words").exists()
    assert (out / "sentiment.png").exists()

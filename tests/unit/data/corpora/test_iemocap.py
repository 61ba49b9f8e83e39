"""IEMOCAP: who speaks, which number is which, and what is no label file."""

from __future__ import annotations

import pytest

from raysers.data.labelled import read_corpus, recognise
from raysers.errors import ConfigError
from tests.unit.data.corpora import trees


def rows_of(root) -> dict[str, dict]:
    rows = read_corpus("iemocap", str(root))[0].to_pylist()
    return {row["file"].rpartition("/")[2].removesuffix(".wav"): row for row in rows}


def test_the_turns_of_a_small_release(tmp_path):
    root = trees.iemocap(tmp_path / "IEMOCAP_full_release")
    assert recognise(str(root)) == "iemocap"
    rows = rows_of(root)
    assert set(rows) == {
        "Ses01F_impro01_F000",
        "Ses01F_impro01_M013",
        "Ses05M_script01_1_F001",
        "Ses05M_script01_1b_F001",
    }
    first = rows["Ses01F_impro01_F000"]
    # [V, A, D] = [2.5, 3.0, 4.5] on 1..5
    assert (first["valence"], first["arousal"], first["dominance"]) == (0.375, 0.5, 0.875)
    assert (first["emotion"], first["transcript"]) == ("neutral", "Excuse me.")
    assert first["file"].endswith("Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav")
    # the last field tells who speaks; the first who wears the markers
    turn = rows["Ses01F_impro01_M013"]
    assert (turn["speaker"], turn["sex"], turn["session"]) == ("Ses01M", "male", "Ses01")
    assert turn["emotion"] == "excitement"
    other = rows["Ses05M_script01_1b_F001"]
    assert (other["speaker"], other["sex"]) == ("Ses05F", "female")
    assert (other["emotion"], rows["Ses05M_script01_1_F001"]["emotion"]) == (
        "happiness",
        "no_agreement",
    )
    assert (other["corpus"], other.get("split"), other.get("transcript")) == ("iemocap", None, None)


def test_what_is_odd_is_told(tmp_path):
    trees.iemocap(tmp_path / "IEMOCAP_full_release")  # the release folder may be inside
    assert recognise(str(tmp_path)) == "iemocap"
    found, notes = read_corpus("iemocap", str(tmp_path))
    row = next(r for r in found.to_pylist() if "M013" in r["file"])
    assert (row["valence"], row["arousal"], row["dominance"]) == (0.0, 1.0, 1.0)
    count, off_scale = notes
    assert "4 of the 10,039 turns of IEMOCAP (Ses01 2, Ses05 2)" in count
    assert "1 (Ses01F_impro01_M013)" in off_scale
    audio = tmp_path / "IEMOCAP_full_release/Session1/sentences/wav/Ses01F_impro01"
    (audio / "Ses01F_impro01_F000.wav").rename(audio / "Ses01F_impro01_FXX0.wav")
    found, notes = read_corpus("iemocap", str(tmp_path))
    assert found.num_rows == 3
    assert any("turns without a wav, left out: 1 (Ses01F_impro01_F000)" in n for n in notes)
    assert any("wavs without a label, left out: 1 (Ses01F_impro01_FXX0)" in n for n in notes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1.0 - 2.0]\tSes01F_impro02_F000\tneu\t[2.5, high, 2.5]", "arousal is ' high'"),
        ("[1.0 - 2.0]\tSes01F_impro02_F000\tneu\t[2.5, 6.0, 2.5]", "arousal is 6, off its scale"),
        ("[1.0 - 2.0]\tSes01F_impro02_F000\tneu\t[2.5, 2.5]", "not a summary line"),
        ("[1.0 - 2.0]\tSes01F_impro02_F000\tnue\t[2.5, 2.5, 2.5]", "'nue' is none of ang"),
        ("[1.0 - 2.0]\tSes01F_impro02b_F000\tneu\t[2.5, 2.5, 2.5]", "no turn of Ses01F_impro02"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, line, message):
    root = trees.iemocap(tmp_path)
    name = "Session1/dialog/EmoEvaluation/Ses01F_impro02.txt"
    trees.text(root / name, f"% [V, A, D]\n\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        read_corpus("iemocap", str(root))
    assert message in str(caught.value)
    assert f"{name}, line 3" in str(caught.value)


def test_no_sessions_or_no_audio(tmp_path):
    with pytest.raises(ConfigError, match="no Session1"):
        read_corpus("iemocap", str(tmp_path))
    labels = tmp_path / "Session2/dialog/EmoEvaluation/Ses02F_impro01.txt"
    trees.text(labels, "[1.0 - 2.0]\tSes02F_impro01_F000\tneu\t[2.5, 2.5, 2.5]\n")
    with pytest.raises(ConfigError, match="none of its 1 turns has a sentence wav"):
        read_corpus("iemocap", str(tmp_path))

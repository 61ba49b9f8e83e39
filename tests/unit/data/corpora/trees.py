"""Small made corpora, laid out as the real ones are distributed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

#: Header of every MSP-Podcast consensus table: arousal, VALENCE, dominance.
MSP_HEADER = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"


def wav(path: Path, seconds: float = 0.05, rate_hz: int = 16_000) -> Path:
    """A real wav of faint noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).normal(0, 0.01, int(seconds * rate_hz))
    soundfile.write(path, noise, rate_hz, subtype="PCM_16")
    return path


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    """A text file, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def msp_podcast(
    root: Path,
    rows: list[str],
    *,
    labels: str = "Labels/labels_consensus.csv",
    audio: str = "Audios",
    also: tuple[str, ...] = (),
) -> Path:
    """A release with these rows, a wav for each, and wavs `also` without a row."""
    text(root / labels, "\n".join([MSP_HEADER, *rows]) + "\n")
    for name in (*(row.split(",")[0] for row in rows), *also):
        wav(root / audio / name)
    return root


def msp_json(root: Path, records: dict[str, dict[str, object]]) -> Path:
    """A release whose consensus is JSON only, rearranged as EMOBOX expects it."""
    text(root / "label/labels_concensus.json", json.dumps(records))
    for name in records:
        wav(root / "Audio" / name)
    return root


_DIALOG = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 3.0000, 4.5000]
C-E2:\tNeutral;\t()
C-F1:\tAnger; Sadness;\t(a comment; with [brackets], too)
A-E3:\tval 3; act 2; dom  2;\t()
A-F1:\tval 3; act 2; dom  ;\t()

[10.0100 - 11.3925]\tSes01F_impro01_M013\texc\t[1.0000, 5.0000, 5.5000]
C-E2:\tExcited;\t()
"""


def iemocap(root: Path) -> Path:
    """Two sessions, three dialogs, one of which is a prefix of another; Mac leftovers."""
    one, five = root / "Session1", root / "Session5"
    labels = one / "dialog/EmoEvaluation"
    text(labels / "Ses01F_impro01.txt", _DIALOG)
    text(labels / "._Ses01F_impro01.txt", "\0\5\x16\7 mac")
    text(labels / "Categorical/Ses01F_impro01_e3_cat.txt", "Ses01F_impro01_F000 :Neutral state;\n")
    text(
        one / "dialog/transcriptions/Ses01F_impro01.txt",
        "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\n"
        "M: a line of no turn\n"
        "Ses01F_impro01_M013 [010.0100-011.3925]: Do you have your forms?\n",
    )
    for turn in ("Ses01F_impro01_F000", "Ses01F_impro01_M013", "._Ses01F_impro01_F000"):
        wav(one / f"sentences/wav/Ses01F_impro01/{turn}.wav")
    for dialog, code in (("Ses05M_script01_1", "xxx"), ("Ses05M_script01_1b", "hap")):
        turn = f"{dialog}_F001"
        text(
            five / f"dialog/EmoEvaluation/{dialog}.txt",
            f"% header [V, A, D]\n\n[0.1 - 1.2]\t{turn}\t{code}\t[3.0, 3.0, 3.0]\n",
        )
        wav(five / f"sentences/wav/{dialog}/{turn}.wav")
    return root


#: One video of each standard split; the train one's id begins with an underscore elsewhere.
MOSI_VIDEOS = {"2iD-tVS8NPw": "train", "_dI--eQ6qVU": "dev", "Dg_0XKD0Mf4": "train"}


def mosi(root: Path, table: str | None = None) -> Path:
    """The raw tree, two segments a video."""
    rows = [
        f"0.5,3.25,{video},{n},{sentiment}"
        for video in MOSI_VIDEOS
        for n, sentiment in ((1, -3.0), (2, 1.5))
    ]
    text(root / "Labels/OpinionLevelSentiment.csv", table or "\n".join(rows) + "\n")
    for video in MOSI_VIDEOS:
        for n in (1, 2):
            wav(root / f"Raw/Audio/WAV_16000/Segmented/{video}_{n}.wav")
        wav(root / f"Raw/Audio/WAV_16000/Full/{video}.wav")
        text(
            root / f"Raw/Transcript/Segmented/{video}.annotprocessed",
            f"1_DELIM_FIRST OF {video}\n2_DELIM_SECOND, THEN\n",
        )
    return root


def mosi_label_csv(root: Path, rows: list[str], suffix: str = ".wav") -> Path:
    """The layout of MMSA, audio extracted beside the clips."""
    header = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"
    text(root / "label.csv", "\n".join([header, *rows]) + "\n")
    for row in rows:
        video, clip = row.split(",")[:2]
        wav(root / f"Raw/{video}/{clip}.wav").rename(root / f"Raw/{video}/{clip}{suffix}")
    return root

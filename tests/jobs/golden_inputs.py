"""Inputs of the golden tables: labelled clips, odd files, texts to speak, a corpus, settings.

All audio is computed, so nothing has to be downloaded, and nothing is skipped without it.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile as sf

from tests import s3
from tests.jobs.voices import read_table, write_table, write_voices
from tests.unit.models.text_folders import write_encoder

SPLITS = {"ann": "dev", "bea": "train", "cid": "test", "dan": "train"}
SAID = ("this was wonderful", "it was terrible", "a great day", "the time was awful", "you never")
#: Sentences and their sentiment, recognised reliably when spoken; the last one has no words.
SPOKEN = (
    ("This is wonderful news.", "positive"),
    ("My brother is very angry with me.", "negative"),
    ("The children are playing in the garden.", "neutral"),
    ("I have 2 brothers.", "neutral"),
    ("...", "neutral"),
)
#: Clips of a corpus named as EmoDB's: speaker, sentence, emotion, version.
EMODB = ("03a01Fa", "08a02Wb", "11b01Ta", "14b03Na")
#: Two studies of one small network; they share a cell.
TOY = {
    "models": {"toy": "random:tiny"},
    "train": {"epochs": 2, "batch_size": 7, "lr": 3e-3, "dtype": "fp32"},
}
STUDIES = {
    "seeds": {"factor": "seed", "seeds": [0, 1]},
    "shares": {"factor": "share", "values": {"all": {}, "half": {"train_fraction": 0.5}}},
}


def write_inputs(folder: Path) -> None:
    """Write all inputs that no command makes."""
    write_labelled_voices(folder / "voices")
    write_odd_files(folder / "odd")
    with tarfile.open(folder / "odd.tar", "w") as tar:
        for name in ("tone.wav", "text.wav"):
            tar.add(folder / "odd" / name, arcname=f"inner/{name}")
    (folder / "odd" / "gone.wav").symlink_to(folder / "nowhere.wav")  # only in the local folder
    sf.write(folder / "steady.mp3", tone(16_000), 16_000, bitrate_mode="CONSTANT")
    (folder / "emodb" / "wav").mkdir(parents=True)
    for number, name in enumerate(EMODB):
        sf.write(folder / "emodb" / "wav" / f"{name}.wav", tone(8000, 90 + 10 * number), 16_000)
    write_encoder(folder / "encoder")
    lines = ["text,sentiment", *(",".join(row) for row in SPOKEN)]
    (folder / "texts.csv").write_text("\n".join(lines))
    (folder / "space.yaml").write_text("lr: [3e-3, 1e-3]\nfreeze: [none, cnn]\n")
    for name, document in STUDIES.items():
        (folder / f"{name}.yaml").write_text(json.dumps(TOY | document))  # JSON is YAML


def write_labelled_voices(folder: Path) -> None:
    """Write clips and a table of labels with three splits, transcripts and varying valence."""
    rows = read_table(write_voices(folder))
    for number, row in enumerate(rows):
        row["split"] = SPLITS[row["speaker"]]
        row["corpus"] = "voices"
        row["transcript"] = SAID[number % len(SAID)]
        row["valence"] = f"{number % 9 / 10 + 0.1:.1f}" if number % 7 else ""
    write_table(folder / "labels.csv", rows)


def tone(samples: int, period: int = 100) -> np.ndarray:
    """A sawtooth with a pause, from integers: the same bits on every CPU."""
    time = np.arange(samples)
    return (time % period - period / 2) / period * (time % 5000 < 4000)


def write_odd_files(folder: Path) -> None:
    """Write audio in several formats, and files that are broken or no audio."""
    (folder / "deep er").mkdir(parents=True)
    audio = tone(10_000)
    nan = np.where(np.arange(10_000) == 5000, np.nan, audio)
    for name, samples, rate_hz, subtype in (
        ("tone.wav", audio, 16_000, "PCM_16"),
        ("deep er/ä 50%20#.wav", tone(12_000, 80), 16_000, "PCM_16"),
        ("stereo.flac", np.stack([audio, audio / 2], axis=1), 44_100, "PCM_24"),
        ("telephone.wav", audio, 8000, "ULAW"),
        ("loud.aiff", np.clip(3 * audio, -1, 1), 16_000, "PCM_16"),
        ("silence.wav", 0 * audio, 16_000, "PCM_16"),
        ("short.wav", audio[:160], 16_000, "PCM_16"),
        ("long.wav", tone(40_000), 16_000, "PCM_16"),
        ("nothing.wav", audio[:0], 16_000, "PCM_16"),
        ("nan.wav", nan, 16_000, "FLOAT"),
    ):
        sf.write(folder / name, samples, rate_hz, subtype=subtype)
    whole = (folder / "tone.wav").read_bytes()
    for name, content in (
        ("cut.wav", whole[: len(whole) // 2]),
        ("text.wav", b"not audio at all"),
        ("empty.wav", b""),
        ("pointer.wav", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("film.webm", b"\0\0\1\xba" + bytes(500)),
        ("notes.txt", b"not meant to be audio"),
    ):
        (folder / name).write_bytes(content)


def put_talk(bucket: s3.Bucket) -> None:
    """Put a recording of all synthesized sentences, with a second of silence after each."""
    spoken = [key for key in sorted(bucket.keys()) if key.startswith("synthesize/audio/")]
    parts, rate_hz = [], 0
    for key in spoken:
        audio, rate_hz = sf.read(io.BytesIO(bucket.get(key)), dtype="int16")
        parts += [audio, np.zeros(rate_hz, np.int16)]
    sink = io.BytesIO()
    sf.write(sink, np.concatenate(parts), rate_hz, format="WAV")
    bucket.put("talk/talk.wav", sink.getvalue())

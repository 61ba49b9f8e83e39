"""What the commands of the golden tables read: voices, odd files, speech, settings.

All sound is computed: nothing of it depends on files that a machine may not have.
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
#: Texts to speak, clear enough for a recogniser of any rounding; the last one says nothing.
SPOKEN = (
    ("This is wonderful news.", "positive"),
    ("My brother is very angry with me.", "negative"),
    ("The children are playing in the garden.", "neutral"),
    ("I have 2 brothers.", "neutral"),
    ("...", "neutral"),
)
#: EmoDB's names of four clips: speaker, sentence, emotion, version.
EMODB = ("03a01Fa", "08a02Wb", "11b01Ta", "14b03Na")
#: Studies of the same toy network, which share a cell.
TOY = {
    "models": {"toy": "random:tiny"},
    "train": {"epochs": 2, "batch_size": 7, "lr": 3e-3, "dtype": "fp32"},
}
STUDIES = {
    "seeds": {"factor": "seed", "seeds": [0, 1]},
    "shares": {"factor": "share", "values": {"all": {}, "half": {"train_fraction": 0.5}}},
}


def write_inputs(folder: Path) -> None:
    """Everything the commands read that no command makes."""
    write_labelled_voices(folder / "voices")
    write_odd_files(folder / "odd")
    sf.write(folder / "odd" / "steady.mp3", tone(16_000), 16_000, bitrate_mode="CONSTANT")
    with tarfile.open(folder / "odd.tar", "w") as tar:
        for name in ("tone.wav", "text.wav"):
            tar.add(folder / "odd" / name, arcname=f"inner/{name}")
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
    """Voices with a test split, a corpus, transcripts, and valence that is not always the same."""
    rows = read_table(write_voices(folder))
    for number, row in enumerate(rows):
        row["split"] = SPLITS[row["speaker"]]
        row["corpus"] = "voices"
        row["transcript"] = SAID[number % len(SAID)]
        row["valence"] = f"{number % 9 / 10 + 0.1:.1f}" if number % 7 else ""
    write_table(folder / "labels.csv", rows)


def tone(samples: int, period: int = 100) -> np.ndarray:
    """A saw tooth with a break in it, from whole numbers: the same to the last bit anywhere."""
    time = np.arange(samples)
    return (time % period - period / 2) / period * (time % 5000 < 4000)


def write_odd_files(folder: Path) -> None:
    """Sound in several forms, and what else lies in a folder of sound."""
    (folder / "deep er").mkdir(parents=True)
    sound = tone(10_000)
    nan = np.where(np.arange(10_000) == 5000, np.nan, sound)
    for name, samples, rate_hz, subtype in (
        ("tone.wav", sound, 16_000, "PCM_16"),
        ("deep er/ä 50%20#.wav", tone(12_000, 80), 16_000, "PCM_16"),
        ("stereo.flac", np.stack([sound, sound / 2], axis=1), 44_100, "PCM_24"),
        ("telephone.wav", sound, 8000, "ULAW"),
        ("loud.aiff", np.clip(3 * sound, -1, 1), 16_000, "PCM_16"),
        ("silence.wav", 0 * sound, 16_000, "PCM_16"),
        ("short.wav", sound[:160], 16_000, "PCM_16"),
        ("long.wav", tone(40_000), 16_000, "PCM_16"),
        ("nothing.wav", sound[:0], 16_000, "PCM_16"),
        ("nan.wav", nan, 16_000, "FLOAT"),
    ):
        sf.write(folder / name, samples, rate_hz, subtype=subtype)
    whole = (folder / "tone.wav").read_bytes()
    for name, content in (
        ("cut.wav", whole[: len(whole) // 2]),
        ("text.wav", b"not audio at all"),
        ("empty.wav", b""),
        ("pointer.wav", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("film.webm", b"\x1a\x45\xdf\xa3" + bytes(500)),
        ("notes.txt", b"no sound and not meant to be"),
    ):
        (folder / name).write_bytes(content)


def put_talk(bucket: s3.Bucket) -> None:
    """A recording of what was spoken, with a second of silence after each sentence."""
    spoken = [key for key in sorted(bucket.keys()) if key.startswith("synthesize/audio/")]
    parts, rate_hz = [], 0
    for key in spoken:
        sound, rate_hz = sf.read(io.BytesIO(bucket.get(key)), dtype="int16")
        parts += [sound, np.zeros(rate_hz, np.int16)]
    sink = io.BytesIO()
    sf.write(sink, np.concatenate(parts), rate_hz, format="WAV")
    bucket.put("talk/talk.wav", sink.getvalue())

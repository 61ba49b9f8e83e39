"""Labelled made-up voices to train on: short, of a few speakers, and learnable in seconds.

A clip is a buzz whose pitch says its arousal and whose brightness its dominance, so a network that
learns nothing and one that does are told apart by little data.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import soundfile as sf

#: The large layout at toy width, with everything random left in: dropout, layer drop, SpecAugment.
TOY = {
    "conv_dim": [16] * 7,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
}
SPEAKERS = {"ann": "female", "bea": "female", "cid": "male", "dan": "male"}
_CLIPS_EACH = 7
_SAMPLE_RATE_HZ = 16_000


#: What `--front mel` needs: a long first window.
MEL_FRONT = {
    "conv_dim": [16] * 4,
    "conv_kernel": [400, 3, 5, 5],
    "conv_stride": [160, 2, 1, 2],
    "feat_extract_norm": "group",
    "feat_extract_activation": "relu",
    "conv_bias": False,
    "do_stable_layer_norm": False,
}


def write_toy_config(folder: Path, **changes: object) -> Path:
    """A `config.json` for `random:`."""
    from raysers.models.backbones import BACKBONES

    path = folder / "config.json"
    path.write_text(json.dumps(BACKBONES["w2v2-L-robust"].config() | TOY | changes))
    return path


def write_voices(folder: Path) -> Path:
    """28 clips of 0.3 to 0.6 s with a table of labels; ann and cid are dev. Returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    rows = []
    for speaker, sex in SPEAKERS.items():
        for number in range(_CLIPS_EACH):
            arousal, dominance = rng.uniform(0.1, 0.9, 2)
            file = folder / f"{speaker}-{number}.wav"
            sf.write(file, _buzz(rng, arousal, dominance), _SAMPLE_RATE_HZ)
            rows.append(
                {
                    "file": file.name,
                    "speaker": speaker,
                    "sex": sex,
                    "split": "dev" if speaker in ("ann", "cid") else "train",
                    "emotion": "high" if arousal > 0.5 else "low",
                    "arousal": f"{arousal:.3f}",
                    "dominance": f"{dominance:.3f}",
                    "valence": "" if number % 3 else "0.5",
                }
            )
    return write_table(folder / "labels.csv", rows)


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    """Rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _buzz(rng: np.random.Generator, arousal: float, dominance: float) -> np.ndarray:
    samples = int(_SAMPLE_RATE_HZ * rng.uniform(0.3, 0.6))
    time_s = np.arange(samples) / _SAMPLE_RATE_HZ
    pitch_hz = 100 + 300 * arousal
    partials = [
        np.sin(2 * np.pi * k * pitch_hz * time_s) * (0.2 + 0.8 * dominance) ** k
        for k in range(1, 8)
    ]
    signal = np.sum(partials, 0) + 0.02 * rng.standard_normal(samples)
    return 0.3 * signal / np.abs(signal).max()


def break_in_the_middle(path: Path) -> None:
    """A FLAC file whose header is whole and whose audio is not."""
    content = bytearray(path.read_bytes())
    content[len(content) // 4 :] = bytes(len(content) - len(content) // 4)
    path.write_bytes(bytes(content))

r"""The heads of `raysers-base`: a ridge on frozen embeddings of EmoDB, measured on unseen speakers.

    python tools/raysers_base/fit_heads.py --backbone whisper-base-2 --emodb emodb \
        --output raysers-base

EMODB is a folder with `manifest.csv` (file, speaker, emotion) and its recordings. Each recording is
embedded as it is and in three changed forms, at another level: silence with a noise floor around
it; the telephone band and another speed; noise and another speed. Embeddings are kept beside
OUTPUT, so a second run takes seconds. One core needs about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.signal
import soundfile as sf
import soxr
import torch

from raysers.data.corpora.emotions import load_emotion_map
from raysers.models.emotion import EmotionModel
from raysers.models.initialize import start_model
from raysers.models.loading import save_emotion_model
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ

Floats = npt.NDArray[Any]
Change = Callable[[Floats, np.random.Generator], Floats]

#: One man and one woman each.
FOLDS = (("03", "08"), ("09", "10"), ("11", "13"), ("12", "14"), ("15", "16"))
#: Of the ridge, per variant: chosen on the folds; from 60 to 200 the CCC hardly moves.
ALPHA = 100.0
#: Keys of the network: see `WhisperEmotionModel`.
KEYS = {"trim_db": 50.0, "peak_level": 1.5, "final_norm": False}
#: The head is .5 + tanh(GAIN (x - .5)) / GAIN of the ridge's x: all but linear from 0 to 1.
GAIN = 0.5

_BAND = scipy.signal.butter(4, [300, 3400], "band", fs=SAMPLE_RATE_HZ, output="sos")


def _pink(samples: int, rng: np.random.Generator) -> Floats:
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(noise / noise.std())


def _rms(signal: Floats) -> float:
    return float(np.sqrt(np.mean(signal**2) + 1e-12))


def _level(signal: Floats, rng: np.random.Generator) -> Floats:
    return signal * 10 ** (rng.uniform(-25, 5) / 20)


def _speed(signal: Floats, rng: np.random.Generator) -> Floats:
    rate = SAMPLE_RATE_HZ * rng.uniform(0.92, 1.08)
    return np.asarray(soxr.resample(signal, rate, SAMPLE_RATE_HZ))


def in_silence(signal: Floats, rng: np.random.Generator) -> Floats:
    """Up to 2 s of pause before and after, over a noise floor 25 to 60 dB below the speech."""
    before, after = (int(SAMPLE_RATE_HZ * rng.uniform(0, 2)) for _ in range(2))
    longer = np.pad(signal, (before, after))
    floor = _pink(len(longer), rng) * _rms(signal) * 10 ** (rng.uniform(-60, -25) / 20)
    return _level(longer + floor, rng)


def by_telephone(signal: Floats, rng: np.random.Generator) -> Floats:
    """300 to 3,400 Hz at 8 kHz, 8 % slower to faster."""
    narrow = scipy.signal.sosfilt(_BAND, _speed(signal, rng))
    narrow = soxr.resample(soxr.resample(narrow, SAMPLE_RATE_HZ, 8_000), 8_000, SAMPLE_RATE_HZ)
    return _level(narrow, rng)


def in_noise(signal: Floats, rng: np.random.Generator) -> Floats:
    """White or pink noise 8 to 35 dB below the speech, 8 % slower to faster."""
    played = _speed(signal, rng)
    noise = _pink(len(played), rng) if rng.random() < 0.5 else rng.standard_normal(len(played))
    return _level(played + noise * _rms(played) * 10 ** (-rng.uniform(8, 35) / 20), rng)


VARIANTS: dict[str, Change] = {
    "plain": lambda signal, _rng: signal,
    "silence": in_silence,
    "telephone": by_telephone,
    "noise": in_noise,
}


def embeddings(model: EmotionModel, files: list[Path], change: Change, seed: int) -> Floats:
    """float32 [clips, embedding_size]."""
    found = []
    for number, file in enumerate(files):
        signal, rate_hz = sf.read(file)
        if rate_hz != SAMPLE_RATE_HZ:
            raise SystemExit(f"{file}: {rate_hz} Hz, expected {SAMPLE_RATE_HZ}")
        changed = change(signal, np.random.default_rng((seed, number)))
        padded = torch.from_numpy(np.asarray(changed, np.float32))[None]
        with torch.inference_mode():
            found.append(model(padded, torch.tensor([padded.shape[1]]))[1][0].numpy())
    return np.stack(found)


def ridge(x: Floats, y: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Weights [size, 3] and offsets [3] of standardised `x`, folded back to `x` as it is."""
    mean, spread = x.mean(0), x.std(0) + 1e-6
    z = (x - mean) / spread
    gram = z.T @ z + alpha * np.eye(z.shape[1])
    weights = np.linalg.solve(gram, z.T @ (y - y.mean(0))) / spread[:, None]
    return weights, y.mean(0) - mean @ weights


def ccc(truth: Floats, found: Floats) -> Floats:
    """Concordance of each column."""
    distance = (truth.mean(0) - found.mean(0)) ** 2
    both = ((truth - truth.mean(0)) * (found - found.mean(0))).mean(0)
    return np.asarray(2 * both / (truth.var(0) + found.var(0) + distance))


def on_unseen_speakers(
    sets: dict[str, Floats], labels: Floats, taught: Floats, speakers: npt.NDArray[Any]
) -> dict[str, list[float]]:
    """CCC by variant, pooled over folds; training labels are `taught`."""
    found = {name: np.zeros_like(labels) for name in sets}
    for fold in FOLDS:
        held = np.isin(speakers, fold)
        x = np.concatenate([values[~held] for values in sets.values()])
        y = np.concatenate([taught[~held]] * len(sets))
        weights, offset = ridge(x, y, ALPHA * len(sets))
        for name, values in sets.items():
            found[name][held] = values[held] @ weights + offset
    return {name: ccc(labels, values).round(4).tolist() for name, values in found.items()}


def set_head(model: EmotionModel, weights: Floats, offset: Floats) -> None:
    """The ridge as dense, tanh, projection: three units of the dense layer carry it."""
    dense, out = model.classifier.dense, model.classifier.out_proj
    with torch.no_grad():
        for parameter in (dense.weight, dense.bias, out.weight, out.bias):
            parameter.zero_()
        count = len(DIMENSIONS)
        dense.weight[:count] = torch.from_numpy(GAIN * weights.T)
        dense.bias[:count] = torch.from_numpy(GAIN * (offset - 0.5))
        out.weight[:, :count] = torch.eye(count) / GAIN
        out.bias.fill_(0.5)


def main() -> None:
    """Measure, fit on all speakers, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--emodb", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    config = flags.backbone / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | KEYS, indent=2, sort_keys=True))
    model = start_model(str(flags.backbone), seed=0, freeze="backbone", pooling="statistics").model
    assert isinstance(model, EmotionModel)
    with (flags.emodb / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    points = load_emotion_map("russell-mehrabian")
    labels = np.array([points[row["emotion"]] for row in rows])
    speakers = np.array([row["speaker"] for row in rows])
    flags.output.mkdir(parents=True, exist_ok=True)
    sets = {}
    for seed, (name, change) in enumerate(VARIANTS.items()):
        kept = flags.output.parent / f"{flags.output.name}-{name}.npy"
        if not kept.exists():
            files = [flags.emodb / row["file"] for row in rows]
            np.save(kept, embeddings(model, files, change, seed))
        sets[name] = np.load(kept).astype(np.float64)
    shuffled = labels[np.random.default_rng(0).permutation(len(labels))]
    measured = {
        "ccc": on_unseen_speakers(sets, labels, labels, speakers),
        "ccc_shuffled_labels": on_unseen_speakers(sets, labels, shuffled, speakers),
    }
    x = np.concatenate(list(sets.values()))
    set_head(model, *ridge(x, np.concatenate([labels] * len(sets)), ALPHA * len(sets)))
    save_emotion_model(model, flags.output, do_normalize=False, dtype=torch.float16)
    text = json.dumps(measured, indent=2) + "\n"
    (flags.output / "measured.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

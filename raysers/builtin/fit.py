r"""The heads of `raysers-base` on frozen embeddings of EmoDB, measured on unseen speakers.

    python -m raysers.builtin.fit --backbone whisper-base-3 --emodb emodb --output raysers-base

EMODB is a folder with `manifest.csv` (file, speaker, emotion) and its recordings. The feed-forward
layers of the backbone lose their least active quarter. Each recording is embedded as it is and in
five changed forms (`VARIANTS`). A softmax over the categories is fitted on all of them; the scores
are the mean of the categories' points under its probabilities. It takes two cores 20 minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.signal
import scipy.special
import soundfile as sf
import soxr
import torch
from torch import Tensor, nn
from torch.nn import functional

from raysers.data.corpora import load_emotion_map
from raysers.evaluation.scores import ccc, per_dimension
from raysers.models.backbones import TRAINED_FILES, Outputs
from raysers.models.emotion import EmotionModel
from raysers.models.heads import fit_distance
from raysers.models.initialize import start_model
from raysers.models.loading import save_emotion_model
from raysers.types import SAMPLE_RATE_HZ

Floats = npt.NDArray[Any]
#: From a signal [samples] and a generator to another signal.
Change = Callable[[Floats, np.random.Generator], Floats]
_BAND = scipy.signal.butter(4, [300, 3400], "band", fs=SAMPLE_RATE_HZ, output="sos")


def _pink(samples: int, rng: np.random.Generator) -> Floats:
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(noise / noise.std())


def _rms(signal: Floats) -> float:
    return float(np.sqrt(np.mean(signal**2) + 1e-12))


def _speed(signal: Floats, rng: np.random.Generator, most: float = 0.08) -> Floats:
    rate = SAMPLE_RATE_HZ * rng.uniform(1 - most, 1 + most)
    return np.asarray(soxr.resample(signal, rate, SAMPLE_RATE_HZ))


def in_silence(signal: Floats, rng: np.random.Generator) -> Floats:
    """Up to 2 s of pause before and after, over a noise floor 25 to 60 dB below the speech."""
    before, after = (int(SAMPLE_RATE_HZ * rng.uniform(0, 2)) for _ in range(2))
    longer = np.pad(signal, (before, after))
    return longer + _pink(len(longer), rng) * _rms(signal) * 10 ** (rng.uniform(-60, -25) / 20)


def by_telephone(signal: Floats, rng: np.random.Generator) -> Floats:
    """300 to 3,400 Hz at 8 kHz, 8 % slower to faster."""
    narrow = scipy.signal.sosfilt(_BAND, _speed(signal, rng))
    narrow = soxr.resample(narrow, SAMPLE_RATE_HZ, 8_000)
    return np.asarray(soxr.resample(narrow, 8_000, SAMPLE_RATE_HZ))


def in_noise(signal: Floats, rng: np.random.Generator) -> Floats:
    """White or pink noise 8 to 35 dB below the speech, 8 % slower to faster."""
    played = _speed(signal, rng)
    noise = _pink(len(played), rng) if rng.random() < 0.5 else rng.standard_normal(len(played))
    return played + noise * _rms(played) * 10 ** (-rng.uniform(8, 35) / 20)


def equalised(signal: Floats, rng: np.random.Generator, most: float = 0.08) -> Floats:
    """A tilt of 3 dB per octave, three peaks of 8 dB, often low or high cut; another speed."""
    played = _speed(signal, rng, most)
    spectrum = np.fft.rfft(played)
    hz = np.maximum(np.fft.rfftfreq(len(played), 1 / SAMPLE_RATE_HZ), 20)
    octave = np.log2(hz / 1000)
    gain_db = rng.uniform(-3, 3) * octave
    for _ in range(3):
        height_db, center, width = rng.uniform(-8, 8), rng.uniform(-3, 3), rng.uniform(0.4, 1.2)
        gain_db = gain_db + height_db * np.exp(-(((octave - center) / width) ** 2))
    if rng.random() < 0.4:
        gain_db = gain_db - 12 * np.maximum(np.log2(rng.uniform(80, 250) / hz), 0)
    if rng.random() < 0.4:
        gain_db = gain_db - 24 * np.maximum(np.log2(hz / rng.uniform(4000, 7500)), 0)
    return np.asarray(np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(played)))


def in_a_room(signal: Floats, rng: np.random.Generator) -> Floats:
    """Equalised, with reverberation of .1 to .5 s and pink noise 12 to 45 dB below."""
    played = equalised(signal, rng, 0.15)
    samples = int(rng.uniform(0.1, 0.5) * SAMPLE_RATE_HZ)
    decay = np.exp(-6.9 * np.arange(samples) / samples)
    response = rng.standard_normal(samples) * decay
    response[:40] = 0
    response /= np.sqrt((response**2).sum())
    late = scipy.signal.fftconvolve(played, response)[: len(played)]
    played = played + 10 ** (rng.uniform(-16, -4) / 20) * late
    noise = _pink(len(played), rng) * _rms(played) * 10 ** (-rng.uniform(12, 45) / 20)
    return np.asarray(played + noise)


VARIANTS: dict[str, Change] = {
    "plain": lambda signal, _rng: signal,
    "silence": in_silence,
    "telephone": by_telephone,
    "noise": in_noise,
    "equaliser": equalised,
    "room": in_a_room,
}


#: One man and one woman each.
FOLDS = (("03", "08"), ("09", "10"), ("11", "13"), ("12", "14"), ("15", "16"))
#: Of the squared weights of the softmax, per variant.
PENALTY = 30.0
#: Keys of the network: see `WhisperEmotionModel`.
KEYS = {"trim_db": 50.0, "peak_level": 1.5, "final_norm": False}
#: Units of each feed-forward layer that are kept, of 2,048.
FEED_FORWARD = 1536
#: Directions of the embeddings of the training speech.
OOD_RANK = 128
#: Share of labels within `Z` standard deviations.
COVERED, Z = 0.90, 1.645


@dataclass(frozen=True, slots=True)
class Corpus:
    """EmoDB: `categories` int [clips] in the order of `names`, `points` [names, 3]."""

    files: list[Path]
    speakers: npt.NDArray[Any]
    categories: npt.NDArray[np.int64]
    names: tuple[str, ...]
    points: Floats

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """From its `manifest.csv`."""
        with (folder / "manifest.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = tuple(sorted({row["emotion"] for row in rows}))
        places = load_emotion_map("russell-mehrabian")
        return cls(
            files=[folder / row["file"] for row in rows],
            speakers=np.array([row["speaker"] for row in rows]),
            categories=np.array([names.index(row["emotion"]) for row in rows]),
            names=names,
            points=np.array([places[name] for name in names]).round(4),
        )


def prune(model: EmotionModel, files: Sequence[Path], kept: int) -> None:
    """Keep the `kept` units of each feed-forward layer that vary most in what they add.

    The mean of what the others add on speech goes into the bias of the layer behind them.
    """
    layers = model.backbone.layers
    found: dict[int, list[Tensor]] = {number: [] for number in range(len(layers))}
    hooks = [
        layer.fc2.register_forward_pre_hook(
            lambda _module, inputs, number=number: found[number].append(inputs[0][0].double())
        )
        for number, layer in enumerate(layers)
    ]
    for number, file in enumerate(files):
        signal, _ = sf.read(file)
        for change in (VARIANTS["plain"], in_a_room):
            embedding(model, change(signal, np.random.default_rng((number, 1))))
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for number, layer in enumerate(layers):
            active = torch.cat(found[number])
            weight = layer.fc2.weight
            adds = active.var(0) * weight.double().square().sum(0)
            order = adds.argsort(descending=True)
            keep, drop = order[:kept].sort().values, order[kept:]
            layer.fc2.bias += (weight.double()[:, drop] @ active.mean(0)[drop]).float()
            layer.fc1.weight = nn.Parameter(layer.fc1.weight[keep])
            layer.fc1.bias = nn.Parameter(layer.fc1.bias[keep])
            layer.fc2.weight = nn.Parameter(weight[:, keep])
    model.config.encoder_ffn_dim = kept


def embedding(model: EmotionModel, signal: Floats) -> Floats:
    """float32 [embedding_size] of one clip."""
    padded = torch.from_numpy(np.asarray(signal, np.float32))[None]
    with torch.inference_mode():
        return np.asarray(model(padded, torch.tensor([padded.shape[1]]))[1][0].numpy())


def embeddings(model: EmotionModel, files: Sequence[Path], change: Change, seed: int) -> Floats:
    """float32 [clips, embedding_size]."""
    found = []
    for number, file in enumerate(files):
        signal, rate_hz = sf.read(file)
        if rate_hz != SAMPLE_RATE_HZ:
            raise SystemExit(f"{file}: {rate_hz} Hz, expected {SAMPLE_RATE_HZ}")
        found.append(embedding(model, change(signal, np.random.default_rng((seed, number)))))
    return np.stack(found)


@dataclass(frozen=True, slots=True)
class Softmax:
    """`x @ weight + bias` are the logits: weight [size, categories], bias [categories]."""

    weight: Floats
    bias: Floats

    def probabilities(self, x: Floats) -> Floats:
        """[clips, categories] of [clips, size]."""
        return np.asarray(scipy.special.softmax(x @ self.weight + self.bias, axis=1))


def fit_softmax(x: Floats, categories: npt.NDArray[np.int64], variants: int) -> Softmax:
    """Cross-entropy, categories weighted alike, on standardised `x` [clips, size]; folded back.

    Each recording is in `x` as often as there are `variants`.
    """
    mean, spread = x.mean(0), x.std(0) + 1e-6
    z = torch.from_numpy((x - mean) / spread)
    labels = torch.from_numpy(categories)
    counts = torch.bincount(labels).double()
    weight = torch.zeros(z.shape[1], len(counts), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(counts), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        share = len(labels) / len(counts) / counts
        entropy = functional.cross_entropy(z @ weight + bias, labels, share, reduction="sum")
        total = entropy + PENALTY * variants * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    folded = weight.detach().numpy() / spread[:, None]
    return Softmax(folded, bias.detach().numpy() - mean @ folded)


class Fit:
    """Fits on some speakers of a corpus whose variants are embedded in `sets`."""

    def __init__(self, corpus: Corpus, sets: dict[str, Floats]) -> None:
        self.corpus, self.sets = corpus, sets
        self.labels = corpus.points[corpus.categories]

    def softmax(self, here: npt.NDArray[np.bool_], taught: Any = None) -> Softmax:
        """The head fitted on the clips `here`, on `taught` in place of their categories."""
        categories = self.corpus.categories if taught is None else taught
        x = np.concatenate([values[here] for values in self.sets.values()])
        return fit_softmax(x, np.tile(categories[here], len(self.sets)), len(self.sets))

    def ensemble(self, here: npt.NDArray[np.bool_]) -> list[Softmax]:
        """One head for each speaker of `here`, fitted on the others."""
        speakers = np.unique(self.corpus.speakers[here])
        return [self.softmax(here & (self.corpus.speakers != speaker)) for speaker in speakers]

    def variance(self, heads: Sequence[Softmax], x: Floats) -> Floats:
        """[clips, 3]: of the points under the mean of the heads' probabilities."""
        weights = np.mean([head.probabilities(x) for head in heads], 0)
        points = self.corpus.points
        return np.asarray(weights @ points**2 - (weights @ points) ** 2)

    def calibration(self, here: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """`floor` and `scale` [3] of the clips `here`, each scored by heads of other speakers."""
        errors, variances = [], []
        for pair in FOLDS:
            held = here & np.isin(self.corpus.speakers, pair)
            if held.any():
                x, rest = self.sets["plain"][held], here & ~held
                scores = self.softmax(rest).probabilities(x) @ self.corpus.points
                errors.append(np.abs(self.labels[held] - scores))
                variances.append(self.variance(self.ensemble(rest), x))
        return calibrated(np.concatenate(errors), np.concatenate(variances))


def calibrated(errors: Floats, variances: Floats) -> tuple[Floats, Floats]:
    """The likeliest `floor` [3] for which `scale` [3] covers `COVERED` of the errors [clips, 3]."""
    found = []
    for error, variance in zip(errors.T, variances.T, strict=True):
        best = (np.inf, 0.0, 0.0)
        for floor in np.geomspace(0.002, 0.2, 40):
            beyond = np.maximum((error / Z) ** 2 - floor**2, 0) / np.maximum(variance, 1e-12)
            scale = float(np.sqrt(np.quantile(beyond, COVERED)))
            sd = np.sqrt(floor**2 + scale**2 * variance)
            loss = float(np.mean(np.log(sd) + (error / sd) ** 2 / 2))
            best = min(best, (loss, float(floor), scale))
        found.append(best[1:])
    return np.array(found)[:, 0], np.array(found)[:, 1]


def on_unseen_speakers(fit: Fit) -> dict[str, Any]:
    """All figures of `measured.json`, pooled over the folds."""
    corpus, sets = fit.corpus, fit.sets
    found = {name: np.zeros((len(corpus.files), len(corpus.names))) for name in sets}
    chance, sd = np.zeros_like(found["plain"]), np.zeros_like(fit.labels)
    shuffled = corpus.categories[np.random.default_rng(0).permutation(len(corpus.files))]
    for fold in FOLDS:
        held = np.isin(corpus.speakers, fold)
        head = fit.softmax(~held)
        for name, values in sets.items():
            found[name][held] = head.probabilities(values[held])
        chance[held] = fit.softmax(~held, shuffled).probabilities(sets["plain"][held])
        floor, scale = fit.calibration(~held)
        variance = fit.variance(fit.ensemble(~held), sets["plain"][held])
        sd[held] = np.sqrt(floor**2 + scale**2 * variance)

    def concordance(scores: Floats) -> Any:
        return per_dimension(ccc, fit.labels, scores).round(4).tolist()

    scores = found["plain"] @ corpus.points
    guesses = found["plain"].argmax(1)
    recalls = [np.mean(guesses[corpus.categories == k] == k) for k in range(len(corpus.names))]
    within = np.abs(fit.labels - scores) <= Z * sd
    return {
        "ccc": {name: concordance(v @ corpus.points) for name, v in found.items()},
        "ccc_shuffled_labels": concordance(chance @ corpus.points),
        "uar": round(float(np.mean(recalls)), 4),
        "coverage_90": within.mean(0).round(4).tolist(),
    }


def set_heads(model: EmotionModel, fit: Fit) -> None:
    """Fit on all speakers, into the network."""
    corpus, everyone = fit.corpus, np.ones(len(fit.corpus.files), bool)
    heads = fit.ensemble(everyone)
    model.attach(
        Outputs(
            categories=corpus.names,
            points=tuple(map(tuple, corpus.points.tolist())),
            uncertainty_heads=len(heads),
            ood_rank=OOD_RANK,
        )
    )
    floor, scale = fit.calibration(everyone)
    folds = np.array([[who in pair for pair in FOLDS].index(True) for who in corpus.speakers])
    stacked = np.concatenate(list(fit.sets.values()))
    distance = fit_distance(stacked, np.tile(folds, len(fit.sets)), OOD_RANK)
    head = fit.softmax(everyone)
    values = {
        "categories.weight": head.weight.T,
        "categories.bias": head.bias,
        "uncertainty.heads.weight": np.concatenate([one.weight.T for one in heads]),
        "uncertainty.heads.bias": np.concatenate([one.bias for one in heads]),
        "uncertainty.floor": floor,
        "uncertainty.scale": scale,
        **{f"ood.{name}": value for name, value in distance.items()},
    }
    state = model.state_dict()
    for name, value in values.items():
        state[name].copy_(torch.from_numpy(np.asarray(value)))


def main() -> None:
    """Measure, fit on all speakers, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--emodb", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    config = flags.backbone / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | KEYS, indent=2, sort_keys=True))
    model = start_model(str(flags.backbone), seed=0, freeze="backbone").model
    assert isinstance(model, EmotionModel)
    corpus = Corpus.load(flags.emodb)
    prune(model, corpus.files[::5], FEED_FORWARD)
    model.half().float()  # what the file will hold
    flags.output.mkdir(parents=True, exist_ok=True)
    sets = {
        name: embeddings(model, corpus.files, change, seed).astype(np.float64)
        for seed, (name, change) in enumerate(VARIANTS.items())
    }
    fit = Fit(corpus, sets)
    set_heads(model, fit)
    save_emotion_model(model, flags.output, do_normalize=False, dtype=torch.float16)
    measured = json.dumps(on_unseen_speakers(fit), indent=2) + "\n"
    (flags.output / "measured.json").write_text(measured)
    files = json.dumps(sorted(path.stem for path in corpus.files))
    (flags.output / TRAINED_FILES).write_text(files + "\n")
    print(measured)


if __name__ == "__main__":
    main()

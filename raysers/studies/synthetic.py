"""What small studies are made of: synthetic corpora spoken by espeak-ng, and narrow networks.

Arousal makes the speech fast, high and bright, dominance makes the vocal tract longer, valence
moves the middle of the spectrum and the words; every clip and speaker adds something individual. So
the labels can be learnt from the audio, but not read off one number of it. They are invented, not
rated by listeners: the corpora prove that a study runs and learns what is in its data, and nothing
about emotion in speech.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import soundfile
import soxr
import yaml
from numpy.typing import NDArray
from scipy import signal

from raysers.data.manifest import is_manifest, read_manifest, write_manifest
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sorting import sort_manifest
from raysers.data.sources import list_inputs
from raysers.engine.cluster import get_with_notice
from raysers.io import storage
from raysers.models.backbones import BACKBONES, CNN14
from raysers.models.tts import Engine, Line
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ, generator

#: Centres of the synthetic emotions: arousal, dominance, valence on 0..1.
EMOTIONS: Mapping[str, tuple[float, float, float]] = {
    "anger": (0.85, 0.80, 0.20),
    "fear": (0.80, 0.20, 0.25),
    "happiness": (0.75, 0.65, 0.88),
    "neutral": (0.45, 0.50, 0.50),
    "boredom": (0.20, 0.35, 0.40),
    "sadness": (0.22, 0.22, 0.15),
    "calm": (0.25, 0.60, 0.75),
}
_SEED = 1
#: Of the labels around the centre of their emotion.
_SPREAD = 0.08
#: Individual part of a clip in rate, pitch (espeak-ng's scale) and filters.
_RATE_SD_WPM, _PITCH_SD, _FILTER_SD_DB = 12.0, 4.0, 1.5
#: Share of clips whose words say nothing of their valence.
_SAYS_NOTHING = 0.25
_LEVEL = 0.1
_BANDS_HZ = (0.0, 250.0, 600.0, 1_500.0, 2_500.0, 4_500.0, 8_000.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A synthetic corpus: at most 6 `speakers` of each sex, `takes` clips of each and emotion.

    `languages` are for one pair of speakers in turn; `splits` has speakers of each sex by split, in
    their order; empty: none has a split.
    """

    name: str
    languages: Sequence[str]
    speakers: int
    takes: int
    splits: Mapping[str, int]


#: The corpus that is trained on, with enough test speakers for intervals; and the other one.
HOME = Corpus(
    name="synthetic-english",
    languages=("en-us", "en-gb", "en-us"),
    speakers=6,
    takes=3,
    splits={"train": 2, "dev": 1, "test": 3},
)
CROSS_CORPUS = Corpus(name="synthetic-german", languages=("de",), speakers=4, takes=1, splits={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """A synthetic speaker: espeak-ng's voice and variant, and personal offsets.

    `pitch` and `rate_wpm` are where its neutral speech is; `size` stretches the vocal tract
    (above 1: longer, a lower voice).
    """

    name: str
    sex: str
    language: str
    variant: str
    pitch: int
    rate_wpm: int
    size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """A clip before it is spoken; labels on 0..1 in the order of `types.DIMENSIONS`."""

    clip: str
    voice: Voice
    emotion: str
    text: str
    labels: tuple[float, ...]


def voices(corpus: Corpus) -> list[Voice]:
    """The speakers, women first; their names are short, for figures."""
    found = []
    for sex, variants, pitch in (
        ("female", ("f1", "f2", "f3", "f4", "f5", "f1"), 52),
        ("male", ("m1", "m2", "m3", "m4", "m5", "m7"), 38),
    ):
        for number, variant in enumerate(variants[: corpus.speakers]):
            language = corpus.languages[number % len(corpus.languages)]
            found.append(
                Voice(
                    name=f"{language[:2]}-{sex[0]}{number + 1}",
                    sex=sex,
                    language=language,
                    variant=variant,
                    pitch=pitch + 3 * ((number * 2) % 5) - 6,
                    rate_wpm=165 + 8 * ((number * 3) % 5),
                    size=1.0 + 0.025 * ((number * 4) % 5 - 2),
                )
            )
    return found


def utterances(corpus: Corpus) -> Iterator[Utterance]:
    """Every clip of a corpus, by speaker, emotion and take; a function of the corpus alone."""
    text = resources.files("raysers").joinpath("assets/synthetic_speech.yaml").read_text("utf-8")
    sentences: Mapping[str, Mapping[str, list[str]]] = yaml.safe_load(text)
    for voice in voices(corpus):
        for emotion, centre in EMOTIONS.items():
            for take in range(corpus.takes):
                clip = f"{voice.name}-{emotion}-{take}"
                rng = generator(_SEED, clip, size_bytes=8)
                labels = np.clip(np.array(centre) + rng.normal(0, _SPREAD, 3), 0.02, 0.98)
                sentiment = "neutral"
                if rng.random() > _SAYS_NOTHING and not 0.38 <= labels[2] <= 0.62:
                    sentiment = "positive" if labels[2] > 0.62 else "negative"
                said = sentences[voice.language.partition("-")[0]][sentiment]
                yield Utterance(
                    clip=clip,
                    voice=voice,
                    emotion=emotion,
                    text=said[int(rng.integers(len(said)))],
                    labels=tuple(round(float(value), 3) for value in labels),
                )


def spoken(one: Utterance) -> bytes:
    """The audio file of an utterance: 16 kHz, 16 bit WAV; the same for the same arguments."""
    arousal, dominance, valence = (value - 0.5 for value in one.labels)
    rng = generator(_SEED, one.clip + " sound", size_bytes=8)
    rate = one.voice.rate_wpm * (1 + 0.55 * arousal) + rng.normal(0, _RATE_SD_WPM)
    pitch = one.voice.pitch + 42 * arousal + 14 * valence - 8 * dominance + rng.normal(0, _PITCH_SD)
    size = one.voice.size * (1 + 0.16 * dominance)
    line = Line(
        text=one.text,
        voice=f"{one.voice.language}+{one.voice.variant}",
        # stretching makes it slower again
        rate_wpm=int(np.clip(rate * size, 80, 450)),
        pitch=int(np.clip(pitch, 0, 99)),
    )
    samples, rate_hz = Engine().speak(line)
    stretched = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ * size)
    filtered = _filtered(stretched, arousal, valence, rng)
    loud = np.flatnonzero(np.abs(filtered) > 0.01 * np.abs(filtered).max())
    if len(loud):
        filtered = filtered[loud[0] : loud[-1] + 1]
    level = _LEVEL * 10 ** ((8 * arousal + rng.normal(0, 3)) / 20)
    filtered *= level / max(float(np.sqrt(np.mean(filtered**2))), 1e-6)
    samples = np.clip(filtered + rng.normal(0, 1e-3, len(filtered)), -1, 1)
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _filtered(
    samples: NDArray[np.float32], arousal: float, valence: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Brighter with arousal, more around 2 kHz with valence, and a bit of chance."""
    gains_db = np.array([0.0, -2.0, -3.0, 4.0, 6.0, 8.0, 8.0]) * 2 * arousal
    gains_db += np.array([0.0, -3.0, -2.0, 7.0, 6.0, -2.0, -2.0]) * 2 * valence
    gains_db += rng.normal(0, _FILTER_SD_DB, len(gains_db))
    taps = signal.firwin2(129, _BANDS_HZ, 10 ** (gains_db / 20), fs=SAMPLE_RATE_HZ)
    return np.asarray(signal.fftconvolve(samples, taps, mode="same"), np.float64)


def make_speech(corpora: Sequence[Corpus], folder: str) -> dict[str, pa.Table]:
    """Labelled manifests by corpus; what is not there yet is spoken, on the connected cluster.

    Each corpus has `audio` and `manifest` below `folder`. Raises ConfigError: no espeak-ng.
    """
    places = {corpus.name: storage.join(folder, corpus.name) for corpus in corpora}
    missing = [one for one in corpora if not is_manifest(places[one.name])]
    speak = ray.remote(num_cpus=1)(_speak_all)
    tasks = [
        speak.remote(list(lines), places[corpus.name])
        for corpus in missing
        for _, lines in itertools.groupby(utterances(corpus), key=lambda one: one.voice.name)
    ]
    for task in tasks:
        get_with_notice(task, "synthetic speech")
    for corpus in missing:
        place = places[corpus.name]
        write_manifest(storage.join(place, "manifest"), _manifest(corpus, place))
    return {name: read_manifest(place) for name, place in places.items()}


def _speak_all(lines: list[Utterance], place: str) -> None:
    for one in lines:
        storage.write_atomic(_audio_uri(place, one), spoken(one))


def _audio_uri(place: str, one: Utterance) -> str:
    return storage.join(place, "audio", f"{one.clip}.wav")


def _manifest(corpus: Corpus, place: str) -> pa.Table:
    """What was spoken, headers read, with all that is known of it."""
    order = [split for split, speakers in corpus.splits.items() for _ in range(speakers)]
    splits: dict[str, str] = {}
    for sex in ("female", "male"):
        own = [voice.name for voice in voices(corpus) if voice.sex == sex]
        splits |= dict(zip(own, order, strict=False))
    by_file = {
        _audio_uri(place, one): {
            "speaker": one.voice.name,
            "sex": one.voice.sex,
            "language": one.voice.language,
            "split": splits.get(one.voice.name),
            "transcript": one.text,
            "emotion": one.emotion,
            "corpus": corpus.name,
            **dict(zip(DIMENSIONS, one.labels, strict=True)),
        }
        for one in utterances(corpus)
    }
    listed = pa.Table.from_batches(list_inputs([storage.join(place, "audio")]))
    known = [by_file[file] for file in listed["file"].to_pylist()]
    for name in known[0]:
        kind = pa.float32() if name in DIMENSIONS else pa.string()
        listed = listed.append_column(name, pa.array([row[name] for row in known], kind))
    return sort_manifest(probe_batch(listed.combine_chunks(), Segmenting()))


#: Flags of all small trainings, unless the study says otherwise.
TRAIN: Mapping[str, Any] = {
    "epochs": 6,
    "batch_size": 16,
    "lr": 1e-3,
    "optimiser": "adamw",
    "schedule": "cosine",
    "warmup": 0.1,
    "weight_decay": 0.02,
    "clip_norm": 1.0,
}

#: Of the small transformers: convolutions from 16 kHz samples to 25 frames a second, and widths.
#: What tells the seven apart stays: norms, order of norm and attention, biases, dropout, family.
_CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": [128, 64, 64],
    "conv_kernel": [400, 3, 3],
    "conv_stride": [160, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_length": 3,
}
_BASE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip
_LARGE: dict[str, Any] = {
    "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192,
}  # fmt: skip
_SMALL = (
    "w2v2-b", "hubert-b", "w2v2-L", "hubert-L", "w2v2-L-robust", "w2v2-L-vox", "w2v2-L-xls-r",
    CNN14,
)  # fmt: skip


def small_flags(name: str) -> dict[str, Any] | None:
    """Flags of training for the small network of a backbone; None where there is none.

    `eval_steps` are for Figure 12, and the same everywhere, so that it shares its trainings.
    """
    if name not in _SMALL:
        return None
    return {"eval_steps": 10} | ({} if name == CNN14 else {"front": "mel", "front_steps": 60})


def small_config(alias: str) -> dict[str, Any]:
    """`config.json` of the small network of an alias; of CNN14 a sixteenth of its channels.

    >>> small_config("w2v2-b")["feat_extract_norm"], small_config("w2v2-L")["feat_extract_norm"]
    ('group', 'layer')
    """
    full = BACKBONES[alias].config()
    if alias == CNN14:
        return full | {"widths": [8, 16, 32, 64, 64, 128]}
    return full | _CONVOLUTIONS | (_LARGE if full["do_stable_layer_norm"] else _BASE)


def network_uri(output: str, alias: str) -> str:
    """Where a study keeps the configuration of a small network."""
    return storage.join(output, "networks", f"{alias}.json")


def write_networks(output: str, aliases: set[str]) -> None:
    """Write the configurations of the small networks; raises WriteError."""
    for alias in sorted(aliases):
        text = json.dumps(small_config(alias), indent=1) + "\n"
        storage.write_atomic(network_uri(output, alias), text.encode())

"""Synthetic corpora for small studies: invented speakers, emotions and labels, espeak-ng's voice.

Without real emotions or ratings, these corpora prove that a study runs and learns
what is in its data, and nothing about emotion in voices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pyarrow as pa
import ray
import yaml

from raysers.data.manifest import (
    is_manifest,
    read_manifest,
    write_manifest,
)
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sorting import sort_manifest
from raysers.data.sources import list_inputs
from raysers.engine.cluster import get_with_notice
from raysers.io import storage
from raysers.studies.voice import EMOTIONS, Utterance, Voice, spoken, utterance
from raysers.types import DIMENSIONS

_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUp:
    """A synthetic corpus.

    Attributes:
        name: of the corpus, and its folder.
        languages: one for each pair of speakers in turn.
        women: espeak-ng's variants of the women.
        men: of the men.
        takes: clips of every speaker and emotion.
        splits: speakers of each sex by split, in their order; empty: none has a split.
    """

    name: str
    languages: Sequence[str]
    women: Sequence[str]
    men: Sequence[str]
    takes: int
    splits: Mapping[str, int]

    @property
    def clips(self) -> int:
        """How many there are."""
        return (len(self.women) + len(self.men)) * len(EMOTIONS) * self.takes


_WOMEN, _MEN = ("f1", "f2", "f3", "f4", "f5", "f1"), ("m1", "m2", "m3", "m4", "m5", "m7")

#: The corpus that is trained on, and the one kept for evaluation.
HOME = MadeUp(
    name="made-up-english",
    languages=("en-us", "en-gb", "en-us"),
    women=_WOMEN,
    men=_MEN,
    takes=4,
    splits={"train": 3, "dev": 1, "test": 2},
)
CROSS_CORPUS = MadeUp(
    name="made-up-german", languages=("de",), women=_WOMEN[:4], men=_MEN[:4], takes=2, splits={}
)
_BEGINNINGS = tuple(
    MadeUp(
        name=f"made-up-{name}",
        languages=(language,),
        women=_WOMEN[1:4],
        men=_MEN[1:4],
        takes=2,
        splits={"train": 3},
    )
    for name, language in (("spanish", "es"), ("french", "fr"), ("italian", "it"))
)
#: What the small networks begin with, by name.
PRETRAININGS: Mapping[str, Sequence[MadeUp]] = {
    "one-language": _BEGINNINGS[:1],
    "two-languages": _BEGINNINGS[:2],
    "all-languages": _BEGINNINGS,
}
#: For plans made before anything is spoken.
MEAN_CLIP_S = 1.9


def make_speech(corpora: Sequence[MadeUp], folder: str) -> dict[str, pa.Table]:
    """Speak what of the corpora is not there yet, on the connected cluster.

    Args:
        corpora: to make.
        folder: each gets one below it, with `audio` and `manifest`.

    Returns:
        The labelled manifests by the corpora's names.

    Raises:
        ConfigError: espeak-ng is not installed.
        WriteError: the folder cannot be written.
    """
    missing = [one for one in corpora if not is_manifest(_place(folder, one))]
    jobs = [
        (corpus, voice, _speak_remotely(lines, _place(folder, corpus)))
        for corpus in missing
        for voice, lines in _by_voice(corpus).items()
    ]
    for corpus, voice, job in jobs:
        get_with_notice(job, f"{voice} of {corpus.name} to be spoken")
    for corpus in missing:
        place = _place(folder, corpus)
        write_manifest(storage.join(place, "manifest"), _manifest(corpus, place))
    return {corpus.name: read_manifest(_place(folder, corpus)) for corpus in corpora}


def together(kind: str, folder: str) -> pa.Table:
    """The manifest of the corpora of `PRETRAININGS[kind]`, made where they are not there yet."""
    tables = make_speech(PRETRAININGS[kind], folder)
    return pa.concat_tables(tables.values(), promote_options="default").combine_chunks()


def utterances(corpus: MadeUp) -> Iterator[Utterance]:
    """Every clip of a corpus, by speaker, emotion and take."""
    all_texts = _texts()
    for voice in voices(corpus):
        texts = all_texts[voice.language.partition("-")[0]]
        for emotion in EMOTIONS:
            for take in range(corpus.takes):
                yield utterance(voice, emotion, take, texts, _SEED)


def voices(corpus: MadeUp) -> list[Voice]:
    """The speakers, women first; their names are short, for figures."""
    found = []
    for sex, variants, pitch in (("female", corpus.women, 52), ("male", corpus.men, 38)):
        for number, variant in enumerate(variants):
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


def _by_voice(corpus: MadeUp) -> dict[str, list[Utterance]]:
    found: dict[str, list[Utterance]] = defaultdict(list)
    for one in utterances(corpus):
        found[one.voice.name].append(one)
    return found


def _speak_remotely(lines: list[Utterance], place: str) -> Any:
    # engine and files of one speaker are a task; a corpus is some ten of them
    return ray.remote(num_cpus=1)(_speak_all).remote(lines, place)


def _speak_all(lines: list[Utterance], place: str) -> None:
    for one in lines:
        storage.write_atomic(_audio_uri(place, one), spoken(one))


def _manifest(corpus: MadeUp, place: str) -> pa.Table:
    """What was spoken, headers read, with all that is known of it."""
    by_file = {_audio_uri(place, one): one for one in utterances(corpus)}
    split_of = _splits(corpus)
    listed = pa.Table.from_batches(list_inputs([storage.join(place, "audio")]))
    known = [by_file[file] for file in listed["file"].to_pylist()]
    columns: dict[str, list[Any]] = {
        "speaker": [one.voice.name for one in known],
        "sex": [one.voice.sex for one in known],
        "language": [one.voice.language for one in known],
        "split": [split_of.get(one.voice.name) for one in known],
        "transcript": [one.text for one in known],
        "emotion": [one.emotion for one in known],
        "corpus": [corpus.name for _ in known],
    }
    for name, values in columns.items():
        listed = listed.append_column(name, pa.array(values, pa.string()))
    for number, name in enumerate(DIMENSIONS):
        labels = pa.array([one.labels[number] for one in known], pa.float32())
        listed = listed.append_column(name, labels)
    return sort_manifest(probe_batch(listed.combine_chunks(), Segmenting()))


def _splits(corpus: MadeUp) -> dict[str, str]:
    """Split by speaker: the first ones of each sex train."""
    order = [split for split, speakers in corpus.splits.items() for _ in range(speakers)]
    found: dict[str, str] = {}
    for sex in ("female", "male"):
        own = [voice.name for voice in voices(corpus) if voice.sex == sex]
        found |= dict(zip(own, order, strict=False))
    return found


def _texts() -> Mapping[str, Mapping[str, list[str]]]:
    text = resources.files("raysers").joinpath("assets/made_up_speech.yaml").read_text("utf-8")
    found: Mapping[str, Mapping[str, list[str]]] = yaml.safe_load(text)
    return found


def _place(folder: str, corpus: MadeUp) -> str:
    return storage.join(folder, corpus.name)


def _audio_uri(place: str, one: Utterance) -> str:
    return storage.join(place, "audio", f"{one.clip}.wav")

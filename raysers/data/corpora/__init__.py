"""Readers of speech-emotion corpora as they are distributed; one module each, and this table.

A reader turns a corpus into labelled rows without opening any audio. Labels are on 0..1 by the
ends of the rating scale, never by the smallest and largest label found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raysers.data.corpora import audformat_db, cmu_mosi, emodb, iemocap, msp_podcast
from raysers.data.corpora.emotions import EMOTION_MAPS, EmotionMap, common_name, load_emotion_map
from raysers.data.corpora.rows import CorpusRows

__all__ = [
    "CORPORA",
    "EMOTION_MAPS",
    "Corpus",
    "CorpusRows",
    "EmotionMap",
    "common_name",
    "load_emotion_map",
    "recognise",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A reader: `recognise` looks at a few names, `read` gives the rows; both take a root."""

    recognise: Callable[[str], bool]
    read: Callable[[str], CorpusRows]


#: Readers by name, in the order in which layouts are recognised: a database comes before the
#: corpus whose files it may hold.
CORPORA: Mapping[str, Corpus] = {
    module.NAME: Corpus(recognise=module.recognise, read=module.read)
    for module in (audformat_db, msp_podcast, iemocap, cmu_mosi, emodb)
}


def recognise(root: str) -> str | None:
    """The name of the corpus in the folder or prefix `root`, None when it is none known here."""
    return next((name for name, corpus in CORPORA.items() if corpus.recognise(root)), None)

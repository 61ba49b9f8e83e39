"""The fusion task: sound, words and scores of every clip from one decode of its audio.

With a trained fusion it annotates; without one it yields the vectors a fusion is trained on, so
that training gets exactly what annotating will.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysers.annotation import AnnotateTask, Annotator
from raysers.engine.plan import Placement
from raysers.engine.worker import ClipTask, Row, Signal
from raysers.errors import ClipError
from raysers.models.fusion import SOUND, WORDS, Fusion
from raysers.run import RunRecord
from raysers.schemas import FUSED, with_embeddings
from raysers.types import DIMENSIONS, Status
from raysers.words.fusion_parts import MANIFEST, TextBranch, open_encoder, open_fusion
from raysers.words.transcribe import Transcriber

Floats = npt.NDArray[np.float32]

#: Suffix of a head's columns; the fused ones are the main scores.
SUFFIXES = {"fused": "", "audio": "_audio", "text": "_text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionTask(ClipTask):
    """Settings of a fusion run, checked against the models themselves.

    Attributes:
        sound: the acoustic model and how it is run, with embeddings.
        words: the text side.
        fusion: folder of the trained heads; empty: vectors are written in place of scores.
        fusion_revision: hash of that folder's files.
    """

    sound: AnnotateTask
    words: TextBranch
    fusion: str = ""
    fusion_revision: str = ""

    @property
    def model(self) -> str:
        """Who the scores are from."""
        return self.fusion or self.sound.model

    @property
    def notes(self) -> Sequence[str]:
        """Warnings about the acoustic model."""
        return self.sound.notes

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output."""
        if self.fusion:
            return FUSED
        names = [name for name in FUSED.names if not name.endswith(("_audio", "_text"))]
        schema = pa.schema([FUSED.field(name) for name in names])
        kind = pa.list_(pa.float32(), self.words.size)
        meaning = {"meaning": "pooled vector of the text encoder"}
        vector = pa.field("text_embedding", kind, metadata=meaning)
        return with_embeddings(schema, self.sound.hidden_size).append(vector)

    @property
    def settings(self) -> dict[str, Any]:
        """What of this decides the rows."""
        sound = {k: v for k, v in self.sound.settings.items() if k != "embeddings"}
        own = {"fusion": self.fusion, "fusion_revision": self.fusion_revision}
        return {**sound, **self.words.settings, **(own if self.fusion else {})}

    def placed(self, placement: Placement, earlier: RunRecord | None) -> Self:
        """See `ClipTask.placed`."""
        words = self.words
        if words.asr is not None:
            words = replace(words, asr=words.asr.placed(placement, earlier))
        words = replace(words, device=placement.device)
        return replace(self, sound=self.sound.placed(placement, earlier), words=words)

    def open(self) -> FusionWorker:
        """Load all models on this worker's device."""
        return FusionWorker(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesTask(FusionTask):
    """The same without trained heads: it yields the vectors that heads are trained on."""

    table: ClassVar[str] = "features"


class FusionWorker:
    """All models of a fusion on one device, turning micro-batches into rows' columns."""

    def __init__(self, task: FusionTask) -> None:
        self._sound: Annotator = task.sound.open()
        self._recogniser: Transcriber | None = task.words.asr.open() if task.words.asr else None
        self._encoder = open_encoder(task.words)
        self._fusion = open_fusion(task.fusion, task.fusion_revision) if task.fusion else None
        self._recognise_all = task.words.recognise_all
        self.max_padded_s = self._sound.max_padded_s
        self.provenance: Mapping[str, Any] = {
            "model": task.model,
            "model_revision": task.fusion_revision if task.fusion else task.sound.revision,
            "text_model": task.words.model,
        }

    def score(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None]
    ) -> list[Row | ClipError]:
        """See `ClipModel.score`; clips without a transcript go through the recogniser."""
        scored = self._sound.score(signals)
        spoken = self._words(signals, transcripts)
        fates: list[Row | ClipError] = [
            sound
            if isinstance(sound, ClipError)
            else words
            if isinstance(words, ClipError)
            else {**sound, **words}
            for sound, words in zip(scored, spoken, strict=True)
        ]
        good = [row for row in fates if not isinstance(row, ClipError)]
        vectors = self._vectors([row["text"] for row in good])
        for row, vector in zip(good, vectors, strict=True):
            row["text_embedding"] = vector
        if self._fusion is not None and good:
            _fuse(self._fusion, good)
        return fates

    def _words(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None]
    ) -> list[Row | ClipError]:
        """Text of every clip and who it is from."""
        known: dict[int, Row | ClipError] = {
            i: {"text": text, "asr_model": MANIFEST}
            for i, text in enumerate(transcripts)
            if text is not None and not self._recognise_all
        }
        unknown = [i for i in range(len(signals)) if i not in known]
        if unknown and self._recogniser is not None:
            made_by = {"asr_model": self._recogniser.provenance["model"]}
            found = self._recogniser.score([signals[i] for i in unknown])
            for i, row in zip(unknown, found, strict=True):
                known[i] = row if isinstance(row, ClipError) else {**row, **made_by}
        wordless = ClipError(Status.MODEL_ERROR, "no transcript, and no recogniser (--asr)")
        return [known.get(i, wordless) for i in range(len(signals))]

    def _vectors(self, texts: Sequence[str]) -> Floats:
        different = list(dict.fromkeys(texts))  # read speech repeats itself
        vectors = self._encoder.encode(different)
        place = {text: i for i, text in enumerate(different)}
        return vectors[[place[text] for text in texts]]


def _fuse(fusion: Fusion, rows: Sequence[Row]) -> None:
    """Put the heads' scores into rows that have both vectors, in place of these."""
    vectors = {
        SOUND: np.stack([row.pop("embedding") for row in rows]).astype(np.float32),
        WORDS: np.stack([row.pop("text_embedding") for row in rows]).astype(np.float32),
    }
    for head, scores in fusion.score(vectors).items():
        for row, values in zip(rows, scores.tolist(), strict=True):
            named = zip(DIMENSIONS, values, strict=True)
            row.update({f"{d}{SUFFIXES[head]}": None if isnan(v) else v for d, v in named})

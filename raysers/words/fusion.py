"""The fusion task: audio, text and scores of every clip from one decode.

With a trained fusion it annotates; without one it yields the vectors that heads are trained on, so
training sees exactly what prediction will. The driver loads every model once before anything is
written; workers load them again and reject another revision than the driver checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.annotation import AnnotateTask, require_revision
from raysers.engine import output as parts
from raysers.engine.feed import micro_batches
from raysers.engine.placement import Placement
from raysers.engine.worker import ClipModel, ClipTask, Row, Signal
from raysers.errors import CheckpointError, ClipError, ConfigError
from raysers.io import storage
from raysers.models.fusion import SOUND, WORDS, load_fusion
from raysers.models.pretrained import TextEncoder, is_place
from raysers.models.speech import MOONSHINE, pauses_by
from raysers.run import RunRecord
from raysers.schemas import FUSED, with_embeddings
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ, Status
from raysers.words.flags import FEATURES, FusePredictFlags
from raysers.words.texts import recognised_texts
from raysers.words.transcribe import TranscribeTask

#: `--asr` for "no recogniser: the manifest has transcripts", and `asr_model` of such rows.
MANIFEST = "manifest"
#: Suffix of a head's columns; the fused scores are the main ones.
SUFFIXES = {"fused": "", "audio": "_audio", "text": "_text"}
#: Seconds that go through one model before the next. A few texts at a time would cost the encoder
#: three times as much, and threads of a model spin for 10 to 50 ms after its last clip.
_AT_ONCE_S = 120.0
#: Revision of a model of the hub; those of folders are shorter.
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionTask(ClipTask):
    """The models of a fusion run: acoustic model with embeddings, text encoder and recogniser.

    Without `asr` every clip has a transcript. `fusion` is the folder of the trained heads,
    `fusion_revision` the hash of its files; without it the vectors are written in place of scores.
    """

    pads: ClassVar[bool] = False

    sound: AnnotateTask
    text_model: str
    text_revision: str
    text_size: int
    text_pooling: str
    asr: TranscribeTask | None = None
    recognise_all: bool = False
    fusion: str = ""
    fusion_revision: str = ""
    device: str = "cpu"

    @classmethod
    def load(cls, sound: AnnotateTask, text_model: str, pooling: str) -> Self:
        """The task without a recogniser, its text encoder loaded and checked here.

        Raises ConfigError: unknown name. CheckpointError: a folder that cannot be trusted.
        """
        if is_place(text_model):
            text_model = storage.absolute(text_model)  # workers have working folders of their own
        encoder = TextEncoder(storage.fetch_folder(text_model, "--text-model"), pooling)
        return cls(
            sound=sound,
            text_model=text_model,
            text_revision=encoder.revision,
            text_size=encoder.hidden_size,
            text_pooling=pooling,
        )

    def with_recogniser(self, asr: str, *, recognise_all: bool) -> Self:
        """The same with the recogniser `asr` (`manifest`: none), loaded and checked here.

        Raises ConfigError: unknown name, or none to recognise all clips with. CheckpointError: a
        folder whose texts cannot be trusted.
        """
        if asr != MANIFEST:
            # moonshine has one precision, whatever the acoustic model computes in
            dtype = "auto" if asr == MOONSHINE else self.sound.dtype
            task = TranscribeTask.load(asr, dtype=dtype, max_padded_s=0)
            return replace(self, asr=task, recognise_all=recognise_all)
        if recognise_all:
            raise ConfigError(
                f"--recognise-all needs a recogniser: give --asr NAME, not {MANIFEST}"
            )
        return self

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
        kind = pa.list_(pa.float32(), self.text_size)
        meaning = {"meaning": "pooled vector of the text encoder"}
        vector = pa.field("text_embedding", kind, metadata=meaning)
        return with_embeddings(schema, self.sound.hidden_size).append(vector)

    @property
    def settings(self) -> dict[str, Any]:
        """What of this decides the rows."""
        found = {k: v for k, v in self.sound.settings.items() if k != "embeddings"} | {
            "text_model": self.text_model,
            "text_revision": self.text_revision,
            "text_pooling": self.text_pooling,
            "asr": self.asr.asr if self.asr else MANIFEST,
            "asr_revision": self.asr.revision if self.asr else "",
            "pauses": pauses_by() if self.asr else "",
            "recognise_all": self.recognise_all,
        }
        own = {"fusion": self.fusion, "fusion_revision": self.fusion_revision}
        return found | (own if self.fusion else {})

    def placed(self, placement: Placement, earlier: RunRecord | None) -> Self:
        """See `ClipTask.placed`."""
        asr = self.asr.placed(placement, earlier) if self.asr else None
        sound = self.sound.placed(placement, earlier)
        return replace(self, sound=sound, asr=asr, device=placement.device)

    def open(self) -> FusionWorker:
        """Load all models on this worker's device."""
        return FusionWorker(self)

    def open_encoder(self) -> TextEncoder:
        """The text encoder, on this worker's device; CheckpointError if it has changed."""
        name = pinned(self.text_model, self.text_revision)
        folder = storage.fetch_folder(name, "--text-model")
        encoder = TextEncoder(folder, self.text_pooling, device=self.device)
        require_revision(self.text_model, self.text_revision, encoder.revision)
        return encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesTask(FusionTask):
    """The same without trained heads: yields the vectors that heads are trained on."""

    table: ClassVar[str] = FEATURES


class FusionWorker:
    """All models of a fusion on one device, turning micro-batches into rows' columns."""

    def __init__(self, task: FusionTask) -> None:
        self._sound = task.sound.open()
        self._recogniser = task.asr.open() if task.asr else None
        self._encoder = task.open_encoder()
        self._fusion = None
        if task.fusion:
            self._fusion = load_fusion(storage.fetch_folder(task.fusion, "--fusion"))
            require_revision(task.fusion, task.fusion_revision, self._fusion.revision)
        self._recognise_all = task.recognise_all
        self.max_padded_s = max(self._sound.max_padded_s, _AT_ONCE_S)
        self.provenance: Mapping[str, Any] = {
            "model": task.fusion or task.sound.model,
            "model_revision": task.fusion_revision if task.fusion else task.sound.revision,
            "text_model": task.text_model,
        }

    def score(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None]
    ) -> list[Row | ClipError]:
        """See `ClipModel.score`; clips without a transcript go through the recogniser."""
        found: list[Row | ClipError] = []
        texts = self._texts(signals, transcripts)
        for sound, words in zip(_rows(self._sound, signals), texts, strict=True):
            failed = next((one for one in (sound, words) if isinstance(one, ClipError)), None)
            found.append(failed or {**sound, **words})  # type: ignore[dict-item]
        good = [row for row in found if not isinstance(row, ClipError)]
        encoded = self._encoder.encode([row["text"] for row in good])
        for row, vector in zip(good, encoded, strict=True):
            row["text_embedding"] = vector
        if self._fusion is None or not good:
            return found
        vectors = {
            source: np.stack([row.pop(column) for row in good]).astype(np.float32)
            for source, column in ((SOUND, "embedding"), (WORDS, "text_embedding"))
        }
        for head, scores in self._fusion.score(vectors).items():
            for row, values in zip(good, scores.tolist(), strict=True):
                named = zip(DIMENSIONS, values, strict=True)
                row.update({f"{d}{SUFFIXES[head]}": None if isnan(v) else v for d, v in named})
        return found

    def _texts(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None]
    ) -> list[Row | ClipError]:
        """Text of every clip and its source."""
        lacking = ClipError(Status.MODEL_ERROR, "no transcript, and no recogniser (--asr)")
        found: list[Row | ClipError] = [
            lacking
            if text is None or self._recognise_all
            else {"text": text, "asr_model": MANIFEST}
            for text in transcripts
        ]
        unknown = [place for place, row in enumerate(found) if row is lacking]
        if unknown and self._recogniser is not None:
            source = {"asr_model": self._recogniser.provenance["model"]}
            recognised = _rows(self._recogniser, [signals[place] for place in unknown])
            for place, row in zip(unknown, recognised, strict=True):
                found[place] = (
                    row if isinstance(row, ClipError) else {"text": row["text"], **source}
                )
        return found


def _rows(model: ClipModel, signals: Sequence[Signal]) -> list[Row | ClipError]:
    """Score every clip with one model, in batches of the size that the model takes."""
    most = model.max_padded_s * SAMPLE_RATE_HZ
    parts = micro_batches(signals, most, length=len)
    return [row for part in parts for row in model.score(part, [None] * len(part))]


def prediction_task(flags: FusePredictFlags) -> FusionTask:
    """The models of a trained fusion, checked to be those it was trained with.

    Raises ConfigError, CheckpointError: a model is not there, or has changed since.
    """
    place = storage.absolute(flags.fusion)
    fusion = load_fusion(storage.fetch_folder(place, "--fusion"))
    config = fusion.config
    sound = AnnotateTask.load(
        pinned(config.acoustic_model, config.acoustic_revision),
        dtype=flags.dtype,
        max_padded_s=flags.max_padded_s,
        embeddings=True,
    )
    text_model = pinned(config.text_model, config.text_revision)
    task = FusionTask.load(sound, text_model, config.text_pooling)
    for role, name, was, now in (
        ("acoustic model", config.acoustic_model, config.acoustic_revision, sound.revision),
        ("text model", config.text_model, config.text_revision, task.text_revision),
    ):
        if was != now:
            raise CheckpointError(
                f"--fusion: its {role} {name} was {was} in training and is {now} now: train the "
                "fusion again, or bring the earlier model back"
            )
    task = task.with_recogniser(
        flags.asr or pinned(config.asr, config.asr_revision),
        recognise_all=flags.recognise_all or config.recognise_all,
    )
    # rows name the models as those of the training do; what is loaded stays pinned
    return replace(
        task,
        sound=replace(sound, model=config.acoustic_model),
        text_model=config.text_model,
        fusion=place,
        fusion_revision=fusion.revision,
    )


def pinned(name: str, revision: str) -> str:
    """A model of the hub at that commit; the name of anything else."""
    return f"{name.partition('@')[0]}@{revision}" if _COMMIT.fullmatch(revision) else name


def joined_rows(
    task: FusionTask, clips: pa.Table, annotation: str, transcripts: str, asr: str
) -> pa.Table:
    """The rows of the features pass, from an output of `annotate` and one of `transcribe`.

    Transcripts of the clips come first. Clips that are not in the tables, failed there, or have no
    text, have no row. Raises ConfigError: no clip is in the annotation.
    """
    found = storage.list_parts(storage.join(annotation, "annotations"))
    tables = [parts.read_part(part.uri) for part in found]
    pairs = zip(*(clips[n].to_pylist() for n in ("clip_id", "transcript")), strict=True)
    known = {c: text for c, text in pairs if text is not None and not task.recognise_all}
    texts = (recognised_texts(transcripts, blank=True) if transcripts else {}) | known
    ids = pa.array([i for i in clips["clip_id"].to_pylist() if i in texts], pa.string())
    rows = pa.concat_tables([one for one in tables if one is not None])
    rows = rows.filter(pc.is_in(rows["clip_id"], ids))
    rows = rows.filter(pc.equal(rows["status"], str(Status.OK)))
    if not len(rows):
        raise ConfigError(f"--annotation {annotation} has no clip of --data with a text")
    own = rows["clip_id"].to_pylist()
    said = [texts[clip] for clip in own]
    kept = [name for name in (*FUSED.names, "embedding") if name in rows.column_names]
    return pa.table(
        {name: rows[name] for name in kept}
        | {
            "text": said,
            "asr_model": [MANIFEST if clip in known else asr for clip in own],
            "text_model": [task.text_model] * len(said),
            "text_embedding": list(task.open_encoder().encode(said)),
        }
    )


def require_words(clips: pa.Table) -> None:
    """Raises ConfigError for clips without a transcript, where there is no recogniser."""
    lacking = without_words(clips)
    if len(lacking):
        raise ConfigError(
            f"--asr manifest: {len(lacking):,} of {len(clips):,} clips have no transcript (the "
            f"first is {lacking['file'][0]}): give a recogniser, as --asr moonshine"
        )


def without_words(clips: pa.Table) -> pa.Table:
    """The readable clips without a transcript in the manifest."""
    good = clips.filter(pc.equal(clips["status"], str(Status.OK)))
    if "transcript" not in clips.column_names:
        return good
    return good.filter(pc.is_null(good["transcript"]))

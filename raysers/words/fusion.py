"""The fusion task: audio, text and scores of every clip from one decode.

With a trained fusion it annotates; without one it yields the vectors that heads are trained on, so
training sees exactly what prediction will. The driver loads every model once before anything is
written; workers load them again and reject another revision than the driver checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysers.annotation import AnnotateTask, require_revision
from raysers.cli import ClipJobFlags, Hidden
from raysers.engine.plan import Placement
from raysers.engine.worker import ClipTask, Row, Signal
from raysers.errors import CheckpointError, ClipError, ConfigError
from raysers.io import storage
from raysers.models.asr import is_moonshine, parse_asr_name
from raysers.models.backbones import parse_model_name
from raysers.models.fusion import SOUND, WORDS, FusionConfig, load_fusion
from raysers.models.text import MINILM, TextEncoder, TextPooling, is_hub_id
from raysers.run import RunRecord
from raysers.schemas import FUSED, with_embeddings
from raysers.types import DIMENSIONS, Status
from raysers.words.transcribe import TranscribeTask

#: `--asr` for "no recogniser: the manifest has transcripts", and `asr_model` of such rows.
MANIFEST = "manifest"
#: Suffix of a head's columns; the fused scores are the main ones.
SUFFIXES = {"fused": "", "audio": "_audio", "text": "_text"}
#: Tokens around a text, with some to spare.
_SPECIAL = 8


@dataclass(frozen=True, kw_only=True)
class FusePredictFlags(ClipJobFlags):
    """Flags of `raysers fuse predict`."""

    model: Hidden = ""
    fusion: str
    """Output of `fuse train`: a folder or s3:// prefix."""
    asr: str = ""
    """Recogniser of clips without a transcript in the input; default: as in training."""
    recognise_all: bool = False
    """Recognise clips that have a transcript, too."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        if not self.fusion:
            raise ConfigError("--fusion is empty: give the output of fuse train")
        if self.model:
            raise ConfigError(f"--model {self.model}: the acoustic model is that of --fusion")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBranch:
    """Recogniser and text encoder.

    Attributes:
        model: name of the text encoder, as written into every row.
        load_from: the same, pinned to the revision that was checked.
        revision: commit or content hash of it.
        size: numbers of a vector.
        max_tokens: tokens of a text that are read.
        pooling: how tokens become one vector.
        asr: the recogniser; None: every clip has a transcript.
        recognise_all: whether clips with a transcript are recognised as well.
        device: `cpu` or `cuda`, of the encoder.
    """

    model: str
    load_from: str
    revision: str
    size: int
    max_tokens: int
    pooling: TextPooling
    asr: TranscribeTask | None = None
    recognise_all: bool = False
    device: str = "cpu"

    @classmethod
    def load(cls, text_model: str, pooling: TextPooling) -> TextBranch:
        """The encoder without a recogniser, loaded and checked here.

        Raises:
            ConfigError: unknown name.
            CheckpointError: a folder that cannot be trusted.
        """
        hub = is_hub_id(text_model)
        if not hub and text_model != MINILM:
            text_model = storage.absolute(text_model)  # workers have working folders of their own
        encoder = TextEncoder(storage.fetch_folder(text_model, "--text-model"), pooling)
        return cls(
            model=text_model,
            load_from=_pinned(text_model, encoder.revision, hub=hub),
            revision=encoder.revision,
            size=encoder.hidden_size,
            max_tokens=encoder.max_tokens,
            pooling=pooling,
        )

    def with_recogniser(self, asr: str, *, dtype: str, recognise_all: bool) -> TextBranch:
        """The same with the recogniser `asr` (`manifest`: none), loaded and checked here.

        Raises:
            ConfigError: unknown name, or none to recognise all clips with.
            CheckpointError: a folder whose texts cannot be trusted.
        """
        if asr != MANIFEST:
            # moonshine has one precision, whatever the acoustic model computes in
            own = "auto" if is_moonshine(asr) else dtype
            task = TranscribeTask.load(asr, dtype=own, max_padded_s=0)
            return replace(self, asr=task, recognise_all=recognise_all)
        if recognise_all:
            raise ConfigError(
                f"--recognise-all needs a recogniser: give --asr NAME, not {MANIFEST}"
            )
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What of this decides the vectors."""
        return {
            "text_model": self.model,
            "text_revision": self.revision,
            "text_pooling": self.pooling,
            "asr": self.asr.asr if self.asr else MANIFEST,
            "asr_revision": self.asr.revision if self.asr else "",
            "recognise_all": self.recognise_all,
        }

    def open(self) -> TextEncoder:
        """The encoder on this worker's device.

        Raises:
            CheckpointError: it is not the one the driver checked.
        """
        folder = storage.fetch_folder(self.load_from, "--text-model")
        encoder = TextEncoder(folder, self.pooling, device=self.device)
        require_revision(self.model, self.revision, encoder.revision)
        return encoder

    def cut_note(self, texts: Sequence[str]) -> str:
        """Warning about texts with more tokens than are read; empty without such texts."""
        # no tokenizer makes more tokens than bytes, so most texts need no tokenizer
        long = [text for text in texts if len(text.encode()) + _SPECIAL > self.max_tokens]
        cut = sum(replace(self, device="cpu").open().truncated(long)) if long else 0
        end = f"token {self.max_tokens}, the last one {self.model} has a position for"
        return f"{cut:,} texts are read only up to {end}" if cut else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionTask(ClipTask):
    """Settings of a fusion run, checked against the models themselves.

    Attributes:
        sound: the acoustic model and how it is run, with embeddings.
        words: recogniser and text encoder.
        fusion: folder of the trained heads; empty: vectors are written in place of scores.
        fusion_revision: hash of that folder's files.
    """

    sound: AnnotateTask
    words: TextBranch
    fusion: str = ""
    fusion_revision: str = ""

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
        asr = self.words.asr.placed(placement, earlier) if self.words.asr else None
        words = replace(self.words, asr=asr, device=placement.device)
        return replace(self, sound=self.sound.placed(placement, earlier), words=words)

    def open(self) -> FusionWorker:
        """Load all models on this worker's device."""
        return FusionWorker(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesTask(FusionTask):
    """The same without trained heads: yields the vectors that heads are trained on."""

    table: ClassVar[str] = "features"


class FusionWorker:
    """All models of a fusion on one device, turning micro-batches into rows' columns."""

    def __init__(self, task: FusionTask) -> None:
        self._sound = task.sound.open()
        self._recogniser = task.words.asr.open() if task.words.asr else None
        self._encoder = task.words.open()
        self._fusion = None
        if task.fusion:
            self._fusion = load_fusion(storage.fetch_folder(task.fusion, "--fusion"))
            require_revision(task.fusion, task.fusion_revision, self._fusion.revision)
        self._recognise_all = task.words.recognise_all
        self.max_padded_s = self._sound.max_padded_s
        self.provenance: Mapping[str, Any] = {
            "model": task.fusion or task.sound.model,
            "model_revision": task.fusion_revision if task.fusion else task.sound.revision,
            "text_model": task.words.model,
        }

    def score(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None]
    ) -> list[Row | ClipError]:
        """See `ClipModel.score`; clips without a transcript go through the recogniser."""
        found: list[Row | ClipError] = []
        for sound, words in zip(
            self._sound.score(signals), self._texts(signals, transcripts), strict=True
        ):
            failed = next((one for one in (sound, words) if isinstance(one, ClipError)), None)
            found.append(failed or {**sound, **words})  # type: ignore[dict-item]
        good = [row for row in found if not isinstance(row, ClipError)]
        texts = [row["text"] for row in good]
        different = list(dict.fromkeys(texts))  # read speech repeats itself
        vectors = dict(zip(different, self._encoder.encode(different), strict=True))
        for row in good:
            row["text_embedding"] = vectors[row["text"]]
        if self._fusion is not None and good:
            self._fuse(good)
        return found

    def _texts(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None]
    ) -> list[Row | ClipError]:
        """Text of every clip and its source."""
        known: dict[int, Row | ClipError] = {
            i: {"text": text, "asr_model": MANIFEST}
            for i, text in enumerate(transcripts)
            if text is not None and not self._recognise_all
        }
        unknown = [i for i in range(len(signals)) if i not in known]
        if unknown and self._recogniser is not None:
            source = {"asr_model": self._recogniser.provenance["model"]}
            for i, row in zip(
                unknown, self._recogniser.score([signals[i] for i in unknown]), strict=True
            ):
                known[i] = row if isinstance(row, ClipError) else {"text": row["text"], **source}
        lacking = ClipError(Status.MODEL_ERROR, "no transcript, and no recogniser (--asr)")
        return [known.get(i, lacking) for i in range(len(signals))]

    def _fuse(self, rows: Sequence[Row]) -> None:
        """Replace the vectors of the rows by the heads' scores."""
        assert self._fusion is not None
        vectors: dict[str, npt.NDArray[np.float32]] = {
            SOUND: np.stack([row.pop("embedding") for row in rows]).astype(np.float32),
            WORDS: np.stack([row.pop("text_embedding") for row in rows]).astype(np.float32),
        }
        for head, scores in self._fusion.score(vectors).items():
            for row, values in zip(rows, scores.tolist(), strict=True):
                named = zip(DIMENSIONS, values, strict=True)
                row.update({f"{d}{SUFFIXES[head]}": None if isnan(v) else v for d, v in named})


def prediction_task(flags: FusePredictFlags) -> FusionTask:
    """The models of a trained fusion, checked to be those it was trained with.

    Raises:
        ConfigError, CheckpointError: a model is not there, or has changed since.
    """
    place = storage.absolute(flags.fusion)
    fusion = load_fusion(storage.fetch_folder(place, "--fusion"))
    config = fusion.config
    pinned_sound, pinned_text, pinned_asr = pinned_models(config)
    sound = AnnotateTask.load(
        pinned_sound, dtype=flags.dtype, max_padded_s=flags.max_padded_s, embeddings=True
    )
    words = TextBranch.load(pinned_text, "cls" if config.text_pooling == "cls" else "mean")
    # rows name the models as those of the training do; what is loaded stays pinned
    sound = replace(sound, model=config.acoustic_model)
    words = replace(words, model=config.text_model)
    for role, name, was, now in (
        ("acoustic model", sound.model, config.acoustic_revision, sound.revision),
        ("text model", words.model, config.text_revision, words.revision),
    ):
        if was != now:
            raise CheckpointError(
                f"--fusion: its {role} {name} was {was} in training and is {now} now: train the "
                "fusion again, or bring the earlier model back"
            )
    words = words.with_recogniser(
        flags.asr or pinned_asr,
        dtype=flags.dtype,
        recognise_all=flags.recognise_all or config.recognise_all,
    )
    return FusionTask(sound=sound, words=words, fusion=place, fusion_revision=fusion.revision)


def pinned_models(config: FusionConfig) -> tuple[str, str, str]:
    """Acoustic model, text model and recogniser; hub models with the commit of the training."""
    acoustic = parse_model_name(config.acoustic_model)
    local_asr = config.asr == MANIFEST or is_moonshine(config.asr)
    return (
        _pinned(
            config.acoustic_model,
            config.acoustic_revision,
            hub=acoustic.hub_id is not None and not acoustic.random,
        ),
        _pinned(config.text_model, config.text_revision, hub=is_hub_id(config.text_model)),
        _pinned(
            config.asr,
            config.asr_revision,
            hub=not local_asr and parse_asr_name(config.asr).hub_id is not None,
        ),
    )


def _pinned(name: str, revision: str, *, hub: bool) -> str:
    return f"{name.partition('@')[0]}@{revision}" if hub and revision else name


def require_words(clips: pa.Table) -> None:
    """Reject clips without a transcript when there is no recogniser.

    Raises:
        ConfigError: naming the first of them.
    """
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

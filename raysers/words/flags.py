"""Flags of fuse and of the probe, apart from what these run, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from raysers.cli import DEFAULT_ASR, DEFAULT_MODEL, Hidden, Models, Output, Retry, Uris, check_flags
from raysers.engine.listing import ClipJobFlags
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.models.tts import NEUTRAL
from raysers.words.synthesize import SynthesizeFlags

#: Sub-folders of the output of a probe.
CORPUS, CLIPS = "corpus", "clips"
SENTENCES_SPOKEN, CLIPS_RESPOKEN = "synthesised/sentences", "synthesised/transcripts"
#: Folder of the vectors, in the output of a training, and their table.
FEATURES = "features"


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """Training of the heads."""

    epochs: int = 100
    """Passes of the heads over the training clips; the best on dev is kept."""
    batch_size: int = 0
    """Clips whose CCC is the loss of a step; 0: a sixteenth of the training clips, 16 to 256."""
    lr: float = 1e-3
    """Learning rate of Adam at the start."""
    schedule: Literal["linear", "constant"] = "linear"
    """Of the learning rate: a straight line to 0 over the epochs, or constant."""
    weight_decay: float = 0.0
    """Weight decay, decoupled from the gradient."""
    dropout: float = 0.3
    """Dropout of the heads' input and hidden layer, 0 to below 1."""
    patience: int = 0
    """Stop after N epochs without a better dev CCC; 0 never stops early."""
    seed: int = 0
    """Decides the heads' initial weights, order and dropout, and the bootstrap draws."""


@dataclass(frozen=True, kw_only=True)
class FuseTrainFlags(HeadSettings):
    """Flags of `raysers fuse train`."""

    data: Uris
    """Labelled data with a `split` (train, dev, and best test): manifests, tables, corpora."""
    output: Output
    """Folder or s3:// prefix for the fusion; rerun the command to resume there."""
    model: str = DEFAULT_MODEL
    """Fine-tuned acoustic model, frozen: alias, hub id, folder or s3:// prefix."""
    text_model: str = "bert-base-uncased"
    """Text encoder of BERT's kind, frozen: `minilm`, a hub id, folder or s3:// prefix."""
    text_pooling: Literal["mean", "cls"] = "mean"
    """How the tokens' vectors become one: their mean, or the first one."""
    asr: str = DEFAULT_ASR
    """Recogniser of clips without a transcript; `manifest`: every clip has one."""
    recognise_all: bool = False
    """Recognise clips that have a transcript, too, as an archive's clips will be."""
    annotation: str = ""
    """Output of `annotate --embeddings` of the same clips: its vectors and its model are used, and
    no audio is read."""
    transcripts: str = ""
    """Beside --annotation, an output of `transcribe`: texts of clips without a transcript, of all
    clips with --recognise-all."""
    corpus: str = "auto"
    """Layout of the data: auto recognises it, none takes folders for plain audio."""
    emotion_map: str = ""
    """Takes missing labels from the emotion category: `russell-mehrabian`, or a YAML file."""
    speakers: str = ""
    """CSV with `speaker`, or `video` (the session), and `sex`, for data that does not say."""
    folds: int = 0
    """Split by speaker into N folds instead of by the data's own splits."""
    fold: int = 0
    """Which of the --folds is kept apart as dev, from 0."""
    new_speakers: bool = False
    """Only clips of speakers that the acoustic model, an output of `raysers train`, was not trained
    on: on these its vectors are as good as they will be on an archive. Best with --folds."""
    allow_leakage: bool = False
    """Train although speakers or sessions are in several splits; the results are marked."""
    limit: int = 0
    """Only the first N clips of the data; 0 takes all."""
    bootstrap: int = 1000
    """Draws behind the intervals; 0 leaves them out."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of acoustic model and recogniser; auto is bf16 where the hardware has it."""
    workers: int | Literal["local"] = 0
    """Workers of the encoders; 0 uses every GPU, or every CPU when there is none; `local` works in
    this process, without Ray."""
    max_padded_s: float = 0.0
    """Padded audio seconds per forward pass; 0 chooses for the device."""
    max_clip_s: float = 600.0
    """Longer clips are left out."""
    max_failed: float = 0.05
    """Highest share of clips without vectors before the job ends with exit code 3."""
    retry: Retry = ()
    """When resuming, also process clips with these statuses again, such as unreadable."""
    dry_run: bool = False
    """Print what the encoders have to do, with a measured estimate, and write nothing."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        texts = not self.transcripts or bool(self.annotation)
        folds = self.folds == 0 or self.folds >= 2
        fold = f"a number from 0 to {max(self.folds - 1, 0)} (--folds is {self.folds})"
        size = self.batch_size == 0 or self.batch_size >= 2
        sizes = "0 (automatic), or 2 or more: one clip has no correlation"
        check_flags(
            (bool(self.data), "--data", "empty", "labelled clips with a split"),
            (bool(self.output), "--output", "empty", "a folder or an s3:// prefix"),
            (texts, "--transcripts", self.transcripts, "also --annotation"),
            (folds, "--folds", self.folds, "2 or more (0: the data's own splits)"),
            (0 <= self.fold < max(self.folds, 1), "--fold", self.fold, fold),
            (1 <= self.epochs <= 100, "--epochs", self.epochs, "1 to 100 passes"),
            (size, "--batch-size", self.batch_size, sizes),
            (self.lr > 0, "--lr", self.lr, "a rate above 0"),
            (self.weight_decay >= 0, "--weight-decay", self.weight_decay, "0 or more"),
            (0 <= self.dropout < 1, "--dropout", self.dropout, "a share from 0 to below 1"),
            (self.patience >= 0, "--patience", self.patience, "0 (never) or more epochs"),
            (self.seed >= 0, "--seed", self.seed, "0 or more"),
            (self.bootstrap >= 0, "--bootstrap", self.bootstrap, "0 (none) or more draws"),
        )
        self.clips.check()

    @property
    def clips(self) -> ClipJobFlags:
        """The pass over the clips."""
        place = storage.join(self.output, FEATURES)
        names = ["model", "dtype", "workers", "max_padded_s", "max_clip_s", "max_failed", "retry",
                 "dry_run", "limit"]  # fmt: skip
        own = {name: getattr(self, name) for name in names}
        return ClipJobFlags(input=self.data, output=place, **own)

    @property
    def recipe(self) -> dict[str, Any]:
        """Every flag that decides the heads, beyond the vectors they are trained on."""
        optional = ("schedule", "new_speakers", "annotation", "transcripts")
        names = [field.name for field in fields(HeadSettings) if field.name != "schedule"]
        names += ["bootstrap", "folds", "fold", "allow_leakage"]
        names += [n for n in optional if getattr(self, n) != getattr(FuseTrainFlags, n)]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class FusePredictFlags(ClipJobFlags):
    """Flags of `raysers fuse predict`."""

    places: ClassVar[Sequence[str]] = ("fusion",)

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


@dataclass(frozen=True, kw_only=True)
class ProbeFlags:
    """Flags of this job."""

    model: Models
    """Models to compare, such as one that was fine-tuned and one that was not."""
    output: Output
    """Folder or s3:// prefix for speech, scores, tables and pictures."""
    data: Uris = ()
    """Labelled corpus with transcripts: manifests, tables, corpus folders (`raysers index` has
    --emotion-map for corpora with categories only), or an output of `raysers transcribe`."""
    split: tuple[str, ...] = ()
    """Splits of --data; when left out, those for testing, or all clips when none is."""
    templates: tuple[str, ...] = ("this-is",)
    """Sentences of known sentiment, as `raysers synthesize` takes them."""
    texts: str = ""
    """In place of --templates: a table with the columns text and sentiment."""
    tts: Literal["espeak", "gtts", "command"] = "espeak"
    """Speech synthesizer, as `raysers synthesize` takes it."""
    tts_command: str = ""
    """Program and arguments, as `raysers synthesize` takes them."""
    voice: tuple[str, ...] = (NEUTRAL,)
    """Voices; each sentence and clip is spoken by all of them."""
    seed: int = 0
    """Of the bootstrap, and of random voices."""
    bootstrap: int = 1000
    """Draws behind the intervals; 0 leaves them out."""
    least_occurrences: int = 10
    """Occurrences a word needs to be rated."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the models."""
    limit: int = 0
    """Only the first N sentences and the first N clips; 0 takes all."""
    workers: int | Literal["local"] = 0
    """Model workers; 0 uses every GPU, or every CPU when there is none; `local` works in this
    process, without Ray."""
    dry_run: bool = False
    """Print how much there is to speak and to score, and write nothing."""
    max_failed: float = 0.05
    """Highest share of failed rows of any step before the job ends with exit code 3."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        own_texts = self.texts and self.templates != ProbeFlags.templates
        of_data = "also --data: it chooses clips of --data"
        least = self.least_occurrences
        check_flags(
            (bool(self.model), "--model", "empty", "at least one model"),
            (bool(self.output), "--output", "empty", "a folder or an s3:// prefix"),
            (not own_texts, "--texts", self.texts, "either this or --templates"),
            (not self.split or bool(self.data), "--split", " ".join(self.split), of_data),
            (self.bootstrap >= 0, "--bootstrap", self.bootstrap, "0 (none) or more draws"),
            (least >= 1, "--least-occurrences", least, "1 or more"),
        )
        self.speech(sentences=True).check()  # limit, workers and voices

    def speech(self, *, sentences: bool) -> SynthesizeFlags:
        """How the sentences, or else the transcripts of the clips, are spoken."""
        texts = self.texts if sentences else storage.join(self.output, CLIPS)
        return SynthesizeFlags(
            texts=texts,
            templates=() if texts else self.templates,
            output=storage.join(self.output, SENTENCES_SPOKEN if sentences else CLIPS_RESPOKEN),
            tts=self.tts,
            tts_command=self.tts_command,
            voice=self.voice,
            seed=self.seed,
            limit=self.limit if sentences else 0,
            workers=self.workers,
            dry_run=self.dry_run,
            max_failed=self.max_failed,
        )

    @property
    def sentences(self) -> str:
        """Name of the sentences in the tables."""
        named = self.texts.rpartition("/")[2].partition(".")[0]
        return named if self.texts else "+".join(self.templates)

"""Flags of the fusion job's two commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from raysers.cli import DEFAULT_MODEL, ClipJobFlags, Hidden, Output, Retry, Uris
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.models.asr import DEFAULT_ASR, is_moonshine, parse_asr_name
from raysers.models.fusion import HeadSettings
from raysers.models.text import TextPooling
from raysers.run import absolute_output
from raysers.words.fusion_parts import MANIFEST


@dataclass(frozen=True, kw_only=True)
class FuseTrainFlags:
    """Flags of `raysers fuse train`."""

    data: Uris
    """Labelled data with a `split` (train, dev, and best test): manifests, tables, corpora."""
    output: Output
    """Folder or s3:// prefix for the fusion; rerun the command to resume there."""
    model: str = DEFAULT_MODEL
    """Fine-tuned acoustic model, frozen: alias, hub id, folder or s3:// prefix."""
    text_model: str = "bert-base-uncased"
    """Text encoder of BERT's kind, frozen: `minilm`, a hub id, folder or s3:// prefix."""
    text_pooling: TextPooling = "mean"
    """How the tokens' vectors become one: their mean, or the first one."""
    asr: str = DEFAULT_ASR
    """Who recognises clips the data has no transcript of; `manifest`: every clip has one."""
    recognise_all: bool = False
    """Recognise clips that have a transcript, too, as an archive's clips will be."""
    features: str = ""
    """Where the encoders' vectors are kept; default OUTPUT/features. Name an earlier training's
    output to use its vectors again for other heads or folds."""
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
    allow_leakage: bool = False
    """Train although speakers or sessions are in several splits; the results are marked."""
    limit: int = 0
    """Only the first N clips of the data; 0 takes all."""
    epochs: int = HeadSettings.epochs
    """Passes of the heads over the training clips; the best on dev is kept."""
    batch_size: int = HeadSettings.batch_size
    """Clips whose CCC is the loss of a step; 0: a sixteenth of the training clips, 16 to 256."""
    lr: float = HeadSettings.lr
    """Learning rate of Adam at the start; it falls to 0 in a straight line over the epochs."""
    weight_decay: float = HeadSettings.weight_decay
    """Weight decay, decoupled from the gradient."""
    dropout: float = HeadSettings.dropout
    """Dropout of the heads' input and hidden layer, 0 to below 1."""
    patience: int = HeadSettings.patience
    """Stop after N epochs without a better dev CCC; 0 never stops early."""
    seed: int = HeadSettings.seed
    """Decides the heads' initial weights, order and dropout, and the bootstrap draws."""
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
    """Highest share of clips that cannot be used before the job ends with exit code 3."""
    retry: Retry = ()
    """When resuming, also process clips with these statuses again, such as unreadable."""
    dry_run: bool = False
    """Print what the encoders have to do, with a measured estimate, and write nothing."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        for good, flag, wanted in _rules(self):
            if not good:
                value = getattr(self, flag.removeprefix("--").replace("-", "_"))
                raise ConfigError(f"{flag} is {value}: give {wanted}")

    @property
    def head(self) -> HeadSettings:
        """How the heads are trained."""
        return HeadSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            dropout=self.dropout,
            patience=self.patience,
            seed=self.seed,
        )

    def clip_flags(self, output: str) -> ClipJobFlags:
        """The flags of the pass over the clips, which writes to `output`."""
        return ClipJobFlags(
            input=self.data,
            output=output,
            model=self.model,
            dtype=self.dtype,
            workers=self.workers,
            max_padded_s=self.max_padded_s,
            max_clip_s=self.max_clip_s,
            max_failed=self.max_failed,
            retry=self.retry,
            dry_run=self.dry_run,
        )


@dataclass(frozen=True, kw_only=True)
class FusePredictFlags(ClipJobFlags):
    """Flags of `raysers fuse predict`."""

    model: Hidden = ""
    fusion: str
    """Output of `raysers fuse train`: a folder or s3:// prefix."""
    asr: str = ""
    """Who recognises clips the input has no transcript of; default: as in training."""
    recognise_all: bool = False
    """Recognise clips that have a transcript, too."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        if not self.fusion:
            raise ConfigError("--fusion is empty: give the output of fuse train")


def with_absolute_paths(flags: FuseTrainFlags) -> FuseTrainFlags:
    """The flags, checked, with places that mean the same in every process of the cluster.

    Raises:
        ConfigError: a flag has an impossible value.
    """
    flags.check()
    return replace(
        flags,
        data=tuple(map(storage.absolute, flags.data)),
        output=absolute_output(flags.output),
        features=absolute_output(flags.features) if flags.features else "",
        asr=_absolute_asr(flags.asr),
    )


def _absolute_asr(asr: str) -> str:
    """Checked even where no clip needs it, because the fusion passes it on to `predict`."""
    if asr == MANIFEST or is_moonshine(asr) or parse_asr_name(asr).hub_id is not None:
        return asr
    return storage.absolute(asr)


def _rules(flags: FuseTrainFlags) -> Iterator[tuple[bool, str, str]]:
    """(holds, flag, what to give instead), in the order of the flags."""
    yield bool(flags.data), "--data", "labelled clips with a split"
    yield bool(flags.output), "--output", "a folder or an s3:// prefix"
    yield flags.folds == 0 or flags.folds >= 2, "--folds", "2 or more (0: the data's own splits)"
    fold = f"a number from 0 to {max(flags.folds - 1, 0)} (--folds is {flags.folds})"
    yield 0 <= flags.fold < max(flags.folds, 1), "--fold", fold
    yield flags.limit >= 0, "--limit", "0 (all) or more"
    yield 1 <= flags.epochs <= 100, "--epochs", "1 to 100 passes"
    sized = flags.batch_size == 0 or flags.batch_size >= 2
    yield sized, "--batch-size", "0 (automatic), or 2 or more: one clip has no correlation"
    yield flags.lr > 0, "--lr", "a rate above 0"
    yield flags.weight_decay >= 0, "--weight-decay", "0 or more"
    yield 0 <= flags.dropout < 1, "--dropout", "a share from 0 to below 1"
    yield flags.patience >= 0, "--patience", "0 (never) or more epochs"
    yield flags.seed >= 0, "--seed", "0 or more"
    yield flags.bootstrap >= 0, "--bootstrap", "0 (none) or more draws"
    fits = flags.workers == "local" or flags.workers >= 0
    yield fits, "--workers", "0 (automatic), a number, or local"
    yield flags.max_padded_s >= 0, "--max-padded-s", "0 or more seconds"
    yield flags.max_clip_s > 0, "--max-clip-s", "a length above 0 seconds"
    yield 0 <= flags.max_failed <= 1, "--max-failed", "a share from 0 to 1"


def head_settings(flags: FuseTrainFlags) -> dict[str, Any]:
    """Every flag that decides the heads, beyond the vectors they are trained on."""
    names = (
        "epochs", "batch_size", "lr", "weight_decay", "dropout", "patience", "seed", "bootstrap",
        "folds", "fold", "allow_leakage",
    )  # fmt: skip
    return {name: getattr(flags, name) for name in names}

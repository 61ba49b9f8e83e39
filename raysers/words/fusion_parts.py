"""The parts of a fusion: acoustic model, recogniser, text encoder, heads, each checked when loaded.

The driver loads every part once before anything is written; workers load them again and refuse
another revision than the driver saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysers.annotation import AnnotateTask, require_revision
from raysers.errors import CheckpointError, ConfigError
from raysers.io import storage
from raysers.models.asr import is_moonshine, parse_asr_name
from raysers.models.backbones import parse_model_name
from raysers.models.fusion import Fusion, FusionConfig, load_fusion
from raysers.models.text import MINILM, TextEncoder, TextPooling, is_hub_id
from raysers.words.transcribe import TranscribeTask

#: `--asr` for "no recogniser: the manifest says what was spoken", and `asr_model` of such rows.
MANIFEST = "manifest"

#: Tokens around a text, with some to spare.
_SPECIAL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBranch:
    """Who turns clips into text and text into vectors.

    Attributes:
        model: name of the text encoder, as written into every row.
        load_from: the same, pinned to the revision that was checked.
        revision: commit or content hash of it.
        size: numbers of a vector.
        max_tokens: tokens of a text that are read.
        pooling: how tokens become one vector.
        asr: the recogniser; None: every clip has a transcript.
        recognise_all: whether clips with a transcript are recognised as well.
        device: `cpu` or `cuda`, where the encoder computes.
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


def prepare_words(text_model: str, pooling: TextPooling) -> TextBranch:
    """The text side without a recogniser, loaded and checked here.

    Raises:
        ConfigError: unknown name.
        CheckpointError: a folder that cannot be trusted.
    """
    hub = is_hub_id(text_model)
    if not hub and text_model != MINILM:
        text_model = storage.absolute(text_model)  # workers have working folders of their own
    encoder = TextEncoder(storage.fetch_folder(text_model, "--text-model"), pooling)
    return TextBranch(
        model=text_model,
        load_from=f"{text_model.partition('@')[0]}@{encoder.revision}" if hub else text_model,
        revision=encoder.revision,
        size=encoder.hidden_size,
        max_tokens=encoder.max_tokens,
        pooling=pooling,
    )


def pinned_sound(config: FusionConfig) -> str:
    """The acoustic model's name, a hub model's with the commit of the training."""
    name = parse_model_name(config.acoustic_model)
    hub = name.hub_id is not None and not name.random
    return _pinned(config.acoustic_model, config.acoustic_revision, hub=hub)


def pinned_words(config: FusionConfig) -> str:
    """As `pinned_sound`, for the text model."""
    return _pinned(config.text_model, config.text_revision, hub=is_hub_id(config.text_model))


def pinned_recogniser(config: FusionConfig) -> str:
    """As `pinned_sound`, for the recogniser."""
    own = config.asr == MANIFEST or is_moonshine(config.asr)
    hub = not own and parse_asr_name(config.asr).hub_id is not None
    return _pinned(config.asr, config.asr_revision, hub=hub)


def _pinned(name: str, revision: str, *, hub: bool) -> str:
    return f"{name.partition('@')[0]}@{revision}" if hub and revision else name


def with_recogniser(words: TextBranch, asr: str, *, dtype: str, recognise_all: bool) -> TextBranch:
    """The text side with a recogniser, loaded and checked here.

    Args:
        words: what it is added to.
        asr: its name, or `manifest` for none.
        dtype: its precision.
        recognise_all: whether clips with a transcript are recognised as well.

    Raises:
        ConfigError: unknown name, or none to recognise all clips with.
        CheckpointError: a folder whose words cannot be trusted.
    """
    if asr != MANIFEST:
        # moonshine has one precision, whatever the acoustic model computes in
        own = "auto" if is_moonshine(asr) else dtype
        task = TranscribeTask.load(asr, dtype=own, max_padded_s=0)
        return replace(words, asr=task, recognise_all=recognise_all)
    if recognise_all:
        raise ConfigError(f"--recognise-all needs a recogniser: give --asr NAME, not {MANIFEST}")
    return words


def read_fusion(folder: str) -> Fusion:
    """The fusion in a local folder or under an `s3://` prefix.

    Raises:
        ConfigError, CheckpointError: there is none that can be trusted.
    """
    return load_fusion(storage.fetch_folder(folder, "--fusion"))


def check_same(config: FusionConfig, sound: AnnotateTask, words: TextBranch) -> None:
    """Refuse encoders that have changed since the heads were trained.

    Raises:
        CheckpointError: naming the model and both revisions.
    """
    for flag, name, was, now in (
        ("acoustic model", sound.model, config.acoustic_revision, sound.revision),
        ("text model", words.model, config.text_revision, words.revision),
    ):
        if was != now:
            raise CheckpointError(
                f"--fusion: its {flag} {name} was {was} in training and is {now} now: train the "
                "fusion again, or bring the earlier model back"
            )


def count_cut(words: TextBranch, texts: Sequence[str]) -> int:
    """How many of the texts go on behind the last token the encoder reads."""
    # no tokenizer makes more tokens than bytes, so most texts need not be looked at
    long = [text for text in texts if len(text.encode()) + _SPECIAL > words.max_tokens]
    if not long:
        return 0
    folder = storage.fetch_folder(words.load_from, "--text-model")
    return sum(TextEncoder(folder, words.pooling).truncated(long))


def cut_note(words: TextBranch, texts: Sequence[str]) -> str:
    """What to say of texts that are too long; empty when none is."""
    cut = count_cut(words, texts)
    end = f"token {words.max_tokens}, the last one {words.model} has a place for"
    return f"{cut:,} texts are read only up to {end}" if cut else ""


def open_encoder(words: TextBranch) -> TextEncoder:
    """The text encoder, on this worker's device.

    Raises:
        CheckpointError: it is not the one the driver saw.
    """
    encoder = TextEncoder(
        storage.fetch_folder(words.load_from, "--text-model"), words.pooling, device=words.device
    )
    require_revision(words.model, words.revision, encoder.revision)
    return encoder


def open_fusion(folder: str, revision: str) -> Fusion:
    """The fusion, on a worker.

    Raises:
        CheckpointError: it is not the one the driver saw.
    """
    fusion = read_fusion(folder)
    require_revision(folder, revision, fusion.revision)
    return fusion

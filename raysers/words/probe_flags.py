"""Flags of the probe job."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import tyro

from raysers.cli import Output, Uris, as_plain
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.models.tts import NEUTRAL
from raysers.run import absolute_output
from raysers.words.ratings import LEAST
from raysers.words.synthesis_flags import SynthesizeFlags

#: Sub-folders of the output.
CORPUS, CLIPS = "corpus", "clips"
SENTENCES_SPOKEN, CLIPS_RESPOKEN = "synthesised/sentences", "synthesised/transcripts"
#: Flags that change nothing in the tables.
_NOT_DECIDING = ("output", "workers", "max_failed", "dry_run")


@dataclass(frozen=True, kw_only=True)
class ProbeFlags:
    """Flags of this job."""

    model: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """Models to look at side by side, such as one that was fine-tuned and one that was not."""
    output: Output
    """Folder or s3:// prefix for speech, scores, tables and pictures."""
    data: Uris = ()
    """Labelled corpus with transcripts: manifests, tables, corpus folders (`raysers index` has
    --emotion-map for corpora with categories only)."""
    split: tuple[str, ...] = ()
    """Splits of --data; when left out, those for testing, or all clips when none is."""
    templates: tuple[str, ...] = ("this-is",)
    """Sentences of known sentiment, as `raysers synthesize` takes them."""
    texts: str = ""
    """In place of --templates: a table with the columns text and sentiment."""
    tts: Literal["espeak", "command"] = "espeak"
    """What speaks: espeak-ng, or the program of --tts-command."""
    tts_command: str = ""
    """Program and arguments, as `raysers synthesize` takes them."""
    voice: tuple[str, ...] = (NEUTRAL,)
    """Voices; each sentence and clip is spoken by all of them."""
    seed: int = 0
    """Of the bootstrap, and of random voices."""
    bootstrap: int = 1000
    """Draws behind the intervals; 0 leaves them out."""
    least_occurrences: int = LEAST
    """How often a word must be said to be rated."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the models."""
    limit: int = 0
    """Only the first N sentences and the first N clips; 0 takes all."""
    workers: int = 0
    """Model workers; 0 uses every GPU, or every CPU when there is none."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print how much there is to speak and to score, and write nothing."""
    max_failed: float = 0.05
    """Highest share of failed rows of any step before the job ends with exit code 3."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        for good, message in (
            (bool(self.model), "--model is empty: give at least one model"),
            (len(set(self.model)) == len(self.model), "--model has the same model twice"),
            (bool(self.output), "--output is empty: give a folder or an s3:// prefix"),
            (
                not self.texts or self.templates == ProbeFlags.templates,
                "give either --texts or --templates",
            ),
            (
                bool(self.data) or not self.split,
                f"--split {' '.join(self.split)}: it chooses clips of --data, which is missing",
            ),
            (self.bootstrap >= 0, f"--bootstrap is {self.bootstrap}: give 0 (none) or more draws"),
            (
                self.least_occurrences >= 1,
                f"--least-occurrences is {self.least_occurrences}: give 1 or more",
            ),
        ):
            if not good:
                raise ConfigError(message)
        # limits, workers and voices are those of the jobs below
        self.speech(sentences=True).check()

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

    def with_absolute_paths(self) -> ProbeFlags:
        """The flags, checked, with absolute paths.

        Raises:
            ConfigError: a flag has an impossible value.
        """
        self.check()
        return replace(
            self,
            output=absolute_output(self.output),
            data=tuple(map(storage.absolute, self.data)),
            texts=storage.absolute(self.texts) if self.texts else "",
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The flags that decide the tables."""
        return {k: v for k, v in as_plain(self).items() if k not in _NOT_DECIDING}

    @property
    def sentences(self) -> str:
        """Name of the sentences in the tables."""
        named = self.texts.rpartition("/")[2].partition(".")[0]
        return named if self.texts else "+".join(self.templates)

"""Flags of the synthesize job, and what follows from them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa

from raysers.cli import Output, Retry
from raysers.engine import cluster
from raysers.errors import ConfigError
from raysers.models.tts import DEFAULT_PITCH, DEFAULT_RATE_WPM, NEUTRAL, Engine
from raysers.run import Run
from raysers.types import Status
from raysers.words import texts as spoken_texts
from raysers.words.synthesize import VoiceVariants, check_on_worker
from raysers.words.templates import template_texts

JOB = "synthesize"


@dataclass(frozen=True, kw_only=True)
class SynthesizeFlags:
    """Flags of this job."""

    output: Output
    """Folder or s3:// prefix for sound and tables; rerun the command to resume there."""
    texts: str = ""
    """File with one text a line, a table (CSV, TSV, Parquet) with a column text or transcript, or
    a manifest."""
    templates: tuple[str, ...] = ()
    """Built-in sentences of known sentiment (this-is, context, negation, words, sentences,
    this-is-de, …), or YAML files of your own."""
    tts: Literal["espeak", "command"] = "espeak"
    """What speaks: espeak-ng, or the program of --tts-command."""
    tts_command: str = ""
    """Program and arguments, with {text_file}, {text} or neither (standard input), {output} or
    none (standard output), {voice}, {rate}, {pitch}, {language}, {seed}."""
    tts_timeout_s: float = 60.0
    """Seconds the program may take for one text before it is stopped."""
    voice: tuple[str, ...] = (NEUTRAL,)
    """Each text in each of these: neutral (the plain voice of its language), random (one drawn for
    each text), espeak-ng's such as en-us, de, en-us+f3, or names for {voice}."""
    rate: tuple[int, ...] = ()
    """Words per minute, each text at each of these; espeak-ng: 80 to 450, 175 when left out."""
    pitch: tuple[int, ...] = ()
    """Pitch, each text at each of these; espeak-ng: 0 to 99, 50 when left out."""
    seed: int = 0
    """Of the random voices; the text decides as well, its place in the file does not."""
    audio_format: Literal["wav", "flac"] = "wav"
    """Kind of sound file; 16 bits either way."""
    limit: int = 0
    """Only the first N texts; 0 takes all."""
    workers: int = 0
    """Texts spoken at a time; 0 uses every CPU."""
    dry_run: bool = False
    """Print how much there is to speak and write nothing."""
    max_failed: float = 0.05
    """Highest share of texts that are not spoken before the job ends with exit code 3."""
    retry: Retry = ()
    """When resuming, also speak texts with these statuses again."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        program, command = bool(self.tts_command.strip()), self.tts == "command"
        for good, message in (
            (bool(self.output), "--output is empty: give a folder or an s3:// prefix"),
            (
                bool(self.texts) != bool(self.templates),
                "give either --texts FILE or --templates NAME, such as --templates this-is",
            ),
            (program or not command, "--tts command: give the program with --tts-command"),
            (command or not program, "--tts-command is used by --tts command only: add it"),
            (bool(self.voice), "--voice is empty: give neutral, or a name"),
            (
                self.tts_timeout_s > 0,
                f"--tts-timeout-s is {self.tts_timeout_s:g}: give a time above 0 seconds",
            ),
            (self.limit >= 0, f"--limit is {self.limit}: give 0 (all) or more"),
            (self.workers >= 0, f"--workers is {self.workers}: give 0 (automatic) or more"),
            (0 <= self.max_failed <= 1, f"--max-failed is {self.max_failed}: give 0 to 1"),
            (Status.OK not in self.retry, "--retry ok: give statuses of failed texts"),
            *(
                (len(set(values)) == len(values), f"--{name} has the same value twice")
                for name, values in (
                    ("voice", self.voice),
                    ("rate", self.rate),
                    ("pitch", self.pitch),
                )
            ),
        ):
            if not good:
                raise ConfigError(message)

    @property
    def engine(self) -> Engine:
        """What speaks.

        Raises:
            ConfigError: the program of --tts-command cannot be used.
        """
        if self.tts == "espeak":
            return Engine(seed=self.seed)
        return Engine.of_command(
            self.tts_command, timeout_s=self.tts_timeout_s, folder=os.getcwd(), seed=self.seed
        )

    @property
    def variants(self) -> VoiceVariants:
        """In how many ways each text is spoken."""
        is_espeak = self.tts == "espeak"
        rate = self.rate or ((DEFAULT_RATE_WPM,) if is_espeak else (None,))
        pitch = self.pitch or ((DEFAULT_PITCH,) if is_espeak else (None,))
        return VoiceVariants(voices=self.voice, rates=rate, pitches=pitch)

    def read_texts(self) -> spoken_texts.Texts:
        """The texts to speak.

        Raises:
            ConfigError: they cannot be read.
        """
        if self.texts:
            read = spoken_texts.read_texts(self.texts)
        else:
            found = pa.concat_tables(map(template_texts, self.templates))
            read = spoken_texts.Texts(table=spoken_texts.without_repeats(found))
        return replace(read, table=read.table.slice(0, self.limit)) if self.limit else read

    def settings(self, table: pa.Table) -> dict[str, Any]:
        """What decides the sounds and rows, given the spoken_texts."""
        variants = self.variants
        return {
            "texts": spoken_texts.fingerprint(table),
            "tts": self.engine.name,
            "voice": list(variants.voices),
            "rate": list(variants.rates),
            "pitch": list(variants.pitches),
            "seed": self.seed,
            "audio_format": self.audio_format,
        }


def check(flags: SynthesizeFlags, run: Run) -> spoken_texts.Texts:
    """Read the texts and check everything the command names, also on a worker; writes nothing.

    Args:
        flags: of the command.
        run: of its output, claimed or not.

    Raises:
        ConfigError: something the user must change.
    """
    flags.check()
    read = flags.read_texts()
    run.refuse_other_settings(flags.settings(read.table))
    cluster.connect()
    check_on_worker(flags.engine, flags.variants)
    return read

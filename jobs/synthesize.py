"""Speech from texts, as clips with a manifest that every other job takes.

    python jobs/synthesize.py --templates this-is --output spoken
    python jobs/synthesize.py --texts sentences.csv --voice random --output s3://bucket/spoken
    python jobs/synthesize.py --texts sentences.csv --output spoken --tts command \
        --tts-command 'piper --model en.onnx --input-file {text_file} --output-file {output}'

A short sentence takes espeak-ng about 8 ms of CPU. The same command again resumes.
Result: OUTPUT/audio/*.wav and OUTPUT/manifest, one row per text, voice, rate and pitch, with the
text as `transcript` and every other column of the texts beside it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pyarrow as pa
import tyro

from raysers.cli import as_plain, parse
from raysers.engine import cluster, progress
from raysers.errors import ConfigError
from raysers.models.tts_command import speech_program
from raysers.models.tts_engine import DEFAULT_PITCH, DEFAULT_RATE_WPM, NEUTRAL, Engine
from raysers.run import Exit, Run, absolute_output, quiet_environment, run_main
from raysers.types import Status
from raysers.words import synthesis_output, texts
from raysers.words import synthesize as synthesis
from raysers.words.speaking import TABLE, Speaking
from raysers.words.templates import template_texts

JOB = "synthesize"


@dataclass(frozen=True, kw_only=True)
class SynthesizeFlags:
    """Flags of this job."""

    output: str
    """Folder or s3:// prefix for sound and tables; the same command again resumes there."""
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
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print how much there is to speak and write nothing."""
    max_failed: float = 0.05
    """Highest share of texts that are not spoken before the job ends with exit code 3."""
    retry: tuple[Status, ...] = ()
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a command asks for: texts, what speaks them, and in which ways."""

    read: texts.Texts
    engine: Engine
    variants: synthesis.VoiceVariants
    settings: Mapping[str, Any]


def check(flags: SynthesizeFlags, run: Run) -> Request:
    """Look at everything the command names, also on a worker; writes nothing.

    Args:
        flags: of the command.
        run: of its output, claimed or not.

    Raises:
        ConfigError: something the user must change.
    """
    flags.check()
    read, engine, variants = _texts(flags), _engine(flags), _variants(flags)
    settings = _settings(flags, engine, read.table)
    run.refuse_other_settings(settings)
    cluster.connect()
    synthesis.check_on_worker(engine, variants)
    return Request(read=read, engine=engine, variants=variants, settings=settings)


def synthesize(flags: SynthesizeFlags) -> int:
    """Read, plan, speak what is left, conclude; returns the exit code."""
    flags.check()
    flags = replace(flags, output=absolute_output(flags.output))
    with Run.open(JOB, flags.output, table=TABLE, dry_run=flags.dry_run) as run:
        asked = check(flags, run)
        pool = synthesis.worker_pool(flags.workers)
        plan = synthesis.utterances(
            asked.read.table, asked.variants, asked.engine, run.output, f".{flags.audio_format}"
        )
        blocks = synthesis.shard_blocks(plan)
        redo = frozenset(map(str, flags.retry))
        left = synthesis.shards_left(run.output, blocks, redo)
        for note in asked.read.notes:
            progress.print_warning(note)
        line = synthesis_output.notes(len(asked.read.table), plan, len(blocks), left)
        print(f"{JOB}: {line}", flush=True)
        if flags.dry_run:
            guess = synthesis.estimate(left, asked.engine, pool)
            progress.print_pairs("estimate (nothing was written)", guess)
            return Exit.DONE
        started = time.perf_counter()
        synthesis_output.write_header(run.output, plan, flags.texts or ", ".join(flags.templates))
        run.begin(as_plain(flags), asked.settings)
        speaking = Speaking(
            engine=asked.engine,
            output=run.output,
            run_id=run.run_id,
            audio_format=flags.audio_format,
            redo=redo,
            resumed=run.earlier is not None,
        )
        synthesis.run_shards(left, speaking, pool)
        return synthesis_output.conclude(
            run,
            plan,
            len(blocks),
            wall_s=time.perf_counter() - started,
            max_failed=flags.max_failed,
        )


def _texts(flags: SynthesizeFlags) -> texts.Texts:
    if flags.texts:
        read = texts.read_texts(flags.texts)
    else:
        found = pa.concat_tables(map(template_texts, flags.templates))
        read = texts.Texts(table=texts.without_repeats(found))
    return replace(read, table=read.table.slice(0, flags.limit)) if flags.limit else read


def _engine(flags: SynthesizeFlags) -> Engine:
    if flags.tts == "espeak":
        return Engine(seed=flags.seed)
    program = speech_program(flags.tts_command, timeout_s=flags.tts_timeout_s, folder=os.getcwd())
    return Engine(program=program, seed=flags.seed)


def _variants(flags: SynthesizeFlags) -> synthesis.VoiceVariants:
    own = flags.tts == "espeak"
    rate = flags.rate or ((DEFAULT_RATE_WPM,) if own else (None,))
    pitch = flags.pitch or ((DEFAULT_PITCH,) if own else (None,))
    return synthesis.VoiceVariants(voices=flags.voice, rates=rate, pitches=pitch)


def _settings(flags: SynthesizeFlags, engine: Engine, table: pa.Table) -> dict[str, Any]:
    """What decides the sounds and rows."""
    variants = _variants(flags)
    return {
        "texts": texts.fingerprint(table),
        "tts": engine.name,
        "voice": list(variants.voices),
        "rate": list(variants.rates),
        "pitch": list(variants.pitches),
        "seed": flags.seed,
        "audio_format": flags.audio_format,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: synthesize(parse(SynthesizeFlags, argv, description=__doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())

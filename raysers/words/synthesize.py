"""Texts to speech on the cluster: which sound files a run makes, and their manifest.

A shard is a stretch of texts. The names of files and parts are functions of what is said and how,
so work that is done twice leaves one file and one row. The manifest has a row for every text, also
for those that could not be spoken, so later jobs carry their status on.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from raysers.cli import Output, Retry
from raysers.data.shards import shard_name
from raysers.data.sorting import sort_manifest
from raysers.engine import ledger, progress
from raysers.engine import output as parts
from raysers.errors import ConfigError, RaysersError
from raysers.io import storage
from raysers.models.espeak import DEFAULT_PITCH, DEFAULT_RATE_WPM
from raysers.models.tts import NEUTRAL, Engine, Gtts, Program
from raysers.run import Exit, Run
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import Status
from raysers.words import texts as spoken_texts
from raysers.words.speaking import MANNER_FIELDS, SPEECH, TABLE, complaint

JOB, AUDIO = "synthesize", "audio"

_LABELS = {field.name: field for field in LABEL_FIELDS}
_MEANINGS = {
    "sentiment": "sentiment of what is said",
    "template": "pattern the text was made from",
    "word": "word in it that carries the sentiment",
    "slot": "what else fills the template",
    "source_clip_id": "clip the text was taken from",
    "source_file": "file the text was taken from",
}
#: A small set of texts is cut into about this many shards, a large one into shards of this size.
_SHARDS, _MOST_TEXTS, _LEAST_TEXTS = 64, 1000, 16
_SLUG_LENGTH = 40
_ROWS_PER_PART = 100_000


@dataclass(frozen=True, kw_only=True)
class SynthesizeFlags:
    """Flags of this job."""

    output: Output
    """Folder or s3:// prefix for sound and tables; rerun the command to resume there."""
    texts: str = ""
    """File with one text a line, a table (CSV, TSV, Parquet) with a column text or transcript, a
    manifest, or an output of `raysers transcribe`."""
    templates: tuple[str, ...] = ()
    """Built-in sentences of known sentiment (this-is, context, negation, words, sentences, paper,
    this-is-de, …)."""
    tts: Literal["espeak", "gtts", "command"] = "espeak"
    """Speech synthesizer: espeak-ng, Google Translate's (gtts, online), or --tts-command."""
    tts_command: str = ""
    """Any program with its arguments; implies --tts command. It gets the text as {text},
    {text_file} or on standard input, and writes a sound file to {output} or standard output; also
    {voice}, {rate}, {pitch}, {language}, {seed}."""
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
        program = bool(self.tts_command.strip())
        repeated = [n for n in ("voice", "rate", "pitch") if _repeats(getattr(self, n))]
        for bad, message in (
            (not self.output, "--output is empty: give a folder or an s3:// prefix"),
            (
                bool(self.texts) == bool(self.templates),
                "give either --texts FILE or --templates NAME, such as --templates this-is",
            ),
            (
                self.tts == "command" and not program,
                "--tts command: give the program with --tts-command",
            ),
            (self.tts == "gtts" and program, "give either --tts gtts or --tts-command"),
            (not self.voice, "--voice is empty: give neutral, or a name"),
            (
                self.tts_timeout_s <= 0,
                f"--tts-timeout-s is {self.tts_timeout_s:g}: give a time above 0 seconds",
            ),
            (self.limit < 0, f"--limit is {self.limit}: give 0 (all) or more"),
            (self.workers < 0, f"--workers is {self.workers}: give 0 (automatic) or more"),
            (not 0 <= self.max_failed <= 1, f"--max-failed is {self.max_failed}: give 0 to 1"),
            (Status.OK in self.retry, "--retry ok: give statuses of failed texts"),
            (bool(repeated), f"--{''.join(repeated[:1])} has the same value twice"),
        ):
            if bad:
                raise ConfigError(message)

    @property
    def engine(self) -> Engine:
        """The synthesizer.

        Raises:
            ConfigError: the program of --tts-command cannot be used.
        """
        if self.tts_command.strip():
            return Program.of_command(
                self.tts_command,
                timeout_s=self.tts_timeout_s,
                folder=os.getcwd(),
                seed=self.seed,
            )
        return Gtts(seed=self.seed) if self.tts == "gtts" else Engine(seed=self.seed)

    @property
    def variants(self) -> VoiceVariants:
        """In how many ways each text is spoken."""
        is_espeak = type(self.engine) is Engine
        rate = self.rate or ((DEFAULT_RATE_WPM,) if is_espeak else (None,))
        pitch = self.pitch or ((DEFAULT_PITCH,) if is_espeak else (None,))
        return VoiceVariants(voices=self.voice, rates=rate, pitches=pitch)

    def settings(self, table: pa.Table) -> dict[str, Any]:
        """What decides the sounds and rows, given the texts."""
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


def _repeats(values: Sequence[object]) -> bool:
    return len(set(values)) < len(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceVariants:
    """In how many ways each text is spoken: every voice at every rate and pitch."""

    voices: Sequence[str]
    rates: Sequence[int | None]
    pitches: Sequence[int | None]


def check(flags: SynthesizeFlags, run: Run) -> spoken_texts.Texts:
    """Read the texts and check everything the command names, also on a worker; writes nothing.

    Args:
        flags: of the command.
        run: of its output, claimed or not.

    Raises:
        ConfigError: something the user must change.
    """
    flags.check()
    if flags.texts:
        read = spoken_texts.read_texts(flags.texts)
    else:
        found = [spoken_texts.template_texts(name) for name in flags.templates]
        table = pa.concat_tables(found, promote_options="default")
        read = spoken_texts.Texts(table=spoken_texts.without_repeats(table))
    read = replace(read, table=read.table.slice(0, flags.limit or None))
    run.refuse_other_settings(flags.settings(read.table))
    how = flags.variants
    numbers = ([v for v in values if v is not None] for values in (how.rates, how.pitches))
    if objection := complaint(flags.engine, how.voices, *numbers):
        raise ConfigError(objection)
    return read


def utterances(
    texts: pa.Table, variants: VoiceVariants, engine: Engine, output: str, suffix: str
) -> pa.Table:
    """One row per text and manner: the texts' columns, `MANNER_FIELDS`, and `file`.

    The same text in the same manner in several rows (other labels, say) is several files with
    the same sound, told apart by a number. Two voices that come down to the same are one row.
    """
    rows, manner = [], []
    languages = texts["language"].to_pylist() if "language" in texts.column_names else None
    counts: Counter[str] = Counter()
    for row, text in enumerate(texts["text"].to_pylist()):
        language = languages[row] if languages else None
        voices = dict.fromkeys(engine.voice_for(v, text, language) for v in variants.voices)
        for how in itertools.product(voices, variants.rates, variants.pitches):
            name = _name(engine.name, text, how)
            counts[name] += 1
            number = f"-{counts[name]}" if counts[name] > 1 else ""
            rows.append(row)
            manner.append((*how, storage.join(output, AUDIO, f"{name}{number}{suffix}")))
    plan = texts.take(pa.array(rows, pa.int64()))
    for index, field in enumerate([*MANNER_FIELDS, pa.field("file", pa.string())]):
        plan = plan.append_column(field, pa.array([how[index] for how in manner], field.type))
    return plan


def _name(engine: str, text: str, how: tuple[object, ...]) -> str:
    """Readable, and another one for every text, manner and engine."""
    digest = blake2b(repr((engine, text, how)).encode(), digest_size=8).hexdigest()
    letters = unicodedata.normalize("NFKD", text[: 4 * _SLUG_LENGTH]).encode("ascii", "ignore")
    slug = re.sub(r"[^a-z0-9]+", "-", letters.decode().lower())[:_SLUG_LENGTH].strip("-")
    return f"{slug or 'text'}-{digest}"


def shard_blocks(plan: pa.Table) -> list[pa.Table]:
    """The plan cut into shards, a function of its rows alone, with a column `shard`."""
    size = min(_MOST_TEXTS, max(_LEAST_TEXTS, -(-len(plan) // _SHARDS)))
    names = ("text", "language", *(f.name for f in MANNER_FIELDS), "file")
    cut = plan.select([name for name in names if name in plan.column_names]).combine_chunks()
    blocks = (cut.slice(start, size) for start in range(0, len(cut), size))
    return [
        block.append_column("shard", pa.array([number] * len(block), pa.int64()))
        for number, block in enumerate(blocks)
    ]


def shards_left(output: str, blocks: Sequence[pa.Table], redo: frozenset[str]) -> list[pa.Table]:
    """Those without a finished part, or with a row to do again."""
    done = parts.parts_there(output, TABLE)
    left = {i for i in range(len(blocks)) if shard_name(i) not in done}
    if redo and done:
        found = parts.read_parts(output, TABLE, range(len(blocks)), ["status"])
        again = pa.array(sorted(redo))
        left |= {i for i, part in found if pc.any(pc.is_in(part["status"], again)).as_py()}
    return [blocks[i] for i in sorted(left)]


def write_header(output: str, plan: pa.Table, about: str) -> None:
    """Write `db.yaml`, which comes before any sound.

    Raises:
        WriteError: the output cannot be written.
    """
    schemas = {"manifest": _manifest_schema(plan), TABLE: SPEECH}
    parts.write_header(output, schemas, description=f"speech made from {about}")


def _manifest_schema(plan: pa.Table) -> pa.Schema:
    """Columns of the manifest: those of all manifests, then what was carried from the texts."""
    carried = {"transcript": _LABELS["transcript"]}
    for field in plan.schema:
        name = "transcript" if field.name == "text" else field.name
        if name not in MANIFEST.names:
            meaning = {"meaning": _MEANINGS.get(name, name)}
            carried[name] = _LABELS.get(name) or field.with_metadata(field.metadata or meaning)
    manner = {field.name: field for field in MANNER_FIELDS}
    return pa.schema([*MANIFEST, *(carried | manner).values()])


def conclude(run: Run, plan: pa.Table, shards: int, *, wall_s: float, max_failed: float) -> Exit:
    """Check that every text is one row, write the manifest and how it ended, print it.

    Raises:
        RaysersError: rows are missing or too many.
    """
    output = run.output
    speech = parts.read_all(output, TABLE, shards, MANIFEST.names)
    if speech["file"].to_pylist() != plan["file"].to_pylist():
        raise RaysersError(
            f"{output} does not match its texts: {len(plan):,} sounds but {len(speech):,} rows. "
            f"Its parts were changed from outside: delete the folder {TABLE} and run the same "
            "command"
        )
    schema = _manifest_schema(plan)
    known = {name: plan[name] for name in plan.column_names} | {"transcript": plan["text"]}
    known |= {name: speech[name] for name in MANIFEST.names}
    columns = [known[field.name].cast(field.type) for field in schema]
    manifest = sort_manifest(pa.table(columns, schema=schema))
    # the first part last: without it a manifest counts as unfinished
    starts = range(0, len(manifest), _ROWS_PER_PART)
    for number, start in reversed(list(enumerate(starts))):
        part = storage.join(output, "manifest", f"part-{number:05d}.parquet")
        parts.write_part(part, manifest.slice(start, _ROWS_PER_PART))
    ledger.tidy(output)
    statuses = progress.count_statuses(manifest)
    failed = 1 - statuses.get(Status.OK, 0) / len(manifest)
    audio_s = round(pc.sum(manifest["duration_s"]).as_py() or 0.0, 3)
    outcome = {
        "clips": len(manifest),
        "statuses": statuses,
        "failed_share": round(failed, 6),
        "audio_s": audio_s,
        "wall_s": round(wall_s, 3),
    }
    good = failed <= max_failed
    run.finish("done" if good else "done_with_failures", outcome)
    progress.print_statuses(statuses)
    progress.print_manifest(len(manifest), audio_s, output)
    if not good:
        progress.print_warning(
            f"{failed:.1%} of the texts were not spoken, more than --max-failed {max_failed:g} "
            "allows: see the columns status and error; --retry STATUS speaks such texts again"
        )
    return Exit.DONE if good else Exit.TOO_MANY_FAILED

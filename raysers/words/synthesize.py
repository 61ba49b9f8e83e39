"""Texts to speech on the cluster: sound files, a row for each, and their manifest.

A shard is a stretch of texts. The names of files and parts are functions of what is said and how,
so work that is done twice leaves one file and one row. That a sound file exists does not prove that
it is whole: its header is read. The manifest has a row for every text, also for those that could
not be spoken, so later jobs carry their status on.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile

from raysers.cli import Output, Retry, check_flags
from raysers.data.manifest import plain_rows
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.shards import shard_name
from raysers.engine import output as parts
from raysers.engine import progress
from raysers.errors import ClipError, ConfigError, errors_as_rows, raise_from_rows
from raysers.io import marks, storage
from raysers.models.tts import NEUTRAL, Engine, Gtts, Line, Program
from raysers.run import Run
from raysers.schemas import MANIFEST, TRANSCRIPTS
from raysers.types import Status, clip_id
from raysers.words import texts as spoken_texts

JOB, AUDIO, TABLE = "synthesize", "audio", "speech"

#: How a text is spoken.
MANNER_FIELDS = (
    pa.field("voice", pa.string(), metadata={"meaning": "voice; null: the program's own"}),
    pa.field(
        "rate_wpm",
        pa.int32(),
        metadata={"meaning": "speaking rate; null: the program's own", "unit": "words/min"},
    ),
    pa.field("pitch", pa.int32(), metadata={"meaning": "pitch, 0..99; null: the program's own"}),
)
#: The outcome of every text.
SPEECH = pa.schema(
    [
        *MANIFEST,
        pa.field("text", pa.string(), metadata={"meaning": "the text to speak"}),
        *MANNER_FIELDS,
        pa.field("tts", pa.string(), metadata={"meaning": "espeak, gtts, or the command"}),
        TRANSCRIPTS.field("run_id"),
        TRANSCRIPTS.field("created_at"),
    ]
)
#: A small set of texts is cut into about this many shards, a large one into shards of this size.
_SHARDS, _MOST_TEXTS, _LEAST_TEXTS = 64, 1000, 16
#: Processes per CPU at most: a program may spend its time waiting for another machine.
_MOST_PER_CPU = 4
_SLUG_LENGTH = 40

Row = dict[str, Any]


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
    workers: int | Literal["local"] = 0
    """Texts spoken at a time; 0 uses every CPU; `local` speaks in this process, without Ray."""
    dry_run: bool = False
    """Print how much there is to speak and write nothing."""
    max_failed: float = 0.05
    """Highest share of texts that are not spoken before the job ends with exit code 3."""
    retry: Retry = ()
    """When resuming, also speak texts with these statuses again."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        program = bool(self.tts_command.strip())
        manner = {name: getattr(self, name) for name in ("voice", "rate", "pitch")}
        twice = [name for name, values in manner.items() if len(set(values)) < len(values)]
        if twice:
            raise ConfigError(f"--{twice[0]} has the same value twice")
        either = "either --texts FILE or --templates NAME, such as --templates this-is"
        check_flags(
            (bool(self.output), "--output", "empty", "a folder or an s3:// prefix"),
            (bool(self.texts) != bool(self.templates), "--texts", self.texts or "empty", either),
            (
                self.tts != "command" or program,
                "--tts",
                "command",
                "the program with --tts-command",
            ),
            (self.tts != "gtts" or not program, "--tts", "gtts", "either this or --tts-command"),
            (bool(self.voice), "--voice", "empty", "neutral, or a name"),
            (self.tts_timeout_s > 0, "--tts-timeout-s", self.tts_timeout_s, "a time above 0 s"),
            (self.limit >= 0, "--limit", self.limit, "0 (all) or more"),
            ("-" not in str(self.workers), "--workers", self.workers, "0 (automatic) or more"),
            (0 <= self.max_failed <= 1, "--max-failed", self.max_failed, "0 to 1"),
            (Status.OK not in self.retry, "--retry", "ok", "statuses of failed texts"),
        )

    @property
    def engine(self) -> Engine:
        """The synthesizer; ConfigError if the program of --tts-command cannot be used."""
        if not self.tts_command.strip():
            return Gtts(seed=self.seed) if self.tts == "gtts" else Engine(seed=self.seed)
        return Program.of_command(
            self.tts_command, timeout_s=self.tts_timeout_s, folder=os.getcwd(), seed=self.seed
        )

    @property
    def manner(self) -> list[tuple[int | None, ...]]:
        """Rates and pitches that every text is spoken at."""
        given = zip((self.rate, self.pitch), self.engine.defaults, strict=True)
        return [values or (default,) for values, default in given]

    def settings(self, table: pa.Table) -> dict[str, Any]:
        """What decides the sounds and rows, given the texts."""
        rate, pitch = self.manner
        return {
            "texts": spoken_texts.fingerprint(table),
            "tts": self.engine.name,
            "voice": list(self.voice),
            "rate": list(rate),
            "pitch": list(pitch),
            "seed": self.seed,
            "audio_format": self.audio_format,
        }


def check(flags: SynthesizeFlags, run: Run) -> tuple[pa.Table, list[str]]:
    """Read the texts, with notes, and check everything the command names; writes nothing.

    Raises ConfigError: something the user must change. RefusedError: the output of `run` holds
    speech of other settings.
    """
    flags.check()
    notes: list[str] = []
    if flags.texts:
        table, notes = spoken_texts.read_texts(flags.texts)
    else:
        found = [spoken_texts.template_texts(name) for name in flags.templates]
        table = spoken_texts.without_repeats(pa.concat_tables(found, promote_options="default"))
    table = table.slice(0, flags.limit or None)
    run.refuse_other_settings(flags.settings(table))
    flags.engine.check(flags.voice, flags.rate, flags.pitch)
    return table, notes


def utterances(texts: pa.Table, flags: SynthesizeFlags, output: str) -> pa.Table:
    """One row per text and manner: the texts' columns, `MANNER_FIELDS`, and `file`.

    The same text in the same manner in several rows (other labels, say) is several files with
    the same sound, told apart by a number. Two voices that come down to the same are one row.
    """
    engine, rows, manner = flags.engine, [], []
    counts: Counter[str] = Counter()
    for row, text in enumerate(texts.to_pylist()):
        said, language = text["text"], text.get("language")
        voices = dict.fromkeys(engine.voice_for(v, said, language) for v in flags.voice)
        for how in itertools.product(voices, *flags.manner):
            digest = blake2b(repr((engine.name, said, how)).encode(), digest_size=8).hexdigest()
            letters = unicodedata.normalize("NFKD", said[: 4 * _SLUG_LENGTH])
            ascii_letters = letters.encode("ascii", "ignore").decode().lower()
            slug = re.sub(r"[^a-z0-9]+", "-", ascii_letters)[:_SLUG_LENGTH].strip("-")
            name = f"{slug or 'text'}-{digest}"
            counts[name] += 1
            number = f"-{counts[name]}" if counts[name] > 1 else ""
            file = f"{name}{number}.{flags.audio_format}"
            rows.append(row)
            manner.append((*how, storage.join(output, AUDIO, file)))
    plan = texts.take(pa.array(rows, pa.int64()))
    for index, field in enumerate([*MANNER_FIELDS, pa.field("file", pa.string())]):
        plan = plan.append_column(field, pa.array([how[index] for how in manner], field.type))
    return plan


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


@dataclass
class ShardSpeaker:
    """A worker as Ray Data builds it: a shard's texts in, a row per status out.

    With `redo` rows of these statuses are made again; `resumed`: there may be sound files.
    """

    engine: Engine
    output: str
    run_id: str
    audio_format: str = "wav"
    redo: frozenset[str] = frozenset()
    resumed: bool = False

    @errors_as_rows
    def __call__(self, block: pa.Table) -> pa.Table:
        """Speak a block of `shard_blocks` and write its part; rows `status`, `texts`.

        Safe to repeat: finished rows and whole sound files of an earlier attempt are kept.
        """
        name = shard_name(block["shard"][0].as_py())
        uri = storage.join(self.output, TABLE, name)
        earlier = parts.read_part(uri)
        rows = {
            row["file"]: row
            for row in ([] if earlier is None else plain_rows(earlier))
            if row["status"] not in self.redo or row["run_id"] == self.run_id
        }
        texts = block.to_pylist()
        if len(rows) == len(texts):
            marks.discard(marks.mark_uri(self.output, name))
        else:
            attempt = marks.begin(self.output, name, self.run_id)
            left = [text for text in texts if text["file"] not in rows]
            if self.resumed or attempt.suspicious:
                there = {r["file"]: r for r in self._probed(left) if r["status"] == str(Status.OK)}
                rows |= there
                left = [text for text in left if text["file"] not in there]
            errors = {text["file"]: self._speak(text, attempt) for text in left}
            for text in left:
                if error := errors[text["file"]]:
                    row = {"status": str(error.status), "error": error.message, "start": 0}
                    row |= {"clip_id": clip_id(text["file"], 0, None), "etag": ""}
                    rows[text["file"]] = self._row(text) | row
            spoken = [text for text in left if errors[text["file"]] is None]
            rows |= {row["file"]: row for row in self._probed(spoken)}
            table = parts.to_table([rows[text["file"]] for text in texts], SPEECH)
            parts.write_part(uri, table)
            attempt.close()
        statuses = Counter(row["status"] for row in rows.values())
        return pa.table({"status": list(statuses), "texts": list(statuses.values())})

    def _speak(self, text: Row, attempt: marks.Attempt) -> ClipError | None:
        """Make one sound file; the row boundary, where failures become data."""
        name = clip_id(text["file"], 0, None)
        if attempt.given_up(name):
            message = f"its worker process died {marks.MAX_DEATHS} times on this text alone"
            return ClipError(Status.WORKER_DIED, message)
        if attempt.suspicious:
            attempt.enter([name])
        how = {key: text.get(key) for key in ("language", "voice", "rate_wpm", "pitch")}
        file = io.BytesIO()
        try:
            samples, rate_hz = self.engine.speak(Line(text=text["text"], **how))
            # what was 16-bit before is the same after
            pcm = np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype(np.int16)
            soundfile.write(file, pcm, rate_hz, "PCM_16", format=self.audio_format.upper())
        except ClipError as error:
            return error
        except MemoryError:
            return ClipError(Status.OUT_OF_MEMORY, "no memory left to speak the text")
        storage.write_atomic(text["file"], file.getvalue())
        return None

    def _probed(self, texts: list[Row]) -> list[Row]:
        """Rows of texts with the headers of their sound files."""
        if not texts:
            return []
        listed = pa.table({"file": pa.array([text["file"] for text in texts], pa.string())})
        probed = plain_rows(probe_batch(listed, Segmenting()))
        return [self._row(text) | row for text, row in zip(texts, probed, strict=True)]

    def _row(self, text: Row) -> Row:
        said = {name: text[name] for name in ("file", "text", "voice", "rate_wpm", "pitch")}
        made = {"tts": self.engine.name, "run_id": self.run_id, "created_at": datetime.now(UTC)}
        return said | made


def worker_pool(workers: int | Literal["local"]) -> tuple[int, float] | None:
    """How many speak at a time on the cluster, and the CPUs each reserves; 0: one a CPU.

    None is for this process. Raises ConfigError: more than the cluster can hold.
    """
    if workers == "local":
        return None
    import ray

    from raysers.engine import cluster

    cluster.connect()
    cpus = sum(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    share = max(1, -(-workers // cpus))
    if share > _MOST_PER_CPU:
        raise ConfigError(
            f"--workers {workers} is too many for the cluster's {cpus} CPUs: "
            f"give {cpus * _MOST_PER_CPU} or fewer, or 0 to choose"
        )
    return workers or cpus, 1 / share


def run_shards(blocks: Sequence[pa.Table], settings: Row, pool: tuple[int, float] | None) -> None:
    """Speak every block by `ShardSpeaker(**settings)`, with a progress line now and then.

    Raises RaysersError: credentials, storage, writing.
    """
    if not blocks:
        return
    if pool is None:
        batches: Iterable[pa.Table] = map(ShardSpeaker(**settings), blocks)
    else:
        import ray

        results = ray.data.from_arrow(list(blocks)).map_batches(
            ShardSpeaker,
            fn_constructor_kwargs=settings,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=min(pool[0], len(blocks))),
            num_cpus=pool[1],
        )
        batches = results.iter_batches(batch_size=None, batch_format="pyarrow")
    total, statuses = sum(map(len, blocks)), Counter[str]()
    began_s = last_s = time.monotonic()
    for batch in batches:
        for row in raise_from_rows(batch).to_pylist():
            statuses[row["status"]] += row["texts"]
        now_s = time.monotonic()
        if now_s - last_s >= progress.LINE_EVERY_S:
            last_s, done = now_s, statuses.total()
            left = progress.duration((total - done) * (now_s - began_s) / max(done, 1))
            line = f"{done:,} of {total:,} texts spoken | {left} left"
            print(line + progress.failures_text(statuses), file=sys.stderr, flush=True)

"""Texts to speech on the cluster: which sound files a run makes, and the run itself.

A shard is a stretch of texts; its worker speaks them, writes the sound files, reads their headers
back, and then writes one Parquet part. The names of files and parts are functions of what is said
and how, so work that is done twice leaves one file and one row.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from raysers.data.shards import shard_name
from raysers.engine import cluster
from raysers.engine import output as parts
from raysers.engine.progress import LINE_EVERY_S, duration, failures_text, hours
from raysers.errors import ClipError, ConfigError, raise_from_rows
from raysers.io import storage
from raysers.models.tts import Engine
from raysers.words.speaking import MANNER_FIELDS, TABLE, Speaking, SpeakingWorker, line_of

AUDIO = "audio"
#: A small set of texts is cut into about this many shards, a large one into shards of this size.
_SHARDS = 64
_MOST_TEXTS = 1000
_LEAST_TEXTS = 16
_SLUG_LENGTH = 40
#: Processes per CPU at most: a program may spend its time waiting for another machine.
_MOST_PER_CPU = 4
#: Texts spoken for an estimate.
_SAMPLED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPool:
    """How many processes speak, and the CPUs each reserves."""

    workers: int
    num_cpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceVariants:
    """In how many ways each text is spoken: every voice at every rate and pitch."""

    voices: Sequence[str]
    rates: Sequence[int | None]
    pitches: Sequence[int | None]


def utterances(
    texts: pa.Table, variants: VoiceVariants, engine: Engine, output: str, suffix: str
) -> pa.Table:
    """One row per text and manner: the texts' columns, `MANNER_FIELDS`, and `file`.

    The same words in the same manner in several rows (other labels, say) are several files with
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
    fields = [*MANNER_FIELDS, pa.field("file", pa.string())]
    for index, field in enumerate(fields):
        plan = plan.append_column(field, pa.array([how[index] for how in manner], field.type))
    return plan


def _name(engine: str, text: str, how: tuple[object, ...]) -> str:
    """Readable, and another one for every text, manner and engine."""
    digest = blake2b(repr((engine, text, how)).encode(), digest_size=8).hexdigest()
    plain = (
        unicodedata.normalize("NFKD", text[: 4 * _SLUG_LENGTH]).encode("ascii", "ignore").decode()
    )
    slug = re.sub(r"[^a-z0-9]+", "-", plain.lower())[:_SLUG_LENGTH].strip("-")
    return f"{slug or 'text'}-{digest}"


def shard_blocks(plan: pa.Table) -> list[pa.Table]:
    """The plan cut into shards, a function of its rows alone, with a column `shard`."""
    size = min(_MOST_TEXTS, max(_LEAST_TEXTS, -(-len(plan) // _SHARDS)))
    wanted = [
        n
        for n in ("text", "language", *(f.name for f in MANNER_FIELDS), "file")
        if n in plan.column_names
    ]
    cut = plan.select(wanted).combine_chunks()
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


def check_on_worker(engine: Engine, variants: VoiceVariants) -> None:
    """`Engine.check` where the speaking will be done.

    Raises:
        ConfigError: it cannot be done there.
    """
    rates = [rate for rate in variants.rates if rate is not None]
    pitches = [pitch for pitch in variants.pitches if pitch is not None]
    check = ray.remote(num_cpus=1)(_complaint)
    complaint = cluster.get_with_notice(
        check.remote(engine, variants.voices, rates, pitches), "one worker (1 CPU)"
    )
    if complaint:
        raise ConfigError(complaint)


def _complaint(engine: Engine, voices: list[str], rates: list[int], pitches: list[int]) -> str:
    # as text: what Ray makes of an exception is not one line
    try:
        engine.check(voices, rates, pitches)
    except ConfigError as error:
        return str(error)
    return ""


def worker_pool(workers: int) -> WorkerPool:
    """How many speak at a time on the connected cluster; 0 is one per CPU.

    Raises:
        ConfigError: more than the cluster can hold.
    """
    cpus = sum(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    share = max(1, -(-workers // cpus))
    if share > _MOST_PER_CPU:
        raise ConfigError(
            f"--workers {workers} is too many for the cluster's {cpus} CPUs: "
            f"give {cpus * _MOST_PER_CPU} or fewer, or 0 to choose"
        )
    return WorkerPool(workers=workers or cpus, num_cpus=1 / share)


def estimate(blocks: Sequence[pa.Table], engine: Engine, pool: WorkerPool) -> dict[str, str]:
    """What the texts that are left will take, from some of them spoken on one worker."""
    if not blocks:
        return {"left to speak": "nothing"}
    plan = pa.concat_tables(blocks)
    step = max(1, len(plan) // _SAMPLED)
    sample = plan.take(pa.array(range(0, len(plan), step)[:_SAMPLED])).to_pylist()
    trial = ray.remote(num_cpus=pool.num_cpus)(_trial)
    audio_s, wall_s = cluster.get_with_notice(trial.remote(engine, sample), "one worker (1 CPU)")
    share = len(plan) / len(sample)
    return {
        "sound files": f"{len(plan):,}",
        "audio": f"about {hours(audio_s * share)}",
        "wall time": f"about {duration(wall_s * share / pool.workers)} with {pool.workers} workers",
    }


def _trial(engine: Engine, sample: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds of speech of some texts, and seconds it took."""
    audio_s, started = 0.0, time.perf_counter()
    for text in sample:
        with suppress(ClipError):
            samples, rate_hz = engine.speak(line_of(text))
            audio_s += len(samples) / rate_hz
    return audio_s, time.perf_counter() - started


def run_shards(blocks: Sequence[pa.Table], speaking: Speaking, pool: WorkerPool) -> None:
    """Speak every block, saying now and then how far it is.

    Raises:
        RaysersError: what a worker raised on purpose (credentials, storage, writing).
        ray.exceptions.RayError: a bug in a worker.
    """
    if not blocks:
        return
    actors = ray.data.ActorPoolStrategy(size=min(pool.workers, len(blocks)))
    results = ray.data.from_arrow(list(blocks)).map_batches(
        SpeakingWorker,
        fn_constructor_kwargs={"speaking": speaking},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=actors,
        num_cpus=pool.num_cpus,
    )
    told = _told(
        results.iter_batches(batch_size=None, batch_format="pyarrow"), sum(map(len, blocks))
    )
    for _ in told:
        pass


def _told(batches: Iterator[pa.Table], total: int) -> Iterator[pa.Table]:
    began_s = last_s = time.monotonic()
    statuses: Counter[str] = Counter()
    for batch in batches:
        for row in raise_from_rows(batch).to_pylist():
            statuses[row["status"]] += row["texts"]
        now_s = time.monotonic()
        if now_s - last_s >= LINE_EVERY_S:
            last_s, done = now_s, statuses.total()
            left = duration((total - done) * (now_s - began_s) / max(done, 1))
            line = f"{done:,} of {total:,} texts spoken | {left} left"
            print(line + failures_text(statuses), file=sys.stderr, flush=True)
        yield batch

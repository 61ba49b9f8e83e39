"""Workers of a synthesis: speak a shard of texts, write the sound, read it back, write a part.

That a sound file exists does not prove that it is whole: its header is read, as it is for every
file that was just written, and the row records the result.
"""

from __future__ import annotations

import io
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import soundfile

from raysers.data.segments import Segmenting, probe_batch
from raysers.data.shards import shard_name
from raysers.engine import ledger
from raysers.engine import output as parts
from raysers.engine.progress import LINE_EVERY_S, duration, failures_text, hours
from raysers.errors import ClipError, ConfigError, errors_as_rows, raise_from_rows
from raysers.io import storage
from raysers.models.tts import Engine, Line
from raysers.schemas import MANIFEST, TRANSCRIPTS
from raysers.types import Status, clip_id

TABLE = "speech"
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
#: Processes per CPU at most: a program may spend its time waiting for another machine.
_MOST_PER_CPU = 4
#: Texts spoken for an estimate.
_SAMPLED = 8
_OK = str(Status.OK)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaking:
    """Settings of every worker of a run.

    Attributes:
        engine: the synthesizer.
        output: the run's folder.
        run_id: written into every row.
        audio_format: `wav` or `flac`.
        redo: statuses whose rows are made again.
        resumed: an earlier run may have left sound files.
    """

    engine: Engine
    output: str
    run_id: str
    audio_format: str
    redo: frozenset[str]
    resumed: bool


def speak_shard(block: pa.Table, speaking: Speaking) -> pa.Table:
    """Speak a block of `synthesize.shard_blocks` and write its part; rows `status`, `texts`.

    Safe to repeat: finished rows and whole sound files of an earlier attempt are kept.

    Raises:
        WriteError: a sound file or the part cannot be written.
        CredentialsError, TransientStorageError: the store does not answer as it should.
    """
    shard = block["shard"][0].as_py()
    uri = parts.part_uri(speaking.output, TABLE, shard)
    earlier = parts.read_part(uri)
    rows = {
        row["file"]: row
        for row in ([] if earlier is None else _rows(earlier))
        if row["status"] not in speaking.redo or row["run_id"] == speaking.run_id
    }
    texts = block.to_pylist()
    if len(rows) == len(texts):
        ledger.discard(ledger.mark_uri(speaking.output, shard_name(shard)))
        return _summary(earlier)
    attempt = ledger.begin(speaking.output, shard_name(shard), speaking.run_id)
    left = [text for text in texts if text["file"] not in rows]
    if speaking.resumed or attempt.suspicious:
        there = {r["file"]: r for r in _probed(left, speaking) if r["status"] == _OK}
        rows |= there
        left = [text for text in left if text["file"] not in there]
    spoken = []
    for text in left:
        error = _speak(text, speaking, attempt)
        if error is None:
            spoken.append(text)
        else:
            own = {"status": str(error.status), "error": error.message, "start": 0}
            identity = {"clip_id": clip_id(text["file"], 0, None), "etag": ""}
            rows[text["file"]] = _row(text, speaking) | own | identity
    rows |= {row["file"]: row for row in _probed(spoken, speaking)}
    table = parts.to_table([rows[text["file"]] for text in texts], SPEECH)
    parts.write_part(uri, table)
    attempt.close()
    return _summary(table)


def _speak(text: Row, speaking: Speaking, attempt: ledger.Attempt) -> ClipError | None:
    """Make one sound file; the row boundary, where failures become data."""
    name = clip_id(text["file"], 0, None)
    if attempt.given_up(name):
        message = f"its worker process died {ledger.MAX_DEATHS} times on this text alone"
        return ClipError(Status.WORKER_DIED, message)
    if attempt.suspicious:
        attempt.enter([name])
    try:
        samples, rate_hz = speaking.engine.speak(_line(text))
        sound = _encoded(samples, rate_hz, speaking.audio_format)
    except ClipError as error:
        return error
    except MemoryError:
        return ClipError(Status.OUT_OF_MEMORY, "no memory left to speak the text")
    storage.write_atomic(text["file"], sound)
    return None


def _line(text: Row) -> Line:
    how = {name: text.get(name) for name in ("language", "voice", "rate_wpm", "pitch")}
    return Line(text=text["text"], **how)


def _encoded(samples: npt.NDArray[np.float32], rate_hz: int, audio_format: str) -> bytes:
    """A sound file of 16-bit samples; what was 16-bit before is the same after."""
    pcm = np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, pcm, rate_hz, format=audio_format.upper(), subtype="PCM_16")
    return file.getvalue()


def _probed(texts: list[Row], speaking: Speaking) -> list[Row]:
    """Rows of texts with the headers of their sound files."""
    if not texts:
        return []
    listed = pa.table({"file": pa.array([text["file"] for text in texts], pa.string())})
    probed = _rows(probe_batch(listed, Segmenting()))
    return [_row(text, speaking) | row for text, row in zip(texts, probed, strict=True)]


def _rows(table: pa.Table) -> list[Row]:
    """Rows with their times as whole nanoseconds, for which Python's durations are too coarse."""
    for name in ("start", "end"):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table[name].cast(pa.int64()))
    rows: list[Row] = table.to_pylist()
    return rows


def _row(text: Row, speaking: Speaking) -> Row:
    said = {name: text[name] for name in ("file", "text", "voice", "rate_wpm", "pitch")}
    return said | {
        "tts": speaking.engine.name,
        "run_id": speaking.run_id,
        "created_at": datetime.now(UTC),
    }


def _summary(table: pa.Table) -> pa.Table:
    statuses = Counter(table["status"].to_pylist())
    return pa.table({"status": list(statuses), "texts": list(statuses.values())})


def complaint(engine: Engine, voices: Sequence[str], *numbers: Sequence[int]) -> str:
    """What `Engine.check` objects to on a worker; empty for nothing.

    Text, because Ray's own wrapping of an exception is not one line.
    """
    import ray

    from raysers.engine import cluster

    def check() -> str:
        try:
            engine.check(voices, *numbers)
        except ConfigError as error:
            return str(error)
        return ""

    cluster.connect()
    found = cluster.get_with_notice(ray.remote(num_cpus=1)(check).remote(), "one worker (1 CPU)")
    return str(found)


def worker_pool(workers: int) -> tuple[int, float]:
    """How many speak at a time on the connected cluster, and the CPUs each reserves; 0: one a CPU.

    Raises:
        ConfigError: more than the cluster can hold.
    """
    import ray

    cpus = sum(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    share = max(1, -(-workers // cpus))
    if share > _MOST_PER_CPU:
        raise ConfigError(
            f"--workers {workers} is too many for the cluster's {cpus} CPUs: "
            f"give {cpus * _MOST_PER_CPU} or fewer, or 0 to choose"
        )
    return workers or cpus, 1 / share


def estimate(blocks: Sequence[pa.Table], engine: Engine, pool: tuple[int, float]) -> dict[str, str]:
    """Audio and time of the texts that are left, from some of them spoken on one worker."""
    import ray

    from raysers.engine import cluster

    if not blocks:
        return {"left to speak": "nothing"}
    workers, num_cpus = pool
    plan = pa.concat_tables(blocks)
    step = max(1, len(plan) // _SAMPLED)
    sample = plan.take(pa.array(range(0, len(plan), step)[:_SAMPLED])).to_pylist()

    def trial() -> tuple[float, float]:
        audio_s, started_s = 0.0, time.perf_counter()
        for text in sample:
            with suppress(ClipError):
                samples, rate_hz = engine.speak(_line(text))
                audio_s += len(samples) / rate_hz
        return audio_s, time.perf_counter() - started_s

    remote = ray.remote(num_cpus=num_cpus)(trial).remote()
    audio_s, wall_s = cluster.get_with_notice(remote, "one worker (1 CPU)")
    share = len(plan) / len(sample)
    return {
        "sound files": f"{len(plan):,}",
        "audio": f"about {hours(audio_s * share)}",
        "wall time": f"about {duration(wall_s * share / workers)} with {workers} workers",
    }


class SpeakingWorker:
    """The stage as Ray Data builds it: a shard's texts in, a row per status out."""

    def __init__(self, *, speaking: Speaking) -> None:
        self._speaking = speaking

    @errors_as_rows
    def __call__(self, block: pa.Table) -> pa.Table:
        """Work on one shard. Safe to repeat."""
        return speak_shard(block, self._speaking)


def run_shards(blocks: Sequence[pa.Table], speaking: Speaking, pool: tuple[int, float]) -> None:
    """Speak every block, with a progress line now and then.

    Raises:
        RaysersError: what a worker raised on purpose (credentials, storage, writing).
        ray.exceptions.RayError: a bug in a worker.
    """
    import ray

    if not blocks:
        return
    workers, num_cpus = pool
    results = ray.data.from_arrow(list(blocks)).map_batches(
        SpeakingWorker,
        fn_constructor_kwargs={"speaking": speaking},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
        num_cpus=num_cpus,
    )
    total, statuses = sum(map(len, blocks)), Counter[str]()
    began_s = last_s = time.monotonic()
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in raise_from_rows(batch).to_pylist():
            statuses[row["status"]] += row["texts"]
        now_s = time.monotonic()
        if now_s - last_s >= LINE_EVERY_S:
            last_s, done = now_s, statuses.total()
            left = duration((total - done) * (now_s - began_s) / max(done, 1))
            line = f"{done:,} of {total:,} texts spoken | {left} left"
            print(line + failures_text(statuses), file=sys.stderr, flush=True)

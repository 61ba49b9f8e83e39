"""What a worker does with one shard of texts: speak, write the sound, read it back, write a part.

Whether a sound file is there is never taken as proof that it is whole: its header is read, as it
is for every file that was just written, and the row says what was found.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
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
from raysers.errors import ClipError, errors_as_rows
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

#: What became of every text.
SPEECH = pa.schema(
    [
        *MANIFEST,
        pa.field("text", pa.string(), metadata={"meaning": "what was to be said"}),
        *MANNER_FIELDS,
        pa.field("tts", pa.string(), metadata={"meaning": "espeak, or the program's command"}),
        TRANSCRIPTS.field("run_id"),
        TRANSCRIPTS.field("created_at"),
    ]
)

_FORMATS: Mapping[str, str] = {"wav": "WAV", "flac": "FLAC"}
_OK = str(Status.OK)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaking:
    """What every worker of a run needs to know.

    Attributes:
        engine: what speaks.
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


class SpeakingWorker:
    """The stage as Ray Data builds it: a shard's texts in, a row per status out."""

    def __init__(self, *, speaking: Speaking) -> None:
        self._speaking = speaking

    @errors_as_rows
    def __call__(self, block: pa.Table) -> pa.Table:
        """Work on one shard. Safe to repeat."""
        return speak_shard(block, self._speaking)


def speak_shard(block: pa.Table, speaking: Speaking) -> pa.Table:
    """Speak a block of `synthesis.shard_blocks` and write its part; rows `status`, `texts`.

    Raises:
        WriteError: a sound file or the part cannot be written.
        CredentialsError, TransientStorageError: the store does not answer as it should.
    """
    shard = block["shard"][0].as_py()
    uri = parts.part_uri(speaking.output, TABLE, shard)
    earlier = parts.read_part(uri)
    kept = {} if earlier is None else _kept(earlier, speaking)
    texts = block.to_pylist()
    if len(kept) == len(texts):
        ledger.discard(ledger.mark_uri(speaking.output, shard_name(shard)))
        return _summary(earlier)
    attempt = ledger.begin(speaking.output, shard_name(shard), speaking.run_id)
    if speaking.resumed or attempt.suspicious:
        kept = {**_found([t for t in texts if t["file"] not in kept], speaking), **kept}
    fates = {t["file"]: _speak(t, speaking, attempt) for t in texts if t["file"] not in kept}
    rows = {**_read_back(texts, fates, speaking), **kept}
    table = parts.to_table([rows[t["file"]] for t in texts], SPEECH)
    parts.write_part(uri, table)
    attempt.close()
    return _summary(table)


def _kept(earlier: pa.Table, speaking: Speaking) -> dict[str, Row]:
    """Rows of a finished part that are not to be made again."""
    return {
        row["file"]: row
        for row in _rows(earlier)
        if row["status"] not in speaking.redo or row["run_id"] == speaking.run_id
    }


def _found(texts: list[Row], speaking: Speaking) -> dict[str, Row]:
    """Rows of the sound files that are there already, and whole."""
    rows = _probed(texts, speaking)
    return {file: row for file, row in rows.items() if row["status"] == _OK}


def _speak(text: Row, speaking: Speaking, attempt: ledger.Attempt) -> ClipError | None:
    """Make one sound file; the row boundary, where what goes wrong becomes data."""
    name = clip_id(text["file"], 0, None)
    if attempt.given_up(name):
        message = f"its worker process died {ledger.MAX_DEATHS} times on this text alone"
        return ClipError(Status.WORKER_DIED, message)
    if attempt.suspicious:
        attempt.enter([name])
    try:
        samples, rate_hz = speaking.engine.speak(line_of(text))
        sound = _encoded(samples, rate_hz, speaking.audio_format)
    except ClipError as error:
        return error
    except MemoryError:
        return ClipError(Status.OUT_OF_MEMORY, "no memory left to speak the text")
    storage.write_atomic(text["file"], sound)
    return None


def line_of(text: Row) -> Line:
    """What a row of a plan asks for."""
    return Line(
        text=text["text"],
        language=text.get("language"),
        voice=text["voice"],
        rate_wpm=text["rate_wpm"],
        pitch=text["pitch"],
    )


def _encoded(samples: npt.NDArray[np.float32], rate_hz: int, audio_format: str) -> bytes:
    """A sound file of 16-bit samples; what was 16-bit before is the same after."""
    pcm = np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, pcm, rate_hz, format=_FORMATS[audio_format], subtype="PCM_16")
    return file.getvalue()


def _read_back(
    texts: list[Row], fates: Mapping[str, ClipError | None], speaking: Speaking
) -> dict[str, Row]:
    """A row for every text that was spoken just now, or could not be."""
    spoken = [text for text in texts if fates.get(text["file"], _OK) is None]
    rows = _probed(spoken, speaking)
    for text in texts:
        error = fates.get(text["file"])
        if error is not None:
            own = {"status": str(error.status), "error": error.message, "start": 0}
            identity = {"clip_id": clip_id(text["file"], 0, None), "etag": ""}
            rows[text["file"]] = _row(text, speaking) | own | identity
    return rows


def _probed(texts: list[Row], speaking: Speaking) -> dict[str, Row]:
    if not texts:
        return {}
    listed = pa.table({"file": pa.array([text["file"] for text in texts], pa.string())})
    probed = _rows(probe_batch(listed, Segmenting()))
    return {
        text["file"]: _row(text, speaking) | row for text, row in zip(texts, probed, strict=True)
    }


def _rows(table: pa.Table) -> list[Row]:
    """Rows with their times as whole nanoseconds, which Python's own durations have no room for."""
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

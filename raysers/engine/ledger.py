"""The attempts ledger: which shards were begun and not finished, kept beside the output.

A mark is written before a shard is touched and removed when its part is written, so a mark found at
the start means that a process died on it. The ledger outlives workers, nodes and drivers.

A death may have an outside cause (a node was taken away), so the response grows step by step: the
shard is retried in the same micro-batches with a mark for each; the clips of a micro-batch in which
a worker died are then scored alone; a clip is given up after two deaths alone. The end of a driver
makes its shards suspicious, but counts against no clip.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from raysers.errors import ConditionsUnsupported, ObjectMissing, WriteError
from raysers.io import storage

#: A clip whose process died this often while it alone was being worked on is given up.
MAX_DEATHS = 2

_FOLDER = "_attempts"


@dataclass(slots=True)
class Attempt:
    """What the ledger knows of one shard; `uri` is its mark, `run_id` the run that works on it."""

    uri: str
    run_id: str
    #: Processes that died on the shard.
    deaths: int = 0
    #: Clips in work, when the shard is worked on with care.
    suspects: list[str] = field(default_factory=list)
    #: Clips to take alone, and processes that died on each.
    alone: list[str] = field(default_factory=list)
    deaths_alone: dict[str, int] = field(default_factory=dict)

    @property
    def suspicious(self) -> bool:
        """True when an earlier attempt died: work with care."""
        return self.deaths > 0

    def given_up(self, clip_id: str) -> bool:
        """True when the clip alone has killed `MAX_DEATHS` processes."""
        return self.deaths_alone.get(clip_id, 0) >= MAX_DEATHS

    def enter(self, clip_ids: Sequence[str]) -> None:
        """Record that just these clips are about to be worked on."""
        self.suspects = list(clip_ids)
        storage.write_atomic(self.uri, self._record())

    def close(self) -> None:
        """Remove the mark: the shard's part is written."""
        discard(self.uri)

    def abandon(self) -> None:
        """The shard ended with an error and no death: a first attempt leaves no suspicion."""
        if not self.suspicious:
            discard(self.uri)

    def _record(self) -> bytes:
        record = asdict(self) | {"written_by": uuid.uuid4().hex}
        # no other process writes the same bytes, which `put_if` would take for its own
        return json.dumps({name: v for name, v in record.items() if name != "uri"}).encode()

    def _after_death(self, run_id: str) -> None:
        """Draw the conclusions from a mark that was left behind."""
        self.deaths += 1
        # in the same run only the worker can have died; else the driver ended, for any reason
        if len(self.suspects) == 1 and run_id == self.run_id:
            (clip,) = self.suspects
            self.deaths_alone[clip] = self.deaths_alone.get(clip, 0) + 1
        self.alone = sorted({*self.alone, *self.suspects})
        self.suspects = []
        self.run_id = run_id


def begin(output: str, part: str, run_id: str) -> Attempt:
    """Mark the shard of `part` as begun and return what earlier attempts left.

    Raises:
        WriteError: the mark cannot be written.
    """
    attempt = Attempt(mark_uri(output, part), run_id)
    with suppress(ConditionsUnsupported):  # one round trip to the store instead of two
        if storage.put_if(attempt.uri, attempt._record()) is not None:
            return attempt
    with suppress(ObjectMissing):
        left_behind = json.loads(storage.read_bytes(attempt.uri))
        left_behind.pop("written_by", None)
        attempt = Attempt(attempt.uri, **left_behind)
        attempt._after_death(run_id)
    storage.write_atomic(attempt.uri, attempt._record())
    return attempt


def mark_uri(output: str, part: str) -> str:
    """Where the mark of a part's shard lies."""
    return storage.join(output, _FOLDER, f"{part}.json")


def discard(uri: str) -> None:
    """Remove a mark; on a store that allows no deletes it stays, which does no harm."""
    with suppress(WriteError):
        storage.delete(uri)


def has_marks(output: str) -> bool:
    """Whether an earlier run left a shard unfinished in the folder."""
    with suppress(ObjectMissing):
        return any(True for _ in storage.list_objects(storage.join(output, _FOLDER)))
    return False


def tidy(output: str) -> None:
    """Remove what is left of the ledger when every part is there."""
    with suppress(ObjectMissing):
        for mark in storage.list_objects(storage.join(output, _FOLDER)):
            discard(mark.uri)
    if not storage.is_remote(output):
        # with the half-written mark of a process that died while it wrote one
        shutil.rmtree(storage.join(output, _FOLDER), ignore_errors=True)

"""The attempts ledger: which shards were begun and not finished, kept beside the output.

A mark is written before a shard is touched and removed when it is written, so a mark found at the
start means that a process died on it. The ledger outlives workers, nodes and drivers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from raysers.data import storage
from raysers.errors import ObjectMissing

#: A clip whose process died this often while it alone was being worked on is given up.
MAX_DEATHS = 2


@dataclass(slots=True)
class Attempt:
    """What the ledger knows of one shard.

    Attributes:
        uri: the mark.
        deaths: processes that died on the shard.
        clip: id of the clip being worked on alone, if any.
        clip_deaths: processes that died on each such clip.
    """

    uri: str
    deaths: int = 0
    clip: str = ""
    clip_deaths: dict[str, int] = field(default_factory=dict)

    @property
    def suspicious(self) -> bool:
        """True when an earlier attempt died: work clip by clip."""
        return self.deaths > 0

    def given_up(self, clip_id: str) -> bool:
        """True when the clip has killed `MAX_DEATHS` processes."""
        return self.clip_deaths.get(clip_id, 0) >= MAX_DEATHS

    def enter(self, clip_id: str) -> None:
        """Record that this clip alone is about to be worked on."""
        self.clip = clip_id
        self._write()

    def close(self) -> None:
        """Remove the mark: the shard's part is written."""
        storage.delete(self.uri)

    def _write(self) -> None:
        record = {"deaths": self.deaths, "clip": self.clip, "clip_deaths": self.clip_deaths}
        storage.write_atomic(self.uri, json.dumps(record).encode())


def begin(output: str, shard: str) -> Attempt:
    """Mark `shard` as begun and return what earlier attempts left.

    Raises:
        WriteError: the mark cannot be written.
    """
    attempt = Attempt(uri=storage.join(output, "_attempts", f"{shard}.json"))
    earlier = _read(attempt.uri)
    if earlier is not None:
        attempt.deaths = int(earlier["deaths"]) + 1
        attempt.clip_deaths = {str(k): int(v) for k, v in earlier["clip_deaths"].items()}
        died_on = str(earlier["clip"])
        if died_on:
            attempt.clip_deaths[died_on] = attempt.clip_deaths.get(died_on, 0) + 1
    attempt._write()
    return attempt


def _read(uri: str) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(storage.read_bytes(uri))
    except ObjectMissing:
        return None
    return record

"""Marks in an output folder, by which processes find out that others live or have died.

The claim: one owner of a folder at a time, who keeps renewing a small object. A claim left by a
dead process is taken over. On the machine that wrote it, the process is looked up; elsewhere the
claim is dead once it has not changed for `EXPIRY_S`, measured by the observer's own clock, so
clocks need not agree. Stores without conditional writes get a plain object that is read back, and a
warning: two commands that start within a second can then both succeed.

The ledger: a mark is written before a shard is begun and removed when its part is written, so a
mark found at the start means that a process died on it. A death may have an outside cause (a node
was taken away), so the response grows step by step: the shard is retried in the same micro-batches
with a mark for each; the clips of a micro-batch in which a worker died are then scored alone; a
clip is given up after two deaths alone. The end of a driver makes its shards suspicious, but counts
against no clip.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from raysers.errors import (
    ConditionsUnsupported,
    ConfigError,
    ObjectMissing,
    RaysersError,
    RefusedError,
    WriteError,
)
from raysers.io import storage

CLAIM_NAME = "_claim.json"
#: Seconds between two renewals, and after how many without one a claim is dead.
RENEW_S = 5.0
EXPIRY_S = 30.0
#: On stores without conditional writes: how long another owner has to overwrite the claim.
SETTLE_S = 3.0
_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that holds a claim.

    `pid` is a number in the process table that `machine` identifies; `started`, in the kernel's
    ticks, tells a reused number apart. `since` is ISO 8601 in UTC. `token` is unique to the claim,
    and `renewals` counts up while its owner lives.
    """

    job: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    renewals: int = 0

    @classmethod
    def this_process(cls, job: str) -> Owner:
        """This process as the owner of a new claim."""
        return cls(
            job=job,
            host=platform.node(),
            machine=_machine(),
            pid=os.getpid(),
            started=_start_of(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def to_bytes(self) -> bytes:
        """The claim object's content."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def is_alive(self) -> bool | None:
        """Whether the process runs; None when it belongs to another machine."""
        if self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return self.started == _start_of(self.pid)

    def __str__(self) -> str:
        return f"{self.job} on {self.host} (process {self.pid}) since {self.since}"


class Claim:
    """A claim that this process holds on a folder, renewed by a thread until `release`."""

    def __init__(self, uri: str, owner: Owner, etag: str, renew_s: float) -> None:
        self.renew_s = renew_s
        self._uri, self._owner, self._etag = uri, owner, etag
        self._renewed_s = time.monotonic()
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="claim", daemon=True)
        self._thread.start()

    @classmethod
    def take(
        cls, output: str, job: str, *, renew_s: float = RENEW_S, expiry_s: float = EXPIRY_S
    ) -> Claim:
        """Claim the folder `output` for `job`, making the folder if need be.

        Waits up to `expiry_s` when a process of another machine holds it, to see whether that
        process still renews its claim. Raises RefusedError where another run holds it, ConfigError
        where the folder cannot be written.
        """
        uri, owner = storage.join(output, CLAIM_NAME), Owner.this_process(job)
        if not storage.is_remote(output) and os.path.exists(output) and not os.path.isdir(output):
            raise ConfigError(f"--output {output} cannot be written: it is a file; name a folder")
        try:
            return cls(uri, owner, _take(uri, output, owner, expiry_s), renew_s)
        except WriteError as error:
            raise ConfigError(f"--output {output} cannot be written: {error}") from error

    def verify(self) -> None:
        """Raises RaysersError when another run has taken the folder over."""
        if time.monotonic() - self._renewed_s > 2 * self.renew_s:  # this process was suspended
            with suppress(RaysersError):
                self._lost = self._lost or not self._is_own()
        if self._lost:
            raise RaysersError(
                f"{self._uri} was taken over by another run while this one did not respond: "
                "this run stops and leaves the folder to the other"
            )

    def release(self) -> None:
        """Give the folder up; others may claim it at once."""
        self._stop.set()
        self._thread.join(timeout=self.renew_s)
        with suppress(RaysersError):
            if not self._lost and self._is_own():
                storage.delete(self._uri)

    def _renew(self) -> None:
        while not self._stop.wait(self.renew_s):
            self._owner = replace(self._owner, renewals=self._owner.renewals + 1)
            with suppress(RaysersError):  # the next renewal may work again
                if (etag := _put(self._uri, self._owner, self._etag)) is not None:
                    self._etag = etag
                elif not self._is_own():
                    self._lost = True
                    return
                self._renewed_s = time.monotonic()

    def _is_own(self) -> bool:
        holder, etag = _read(self._uri)
        self._etag = etag or ""
        return holder is not None and holder.token == self._owner.token


def _take(uri: str, output: str, owner: Owner, expiry_s: float) -> str:
    """Write the claim once no live process holds it; returns its etag."""
    first, first_s = None, 0.0
    while True:
        if (written := _put(uri, owner)) is not None:
            return written
        holder, etag = found = _read(uri)
        if etag is None:  # released just now
            continue
        alive = holder.is_alive() if holder else None
        if alive is None and first is None:
            first, first_s = found, time.monotonic()
            print(
                f"{output} is claimed by {holder or 'an unknown run'}: waiting up to "
                f"{expiry_s:.0f} s to see whether that run is alive",
                file=sys.stderr,
                flush=True,
            )
        elif alive is None and found != first:  # it was renewed
            alive = True
        elif alive is None and time.monotonic() - first_s > expiry_s:
            alive = False
        if alive:
            raise RefusedError(
                f"--output {output} is in use by {holder or 'another run'}: wait until it ends, "
                "or choose another folder"
            )
        if alive is None:
            time.sleep(_POLL_S)
        elif (written := _put(uri, owner, etag)) is not None:
            return written


def _put(uri: str, owner: Owner, etag: str | None = None) -> str | None:
    """The etag of the claim once it is written; None when another process was first."""
    try:
        return storage.put_if(uri, owner.to_bytes(), etag)
    except ConditionsUnsupported:
        if _read(uri)[1] != etag:
            return None
        storage.write_atomic(uri, owner.to_bytes())
        if etag is None:
            print(
                f"warning: the store of {uri} has no conditional writes: do not start two commands "
                "on one output at the same time",
                file=sys.stderr,
            )
            time.sleep(SETTLE_S)
        holder, etag = _read(uri)
        return etag if holder is not None and holder.token == owner.token else None


def _read(uri: str) -> tuple[Owner | None, str | None]:
    """Owner (None where it is unreadable) and etag (None where there is no claim)."""
    try:
        data, etag = storage.read_versioned(uri)
        return Owner(**json.loads(data)), etag
    except ObjectMissing:
        return None, None
    except (ValueError, TypeError):
        return None, etag


def _machine() -> str:
    """Host name, boot and process namespace: equal only where process numbers are comparable."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_of(pid: int) -> str:
    """The kernel's start tick of a process; empty where unknown or when it is a zombie."""
    try:
        # the command's name, in parentheses, may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


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
    """Mark the shard of `part` as begun and return what earlier attempts left."""
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


def has_attempts(output: str) -> bool:
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

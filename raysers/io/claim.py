"""One owner of a folder at a time: a small object that its owner keeps renewing.

A claim left by a dead process is taken over. On the machine that wrote it, the process is looked
up; elsewhere the claim is dead once it has not changed for `EXPIRY_S`, measured by the observer's
own clock, so clocks need not agree. Stores without conditional writes get a plain object that is
read back: two commands that start within a second can then both succeed, and a warning says so.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
import uuid
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

NAME = "_claim.json"
#: Seconds between two renewals, and after how many without one a claim is dead.
RENEW_S = 5.0
EXPIRY_S = 30.0
_POLL_S = 0.5
#: On stores without conditional writes: how long another owner has to overwrite the claim.
_SETTLE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that holds a claim.

    Attributes:
        job: what it runs.
        host: name of its machine.
        machine: identity of its process table; process numbers mean the same within one.
        pid: its process number.
        started: start of the process in the kernel's ticks; tells a reused number apart.
        since: when the claim was made, ISO 8601 in UTC.
        token: unique to the claim.
        renewals: counts up while the owner lives.
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
        self._uri, self._owner, self._etag = uri, owner, etag
        self._renew_s = renew_s
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
        process still renews its claim.

        Raises:
            RefusedError: another run holds it; the message says which and since when.
            ConfigError: the folder cannot be written.
        """
        uri = storage.join(output, NAME)
        owner = Owner.this_process(job)
        if not storage.is_remote(output) and os.path.exists(output) and not os.path.isdir(output):
            raise ConfigError(f"--output {output} cannot be written: it is a file; name a folder")
        try:
            etag = _take(uri, output, owner, expiry_s)
        except WriteError as error:
            raise ConfigError(f"--output {output} cannot be written: {error}") from error
        return cls(uri, owner, etag, renew_s)

    def verify(self) -> None:
        """Raises RaysersError when another run has taken the folder over."""
        if time.monotonic() - self._renewed_s > 2 * self._renew_s:  # this process was suspended
            with suppress(RaysersError):
                self._lost = self._lost or _read(self._uri)[0] != self._owner.token
        if self._lost:
            raise RaysersError(
                f"{self._uri} was taken over by another run while this one did not respond: "
                "this run stops and leaves the folder to the other"
            )

    def release(self) -> None:
        """Give the folder up; others may claim it at once."""
        self._stop.set()
        self._thread.join(timeout=self._renew_s)
        if not self._lost:
            with suppress(RaysersError):
                storage.delete_if(self._uri, self._etag)

    def _renew(self) -> None:
        while not self._stop.wait(self._renew_s):
            self._owner = replace(self._owner, renewals=self._owner.renewals + 1)
            with suppress(RaysersError):  # the next renewal may work again
                etag = _replace(self._uri, self._owner, self._etag)
                if etag is None and _read(self._uri)[0] != self._owner.token:
                    self._lost = True
                    return
                self._etag = etag or _read(self._uri)[1]
                self._renewed_s = time.monotonic()


def _take(uri: str, output: str, owner: Owner, expiry_s: float) -> str:
    """Write the claim once nobody alive holds it; returns its etag."""
    seen_etag, seen_s = "", 0.0
    while True:
        if _create(uri, output, owner):
            return storage.read_versioned(uri)[1]
        try:
            data, etag = storage.read_versioned(uri)
        except ObjectMissing:  # released just now
            continue
        holder = _parse(data)
        alive = holder.is_alive() if holder else None
        if alive is None:
            if etag != seen_etag:
                alive = True if seen_etag else None
                seen_etag, seen_s = etag, time.monotonic()
                if alive is None:
                    _say_waiting(output, holder, expiry_s)
            elif time.monotonic() - seen_s > expiry_s:
                alive = False
        if alive:
            raise RefusedError(
                f"--output {output} is in use by {holder or 'another run'}: wait until it ends, "
                "or choose another folder"
            )
        if alive is None:
            time.sleep(_POLL_S)
        elif (renewed := _replace(uri, owner, etag)) is not None:
            return renewed


def _create(uri: str, output: str, owner: Owner) -> bool:
    try:
        return storage.create(uri, owner.to_bytes())
    except ConditionsUnsupported:
        with suppress(ObjectMissing):
            storage.stat(uri)
            return False
        print(
            f"warning: the store of {output} has no conditional writes: do not start two commands "
            "on one output at the same time",
            file=sys.stderr,
        )
        storage.write_atomic(uri, owner.to_bytes())
        time.sleep(_SETTLE_S)
        return _read(uri)[0] == owner.token


def _replace(uri: str, owner: Owner, etag: str) -> str | None:
    """The etag of the renewed claim; None when another process changed it first."""
    try:
        return storage.replace(uri, owner.to_bytes(), etag)
    except ConditionsUnsupported:
        if _read(uri)[1] != etag:
            return None
        storage.write_atomic(uri, owner.to_bytes())
        return _read(uri)[1]


def _say_waiting(output: str, holder: Owner | None, expiry_s: float) -> None:
    print(
        f"{output} is claimed by {holder or 'an unknown run'}: waiting up to {expiry_s:.0f} s to "
        "see whether that run is alive",
        file=sys.stderr,
        flush=True,
    )


def _read(uri: str) -> tuple[str, str]:
    """Token and etag of the claim that is there; empty when none is."""
    try:
        data, etag = storage.read_versioned(uri)
    except ObjectMissing:
        return "", ""
    holder = _parse(data)
    return (holder.token if holder else "", etag)


def _parse(data: bytes) -> Owner | None:
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):
        return None


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

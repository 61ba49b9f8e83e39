"""What is known of a piece of work, in `PATH/trial.json`: it survives whoever ran it.

Only the driver writes it: when a piece starts, when it failed and is tried again, when it ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from raysers.data import storage
from raysers.errors import ObjectMissing, RaysersError

_FILE = "trial.json"

Status = Literal["running", "done", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A piece of work that has ended, or (in its record only) is still `running`.

    Attributes:
        name: of the piece.
        path: its folder.
        status: done; stopped by the scheduler; or failed as often as it may.
        error: why it failed; empty otherwise.
        result: what its call returned.
        reports: what it reported on its way, in order.
        wall_s: seconds it ran, over all attempts that came to an end.
        attempts: how often it was started.
        failures: how often it failed.
        repeats: whether it would fail in the same way again.
        notes: of the piece.
    """

    name: str
    path: str
    status: Status
    error: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    reports: Sequence[Mapping[str, Any]] = ()
    wall_s: float = 0.0
    attempts: int = 0
    failures: int = 0
    repeats: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)

    def is_final(self, retries: int) -> bool:
        """Whether nothing is left to do when a piece may fail `retries` times and go on."""
        if self.status == "failed":
            return self.repeats or self.failures > retries
        return self.status != "running"

    def save(self) -> None:
        """Write the record.

        Raises:
            WriteError: the folder cannot be written.
        """
        values = {k: v for k, v in asdict(self).items() if k != "path"}
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        storage.write_atomic(storage.join(self.path, _FILE), text.encode())


def stored(path: str) -> Ended | None:
    """The record in the folder `path`, or None when the piece was never started.

    Raises:
        RaysersError: it is damaged.
    """
    uri = storage.join(path, _FILE)
    try:
        values = json.loads(storage.read_bytes(uri))
        return Ended(**{**values, "path": path, "reports": tuple(values["reports"])})
    except ObjectMissing:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise RaysersError(f"{uri} is damaged ({error}): delete its folder") from error

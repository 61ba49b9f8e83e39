"""What a person sees while pieces of work run: a line per piece that ended, and who is at work.

Everything goes to stderr, one line per event, so that a log of the run can be read later.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raysers.engine.progress import LINE_EVERY_S, duration
from raysers.tuning.trial_record import TrialRecord

#: Names of running pieces in one line.
_MOST_NAMES = 4


def nothing(_: TrialRecord) -> str:
    """No further words about a piece."""
    return ""


@dataclass(slots=True)
class Progress:
    """How far all pieces are.

    Attributes:
        total: pieces there are.
        at_once: how many run at the same time.
        describe: further words about a piece that ended.
        ended: how those of this run and earlier ones ended, by status.
        running: by name, what a running piece last reported.
    """

    total: int
    at_once: int
    describe: Callable[[TrialRecord], str] = nothing
    ended: Counter[str] = field(default_factory=Counter)
    running: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _walls_s: list[float] = field(default_factory=list)
    _said_s: float = field(default_factory=time.monotonic)

    def known(self, piece: TrialRecord) -> None:
        """A piece had ended before this run."""
        self.ended[piece.status] += 1

    def started(self, name: str) -> None:
        """A piece begins."""
        self.running[name] = {}

    def reported(self, name: str, report: Mapping[str, Any]) -> None:
        """A piece says how far it is."""
        self.running[name] = report

    def failed(self, name: str, error: str) -> None:
        """A piece failed and is tried again."""
        self.running.pop(name, None)
        _say(f"{name} failed and is tried again: {error}")

    def over(self, piece: TrialRecord) -> None:
        """A piece ended now."""
        self.running.pop(piece.name, None)
        self.ended[piece.status] += 1
        self._walls_s.append(piece.wall_s)
        width = len(str(self.total))
        words = piece.error if piece.status == "failed" else self.describe(piece)
        _say(
            f"[{self.ended.total():{width}}/{self.total}] {piece.name} {piece.status} "
            f"in {duration(piece.wall_s)}" + (f"  {words}" if words else "")
        )

    def now_and_then(self) -> None:
        """Say who is at work, unless something of that kind was said a moment ago."""
        if time.monotonic() - self._said_s >= LINE_EVERY_S:
            self._said_s = time.monotonic()
            _say(self.line())

    def line(self) -> str:
        """`3 of 20 ended (1 failed) | at work: a (epoch 2), b | about 12:30 left`."""
        other = {s: n for s, n in sorted(self.ended.items()) if s != "done" and n}
        text = f"{self.ended.total()} of {self.total} ended"
        if other:
            text += " (" + ", ".join(f"{n} {status}" for status, n in other.items()) + ")"
        names = [_named(name, report) for name, report in self.running.items()]
        more = len(names) - _MOST_NAMES
        shown = names[:_MOST_NAMES] + ([f"{more} more"] if more > 0 else [])
        text += " | " + ("at work: " + ", ".join(shown) if shown else "starting worker processes")
        if self._walls_s:
            mean_s = sum(self._walls_s) / len(self._walls_s)
            left_s = mean_s * (self.total - self.ended.total()) / max(1, self.at_once)
            text += f" | about {duration(left_s)} left"
        return text


def _named(name: str, report: Mapping[str, Any]) -> str:
    return f"{name} (epoch {report['epoch']})" if "epoch" in report else name


def _say(text: str) -> None:
    print(" ".join(text.splitlines()), file=sys.stderr, flush=True)

"""Tasks for the shard engine that need no model: levels as scores, and inputs that kill."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysers.errors import ClipError
from raysers.schemas import ANNOTATIONS

#: First sample of a clip that kills the process that scores it.
POISON = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelTask:
    """Scores a clip by its mean square; writes down every process and forward pass.

    Attributes:
        diary: folder where each scored clip leaves a line.
        pause_s: seconds per forward pass, to have time to break things.
    """

    diary: str
    pause_s: float = 0.0
    max_padded_s: float = 4.0
    table: str = "annotations"

    @property
    def schema(self) -> pa.Schema:
        return ANNOTATIONS

    def open(self) -> LevelWorker:
        return LevelWorker(self)


class LevelWorker:
    """The worker half of `LevelTask`."""

    schema = ANNOTATIONS

    def __init__(self, task: LevelTask) -> None:
        self.provenance = {"model": "level", "model_revision": "1"}
        self.max_padded_s = task.max_padded_s
        self._pause_s = task.pause_s
        self._diary = Path(task.diary) / str(os.getpid())

    def score(self, signals: Sequence[np.ndarray]) -> list[dict[str, Any] | ClipError]:
        time.sleep(self._pause_s)
        with self._diary.open("a") as diary:
            diary.write(f"{len(signals)}\n")
        if any(abs(s[0] - POISON) < 1e-3 for s in signals):
            os.kill(os.getpid(), signal.SIGKILL)
        levels = [float(np.mean(s**2)) for s in signals]
        return [{"arousal": v, "dominance": v / 2, "valence": len(signals)} for v in levels]

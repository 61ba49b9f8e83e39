"""Tasks for the shard engine that need no model: levels as scores, and inputs that kill."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysers.engine.worker import ClipTask, WorkerSettings
from raysers.errors import ClipError
from raysers.schemas import ANNOTATIONS

#: First sample of a clip that kills the process that scores it.
POISON = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelTask(ClipTask):
    """Scores a clip by its mean square; writes down every process and forward pass.

    Attributes:
        diary: folder where each scored clip leaves a line.
        pause_s: seconds per forward pass, to have time to break things.
        speed: audio seconds a second; a tenth of it in the first process.
    """

    diary: str
    pause_s: float = 0.0
    speed: float = math.inf
    max_padded_s: float = 4.0

    @property
    def schema(self) -> pa.Schema:
        return ANNOTATIONS

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": "level"}

    def open(self) -> LevelModel:
        return LevelModel(self)


class LevelModel:
    """The worker half of `LevelTask`."""

    def __init__(self, task: LevelTask) -> None:
        self.provenance: Mapping[str, Any] = {"model": "level", "model_revision": "1"}
        self.max_padded_s = task.max_padded_s
        self._pause_s = task.pause_s
        self._diary = Path(task.diary) / str(os.getpid())
        self._speed = task.speed
        with suppress(FileExistsError):
            Path(f"{task.diary}.slow").touch(exist_ok=False)
            self._speed /= 10

    def score(
        self, signals: Sequence[np.ndarray], transcripts: Sequence[str | None]
    ) -> list[dict[str, Any] | ClipError]:
        time.sleep(self._pause_s + sum(map(len, signals)) / 16_000 / self._speed)
        with self._diary.open("a") as diary:
            diary.write(f"{len(signals)}\n")
        if any(abs(s[0] - POISON) < 1e-3 for s in signals):
            os.kill(os.getpid(), signal.SIGKILL)
        levels = [float(np.mean(s**2)) for s in signals]
        return [{"arousal": v, "dominance": v / 2, "valence": len(signals)} for v in levels]


def worker_settings(output: Path | str, **changes: Any) -> WorkerSettings:
    """What a worker that is called directly needs to know."""
    settings = WorkerSettings(
        output=str(output), run_id="run", stamp="stamp", retry=frozenset(), max_clip_s=60.0,
        io_threads=1,
    )  # fmt: skip
    return replace(settings, **changes)

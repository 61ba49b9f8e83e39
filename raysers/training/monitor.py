"""What a training's workers leave word with, and its driver reads: one small actor.

A separate module that imports nothing: its process would load torch for nothing.
"""

from __future__ import annotations

from typing import Any


class TrainingMonitor:
    """Keeps the latest figures, every epoch's record, and the error that ended the run."""

    def __init__(self) -> None:
        self._figures: dict[str, Any] = {}
        self._epochs: dict[int, dict[str, Any]] = {}
        self._failure: tuple[str, str] | None = None
        self._starts: list[int] = []

    def started(self, step: int) -> None:
        """The workers are ready to go on after `step` steps; more than once if some died."""
        self._starts.append(step)

    def progress(self, figures: dict[str, Any]) -> None:
        """Replace the figures of the live line."""
        self._figures = figures

    def epoch(self, record: dict[str, Any]) -> bool:
        """An epoch is done; one that was repeated after a restart replaces itself.

        Returns:
            Whether another one is wanted.
        """
        self._epochs[record["epoch"]] = record
        return self._failure is None

    def fail(self, kind: str, message: str) -> None:
        """The run cannot go on; the first such word counts."""
        self._failure = self._failure or (kind, message)

    def failure(self) -> tuple[str, str] | None:
        """Class name and message of the error that ended the run."""
        return self._failure

    def snapshot(self, epochs: int) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
        """The figures, the records of all epochs after the first `epochs`, steps at each start."""
        new = [record for number, record in sorted(self._epochs.items()) if number > epochs]
        return self._figures, new, self._starts

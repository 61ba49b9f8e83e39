"""Flags of a study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from raysers.cli import Flag, Output, Uris
from raysers.io import storage
from raysers.training.config import Rule
from raysers.tuning.flags import TrialFlags


@dataclass(frozen=True, kw_only=True)
class _Studies:
    """Studies and their data."""

    study: Annotated[tuple[str, ...], Flag("NAME_OR_FILE")]
    """Built-in studies, `paper` for all of them, or YAML files like theirs."""
    output: Output
    """Folder or s3:// prefix for all runs and tables; rerun the command to resume there."""
    data: Uris = ()
    """Labelled corpora: the first is trained on, the others are for cross-corpus figures. With
    --scale small and none, synthetic corpora are used."""
    scale: Literal["full", "small"] = "full"
    """small: narrow networks in place of the paper's, for one small machine (local --output)."""
    in_domain: tuple[str, ...] = ()
    """Names of the corpora to train on, in place of those of the first --data."""
    emotion_map: str = "auto"
    """Labels from emotion categories: auto takes russell-mehrabian for corpora without any label,
    none never does; or a map as `raysers train` takes it."""
    speakers: str = ""
    """CSV with the `sex` of every `speaker` or `video`, for data that does not say."""
    limit: int = 0
    """Only N clips of each corpus, spread evenly; 0 takes all."""
    max_failed_cells: float = 0.0
    """Highest share of failed cells before the job ends with exit code 3."""


@dataclass(frozen=True, kw_only=True)
class StudyFlags(TrialFlags, _Studies):
    """All flags of the study job."""

    def rules(self) -> Iterator[Rule]:
        """Those of trials last."""
        yield bool(self.study), "--study", "a study, or paper for all of them"
        yield bool(self.output), "--output", "a folder or an s3:// prefix"
        given = bool(self.data) or self.scale == "small"
        yield given, "--data", "labelled corpora (only --scale small makes its own)"
        local = self.scale == "full" or not storage.is_remote(self.output)
        yield local, "--output", "a local folder with --scale small"
        yield self.limit >= 0, "--limit", "0 or more"
        share = 0 <= self.max_failed_cells <= 1
        yield share, "--max-failed-cells", "a share from 0 to 1"
        yield from super().rules()

"""Several rows of one clip: versions of its signal, all made from one decode.

A version is a micro-batch item like any other. The clip stays the unit of listing, decoding,
suspicion and retry, so all rows of a clip come from the same reading of its file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from raysers.engine.feed import Decoded


class Versions(Protocol):
    """How a decoded clip becomes several; picklable settings."""

    @property
    def names(self) -> tuple[str, ...]:
        """Values of the column `perturbation`, the clip as it is first."""

    def of(self, one: Decoded) -> list[Decoded]:
        """One per name, in their order: with a signal of its own, or an error.

        Each has its `version` and the row's further `columns`. A clip without a signal gives the
        same error everywhere.
        """


def names_of(versions: Versions | None) -> tuple[str, ...]:
    """Names of the rows of a clip; one without a name when there are no versions."""
    return versions.names if versions is not None else ("",)


def ahead_s(plain_s: float, versions: Versions | None) -> float:
    """Clip seconds to decode ahead where `plain_s` are right for clips without versions.

    Fewer, because all versions are in memory; but enough that every decoding thread has work.
    """
    return plain_s / math.sqrt(len(names_of(versions)))


def expanded(decoded: Sequence[Decoded], versions: Versions | None) -> list[Decoded]:
    """The versions of all clips, clip by clip."""
    if versions is None:
        return list(decoded)
    return [version for one in decoded for version in versions.of(one)]

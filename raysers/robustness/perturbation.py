"""A row of the table of perturbations, and where its random draws come from.

Drawing and changing are apart, so that what was drawn is known even where it cannot be applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysers import seeding

Signal = NDArray[np.float32]


class TooShort(ValueError):
    """A perturbation cannot be applied to a clip, being too short for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbation:
    """One row of the table.

    Attributes:
        name: as in flags and result tables.
        function: `function(signal, **parameters)`; with `drawn` also `rng`, a random generator,
            with `needs` also `material`.
        choices: values of every parameter, each as likely as the others.
        source: where it is defined.
        drawn: the function itself draws noise or positions.
        needs: kind of recording it mixes in, a folder's name; empty: none.
        against: what its scores are compared with: the clip itself, or another perturbation.
    """

    name: str
    function: Callable[..., Signal]
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    source: str
    drawn: bool = False
    needs: str = ""
    against: str = "clean"

    @property
    def is_random(self) -> bool:
        """Whether another draw gives another signal."""
        return self.drawn or any(len(values) > 1 for values in self.choices.values())

    def apply(
        self, signal: Signal, rng: np.random.Generator, material: Any = None
    ) -> tuple[Signal, dict[str, Any]]:
        """The changed clip and the parameters that were drawn for it.

        Raises:
            TooShort: it cannot be applied to this clip.
        """
        parameters = self.draw(rng)
        return self.change(signal, parameters, rng, material), parameters

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """A value for every parameter."""
        return {
            name: values[int(rng.integers(len(values)))] for name, values in self.choices.items()
        }

    def change(
        self,
        signal: Signal,
        parameters: Mapping[str, Any],
        rng: np.random.Generator,
        material: Any = None,
    ) -> Signal:
        """The changed clip for drawn parameters, with the generator they were drawn from.

        Raises:
            TooShort: as `apply`.
        """
        own: dict[str, Any] = {"rng": rng} if self.drawn else {}
        if self.needs:
            own["material"] = material
        return self.function(signal, **parameters, **own)


def generator(seed: int, clip_id: str, perturbation: str, repeat: int = 0) -> np.random.Generator:
    """Where a clip's draws come from: these four alone, never order, worker or time."""
    return seeding.generator(seed, clip_id, perturbation, repeat, byteorder="little")

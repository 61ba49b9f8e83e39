"""Which perturbations a run makes: suites, names, options.

A suite is what its users expect to find: `paper` the eight of the paper, `small` ser-tests' ten
small changes, `full` all there are material for.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from raysers.errors import ConfigError
from raysers.robustness.environments import BACKGROUND, PHONE, ROOMS, TILTS
from raysers.robustness.perturbations import PERTURBATIONS, Perturbation, Reference

#: Name of a clip to which nothing was done.
CLEAN = "clean"

ALL: Mapping[str, Perturbation] = {
    row.name: row for row in (*PERTURBATIONS, *BACKGROUND, PHONE, *TILTS, *ROOMS)
}
SUITES: Mapping[str, tuple[str, ...]] = {
    "paper": tuple(row.name for row in PERTURBATIONS[:8]),
    "small": tuple(row.name for row in PERTURBATIONS),
    "full": tuple(ALL),
}
Suite = Literal["paper", "small", "full"]
#: Kinds of recordings that perturbations mix in, and that they convolve with.
NOISE_KINDS = tuple(row.needs for row in BACKGROUND if row.needs)
ROOM_KINDS = tuple(row.needs for row in ROOMS)
#: The changes too large to be called small: the change of CCC is what counts for them.
HARD = frozenset(SUITES["full"]) - frozenset(SUITES["small"])


def chosen(
    names: Sequence[str], suite: Suite, material: Collection[str]
) -> tuple[list[Perturbation], list[Perturbation]]:
    """The perturbations of a run, and those of its suite that there is no material for.

    Args:
        names: perturbations asked for; when there are any, the suite does not count.
        suite: a key of `SUITES`.
        material: kinds of recordings that are there.

    Raises:
        ConfigError: an unknown name, or one without material.
    """
    rows = _in_order([ALL[name] for name in (_known(names) or SUITES[suite])])
    missing = [row for row in rows if row.needs and row.needs not in material]
    if names and missing:
        first, in_room = missing[0], missing[0] in ROOMS
        place = f"{first.needs.partition('_')[0]!r} of "
        place += "--impulse-responses, one named reference" if in_room else "--noise-folder"
        raise ConfigError(f"--perturbations {first.name}: needs recordings in the folder {place}")
    left = {row.name for row in missing}
    left |= {row.name for row in rows if row.against in left}
    return [row for row in rows if row.name not in left], [r for r in rows if r.name in left]


def with_options(
    rows: Iterable[Perturbation], *, tone_snr: Reference, amr: bool
) -> list[Perturbation]:
    """The rows with the tone's SNR and the phone's codec as asked for."""
    fixed: dict[str, dict[str, tuple[Any, ...]]] = {
        "additive_tone": {"reference": (tone_snr,)},
        "phone": {"amr": (amr,)},
    }
    return [
        replace(row, choices={**row.choices, **fixed[row.name]}) if row.name in fixed else row
        for row in rows
    ]


def _in_order(rows: Sequence[Perturbation]) -> list[Perturbation]:
    """In the table's order, each once, with those that others are compared with."""
    names = {row.name for row in rows} | {row.against for row in rows}
    return [row for row in ALL.values() if row.name in names]


def _known(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if name not in ALL:
            near = difflib.get_close_matches(name, ALL, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(ALL)}"
            raise ConfigError(f"--perturbations {name}: no such perturbation: {hint}")
    return names

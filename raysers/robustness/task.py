"""The robustness task: every clip and its perturbed versions, scored by one model.

A version's draw is a function of the seed, the clip's id, the perturbation and the repeat, so the
rows are the same on any cluster, in any order, after any resume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from raysers.annotate import AnnotateTask, Annotator
from raysers.audio.level import levels
from raysers.engine.feed import Decoded
from raysers.errors import ClipError, ConfigError, RaysersError
from raysers.robustness.amr import is_installed
from raysers.robustness.perturbation import Perturbation, TooShort, generator
from raysers.robustness.perturbations import Reference
from raysers.robustness.recordings import Reading, Recording, listed, usable
from raysers.robustness.suites import CLEAN, Suite, chosen, with_options
from raysers.run import RunRecord
from raysers.schemas import ROBUSTNESS
from raysers.types import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is done to the clips, as the flags say."""

    names: Sequence[str] = ()
    suite: Suite = "paper"
    tone_snr: Reference = "peak"
    seed: int = 0
    repeats: int = 1
    noise_folder: str = ""
    impulse_responses: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbed:
    """The versions of a clip: as it is, then every perturbation as often as it is repeated.

    Attributes:
        rows: the perturbations.
        seed: of all draws.
        repeats: draws of each perturbation that draws anything.
        material: recordings by kind.
    """

    rows: tuple[Perturbation, ...]
    seed: int = 0
    repeats: int = 1
    material: Mapping[str, tuple[Recording, ...]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """`clean`, then `gain`, `gain#2`, ... for every perturbation."""
        return (CLEAN, *(name for row in self.rows for name in self.versions_of(row)))

    def versions_of(self, row: Perturbation) -> list[str]:
        """Names of a perturbation's versions, its first draw without a number."""
        repeats = self.repeats if row.is_random else 1
        return [row.name, *(f"{row.name}#{i}" for i in range(2, repeats + 1))]

    def of(self, one: Decoded) -> list[Decoded]:
        """See `Versions.of`; a perturbation that cannot be applied is an error of its own."""
        versions = [_named(one, CLEAN, {})]
        for row in self.rows:
            for repeat, name in enumerate(self.versions_of(row)):
                versions.append(self._version(one, row, repeat, name))
        return versions

    def _version(self, one: Decoded, row: Perturbation, repeat: int, name: str) -> Decoded:
        if one.signal is None:
            return _named(one, name, {})
        rng = generator(self.seed, one.clip.clip_id, row.name, repeat)
        reading = Reading(self.material.get(row.needs, ()))
        parameters = row.draw(rng)
        try:
            signal = row.change(one.signal, parameters, rng, reading)
        except TooShort as error:
            fate = ClipError(Status.TOO_SHORT, f"{row.name}: {error}")
            return _named(Decoded(clip=one.clip, error=fate), name, parameters)
        if reading.taken:
            parameters["recordings"] = reading.taken
        level = levels(signal)
        changed = Decoded(
            clip=one.clip,
            signal=signal,
            rms_db=level.rms_db,
            clipped_ratio=level.clipped_ratio,
        )
        return _named(changed, name, parameters)


def _named(one: Decoded, name: str, parameters: Mapping[str, Any]) -> Decoded:
    columns = {"perturbation": name, "parameters": json.dumps(parameters)}
    return replace(one, version=name, columns=columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessTask:
    """Settings of a robustness run.

    Attributes:
        scoring: the model and how it is run, as for annotation.
        versions: what is made of every clip.
        left_out: perturbations of the suite there is no material for.
        settings: everything of this that decides the rows.
    """

    scoring: AnnotateTask
    versions: Perturbed
    left_out: tuple[Perturbation, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    table: str = "robustness"

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output."""
        return ROBUSTNESS

    @property
    def needs_codec(self) -> bool:
        """Whether a version goes through AMR."""
        return any(True in row.choices.get("amr", ()) for row in self.versions.rows)

    def open(self) -> Annotator:
        """Load the model on this worker's device.

        Raises:
            RaysersError: the codec the run began with is not installed here.
        """
        if self.needs_codec and not is_installed():
            raise RaysersError("the AMR codec (package av) is not installed on every node")
        worker = self.scoring.open()
        worker.schema = self.schema
        return worker


def make_task(scoring: AnnotateTask, options: Options, earlier: RunRecord | None) -> RobustnessTask:
    """Settle what is done to the clips; needs the connected cluster to list recordings.

    Raises:
        ConfigError: an unknown perturbation, one without recordings, or no codec to resume with.
    """
    noise, noise_mark = listed("--noise-folder", options.noise_folder)
    rooms, rooms_mark = listed("--impulse-responses", options.impulse_responses)
    rows, left_out = chosen(options.names, options.suite, {**noise, **rooms})
    used = {row.needs for row in rows} - {""}
    material = {
        **usable("--noise-folder", noise, used),
        **usable("--impulse-responses", rooms, used),
    }
    codec = any(row.name == "phone" for row in rows) and _codec(earlier)
    rows = with_options(rows, tone_snr=options.tone_snr, amr=codec)
    versions = Perturbed(
        rows=tuple(rows),
        seed=options.seed,
        repeats=options.repeats,
        material=material,
    )
    own = {
        "perturbations": [row.name for row in rows],
        "tone_snr": options.tone_snr,
        "seed": options.seed,
        "repeats": options.repeats,
        "noise": noise_mark,
        "impulse_responses": rooms_mark,
        "amr": codec,
    }
    return RobustnessTask(
        scoring=scoring,
        versions=versions,
        left_out=tuple(left_out),
        settings={**scoring.settings, **own},
    )


def _codec(earlier: RunRecord | None) -> bool:
    """Whether to use AMR: as when the output was begun, else if it is installed here."""
    if earlier is None:
        return is_installed()
    began_with = bool(earlier.settings.get("amr"))
    if began_with and not is_installed():
        raise ConfigError(
            "--output was begun with the AMR codec, which is not installed here: install the "
            "package av, or give another --output"
        )
    return began_with

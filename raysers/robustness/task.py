"""The robustness task: every clip and its perturbed variants, scored by one model.

A variant's draw is a function of the seed, the clip's id, the perturbation and the repeat, so the
rows are the same on any cluster, in any order, after any resume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import pyarrow as pa

from raysers.annotation import AnnotateTask, Annotator
from raysers.audio.level import levels
from raysers.engine.feed import Decoded
from raysers.engine.plan import Placement
from raysers.engine.worker import ClipTask
from raysers.errors import ClipError, ConfigError, RaysersError
from raysers.robustness.amr import is_installed
from raysers.robustness.flags import DEFAULT_SUITE, RobustnessFlags
from raysers.robustness.perturbation import Perturbation, TooShort, generator
from raysers.robustness.recordings import NoiseReader, Recording, listed, usable
from raysers.robustness.suites import CLEAN, chosen, with_options
from raysers.run import RunRecord
from raysers.schemas import ROBUSTNESS
from raysers.types import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbed:
    """The variants of a clip: as it is, then every perturbation as often as it is repeated.

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
        return (CLEAN, *(name for row in self.rows for name in self.variants_of(row)))

    def variants_of(self, row: Perturbation) -> list[str]:
        """Names of a perturbation's variants, its first draw without a number."""
        repeats = self.repeats if row.is_random else 1
        return [row.name, *(f"{row.name}#{i}" for i in range(2, repeats + 1))]

    def of(self, one: Decoded) -> list[Decoded]:
        """One variant per name; one that cannot be applied has its own error."""
        variants = [_named(one, CLEAN, {})]
        for row in self.rows:
            for repeat, name in enumerate(self.variants_of(row)):
                variants.append(self._variant(one, row, repeat, name))
        return variants

    def _variant(self, one: Decoded, row: Perturbation, repeat: int, name: str) -> Decoded:
        if one.signal is None:
            return _named(one, name, {})
        rng = generator(self.seed, one.clip.clip_id, row.name, repeat)
        reading = NoiseReader(self.material.get(row.needs, ()))
        parameters = row.draw(rng)
        try:
            signal = row.change(one.signal, parameters, rng, reading)
        except TooShort as error:
            failed = ClipError(Status.TOO_SHORT, f"{row.name}: {error}")
            return _named(Decoded(clip=one.clip, error=failed), name, parameters)
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
    return replace(one, variant=name, columns=columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessTask(ClipTask):
    """Settings of a robustness run.

    Attributes:
        scoring: the model and how it is run, as for annotation.
        perturbed: what is made of every clip.
        left_out: perturbations of the suite there is no material for.
        own_settings: what decides the rows besides the model.
    """

    table: ClassVar[str] = "robustness"
    preloads: ClassVar[Sequence[str]] = AnnotateTask.preloads

    scoring: AnnotateTask
    perturbed: Perturbed
    left_out: tuple[Perturbation, ...] = ()
    own_settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, flags: RobustnessFlags, earlier: RunRecord | None) -> RobustnessTask:
        """Check the model and decide what is done to the clips.

        Raises:
            ConfigError: an unknown model or perturbation, one without recordings, or no codec to
                resume with.
            CheckpointError: a model that cannot be trusted to score.
        """
        scoring = AnnotateTask.load(flags.model, dtype=flags.dtype, max_padded_s=flags.max_padded_s)
        noise, noise_mark = listed("--noise-folder", flags.noise_folder)
        rooms, rooms_mark = listed("--impulse-responses", flags.impulse_responses)
        suite = flags.suite or DEFAULT_SUITE
        rows, left_out = chosen(flags.perturbations, suite, {**noise, **rooms})
        used = {row.needs for row in rows} - {""}
        material = {
            **usable("--noise-folder", noise, used),
            **usable("--impulse-responses", rooms, used),
        }
        codec = any(row.name == "phone" for row in rows) and _codec(earlier)
        rows = with_options(rows, tone_snr=flags.tone_snr, amr=codec)
        return cls(
            scoring=scoring,
            perturbed=Perturbed(
                rows=tuple(rows), seed=flags.seed, repeats=flags.repeats, material=material
            ),
            left_out=tuple(left_out),
            own_settings={
                "perturbations": [row.name for row in rows],
                "tone_snr": flags.tone_snr,
                "seed": flags.seed,
                "repeats": flags.repeats,
                "noise": noise_mark,
                "impulse_responses": rooms_mark,
                "amr": codec,
            },
        )

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output."""
        return ROBUSTNESS

    @property
    def settings(self) -> dict[str, Any]:
        """What of this decides the rows."""
        return {**self.scoring.settings, **self.own_settings}

    @property
    def notes(self) -> Sequence[str]:
        """Warnings about the model, and the perturbations that are left out."""
        left_out = ", ".join(row.name for row in self.left_out)
        missing = [f"left out, because there are no recordings for them: {left_out}"]
        return [*self.scoring.notes, *(missing if left_out else [])]

    @property
    def variant_names(self) -> tuple[str, ...]:
        """Values of the column `perturbation`, the clip as it is first."""
        return self.perturbed.names

    def variants(self, decoded: Decoded) -> list[Decoded]:
        """See `ClipTask.variants`."""
        return self.perturbed.of(decoded)

    @property
    def needs_codec(self) -> bool:
        """Whether a variant goes through AMR."""
        return any(True in row.choices.get("amr", ()) for row in self.perturbed.rows)

    def placed(self, placement: Placement, earlier: RunRecord | None) -> Self:
        """See `ClipTask.placed`."""
        return replace(self, scoring=self.scoring.placed(placement, earlier))

    def open(self) -> Annotator:
        """Load the model on this worker's device.

        Raises:
            RaysersError: the codec the run began with is not installed here.
        """
        if self.needs_codec and not is_installed():
            raise RaysersError("the AMR codec (package av) is not installed on every node")
        return self.scoring.open()


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

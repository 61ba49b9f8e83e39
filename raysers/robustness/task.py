"""The robustness task: every clip and its perturbed variants, scored by one model.

A suite is what its users expect to find: `paper` the eight of the paper, `small` ser-tests' ten
small changes, `full` all there are material for.

A variant's draw is a function of the seed, the clip's id, the perturbation and the repeat, so the
rows are the same on any cluster, in any order, after any resume.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile as sf

from raysers.annotation import AnnotateTask, Annotator
from raysers.audio.samples import levels
from raysers.cli import check_flags
from raysers.data.manifest import clips_of
from raysers.engine.feed import Decoded, decode_run
from raysers.engine.job import ClipJob
from raysers.engine.listing import ClipJobFlags
from raysers.engine.placement import Placement
from raysers.engine.worker import ClipTask
from raysers.errors import ClipError, ConfigError, RaysersError
from raysers.io import storage
from raysers.robustness.environments import (
    BACKGROUND,
    PHONE,
    ROOMS,
    TILTS,
    NoiseReader,
    has_amr,
    listed,
    usable,
)
from raysers.robustness.perturbations import (
    CLEAN,
    PERTURBATIONS,
    Perturbation,
    Reference,
    TooShort,
    generator,
)
from raysers.run import RunRecord
from raysers.schemas import ROBUSTNESS
from raysers.types import SAMPLE_RATE_HZ, Clip, Status

ALL: Mapping[str, Perturbation] = {
    row.name: row for row in (*PERTURBATIONS, *BACKGROUND, PHONE, *TILTS, *ROOMS)
}
SUITES: Mapping[str, tuple[str, ...]] = {
    "paper": tuple(row.name for row in PERTURBATIONS[:8]),
    "small": tuple(row.name for row in PERTURBATIONS),
    "full": tuple(ALL),
}
Suite = Literal["paper", "small", "full"]
#: What is done to the clips unless something else is asked for.
DEFAULT_SUITE: Suite = "paper"
#: Kinds of recordings that perturbations mix in, and that they convolve with.
NOISE_KINDS = tuple(row.needs for row in BACKGROUND if row.needs)
ROOM_KINDS = tuple(row.needs for row in ROOMS)
#: The changes too large to be called small: the change of CCC is what counts for them.
HARD = frozenset(SUITES["full"]) - frozenset(SUITES["small"])


def chosen(
    names: Sequence[str], suite: Suite, material: Collection[str]
) -> tuple[list[Perturbation], list[Perturbation]]:
    """The perturbations of a run, and those of its suite that there is no material for.

    Names count before the suite; `material` are the kinds of recordings that are there.
    """
    for name in names:
        if name not in ALL:
            near = difflib.get_close_matches(name, ALL, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(ALL)}"
            raise ConfigError(f"--perturbations {name}: no such perturbation: {hint}")
    # in the table's order, with those that others are compared with
    picked = [ALL[name] for name in (names or SUITES[suite])]
    wanted = {row.name for row in picked} | {row.against for row in picked}
    rows = [row for row in ALL.values() if row.name in wanted]
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
    fixed: dict[str, Any] = {"additive_tone": {"reference": (tone_snr,)}, "phone": {"amr": (amr,)}}
    return [replace(row, choices={**row.choices, **fixed.get(row.name, {})}) for row in rows]


@dataclass(frozen=True, kw_only=True)
class RobustnessFlags(ClipJobFlags):
    """Flags of this job."""

    places: ClassVar[Sequence[str]] = ("noise_folder", "impulse_responses")

    perturbations: tuple[str, ...] = ()
    """Only these, by name, in place of a suite."""
    suite: Literal["", "paper", "small", "full"] = ""
    """The paper's eight (as when left out), ser-tests' ten, or all there is material for."""
    tone_snr: Literal["peak", "rms"] = "peak"
    """What the tone's SNR is relative to: the clip's peak (paper) or RMS (ser-tests)."""
    seed: int = 0
    """Of every draw, with the clip's id and the perturbation's name."""
    repeats: int = 1
    """Draws per clip and perturbation."""
    threshold: float = 0.05
    """A score that changed by less counts as unchanged."""
    round_scores: bool = False
    """Round scores to 2 decimals before comparing them, as ser-tests does."""
    noise_folder: str = ""
    """Recordings in subfolders speech, noise, music, coughing, sneezing, for --suite full."""
    impulse_responses: str = ""
    """Responses in subfolders position and room, one of each named reference, for --suite full."""
    save_audio: int = 0
    """Write this many perturbed clips, each beside the clean one, as FLAC to listen to."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        noise = NOISE_KINDS if self.noise_folder else ()
        rooms = ROOM_KINDS if self.impulse_responses else ()
        rows, _ = chosen(self.perturbations, self.suite or DEFAULT_SUITE, (*noise, *rooms))
        threshold = 0 < self.threshold <= 1
        check_flags(
            (self.repeats >= 1, "--repeats", self.repeats, "1 or more"),
            (threshold, "--threshold", self.threshold, "above 0 and at most 1"),
            (self.save_audio >= 0, "--save-audio", self.save_audio, "0 or more clips"),
        )
        has_tone = any(row.name == "additive_tone" for row in rows)
        needs = {row.needs for row in rows}
        uses = "give --suite full, or a perturbation that uses it:"
        users = [", ".join(r.name for r in some if r.needs) for some in (BACKGROUND, ROOMS)]
        responses, tone = self.impulse_responses, self.tone_snr.replace("peak", "")
        for flag, given, used, fix in (
            ("--suite", self.suite, not self.perturbations, "leave it out beside --perturbations"),
            ("--noise-folder", self.noise_folder, needs & {*NOISE_KINDS}, f"{uses} {users[0]}"),
            ("--impulse-responses", responses, needs & {*ROOM_KINDS}, f"{uses} {users[1]}"),
            ("--tone-snr", tone, has_tone, "leave it out, or add the perturbation additive_tone"),
        ):
            if given and not used:
                raise ConfigError(f"{flag} {given} is used by nothing in this run: {fix}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbed:
    """The variants of a clip: as it is, then every perturbation as often as it is repeated.

    `material` are recordings by kind.
    """

    rows: tuple[Perturbation, ...]
    seed: int = 0
    repeats: int = 1
    material: Mapping[str, tuple[Clip, ...]] = field(default_factory=dict)

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
        changed = [
            self._variant(one, row, repeat, name)
            for row in self.rows
            for repeat, name in enumerate(self.variants_of(row))
        ]
        return [_named(one, CLEAN, {}), *changed]

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
        changed = Decoded(clip=one.clip, signal=signal, rms_db=level.rms_db)
        return _named(replace(changed, clipped_ratio=level.clipped_ratio), name, parameters)


def _named(one: Decoded, name: str, parameters: Mapping[str, Any]) -> Decoded:
    columns = {"perturbation": name, "parameters": json.dumps(parameters)}
    return replace(one, variant=name, columns=columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessTask(ClipTask):
    """Settings of a robustness run; `own_settings` decide the rows besides the model."""

    table: ClassVar[str] = "robustness"
    preloads: ClassVar[Sequence[str]] = AnnotateTask.preloads

    scoring: AnnotateTask
    perturbed: Perturbed
    left_out: tuple[Perturbation, ...] = ()
    own_settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, flags: RobustnessFlags, earlier: RunRecord | None) -> RobustnessTask:
        """Check the model and decide what is done to the clips; raises as `AnnotateTask.load`."""
        scoring = AnnotateTask.load(flags.model, dtype=flags.dtype, max_padded_s=flags.max_padded_s)
        noise, noise_mark = listed("--noise-folder", flags.noise_folder)
        rooms, rooms_mark = listed("--impulse-responses", flags.impulse_responses)
        suite = flags.suite or DEFAULT_SUITE
        rows, left_out = chosen(flags.perturbations, suite, {**noise, **rooms})
        used = {row.needs for row in rows} - {""}
        material = usable("--noise-folder", noise, used)
        material |= usable("--impulse-responses", rooms, used)
        codec = any(row.name == "phone" for row in rows) and _codec(earlier)
        rows = with_options(rows, tone_snr=flags.tone_snr, amr=codec)
        repeated = {"seed": flags.seed, "repeats": flags.repeats}
        return cls(
            scoring=scoring,
            perturbed=Perturbed(rows=tuple(rows), material=material, **repeated),
            left_out=tuple(left_out),
            own_settings={
                "perturbations": [row.name for row in rows],
                "tone_snr": flags.tone_snr,
                "noise": noise_mark,
                "impulse_responses": rooms_mark,
                "amr": codec,
                **repeated,
            },
        )

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output."""
        return ROBUSTNESS

    @property
    def licence(self) -> str:
        """See `ClipTask.licence`."""
        return self.scoring.licence

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
        return bool(self.own_settings.get("amr"))

    def placed(self, placement: Placement, earlier: RunRecord | None) -> Self:
        """See `ClipTask.placed`."""
        return replace(self, scoring=self.scoring.placed(placement, earlier))

    def open(self) -> Annotator:
        """Load the model on this worker's device; raises RaysersError: the codec is not there."""
        if self.needs_codec and not has_amr():
            raise RaysersError("the AMR codec (package av) is not installed on every node")
        return self.scoring.open()


def _codec(earlier: RunRecord | None) -> bool:
    """Whether to use AMR: as when the output was begun, else if it is installed here."""
    if earlier is None:
        return has_amr()
    began_with = bool(earlier.settings.get("amr"))
    if began_with and not has_amr():
        raise ConfigError(
            "--output was begun with the AMR codec, which is not installed here: install the "
            "package av, or give another --output"
        )
    return began_with


def save_audio(job: ClipJob, perturbed: Perturbed, count: int) -> list[str]:
    """Write `count` perturbed clips, each beside the clip as it is, as 24-bit FLAC; their files.

    The perturbations take turns, as far as they can be applied; the clips are a choice by their
    ids, so it is the same every time. A clip beyond full scale is turned down, as its name says.
    """
    picks = [name for name in perturbed.names if name != CLEAN]
    if not count or not picks:
        return []
    output, manifest = job.run.output, job.plan.manifest
    written: list[str] = []
    good = manifest.filter(pc.equal(manifest["status"], str(Status.OK)))
    keys = [hashlib.blake2b(i.encode()).digest() for i in good["clip_id"].to_pylist()]
    for row in sorted(range(len(keys)), key=keys.__getitem__):
        (decoded,) = decode_run(clips_of(good.slice(row, 1)), job.flags.max_clip_s)
        by_name = {one.variant: one for one in perturbed.of(decoded) if one.signal is not None}
        turn = len(written) % len(picks)
        turns = [name for name in [*picks[turn:], *picks[:turn]] if name in by_name]
        if not turns:
            continue
        one = by_name[turns[0]]
        stem = re.sub(r"[^\w.-]+", "_", one.clip.file.rpartition("/")[2])[:60]
        stem = f"{len(written) + 1:03d}_{stem}"
        _write_flac(output, f"{stem}_{CLEAN}", by_name[CLEAN])
        written.append(_write_flac(output, f"{stem}_{one.variant}", one))
        if len(written) == count:
            break
    print(f"audio: {storage.join(output, 'audio')} ({len(written)} clips and their originals)")
    return written


def _write_flac(output: str, name: str, one: Decoded) -> str:
    signal = np.asarray(one.signal)
    peak = float(np.abs(signal).max(initial=0.0))
    if peak > 1:
        down_db = 20 * np.log10(peak)
        signal, name = signal / peak, f"{name}_turned_down_{down_db:.1f}_dB"
    file = io.BytesIO()
    sf.write(file, signal, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_24")
    uri = storage.join(output, "audio", f"{name}.flac")
    storage.write_atomic(uri, file.getvalue())
    return uri

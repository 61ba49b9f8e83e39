"""How much a model's scores change when its input is changed in ways that should not matter.

    python jobs/robustness.py --input s3://bucket/calls --output s3://bucket/calls-robustness \
        --model msp-dim --suite small

Every clip is decoded once and scored as it is and perturbed, in the same batches: about as long as
`jobs/annotate.py` times the number of perturbations plus one. The same command again resumes.
Result: OUTPUT/robustness/part-*.parquet, one row per clip and perturbation; the share of clips
left unchanged in OUTPUT/metrics and OUTPUT/robustness.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from raysers import annotate
from raysers.cli import ClipJobFlags, as_plain, parse
from raysers.engine import cluster, estimate, job, progress
from raysers.engine import plan as planning
from raysers.errors import ConfigError
from raysers.robustness.changes import Comparison
from raysers.robustness.environments import BACKGROUND, ROOMS
from raysers.robustness.suites import NOISE_KINDS, ROOM_KINDS, Suite, chosen
from raysers.robustness.summary import report, save_audio
from raysers.robustness.task import Options, make_task
from raysers.run import Exit, quiet_environment, run_main

JOB = "robustness"
#: What is done to the clips unless something else is asked for.
DEFAULT_SUITE: Suite = "paper"


@dataclass(frozen=True, kw_only=True)
class RobustnessFlags(ClipJobFlags):
    """Flags of this job."""

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
    round_scores: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Round scores to 2 decimals before comparing them, as ser-tests does."""
    noise_folder: str = ""
    """Recordings in subfolders speech, noise, music, coughing, sneezing, for --suite full."""
    impulse_responses: str = ""
    """Responses in subfolders position and room, one of each named reference, for --suite full."""
    save_audio: int = 0
    """Write this many perturbed clips, each beside the clean one, as FLAC to listen to."""
    max_clip_s: float = 600.0
    """Longer clips are `too_long` instead of scored; cut recordings with --segment window."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        noise = NOISE_KINDS if self.noise_folder else ()
        rooms = ROOM_KINDS if self.impulse_responses else ()
        rows, _ = chosen(self.perturbations, self.suite or DEFAULT_SUITE, (*noise, *rooms))
        self._check_use({row.name for row in rows}, {row.needs for row in rows})
        for flag, value, good, wanted in (
            ("--max-clip-s", self.max_clip_s, self.max_clip_s > 0, "a length above 0 seconds"),
            ("--repeats", self.repeats, self.repeats >= 1, "1 or more"),
            ("--threshold", self.threshold, 0 < self.threshold <= 1, "above 0 and at most 1"),
            ("--save-audio", self.save_audio, self.save_audio >= 0, "0 or more clips"),
        ):
            if not good:
                raise ConfigError(f"{flag} is {value}: give {wanted}")

    def _check_use(self, names: set[str], needs: set[str]) -> None:
        """Raises ConfigError for a flag that nothing in this run would look at."""
        uses = "give --suite full, or a perturbation that uses it:"
        noise = ", ".join(row.name for row in BACKGROUND if row.needs)
        rooms = ", ".join(row.name for row in ROOMS)
        for flag, given, used, fix in (
            ("--suite", self.suite, not self.perturbations, "leave it out beside --perturbations"),
            ("--noise-folder", self.noise_folder, needs & set(NOISE_KINDS), f"{uses} {noise}"),
            (
                "--impulse-responses",
                self.impulse_responses,
                needs & set(ROOM_KINDS),
                f"{uses} {rooms}",
            ),
            (
                "--tone-snr",
                "" if self.tone_snr == "peak" else self.tone_snr,
                "additive_tone" in names,
                "leave it out, or add the perturbation additive_tone",
            ),
        ):
            if given and not used:
                raise ConfigError(f"{flag} {given} is used by nothing in this run: {fix}")

    @property
    def options(self) -> Options:
        """What is done to the clips."""
        return Options(
            names=self.perturbations,
            suite=self.suite or DEFAULT_SUITE,
            tone_snr=self.tone_snr,
            seed=self.seed,
            repeats=self.repeats,
            noise_folder=self.noise_folder,
            impulse_responses=self.impulse_responses,
        )

    @property
    def comparison(self) -> Comparison:
        """When a score counts as unchanged."""
        return Comparison(
            threshold=self.threshold,
            rounded=self.round_scores,
            seed=self.seed,
            tone_snr=self.tone_snr,
        )


def robustness(flags: RobustnessFlags) -> int:
    """Check, plan, run what is left, conclude, compare; returns the exit code."""
    flags = planning.anchored(flags)
    with planning.before_writing():
        earlier = planning.open_output(flags, JOB, JOB)
        scoring = annotate.prepare(
            flags.model, dtype=flags.dtype, max_padded_s=flags.max_padded_s, embeddings=False
        )
        cluster.connect()
        placement = cluster.place(flags.workers)
        task = make_task(annotate.placed(scoring, placement, earlier), flags.options, earlier)
        own = {**task.settings, "max_clip_s": flags.max_clip_s}
        plan = planning.make_plan(flags, task.table, planning.row_settings(flags, own), earlier)
    versions = task.versions
    progress.print_plan(JOB, plan)
    progress.print_versions(versions.names, [row.name for row in task.left_out])
    if scoring.has_random_weights:
        progress.print_warning(f"{scoring.model} has random weights: its scores mean nothing")
    summary.warn_of_long_clips(plan, flags.max_clip_s)
    if flags.dry_run:
        guess = estimate.estimate(plan, task, placement, flags.max_clip_s, versions)
        lines = estimate.rows(plan, guess, placement, flags.usd_per_hour)
        progress.print_pairs("estimate (nothing was written)", lines)
        return Exit.DONE
    record = job.start(flags, JOB, plan, as_plain(flags), task)
    ran = job.run_plan(flags, plan, task, placement, record, flags.max_clip_s, versions)
    code = job.conclude(flags, plan, task.table, record, ran, versions)
    with job.recorded(record, flags.output):
        report(flags.output, plan, task, record.run_id, flags.comparison)
        save_audio(flags.output, plan, versions, flags.save_audio, flags.max_clip_s)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: robustness(parse(RobustnessFlags, argv, description=__doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())

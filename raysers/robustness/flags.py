"""Flags of the robustness job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raysers.cli import ClipJobFlags
from raysers.errors import ConfigError
from raysers.robustness.changes import Comparison
from raysers.robustness.environments import BACKGROUND, ROOMS
from raysers.robustness.suites import NOISE_KINDS, ROOM_KINDS, Suite, chosen

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
        self._check_use({row.name for row in rows}, {row.needs for row in rows})
        for flag, value, good, wanted in (
            ("--repeats", self.repeats, self.repeats >= 1, "1 or more"),
            ("--threshold", self.threshold, 0 < self.threshold <= 1, "above 0 and at most 1"),
            ("--save-audio", self.save_audio, self.save_audio >= 0, "0 or more clips"),
        ):
            if not good:
                raise ConfigError(f"{flag} is {value}: give {wanted}")

    def _check_use(self, names: set[str], needs: set[str]) -> None:
        """Raises ConfigError for a flag that nothing in this run uses."""
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
    def comparison(self) -> Comparison:
        """When a score counts as unchanged."""
        return Comparison(
            threshold=self.threshold,
            rounded=self.round_scores,
            seed=self.seed,
            tone_snr=self.tone_snr,
        )

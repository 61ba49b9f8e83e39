"""What a training prints around its epochs: the plan, what was left out, and the result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysers.engine.progress import duration, hours, print_pairs, print_warning
from raysers.training.dataset import Examples
from raysers.training.plan import TrainingPlan
from raysers.training.progress import epoch_line
from raysers.training.tracking import Tracker


def print_plan(plan: TrainingPlan) -> None:
    """Data, network and way of training, before it starts; and everything worth a warning."""
    flags, network = plan.flags, plan.network
    pairs = {
        "train": _clips_and_audio(plan.data.train),
        "dev": _clips_and_audio(plan.data.dev) if len(plan.data.dev) else "none (--keep last)",
        "network": (
            f"{flags.backbone}, {network.trained / 1e6:.2f} of {network.parameters / 1e6:.2f} M "
            "parameters are trained"
        ),
        "recipe": (
            f"{flags.optimiser} {flags.lr:g} {flags.schedule}, {flags.epochs} epochs, "
            f"batch {flags.batch_size}, {flags.loss} loss, {flags.dtype}"
        ),
        "workers": f"{plan.placement.workers} on {plan.placement.device}",
    }
    if flags.category_weight:
        pairs["categories"] = f"{', '.join(plan.data.categories)}, weight {flags.category_weight:g}"
    if plan.earlier is not None:
        pairs["resuming"] = f"the run of {plan.earlier.started_at}, {plan.step} steps done"
    print_pairs("train", pairs)
    for note in plan.data.notes:
        print_warning(note)
    if plan.data.left_out:
        counts = ", ".join(f"{reason} {n:,}" for reason, n in plan.data.left_out.items())
        print_warning(f"clips left out: {counts}")
    if plan.data.leakage:
        print_warning(
            f"leakage allowed, the results are marked: {plan.data.leakage[0]}"
            f" ({len(plan.data.leakage)} such groups)"
        )
    if flags.shuffle_labels:
        print_warning("--shuffle-labels: a control, the model means nothing")


def epoch_logger(epochs: int, trackers: Sequence[Tracker]) -> Callable[[Mapping[str, Any]], None]:
    """A callback for each epoch's record: prints its line and passes it to the trackers."""

    def log(record: Mapping[str, Any]) -> None:
        print(epoch_line(record, epochs), flush=True)
        for tracker in trackers:
            tracker.epoch(record)

    return log


def print_finished(output: str) -> None:
    """The same command was run to its end before."""
    print(f"train: the model in {output} is finished, nothing was left to do")


def print_refusal(error: Exception) -> None:
    """Why too many clips failed."""
    print(f"error: {error}", file=sys.stderr)


def print_outcome(output: str, outcome: Mapping[str, Any]) -> None:
    """Dev scores of the stored model, and where it is."""
    scores = {
        f"dev {metric} {name}": f"{value:.3f}"
        for metric in ("CCC", "UAR")
        for name, value in outcome.get(f"dev_{metric.lower()}", {}).items()
    }
    audio_s, wall_s = outcome["audio_hours"] * 3600, outcome["training_s"]
    pairs = {
        "epochs": f"{outcome['epochs']}, kept {outcome['kept_epoch']}",
        **scores,
        "trained on": f"{hours(audio_s)} of audio in {duration(wall_s)}",
        "model": output,
    }
    if outcome["failed_clips"]:
        pairs["failed"] = f"{outcome['failed_clips']} clips could not be decoded: training.json"
    print_pairs("result", pairs)


def _clips_and_audio(examples: Examples) -> str:
    return f"{len(examples):,} clips, {hours(examples.audio_s)} of audio"

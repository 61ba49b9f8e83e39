"""What a person sees of a training: the plan, a live line, a line per epoch, the result.

Process 0 writes `OUTPUT/state/progress.json`, which the driver reads: it outlives dead workers. The
driver asks the workers to stop by a file beside it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from typing import Any

import ray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from raysers.engine.progress import LINE_EVERY_S, duration, hours, print_pairs, print_warning
from raysers.errors import StorageError
from raysers.io import storage
from raysers.training.checkpoint import TrainProgress
from raysers.training.dataset import Examples, TrainingJob
from raysers.training.loop import Callback
from raysers.training.plan import TrainingPlan
from raysers.types import DIMENSIONS

Epoch = Mapping[str, Any]

#: Shortest time between two looks at the files, on disks and in object stores.
_EVERY_S, _REMOTE_EVERY_S = 0.5, 10.0
#: Without news for so long, workers may be gone.
_STALE_S = 30.0


def _every_s(output: str) -> float:
    return _REMOTE_EVERY_S if storage.is_remote(output) else _EVERY_S


def _progress_uri(output: str) -> str:
    return storage.join(output, "state", "progress.json")


def _stop_uri(output: str) -> str:
    return storage.join(output, "state", "stop")


def request_stop(output: str, *, stop: bool = True) -> None:
    """Ask the workers of a training to save its state and stop; or withdraw that."""
    if stop:
        storage.write_atomic(_stop_uri(output), b"")
    else:
        storage.delete(_stop_uri(output))


class ProgressFile(Callback):
    """Keeps `state/progress.json` of one run; for process 0."""

    def __init__(self, output: str, run_id: str) -> None:
        self._output = output
        self._content: dict[str, Any] = {"run_id": run_id, "starts": [], "warnings": []}
        earlier = _read(output)
        if earlier.get("run_id") == run_id:  # the workers were started again
            self._content |= {name: earlier[name] for name in ("starts", "warnings")}
        self._written_s = self._asked_s = 0.0

    def on_start(self, progress: TrainProgress) -> None:
        """Note from which step on."""
        self._content["starts"] = [*self._content["starts"], progress.step]
        self._write(progress.history)

    def on_step(self, progress: TrainProgress, total_steps: int) -> None:
        """Write the figures of the live line, now and then."""
        if time.monotonic() - self._written_s >= _every_s(self._output):
            self._content["live"] = {
                "epoch": progress.epoch + 1,
                "step": progress.step,
                "steps": total_steps,
                "loss": progress.sums.mean_loss,
                "audio_s": progress.sums.audio_s,
                "audio_hours_per_s": progress.sums.audio_hours_per_s,
            }
            self._write(progress.history)

    def on_epoch(self, progress: TrainProgress) -> None:
        """Write the history."""
        self._write(progress.history)

    def on_warning(self, text: str) -> None:
        """Pass it on to the driver with the next figures."""
        self._content["warnings"] = [*self._content["warnings"], text]

    def should_stop(self) -> bool:
        """Whether the driver asked for it, as far as known."""
        if time.monotonic() - self._asked_s < _every_s(self._output):
            return False
        self._asked_s = time.monotonic()
        try:
            storage.stat(_stop_uri(self._output))
        except StorageError:  # not there, or not readable just now
            return False
        return True

    def _write(self, history: list[dict[str, Any]]) -> None:
        self._content["history"] = history
        text = json.dumps(self._content)
        storage.write_atomic(_progress_uri(self._output), text.encode())
        self._written_s = time.monotonic()


def _read(output: str) -> dict[str, Any]:
    """The progress file; empty when it is not there, or not readable just now."""
    with suppress(StorageError):
        found: dict[str, Any] = json.loads(storage.read_bytes(_progress_uri(output)))
        return found
    return {}


class ProgressPoller:
    """Reads the progress file in the driver's main thread.

    Args:
        job: the training.
        done: epochs that were passed on.
        on_epoch: called with each further record, in order, once.
    """

    def __init__(self, job: TrainingJob, done: int, on_epoch: Callable[[Epoch], None]) -> None:
        self._job, self._done, self._on_epoch = job, done, on_epoch
        self._starts, self._warnings, self._line = 1, 0, ""
        self._news_s = time.monotonic()

    def follow(self, is_over: Callable[[float], bool]) -> None:
        """Show progress until `is_over(seconds to wait)`: a live line on a terminal, else lines."""
        console = Console(stderr=True)
        printed_s = polled_s = time.monotonic()
        with (
            Live(console=console, transient=True) if console.is_terminal else nullcontext() as view
        ):
            while not is_over(_EVERY_S):
                if time.monotonic() - polled_s < _every_s(self._job.output):
                    continue
                polled_s, line = time.monotonic(), self._poll()
                if view is not None:
                    view.update(Text(line))
                elif line and time.monotonic() - printed_s >= LINE_EVERY_S:
                    printed_s = time.monotonic()
                    print(line, file=sys.stderr, flush=True)
        self._poll()

    def pass_on(self, history: list[dict[str, Any]]) -> None:
        """Hand over the records that are new."""
        for record in history[self._done :]:
            self._done = record["epoch"]
            self._on_epoch(record)

    def _poll(self) -> str:
        """Hand over what is new; returns the live line."""
        found = _read(self._job.output)
        if found.get("run_id") != self._job.run_id:
            return f"waiting for workers{_free_resources()}" if self._is_stale("") else ""
        for step in found["starts"][self._starts :]:
            print(f"workers died and were started again after step {step}", file=sys.stderr)
        self._starts = max(self._starts, len(found["starts"]))
        for text in found["warnings"][self._warnings :]:
            print(f"warning: {text}", file=sys.stderr)
        self._warnings = len(found["warnings"])
        self.pass_on(found["history"])
        line = live_line(found.get("live", {}), self._job.flags.epochs)
        if self._is_stale(line):
            silent = duration(time.monotonic() - self._news_s)
            line = f"waiting for workers, no news for {silent} ({line})"
        return line

    def _is_stale(self, line: str) -> bool:
        if line != self._line:
            self._line, self._news_s = line, time.monotonic()
        return time.monotonic() - self._news_s > _STALE_S


def _free_resources() -> str:
    with suppress(ray.exceptions.RayError):
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        return f" (free now: {free})"
    return ""


def live_line(figures: Mapping[str, Any], epochs: int) -> str:
    """`epoch 2/5 | step 120/400 | loss 0.412 | 1.2 h of audio, 0.021 audio hours/s`."""
    if not figures:
        return "loading the model"
    return (
        f"epoch {figures['epoch']}/{epochs} | step {figures['step']}/{figures['steps']} | "
        f"loss {figures['loss']:.3f} | {hours(figures['audio_s'])} of audio, "
        f"{figures['audio_hours_per_s']:.3g} audio hours/s"
    )


def epoch_line(record: Epoch, epochs: int) -> str:
    """One line for an epoch: loss, dev CCC by dimension, dev UAR, speed, whether it was kept."""
    line = f"epoch {record['epoch']}/{epochs}  loss {_number(record['train_loss'])}"
    ccc = record.get("dev_ccc")
    if ccc:
        line += "  dev CCC " + "  ".join(f"{name} {_number(ccc[name])}" for name in DIMENSIONS)
        line += f"  mean {_number(record['dev_ccc_mean'])}"
    if "dev_uar" in record:
        line += f"  dev UAR {_number(record['dev_uar'])}"
    if ccc or "dev_uar" in record:
        line += " *" if record["kept"] else "  "
    return (
        f"{line}  {hours(record['audio_s'])} of audio in {duration(record['wall_s'])}, "
        f"{record['audio_hours_per_s']:.3g} audio hours/s"
    )


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def print_plan(plan: TrainingPlan) -> None:
    """Data, network and way of training, before it starts; and everything worth a warning."""
    flags, network, data = plan.flags, plan.network, plan.data
    pairs = {
        "train": _clips_and_audio(data.train),
        "dev": _clips_and_audio(data.dev) if len(data.dev) else "none (--keep last)",
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
        pairs["categories"] = f"{', '.join(data.categories)}, weight {flags.category_weight:g}"
    if plan.earlier is not None:
        pairs["resuming"] = f"the run of {plan.earlier.started_at}, {plan.progress.step} steps done"
    print_pairs("train", pairs)
    for note in data.notes:
        print_warning(note)
    if data.left_out:
        counts = ", ".join(f"{reason} {n:,}" for reason, n in data.left_out.items())
        print_warning(f"clips left out: {counts}")
    if data.leakage:
        print_warning(
            f"leakage allowed, the results are marked: {data.leakage[0]}"
            f" ({len(data.leakage)} such groups)"
        )
    if flags.shuffle_labels:
        print_warning("--shuffle-labels: a control, the model means nothing")


def print_outcome(output: str, outcome: Mapping[str, Any]) -> None:
    """Dev scores of the stored model, and where it is."""
    scores = {
        f"dev {metric} {name}": "– (constant labels)" if value is None else f"{value:.3f}"
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

"""What a person sees while a network trains: a live line, and one line that stays per epoch.

Workers tell a small actor on the driver's node where they are. It also keeps the error that ends a
run, because Ray would start workers again after any exception, however final.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from raysers import errors
from raysers.engine.progress import LINE_EVERY_S, duration, hours
from raysers.errors import RaysersError
from raysers.training.context import TrainingStopped
from raysers.training.dataset import TooManyFailed
from raysers.training.monitor import TrainingMonitor
from raysers.types import DIMENSIONS

_POLL_S = 0.5


def new_monitor() -> Any:
    """A TrainingMonitor on the driver's node, so that it lives as long as the driver."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=here)(TrainingMonitor).remote()


def raise_failure(monitor: Any) -> None:
    """Raise the error that ended the run, if one did."""
    failure = ray.get(monitor.failure.remote())
    if failure is not None:
        name, message = failure
        known = {kind.__name__: kind for kind in (TooManyFailed, TrainingStopped)}
        kinds = {**known, **vars(errors)}
        raise kinds.get(name, RaysersError)(message)


@dataclass(slots=True)
class ProgressPoller:
    """Reads the monitor from the driver's main thread.

    Attributes:
        monitor: the actor.
        epochs: epochs of the whole training.
        done: epochs that were told about.
        on_epoch: called with each record, in order, once.
        starts: starts of the workers that were told about.
    """

    monitor: Any
    epochs: int
    done: int
    on_epoch: Callable[[Mapping[str, Any]], None]
    starts: int = 1

    def poll(self) -> str:
        """Hand over what is new; returns the live line."""
        # progress is a courtesy: the next poll will do as well
        with suppress(ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            snapshot = ray.get(self.monitor.snapshot.remote(self.done), timeout=30)
            figures, records, starts = snapshot
            for step in starts[self.starts :]:
                print(f"workers died and were started again after step {step}", file=sys.stderr)
            self.starts = max(self.starts, len(starts))
            for record in records:
                self.done = record["epoch"]
                self.on_epoch(record)
            return live_line(figures, self.epochs)
        return ""

    def follow(self, is_over: Callable[[float], bool]) -> None:
        """Show progress until `is_over(seconds to wait)`, then hand over the last records."""
        console = Console(stderr=True)
        with _shown(console) as show:
            while not is_over(_POLL_S):
                show(self.poll())
        self.poll()


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[str], None]]:
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as view:
            yield lambda line: view.update(Text(line))
        return
    last_s = time.monotonic()

    def now_and_then(line: str) -> None:
        nonlocal last_s
        if line and time.monotonic() - last_s >= LINE_EVERY_S:
            last_s = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    yield now_and_then


def live_line(figures: Mapping[str, Any], epochs: int) -> str:
    """`epoch 2/5 | step 120/400 | loss 0.412 | 1.2 h of audio, 0.021 audio hours/s`."""
    if not figures:
        return "loading the model"
    return (
        f"epoch {figures['epoch']}/{epochs} | step {figures['step']}/{figures['steps']} | "
        f"loss {figures['loss']:.3f} | {hours(figures['audio_s'])} of audio, "
        f"{figures['audio_hours_per_s']:.3g} audio hours/s"
    )


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
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

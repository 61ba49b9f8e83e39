"""Pictures of a sweep: its trials as lines through their values, what mattered, learning curves.

Good trials are dark and on top, stopped ones thin; failed ones have no score and no line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from raysers import plotting
from raysers.plotting import BLUE, FAINT, INK, PAPER, SOFT, VERMILION, Picture, blend
from raysers.tuning.importance import Axis, Importance, Tried, floor_of, known

_SCORE = "dev CCC"
#: Flags that fit beside each other; further ones are left to the table.
_MOST_AXES = 9
#: Names of choices longer than this are cut.
_MOST_LETTERS = 16
#: Of a flag with so few different numbers each is named.
_MOST_MARKS = 4


def parallel_coordinates(tried: Sequence[Tried], axes: Sequence[Axis]) -> Picture:
    """A line per trial through the values of its flags to its score; empty without scores."""
    scored = sorted((t for t in tried if known(t.score)), key=lambda t: t.score or 0.0)
    if not scored or not axes:
        return {}
    return plotting.picture(lambda: _draw_lines(scored, axes[:_MOST_AXES]))


def importance_bars(found: Importance) -> Picture:
    """A bar per flag with its interval; empty when there were too few trials."""
    if not found.shares:
        return {}
    return plotting.picture(lambda: _draw_importance(found))


def learning_curves(tried: Sequence[Tried]) -> Picture:
    """Mean CCC on dev by epoch of every trial; empty without any."""
    drawn = [trial for trial in tried if any(known(value) for _, value in trial.curve)]
    if not drawn:
        return {}
    return plotting.picture(lambda: _draw_curves(drawn))


def _draw_lines(scored: Sequence[Tried], axes: Sequence[Axis]) -> Any:
    from matplotlib.patheffects import withStroke

    figure = plotting.new_figure(3.6)
    panel = figure.subplots()
    columns = [_Scale(axis, [trial.values[axis.name] for trial in scored]) for axis in axes]
    scores = [trial.score or 0.0 for trial in scored]
    columns.append(_Scale(Axis(name=_SCORE, numeric=True), scores))
    for place, column in enumerate(columns):
        panel.axvline(place, color=FAINT, linewidth=1.0, zorder=1)
        for height, text in column.ticks():
            panel.annotate(
                text, (place, height), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=plotting.SMALL_PT, color=SOFT, zorder=6, annotation_clip=False,
                path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
            )  # fmt: skip
    for rank, trial in enumerate(scored):
        values = [*(trial.values[axis.name] for axis in axes), trial.score]
        heights = [c.height(v) for c, v in zip(columns, values, strict=True)]
        is_best = rank == len(scored) - 1
        strength = (rank + 1) / len(scored)
        thin = trial.status == "stopped"
        plotting.line(
            panel,
            range(len(columns)),
            heights,
            VERMILION if is_best else blend(BLUE, strength**2),  # type: ignore[arg-type]
            linewidth=2.2 if is_best else 0.6 if thin else 1.2,
            zorder=4 if is_best else 2 + strength,
        )
    names = [axis.name.replace("_", "-") for axis in axes]
    panel.set_xticks(range(len(columns)), [*names, _SCORE], color=INK)
    panel.xaxis.tick_top()
    panel.tick_params(axis="x", length=0, pad=8)
    panel.set_yticks([])
    panel.spines["bottom"].set_visible(False)
    panel.set_xlim(-0.15, len(columns) - 0.75)
    panel.set_ylim(-0.06, 1.06)
    words = f"{len(scored)} trials, the best in orange, stopped ones thin"
    panel.set_xlabel(words, loc="left", fontsize=plotting.SMALL_PT)
    return figure


class _Scale:
    """Heights 0..1 of one flag's values."""

    def __init__(self, axis: Axis, values: Sequence[Any]) -> None:
        self._axis = axis
        # a flag that can also be left out has a word for it, and then all its values are words
        self._numeric = axis.numeric and all(isinstance(v, int | float) for v in values)
        if not self._numeric:
            self._names = sorted(set(map(str, values)))
            return
        self._floor = floor_of(list(map(float, values)))
        self._marks = sorted({self._at(float(value)) for value in values})
        self._low, self._high = self._marks[0], self._marks[-1]

    def _at(self, value: float) -> float:
        return math.log(max(value, self._floor)) if self._axis.log else value

    def height(self, value: Any) -> float:
        """Of one value; the middle where all are the same."""
        if not self._numeric:
            most = len(self._names) - 1
            return self._names.index(str(value)) / most if most else 0.5
        span = self._high - self._low
        return (self._at(float(value)) - self._low) / span if span else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Heights with their texts."""
        if not self._numeric:
            return [
                (self.height(name), plotting.short(name, _MOST_LETTERS)) for name in self._names
            ]
        marks = self._marks
        if len(marks) > _MOST_MARKS:  # too many to name each
            marks = [self._low, (self._low + self._high) / 2, self._high]
        span = self._high - self._low
        return [((m - self._low) / span if span else 0.5, self._text(m)) for m in marks]

    def _text(self, mark: float) -> str:
        value = math.exp(mark) if self._axis.log else mark
        if not self._axis.log and abs(value) < (self._high - self._low) / 1000:
            return "0"  # but for rounding
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def _draw_importance(found: Importance) -> Any:
    figure = plotting.new_figure(1.1 + 0.3 * len(found.shares), 5.2)
    panel = figure.subplots()
    plotting.panel_title(panel, f"What mattered ({found.method})")
    for row, share in enumerate(found.shares):
        plotting.interval(panel, share.value, (share.ci_low, share.ci_high), row, BLUE)
    plotting.name_rows(panel, [share.name.replace("_", "-") for share in found.shares])
    panel.set_xlim(0, max(1.0, *(share.ci_high for share in found.shares)))
    plotting.value_grid(panel, "x")
    panel.set_xlabel(found.note, loc="left", fontsize=plotting.SMALL_PT)
    return figure


def _draw_curves(tried: Sequence[Tried]) -> Any:
    figure = plotting.new_figure(3.2)
    panel = figure.subplots()
    plotting.panel_title(panel, "Mean CCC on dev")
    scored = [trial for trial in tried if trial.status == "done" and known(trial.score)]
    best = max(scored, key=lambda trial: trial.score or 0.0, default=None)
    ends: list[float] = []
    for trial in tried:
        points = [(epoch, float(v)) for epoch, v in trial.curve if v is not None and known(v)]
        if not points:
            continue
        epochs, values = zip(*points, strict=True)
        ends += values
        is_best = trial is best
        colour = VERMILION if is_best else BLUE if trial.status == "done" else SOFT
        how = {"linewidth": 2.2 if is_best else 0.9, "alpha": 1.0 if is_best else 0.55}
        plotting.line(panel, epochs, values, colour, **how, zorder=5 if is_best else 3)
        if trial.status != "done":
            panel.plot(epochs[-1:], values[-1:], "|", color=SOFT, ms=7, clip_on=False)
    panel.set_ylim(min(0.0, *ends), max(*ends, 0.1))
    last = max(epoch for trial in tried for epoch, _ in trial.curve)
    panel.set_xlim(1 if last > 1 else 0.5, max(last, 1.5))
    _whole_ticks(panel)
    plotting.value_grid(panel)
    panel.set_xlabel("epoch", loc="right")
    if best is not None:
        _, value = [(e, v) for e, v in best.curve if v is not None][-1]
        plotting.end_label(panel, value, f"trial {best.number}", VERMILION)
    stopped = sum(trial.status == "stopped" for trial in tried)
    if stopped:
        plotting.above(
            panel, (1.0, 1.0), "axes fraction", 0, f"{stopped} stopped early (grey)", ha="right"
        )
    return figure


def _whole_ticks(panel: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))

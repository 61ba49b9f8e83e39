"""Pictures of a sweep: its trials as lines through their values, what mattered, learning curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from raysers import plotting

#: Prefix of the columns of searched flags in the table of trials.
PARAMETER = "param_"
#: Flags that fit beside each other in a picture; the table has all of them.
_MAX_AXES = 9
#: Of a flag with more values only some are named.
_MAX_MARKS = 4
#: A number that spans at least this factor is drawn on a logarithmic scale.
_LOG_SPAN = 30.0


def pictures(
    trials: pd.DataFrame, curves: pd.DataFrame, found: Mapping[str, Any]
) -> dict[str, plotting.Picture]:
    """`parallel_coordinates`, `importance` and `learning_curves`, as far as there is anything.

    Args:
        trials: a sweep's table of trials.
        curves: its table of curves.
        found: `importance` of its run.json.
    """
    scored = trials.dropna(subset=["dev_ccc_mean"]).sort_values("dev_ccc_mean")
    means = curves[curves["dimension"] == "mean"].dropna(subset=["ccc"])
    drawn = {}
    if len(scored):
        drawn["parallel_coordinates"] = plotting.picture(lambda: _draw_lines(scored))
    if found.get("shares"):
        drawn["importance"] = plotting.picture(lambda: _draw_importance(found))
    if len(means):
        drawn["learning_curves"] = plotting.picture(lambda: _draw_curves(scored, means))
    return drawn


def _draw_lines(scored: pd.DataFrame) -> Any:
    """A line per trial through its values to its score, the best on top."""
    figure = plotting.new_figure(3.6)
    panel = figure.subplots()
    varying = [c for c in scored if c.startswith(PARAMETER) and scored[c].nunique(dropna=False) > 1]
    columns = [*varying[:_MAX_AXES], "dev_ccc_mean"]
    heights = pd.DataFrame({name: _heights(scored[name]) for name in columns})
    for place, name in enumerate(columns):
        panel.axvline(place, color=plotting.FAINT, linewidth=1.0, zorder=1)
        ticks = pd.Series(heights[name].to_numpy(), scored[name].to_numpy()).sort_values()
        ticks = ticks[~ticks.index.duplicated()]
        if len(ticks) > _MAX_MARKS:
            ticks = ticks.iloc[[0, len(ticks) // 2, -1]]
        for value, height in ticks.items():
            text = f"{value:.2g}" if isinstance(value, float) else plotting.short(str(value), 16)
            panel.annotate(
                text, (place, height), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=plotting.SMALL_PT, color=plotting.SOFT, zorder=6, annotation_clip=False,
            )  # fmt: skip
    for rank, (own, status) in enumerate(zip(heights.to_numpy(), scored["status"], strict=True)):
        is_best = rank == len(scored) - 1
        colour = plotting.VERMILION if is_best else plotting.BLUE
        width = 2.2 if is_best else 0.6 if status == "stopped" else 1.2
        share = 1.0 if is_best else 0.15 + 0.7 * (rank / len(scored)) ** 2
        plotting.line(panel, range(len(columns)), own, colour, linewidth=width, alpha=share)
    names = [name.removeprefix(PARAMETER).replace("_", "-") for name in columns[:-1]]
    panel.set_xticks(range(len(columns)), [*names, "dev CCC"])
    panel.xaxis.tick_top()
    panel.tick_params(axis="x", length=0, pad=8)
    panel.set_yticks([])
    panel.spines["bottom"].set_visible(False)
    panel.set_xlim(-0.15, len(columns) - 0.75)
    words = f"{len(scored)} trials, the best in orange, stopped ones thin"
    panel.set_xlabel(words, loc="left", fontsize=plotting.SMALL_PT)
    return figure


def _heights(values: pd.Series) -> pd.Series:
    """0..1 by value; words by their order; the middle where all are the same."""
    if pd.api.types.is_numeric_dtype(values) and values.dtype != bool and values.notna().all():
        low, high = values.min(), values.max()
        if low > 0 and high / low >= _LOG_SPAN:
            values = np.log(values)
    else:
        values = values.astype(str).rank(method="dense")
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else values * 0 + 0.5


def _draw_importance(found: Mapping[str, Any]) -> Any:
    shares = found["shares"]
    figure = plotting.new_figure(1.1 + 0.3 * len(shares), 5.2)
    panel = figure.subplots()
    plotting.panel_title(panel, f"What mattered ({found['method']})")
    panel.barh(range(len(shares)), [share["value"] for share in shares], 0.5, color=plotting.BLUE)
    plotting.name_rows(panel, [share["name"].replace("_", "-") for share in shares])
    panel.set_xlim(0, 1)
    plotting.value_grid(panel, "x")
    panel.set_xlabel(found["note"], loc="left", fontsize=plotting.SMALL_PT)
    return figure


def _draw_curves(scored: pd.DataFrame, means: pd.DataFrame) -> Any:
    """Mean CCC on dev by epoch of every trial, the best in orange."""
    from matplotlib.ticker import MaxNLocator

    figure = plotting.new_figure(3.2)
    panel = figure.subplots()
    plotting.panel_title(panel, "Mean CCC on dev")
    status = dict(zip(scored["trial"], scored["status"], strict=True))
    best = scored[scored["status"] == "done"]["trial"].iloc[-1:].to_list()
    for trial, curve in means.groupby("cell"):
        done, is_best = status.get(trial) == "done", trial in best
        colour = plotting.VERMILION if is_best else plotting.BLUE if done else plotting.SOFT
        width, alpha = (2.2, 1.0) if is_best else (0.9, 0.55)
        plotting.line(panel, curve["epoch"], curve["ccc"], colour, linewidth=width, alpha=alpha)
        if is_best:
            plotting.end_label(panel, curve["ccc"].iloc[-1], str(trial), colour)
    panel.set_xlim(1, max(means["epoch"].max(), 1.5))
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    plotting.value_grid(panel)
    panel.set_xlabel("epoch; stopped trials grey", loc="right")
    return figure

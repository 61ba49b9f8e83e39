"""The model card and the learning curve beside the weights of a training.

A card only states what the run knows: unknown terms are `unknown`, figures come with their clip
counts and the random baseline, and a run with leaking splits or shuffled labels says so on top. In
`model_card.md.j2` every value is shown as plain text unless it is Markdown.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import jinja2
import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from raysers import display
from raysers.display import fenced, one_line, plain, table, visible
from raysers.evaluation.rows import Row
from raysers.evaluation.scores import RANDOM
from raysers.models.backbones import ASSETS, FAMILIES, UNNORMALISED
from raysers.training.config import TrainingFlags
from raysers.types import DIMENSIONS

UNKNOWN = "unknown"

#: Licences of the weights training may start from, as their hub pages state them.
_BASE_LICENCES = {
    "facebook/wav2vec2-base": "apache-2.0",
    "facebook/wav2vec2-large-lv60": "apache-2.0",
    "facebook/wav2vec2-large-robust": "apache-2.0",
    "facebook/wav2vec2-large-100k-voxpopuli": "cc-by-nc-4.0",
    "facebook/wav2vec2-xls-r-300m": "apache-2.0",
    "facebook/hubert-base-ls960": "apache-2.0",
    "facebook/hubert-large-ll60k": "apache-2.0",
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim": "cc-by-nc-sa-4.0",
}

#: Terms of the corpora there are readers for.
_DATA_LICENCES = {
    "msp-podcast": "licence of the University of Texas at Dallas, no redistribution",
    "iemocap": "release form of the University of Southern California, no redistribution",
    "cmu-mosi": "cc-by-nc-4.0 as its audformat edition states",
    "emodb": "cc0-1.0",
}
#: Measures as the table of results names them, and as the hub does.
_NAMES = {
    "ccc": "CCC", "mae": "MAE", "pearson": "Pearson", "uar": "UAR",
    "uar_known": "UAR of known categories", "macro_f1": "macro F1", "ece": "calibration error",
}  # fmt: skip
_HUB_NAMES = {"ccc": "ccc", "uar": "recall"}
#: Settings that are told elsewhere on the card, or that say nothing about the model.
_NOT_RECIPE = {
    "data", "train", "dev", "corpus", "speakers", "limit", "seed", "backbone", "allow_leakage",
    "shuffle_labels",
}  # fmt: skip
_ALWAYS = ("epochs", "batch_size", "lr", "optimiser", "schedule", "loss", "freeze", "dtype")


class _Markdown(str):
    __slots__ = ()


def model_card(name: str, training: Mapping[str, Any], metrics: Sequence[Row]) -> str:
    """The card as Markdown with YAML front matter, of `training.json` and all that was measured."""
    environment = jinja2.Environment(
        finalize=lambda value: value if isinstance(value, _Markdown) else plain(value),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # it is no HTML; `plain` escapes what Markdown takes for HTML too
    )
    environment.filters |= {
        "code": _Markdown,
        "fenced": lambda text, language: _Markdown(fenced(text.rstrip(), language)),
        "listed": lambda names: " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))),
    }
    template = environment.from_string((ASSETS / "model_card.md.j2").read_text())
    settings, network, data = training["settings"], training["network"], training["data"]
    trained, leaks = data["trained"], data["leakage"]
    categories = data["categories"] if settings["category_weight"] else []
    heads = {"a regression head": trained, "a softmax head": categories}
    new = len(categories) * (network["embedding_size"] + 1)
    others = f"; and {len(leaks) - 1:,} more such groups" if len(leaks) > 1 else ""
    is_plain = network["model_type"] not in UNNORMALISED and settings["pooling"].endswith("masked")
    is_plain = is_plain and not settings.get("layer_weights")
    command = shlex.join(training["command"])
    folder = "./" + visible(name)
    splits = [
        (s["corpus"], s["split"], s["clips"], f"{s['hours']:.2f}", s["speakers"] or UNKNOWN)
        for s in data["splits"]
    ]
    mapped = [(name, *(f"{v:.3f}" for v in point)) for name, point in data["mapping"].items()]
    shown = {
        "name": name,
        "front_matter": _Markdown(_front_matter(name, training, metrics, categories)),
        "categories": categories,
        "heads": [head for head, outputs in heads.items() if outputs],
        "parameters": network["parameters"] + new,
        "trained_parameters": network["trained"] + new,
        "random": settings["backbone"].startswith("random:"),
        "untrained": [name for name in DIMENSIONS if name not in trained],
        "leakage": leaks and leaks[0] + others,
        "has_dev": any(split["split"] != "train" for split in data["splits"]),
        "results": metrics and _Markdown(_results_table(metrics)),
        "has_intervals": any(math.isfinite(row.ci_low) for row in metrics),
        "shell_folder": shlex.quote(folder),
        "python_folder": _Markdown(json.dumps(folder)),
        "plain_class": FAMILIES[network["model_type"]] if is_plain else None,
        "splits": _Markdown(
            table(("corpus", "split", "clips", "hours", "speakers"), splits, numbers=3)
        ),
        "mapping": mapped and _Markdown(table(("category", *DIMENSIONS), mapped, numbers=3)),
        "recipe": _Markdown(table(("setting", "value"), _recipe(settings))),
        "shell_command": visible(
            command if command.startswith(("raysers ", "python ")) else f"python {command}"
        ),
        "licences": _Markdown(_licences_table(training)),
    }
    return template.render({**training, **shown}) + "\n"


def _recipe(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    defaults = {f.name: f.default for f in fields(TrainingFlags)}
    others = [
        name
        for name in defaults
        if name in settings.keys() - _NOT_RECIPE - set(_ALWAYS)
        and settings[name] != (list(d) if isinstance(d := defaults[name], tuple) else d)
    ]
    return [(name.replace("_", "-"), settings[name]) for name in (*_ALWAYS, *others)]


def _front_matter(
    name: str, training: Mapping[str, Any], metrics: Sequence[Row], categories: Sequence[str]
) -> str:
    results = [
        EvalResult(
            task_type="audio-classification",
            task_name="Speech emotion recognition",
            dataset_type=one_line(row.dataset),
            dataset_name=one_line(row.dataset),
            dataset_split=one_line(row.split),
            metric_type=_HUB_NAMES[row.metric],
            metric_name=one_line(f"{_NAMES[row.metric]} {row.dimension}"),
            metric_value=round(float(row.value), 4),
        )
        for row in metrics
        if row.metric in _HUB_NAMES and not row.group and row.model != RANDOM
        if math.isfinite(row.value)
    ]
    network, data = training["network"], training["data"]
    languages = [code for code in data["languages"] if re.fullmatch("[a-z]{2,3}", code)]
    front = ModelCardData(
        license=UNKNOWN,
        language=languages or None,
        base_model=network["hub_id"],
        # not transformers and no pipeline tag: its stock classes would put a random head on it
        library_name="raysers",
        tags=["speech", "audio", "emotion-recognition", *data["trained"], network["model_type"]],
        metrics=["ccc"] * bool(data["trained"]) + ["recall"] * bool(categories),
        model_name=one_line(name) or "model",
        eval_results=results or None,
    )
    return front.to_yaml() + "\n"


def _results_table(rows: Sequence[Row]) -> str:
    """One line per data, group and measure; a column per dimension, with intervals.

    The random baseline is shown for whole splits only: in groups it is the same, but noisier.
    """
    rows = [row for row in rows if not (row.group and row.model == RANDOM)]
    named = dict.fromkeys(row.dimension for row in rows)
    columns = [d for d in DIMENSIONS if d in named] + [d for d in named if d not in DIMENSIONS]
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        group = f"{row.group} {row.group_value}" if row.group else "all"
        measure = _NAMES.get(row.metric, row.metric.replace("_", " "))
        measure += ", random baseline" if row.model == RANDOM else ""
        measure += f", {row.trained_on:,} of these clips trained on" if row.trained_on else ""
        key = (f"{row.dataset} {row.split}", group, measure)
        lines.setdefault(key, {})[row.dimension] = row
    cells = []
    for line, found in lines.items():
        n, speakers = (max(getattr(r, of) for r in found.values()) for of in ("n", "speakers"))
        counts = [n, speakers or UNKNOWN]
        cells.append([*line, *counts, *(_cell(found.get(column)) for column in columns)])
    head = ["data", "clips of", "measure", "clips", "speakers", *(c or "all" for c in columns)]
    return table(head, cells, numbers=len(columns) + 2)


def _cell(row: Row | None) -> str:
    if row is None or not math.isfinite(row.value):
        return "–"
    has_interval = math.isfinite(row.ci_low) and math.isfinite(row.ci_high)
    interval = f" [{row.ci_low:z.3f}, {row.ci_high:z.3f}]" if has_interval else ""
    return f"{row.value:z.3f}{interval}"


def _licences_table(training: Mapping[str, Any]) -> str:
    network, backbone = training["network"], training["settings"]["backbone"]
    start = network["licence"] or _BASE_LICENCES.get(network["hub_id"] or "", UNKNOWN)
    start = "none, random weights" if backbone.startswith("random:") else start
    corpora = dict.fromkeys(split["corpus"] for split in training["data"]["splits"])
    rows = [
        ("this model", UNKNOWN),
        (f"start: {backbone}", start),
        *((f"data: {corpus}", _DATA_LICENCES.get(corpus, UNKNOWN)) for corpus in corpora),
    ]
    return table(("of", "terms"), rows)


def learning_curve(history: Sequence[Mapping[str, Any]]) -> display.Picture:
    """Dev CCC and UAR over the training loss, by epoch, as `png` and `svg`; gaps where unknown."""
    return display.picture(lambda: _draw(history))


def _draw(history: Sequence[Mapping[str, Any]]) -> Any:
    from matplotlib.ticker import MaxNLocator

    epochs = [record["epoch"] for record in history]
    kept = next((record["epoch"] for record in reversed(history) if record["kept"]), epochs[-1])
    found = {name: [(r["dev_ccc"] or {}).get(name) for r in history] for name in DIMENSIONS}
    found |= {"UAR": [record.get("dev_uar") for record in history]}
    found |= {"loss": [record["train_loss"] for record in history]}
    lines = {name: np.array(values, float) for name, values in found.items()}  # None becomes NaN
    lines = {name: values for name, values in lines.items() if np.isfinite(values).any()}
    losses = {name: lines.pop(name) for name in ("loss",) if name in lines}
    measures = ["CCC"] * bool(lines.keys() - {"UAR"}) + ["UAR"] * ("UAR" in lines)
    title = f"{' and '.join(measures)} on the dev set"
    panels = [(title, lines, 2.9)] * bool(lines) + [("Training loss", losses, 1.5)]
    figure = display.new_figure(sum(height + 0.9 for *_, height in panels))
    axes = figure.subplots(
        len(panels), 1, squeeze=False, sharex=True, height_ratios=[height for *_, height in panels]
    )[:, 0]
    for axis, (title, curves, _) in zip(axes, panels, strict=True):
        display.panel_title(axis, title, pad_pt=16)
        labels = {}
        for name, values in curves.items():
            colour = display.COLOURS.get(name, display.INK)
            known = values[np.isfinite(values)]
            display.line(
                axis, epochs, values.tolist(), colour, marker="o" if len(known) == 1 else None
            )
            at_kept = values[epochs.index(kept)]
            if np.isfinite(at_kept) and curves is lines:
                display.dot(axis, at_kept, kept, colour, along="y", ms=6.5, mew=1.2)
            shown = at_kept if np.isfinite(at_kept) else known[-1]
            labels[f"{name} {shown:z.2f}"] = (float(known[-1]), colour)
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, 0.0), 1.0 if curves is lines else max(high, 0.0))
        display.value_grid(axis)
        display.end_labels(axis, labels)
        display.guide(axis, kept)
    display.above(axes[0], (kept, 1.0), ("data", "axes fraction"), 0, f"kept: epoch {kept}")
    axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes[-1].set_xlabel("epoch", loc="right")
    return figure

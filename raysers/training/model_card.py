"""The model card of a training run, with its learning curve: a README.md for the model hub.

Only what the run knows is claimed: an unstated licence is "unknown", a metric that was not computed
is not there, and a run with leaking splits or shuffled labels says so on top. The text is the
template `model_card.md.j2`, in which every value is shown as plain text unless it is Markdown.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from raysers import plotting
from raysers.evaluation.rows import Row
from raysers.evaluation.scores import RANDOM
from raysers.models.backbones import ASSETS
from raysers.text import fenced, one_line, plain, table, visible
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

#: Family -> what `transformers` calls its classes, and the attribute the parameters lie under.
_PLAIN_CLASSES = {
    "wav2vec2": ("Wav2Vec2", "wav2vec2"),
    "hubert": ("Hubert", "hubert"),
    "wavlm": ("WavLM", "wavlm"),
    "data2vec-audio": ("Data2VecAudio", "data2vec_audio"),
}

#: Measures as the table of results names them, and as the hub does.
_NAMES = {
    "ccc": "CCC", "mae": "MAE", "pearson": "Pearson", "uar": "UAR",
    "uar_known": "UAR of known categories", "macro_f1": "macro F1", "ece": "calibration error",
}  # fmt: skip
_HUB_NAMES = {"ccc": "ccc", "uar": "recall"}

#: Heights of the learning curve's panels; a line of one: (epoch, value) where there is a value.
_SCORES_IN, _LOSS_IN = 2.9, 1.5
_Points = list[tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFacts:
    """One split of one corpus; `speakers` is None where the corpus does not tell."""

    corpus: str
    split: str
    clips: int
    hours: float
    speakers: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        backbone: what training started from, as it was asked for.
        min_samples: shortest clip at 16 kHz.
        recipe: flag -> value, in the order to print.
        metrics: what was measured, the random baseline included.
        metric_notes: what a reader of these should know.
        command: the shell line that repeats the training.
        best_epoch: the epoch whose weights these are; None: the last one's.
        audio_hours: trained on, repeats included.
        seconds: wall time of the training.
        leakage: what train and evaluation splits share, as a sentence; empty: nothing.
        base_hub_id: hub id of the starting weights; None: random ones, or a folder's.
        base_licence: of the starting weights; None: as known here.
        mapping: emotion category -> arousal, dominance, valence it stood for in training.
        model_type: the network's family, as in its config.json.
        pooling: how frames become one vector: `masked`, `unmasked`, `statistics` or `attentive`.
        trained, categories: dimensions and emotion categories with trained outputs.
    """

    name: str
    backbone: str
    parameters: int
    trained_parameters: int
    min_samples: int
    splits: Sequence[SplitFacts]
    recipe: Mapping[str, object]
    metrics: Sequence[Row]
    command: str
    versions: Mapping[str, str]
    seed: int
    epochs: int
    best_epoch: int | None
    audio_hours: float
    seconds: float
    workers: int
    device: str
    data_fingerprint: str
    leakage: str = ""
    metric_notes: Sequence[str] = ()
    shuffled_labels: bool = False
    failed_clips: int = 0
    base_hub_id: str | None = None
    base_licence: str | None = None
    languages: Sequence[str] = ()
    notes: Sequence[str] = ()
    mapping: Mapping[str, Sequence[float]] = field(default_factory=dict)
    model_type: str = "wav2vec2"
    pooling: str = "masked"
    trained: Sequence[str] = DIMENSIONS
    categories: Sequence[str] = ()


class _Markdown(str):
    """Text that is shown as it is."""

    __slots__ = ()


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with YAML front matter, ready to be written as `README.md`."""
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
    folder = "./" + visible(facts.name)
    runnable = facts.command.startswith(("raysers ", "python "))
    heads = {"a regression head": facts.trained, "a softmax head": facts.categories}
    is_plain = facts.model_type in _PLAIN_CLASSES and facts.pooling in ("masked", "unmasked")
    mapped = [(name, *(f"{v:.3f}" for v in point)) for name, point in facts.mapping.items()]
    settings = [(name.replace("_", "-"), value) for name, value in facts.recipe.items()]
    shown = {
        "front_matter": _Markdown(_front_matter(facts)),
        "heads": [head for head, outputs in heads.items() if outputs],
        "random": facts.backbone.startswith("random:"),
        "untrained": [name for name in DIMENSIONS if name not in facts.trained],
        "has_dev": any(split.split != "train" for split in facts.splits),
        "results": _Markdown(_results_table(facts.metrics)),
        "has_intervals": any(math.isfinite(row.ci_low) for row in facts.metrics),
        "shell_folder": shlex.quote(folder),
        "python_folder": _Markdown(json.dumps(folder)),
        "plain_class": _PLAIN_CLASSES[facts.model_type] if is_plain else None,
        "splits": _Markdown(_splits_table(facts.splits)),
        "mapping": facts.mapping and _Markdown(table(("category", *DIMENSIONS), mapped, numbers=3)),
        "recipe": _Markdown(table(("setting", "value"), settings)),
        "command": visible(facts.command if runnable else f"python {facts.command}"),
        "licences": _Markdown(_licences_table(facts)),
    }
    given = {name: getattr(facts, name) for name in CardFacts.__slots__}
    return template.render(given | shown) + "\n"


def _front_matter(facts: CardFacts) -> str:
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
        for row in facts.metrics
        if row.metric in _HUB_NAMES and not row.group and not _is_baseline(row)
        if math.isfinite(row.value)
    ]
    data = ModelCardData(
        license=UNKNOWN,
        language=sorted({c for c in facts.languages if re.fullmatch("[a-z]{2,3}", c)}) or None,
        base_model=facts.base_hub_id,
        # not transformers and no pipeline tag: its stock classes would put a random head on it
        library_name="raysers",
        tags=["speech", "audio", "emotion-recognition", *facts.trained, facts.model_type],
        metrics=["ccc"] * bool(facts.trained) + ["recall"] * bool(facts.categories),
        model_name=one_line(facts.name) or "model",
        eval_results=results or None,
    )
    return data.to_yaml() + "\n"


def _results_table(rows: Sequence[Row]) -> str:
    """One line per data, group and measure; a column per dimension, with intervals.

    The random baseline is shown for whole splits only: in groups it is the same, but noisier.
    """
    rows = [row for row in rows if not (row.group and _is_baseline(row))]
    named = dict.fromkeys(row.dimension for row in rows)
    columns = [d for d in DIMENSIONS if d in named] + [d for d in named if d not in DIMENSIONS]
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        group = f"{row.group} {row.group_value}" if row.group else "all"
        measure = _NAMES.get(row.metric, row.metric.replace("_", " "))
        measure += ", random baseline" if _is_baseline(row) else ""
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
    interval = f" [{row.ci_low:.3f}, {row.ci_high:.3f}]" if has_interval else ""
    return f"{row.value:.3f}{interval}"


def _is_baseline(row: Row) -> bool:
    return row.model == RANDOM


def _splits_table(splits: Sequence[SplitFacts]) -> str:
    rows = [(s.corpus, s.split, s.clips, f"{s.hours:.2f}", s.speakers or UNKNOWN) for s in splits]
    return table(("corpus", "split", "clips", "hours", "speakers"), rows, numbers=3)


def _licences_table(facts: CardFacts) -> str:
    start = facts.base_licence or _BASE_LICENCES.get(facts.base_hub_id or "", UNKNOWN)
    start = "none, random weights" if facts.backbone.startswith("random:") else start
    corpora = dict.fromkeys(split.corpus for split in facts.splits)
    rows = [
        ("this model", UNKNOWN),
        (f"start: {facts.backbone}", start),
        *((f"data: {corpus}", _DATA_LICENCES.get(corpus, UNKNOWN)) for corpus in corpora),
    ]
    return table(("of", "terms"), rows)


def learning_curve(
    history: Sequence[Mapping[str, Any]], *, width_in: float = plotting.WIDTH_IN
) -> plotting.Picture:
    """Draw CCC by dimension and UAR on the dev set over the training loss, by epoch.

    Args:
        history: one record per epoch with `epoch` (from 1), `train_loss`, `dev_ccc` (dimension to
            CCC, or None), `dev_uar` (or none) and `kept` (whether this epoch's weights were stored
            as the best so far). Missing and NaN values leave gaps; without any CCC or UAR there is
            no panel for it.
        width_in: of the picture.

    Returns:
        The picture as `png` and `svg`, identical bytes for identical histories.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError("a learning curve needs at least one epoch")
    return plotting.picture(lambda: _draw(history, width_in))


def _draw(history: Sequence[Mapping[str, Any]], width_in: float) -> Any:
    kept = next((r["epoch"] for r in reversed(history) if r.get("kept")), None)
    ccc = {d: [(r["epoch"], (r.get("dev_ccc") or {}).get(d)) for r in history] for d in DIMENSIONS}
    curves = {name: found for name, points in ccc.items() if (found := _known(points))}
    measures = ["CCC"] if curves else []
    if uar := _known((r["epoch"], r.get("dev_uar")) for r in history):
        curves["UAR"] = uar
        measures.append("UAR")
    heights = [_SCORES_IN, _LOSS_IN] if curves else [_SCORES_IN]
    figure = plotting.new_figure(sum(heights) + 0.9 * len(heights), width_in)
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if curves:
        _draw_scores(axes[0], f"{' and '.join(measures)} on the dev set", curves, kept)
    plotting.panel_title(axes[-1], "Training loss")
    if losses := _known((r["epoch"], r["train_loss"]) for r in history):
        _line(axes[-1], losses, plotting.INK)
        values = [value for _, value in losses]
        low, high = min(0.0, *values), max(0.0, *values)
        room = (high - low) * 0.1 or 0.1
        axes[-1].set_ylim(low - room if low < 0 else low, high + room)
        plotting.end_label(axes[-1], values[-1], f"{values[-1]:.3f}", plotting.INK)
    for axis in axes:
        _finish(axis, history[0]["epoch"], history[-1]["epoch"], kept)
    if kept is not None:  # above its line, on the side where there is room
        first, last = axes[0].get_xlim()
        side = "left" if kept < (first + last) / 2 else "right"
        place = (kept, 1.0), ("data", "axes fraction")
        plotting.above(axes[0], *place, 0, f"kept: epoch {kept}", ha=side)
    return figure


def _draw_scores(axis: Any, title: str, curves: Mapping[str, _Points], kept: int | None) -> None:
    plotting.panel_title(axis, title, pad_pt=16)
    lowest = min(value for points in curves.values() for _, value in points)
    axis.set_ylim(min(0.0, math.floor(lowest * 10) / 10), 1.0)
    labels = {}
    for name, points in curves.items():
        colour = plotting.COLOURS.get(name, plotting.INK)
        _line(axis, points, colour)
        shown = next((y for x, y in points if x == kept), None)
        if shown is not None and kept is not None:
            plotting.dot(axis, shown, kept, colour, along="y", ms=6.5, mew=1.2)
        last = points[-1][1]
        labels[f"{name} {last if shown is None else shown:.2f}"] = (last, colour)
    plotting.end_labels(axis, labels)
    if kept is not None and kept != max(points[-1][0] for points in curves.values()):
        plotting.above(axis, (1.0, 1.0), "axes fraction", 6, f"epoch {kept}")


def _finish(axis: Any, first: int, last: int, kept: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    room = max(0.5, (last - first) * 0.02)
    axis.set_xlim(first - room, last + room)
    ticks = MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    wide = [t for t in ticks.tick_values(first, last) if (last - first) / 25 < t - first]
    axis.set_xticks(sorted({first, *(tick for tick in wide if tick <= last)}))
    rows = 6 if axis.get_subplotspec().is_first_row() else 4
    axis.yaxis.set_major_locator(MaxNLocator(nbins=rows, steps=[1, 2, 5, 10]))
    axis.grid(axis="y")
    if kept is not None:
        plotting.guide(axis, kept)
    if axis.get_subplotspec().is_last_row():
        axis.set_xlabel("epoch", loc="right")
    else:
        axis.tick_params(labelbottom=False, length=0)


def _line(axis: Any, points: _Points, colour: str) -> None:
    """A line broken where epochs have no value; an epoch on its own is a dot."""
    known = dict(points)
    epochs = range(points[0][0], points[-1][0] + 1)
    marker = "o" if len(points) == 1 else None
    heights = [known.get(epoch, math.nan) for epoch in epochs]
    plotting.line(axis, list(epochs), heights, colour, marker=marker)


def _known(points: Iterable[tuple[int, float | None]]) -> _Points:
    return [(x, float(y)) for x, y in points if y is not None and math.isfinite(y)]

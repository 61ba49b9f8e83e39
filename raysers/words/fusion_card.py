"""Does text help? Differences of the fused scores (Figure 6), as one line, figure and card.

Fused scores are compared with the acoustic model, the audio head and the text head: the same clips,
and the same draws of speakers for both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysers.evaluation.rows import Row, number
from raysers.plotting import (
    COLOURS,
    Picture,
    guide,
    interval,
    name_rows,
    new_figure,
    panel_title,
    picture,
    value_grid,
)
from raysers.text import fenced, one_line, plain, table
from raysers.types import DIMENSIONS

#: Names of the contestants, the fused one first; `model` and `group_value` of the rows.
FUSED, ACOUSTIC, AUDIO_HEAD, TEXT_HEAD = "fused", "acoustic model", "audio head", "text head"
OTHERS = (ACOUSTIC, AUDIO_HEAD, TEXT_HEAD)
#: Contestant by the name its head has in a fusion's folder.
OF_HEAD = {"fused": FUSED, "audio": AUDIO_HEAD, "text": TEXT_HEAD}
DIFFERENCE = "ccc_difference"
#: The picture of Figure 6, in both formats.
FIGURE = "differences"
_INTENDED = """\
Research on what text and voice each say about emotion. It is no better than the two models it is \
built on, and their licences and limits apply: it is not for decisions about a person."""


def differences(rows: Sequence[Row]) -> list[Row]:
    """The rows of Figure 6: CCC fused minus CCC of another, by subset, other and dimension."""
    return [
        row
        for row in rows
        if row.metric == DIFFERENCE and row.model == FUSED and row.group == "model"
    ]


def main_split(rows: Sequence[Row]) -> str:
    """The split to judge by: a test split where there is one, else dev."""
    splits = sorted({row.split for row in rows})
    tests = [split for split in splits if split.startswith("test")]
    return next(iter(tests or ["dev"] * ("dev" in splits) or splits), "")


def verdict(rows: Sequence[Row]) -> str:
    """One line: the dimensions in which text helps, and those in which it does not.

    It helps where the whole interval of the CCC of the fused head minus that of the acoustic model
    is above 0.
    """
    found = [row for row in differences(rows) if row.group_value == ACOUSTIC]
    shown = [row for row in found if row.split == main_split(found)]
    lines = [
        (row.ci_low > 0, f"{row.dimension} {_difference_text(row)}")
        for row in shown
        if row.value == row.value
    ]
    if not lines:
        return "text does not help: the fused head cannot be compared with the acoustic model"
    words = {True: "text helps", False: "text does not help"}
    parts = [
        f"{words[good]}: {', '.join(text for helps, text in lines if helps == good)}"
        for good in (True, False)
        if any(helps == good for helps, _ in lines)
    ]
    return f"{'; '.join(parts)} (CCC fused - acoustic model, {shown[0].split})"


def _difference_text(row: Row) -> str:
    """`+.123 [.012, .234]`."""
    text = f"{'+' if row.value > 0 else ''}{number(row.value)}"
    return text + _bounds(row)


def _bounds(row: Row) -> str:
    known = row.ci_low == row.ci_low
    return f" [{number(row.ci_low)}, {number(row.ci_high)}]" if known else ""


def differences_figure(rows: Sequence[Row]) -> Picture:
    """CCC of fused scores minus CCC of the others, a panel for each dimension with labels.

    Args:
        rows: of `fusion_rows`; other metrics are skipped.

    Returns:
        Empty when there is no difference to show.
    """
    found = differences(rows)
    split = main_split(found)
    shown = [row for row in found if row.split == split]
    return picture(lambda: _draw(shown, split)) if shown else {}


def _draw(rows: Sequence[Row], split: str) -> Any:
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    lines = [(dataset, other) for dataset in datasets for other in OTHERS]
    figure = new_figure(0.95 + 0.3 * len(lines))
    there = [name for name in DIMENSIONS if name in {row.dimension for row in rows}]
    panels = figure.subplots(1, len(there), sharex=True, sharey=True, squeeze=False)[0]
    for axis, dimension in zip(panels, there, strict=True):
        panel_title(axis, dimension)
        guide(axis, 0.0)
        for row in rows:
            if row.dimension == dimension:
                at = lines.index((row.dataset, row.group_value))
                interval(axis, row.value, (row.ci_low, row.ci_high), at, COLOURS[dimension])
        value_grid(axis, "x", most=4)
    name_rows(panels[0], [f"{d}: {o}" if len(datasets) > 1 else o for d, o in lines])
    figure.supxlabel(f"CCC fused - CCC of the other, {split} clips; lines are 95 % intervals")
    return figure


def fusion_card(
    *,
    name: str,
    parts: Sequence[tuple[str, str, str]],
    clips: Mapping[tuple[str, str], int],
    recipe: Mapping[str, object],
    kept: Mapping[str, tuple[int, float]],
    rows: Sequence[Row],
    command: str,
    notes: Sequence[str],
    leakage: Sequence[str],
    has_figure: bool,
) -> str:
    """The card of a fusion as Markdown: parts, data, recipe, CCC, and whether text helps.

    Args:
        name: of the fusion.
        parts: role, name and revision of its models.
        clips: number of labelled clips by corpus and split.
        recipe: settings of the heads.
        kept: by head, the epoch that was kept and its mean dev CCC.
        rows: of `fusion_rows`.
        command: of the training.
        notes: warnings.
        leakage: what train shares with other splits; empty: nothing.
        has_figure: whether the picture is in the folder.
    """
    counts = [[c or "unnamed", s, f"{n:,}"] for (c, s), n in clips.items()]
    epochs = [[head, epoch, number(ccc)] for head, (epoch, ccc) in kept.items()]
    found = differences(rows)
    compared = _by_dimension(found, "group_value", "fused - {}", _difference_text)
    ccc = _by_dimension(
        [row for row in rows if row.metric == "ccc"],
        "model",
        "{}",
        lambda row: number(row.value) + _bounds(row),
    )
    warnings = [
        f"**Trained with leaking splits: {plain(leak)}. The figures are too good.**"
        for leak in leakage[:1]
    ]
    sections = [
        f"# {plain(name)}",
        "Arousal, dominance and valence (about 0..1) from audio and text: two-layer heads on the "
        "pooled vectors of a frozen speech model and a frozen text model.",
        *warnings,
        "## Made of",
        table(["part", "name", "revision"], parts),
        "## Trained on",
        table(["corpus", "split", "clips"], counts, numbers=1),
        table(["setting", "value"], [[key, value] for key, value in recipe.items()]),
        table(["head", "epoch kept", "its mean dev CCC"], epochs, numbers=2),
        "## CCC",
        table(["", *DIMENSIONS], ccc),
        "Dev clips chose the epoch of every head, so their figures are on the high side.",
    ]
    if found:
        sections += [
            "## Does text help?",
            "CCC of the fused head minus CCC of the other, with 95 % intervals of paired draws.",
            table(["", *DIMENSIONS], compared),
            f"{verdict(rows)}.",
        ]
    if has_figure:
        sections.append(f"![CCC differences]({FIGURE}.png)")
    if notes:
        sections.append("\n".join(f"- {plain(note)}" for note in notes))
    predict = f"raysers fuse predict --fusion {one_line(name)} --input AUDIO"
    sections += ["## Use", fenced(f"{predict} --output OUT", "sh"), _INTENDED]
    return "\n\n".join([*sections, fenced(one_line(command), "sh")]) + "\n"


def _by_dimension(rows: Sequence[Row], of: str, name: str, text: Any) -> list[list[str]]:
    """A line for each dataset, split and value of the attribute `of`, a cell a dimension."""
    found = {(r.dataset, r.split, getattr(r, of), r.dimension): r for r in rows}
    return [
        [
            f"{dataset} {split}: {name.format(value)}",
            *(
                text(found[k]) if (k := (dataset, split, value, d)) in found else ""
                for d in DIMENSIONS
            ),
        ]
        for dataset, split, value in dict.fromkeys(key[:3] for key in found)
    ]

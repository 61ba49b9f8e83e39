"""The card of a fusion: what it is made of, what it was trained on, and whether words helped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raysers.evaluation.rows import Row
from raysers.evaluation.tables import number
from raysers.text import fenced, one_line, plain, table
from raysers.types import DIMENSIONS
from raysers.words.fusion_scores import differences_table

#: The picture a card shows, in the same folder.
FIGURE_FILE = "differences.png"

_INTENDED = """\
Research on what words and voice each say about emotion. It is no better than the two models it \
sits on, and their licences and limits are its own: it is not for decisions about a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionFacts:
    """What the card says.

    Attributes:
        name: of the fusion.
        parts: what it is made of: role, name, revision.
        clips: labelled clips by corpus and split.
        recipe: settings of the heads.
        kept: by head, the epoch that was kept and its mean dev CCC.
        rows: of `fusion_rows`.
        command: that made it.
        notes: what the user should know.
        leakage: what train shares with other splits; empty: nothing.
        has_figure: whether the picture is there.
    """

    name: str
    parts: Sequence[tuple[str, str, str]]
    clips: Mapping[tuple[str, str], int]
    recipe: Mapping[str, object]
    kept: Mapping[str, tuple[int, float]]
    rows: Sequence[Row]
    command: str
    notes: Sequence[str]
    leakage: Sequence[str]
    has_figure: bool


def fusion_card(facts: FusionFacts) -> str:
    """The card as Markdown."""
    return "\n\n".join(_sections(facts)) + "\n"


def _sections(facts: FusionFacts) -> Iterator[str]:
    yield f"# {plain(facts.name)}"
    yield (
        "Arousal, dominance and valence (about 0..1) from sound and words together: two-layer "
        "heads on the pooled vectors of a frozen speech model and a frozen text model."
    )
    if facts.leakage:
        leak = plain(facts.leakage[0])
        yield f"**Trained with leaking splits: {leak}. The figures are too good.**"
    yield "## Made of"
    yield table(["part", "name", "revision"], facts.parts)
    yield "## Trained on"
    counts = [[c or "unnamed", s, f"{n:,}"] for (c, s), n in facts.clips.items()]
    yield table(["corpus", "split", "clips"], counts, numbers=1)
    yield table(["setting", "value"], [[name, value] for name, value in facts.recipe.items()])
    kept = [[name, epoch, number(ccc)] for name, (epoch, ccc) in facts.kept.items()]
    yield table(["head", "epoch kept", "its mean dev CCC"], kept, numbers=2)
    yield "## CCC"
    yield table(["", *DIMENSIONS], _ccc_lines(facts.rows))
    yield "Dev clips chose the epoch of every head, so their figures are on the high side."
    if text := differences_table(facts.rows):
        yield "## Does text help?"
        yield "CCC of the fused head minus CCC of the other, with 95 % intervals of paired draws."
        yield text
    if facts.has_figure:
        yield f"![CCC differences]({FIGURE_FILE})"
    if facts.notes:
        yield "\n".join(f"- {plain(note)}" for note in facts.notes)
    yield "## Use"
    predict = f"raysers fuse predict --fusion {one_line(facts.name)} --input AUDIO"
    yield fenced(f"{predict} --output OUT", "sh")
    yield _INTENDED
    yield fenced(one_line(facts.command), "sh")


def _ccc_lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    found = {(r.dataset, r.split, r.model, r.dimension): r for r in rows if r.metric == "ccc"}
    keys = dict.fromkeys(key[:3] for key in found)
    for dataset, split, model in keys:
        cells = [found.get((dataset, split, model, name)) for name in DIMENSIONS]
        texts = ["" if row is None else _with_interval(row) for row in cells]
        yield [f"{dataset} {split}: {model}", *texts]


def _with_interval(row: Row) -> str:
    if row.ci_low != row.ci_low:
        return number(row.value)
    return f"{number(row.value)} [{number(row.ci_low)}, {number(row.ci_high)}]"

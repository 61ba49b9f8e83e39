"""The paper's figures from the runs: one row per figure, what it shows and what makes its data.

A figure without data is not left out: it becomes a line of what is missing, with the command.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from raysers.report import numbers
from raysers.report.charts import dots_chart, points_chart
from raysers.report.dots import DotStyle
from raysers.report.evidence import ReportData
from raysers.report.lines import LineStyle
from raysers.report.map_section import map_charts
from raysers.report.parts import Chart, Exhibit, Fact, Missing
from raysers.report.probe_section import respoken_charts, sentence_charts, word_charts
from raysers.report.values import Value, by_study, by_themselves

_INTERVAL = "with its 95 % interval"
CCC = DotStyle(axis=f"CCC {_INTERVAL}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of the paper.

    Attributes:
        number: in the paper.
        title: what it is about.
        lead: how to read it.
        charts: from what the runs say; none: the data are missing.
        needs: what is missing then.
        command: that makes it.
        measured: what would be its dots; not given where it is of one study only.
    """

    number: int
    title: str
    lead: str
    charts: Callable[[ReportData], Iterator[Chart | None]]
    needs: str
    command: str
    measured: Callable[[Sequence[Value]], Sequence[object]] = lambda _: ()


@cache
def paper_document() -> dict[str, Any]:
    """Related work and the paper's statements, as they come with the package."""
    text = resources.files("raysers").joinpath("assets/report/paper_report.json").read_text("utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def paper_facts(key: str) -> list[Fact]:
    """What the paper says in numbers about one of its figures."""
    return [Fact(**row) for row in paper_document()["facts"].get(key, ())]


def _correctness(found: ReportData) -> Iterator[Chart | None]:
    yield dots_chart("figure-2", "", numbers.correctness(found.values), CCC, row="model")


def _robustness(found: ReportData) -> Iterator[Chart | None]:
    share = f"share of scores unchanged {_INTERVAL}"
    how = DotStyle(axis=share)
    models = numbers.robustness_by_model(found.values)
    yield dots_chart("figure-3-models", "mean over perturbations", models, how, row="model")
    changes = numbers.robustness_by_change(found.values)
    yield dots_chart(
        "figure-3", "by perturbation", changes, how, row="perturbation", series="model"
    )


def _fairness(found: ReportData) -> Iterator[Chart | None]:
    for metric, title, axis in (
        ("sex_fairness_score", "score", "CCC of women minus CCC of men"),
        ("sex_fairness_bias", "bias", "shift of women's values minus that of men's"),
    ):
        how = DotStyle(axis=f"{axis}, {_INTERVAL}", limits=(-0.1, 0.1), at=0.0, digits=3)
        dots = numbers.fairness(found.values, metric)
        yield dots_chart(f"figure-4-{title}", title, dots, how, row="model")


def _speakers(found: ReportData) -> Iterator[Chart | None]:
    axis = "CCC, mean over draws, with their middle 95 %"
    how = DotStyle(axis=axis)
    dots = numbers.speakers(found.values)
    yield dots_chart("figure-5", "by speaker", dots, how, row="speaker", series="model")
    ranks = DotStyle(axis="rank correlation of speakers (Spearman)", limits=(-1.0, 1.0), at=0.0)
    pairs = numbers.speaker_ranks(found.values)
    yield dots_chart("figure-5-ranks", "do two models agree?", pairs, ranks, row="models")


def _by_factor(study: str, key: str) -> Callable[[ReportData], Iterator[Chart | None]]:
    def charts(found: ReportData) -> Iterator[Chart | None]:
        dots = numbers.by_factor(found.values, study)
        yield dots_chart(key, "", dots, CCC, row="model", series="variant")

    return charts


def _fusion(found: ReportData) -> Iterator[Chart | None]:
    axis = "CCC of fused scores minus CCC of the other, with its paired 95 % interval"
    how = DotStyle(axis=axis, limits=(-0.1, 0.1), at=0.0, digits=3)
    dots = numbers.fusion(found.values)
    yield dots_chart("figure-6", "", dots, how, row="against")


def _curves(found: ReportData) -> Iterator[Chart | None]:
    how = LineStyle(axis="epoch", values="CCC")
    yield points_chart("figure-12", "", numbers.learning(found.curves), how, bounds="± 1 sd")


def _over(study: str, key: str, how: LineStyle) -> Callable[[ReportData], Iterator[Chart | None]]:
    def charts(found: ReportData) -> Iterator[Chart | None]:
        points = numbers.over_numbers(found.values, study)
        yield points_chart(key, "", points, how, bounds="95 %")

    return charts


def percent(share: float) -> str:
    """A share as a tick."""
    return f"{100 * share:g} %"


_STUDY = "raysers study --study {} --data CORPUS --output STUDY"

FIGURES = (
    Figure(
        number=2,
        title="How well the models predict, on their own corpus and on others",
        lead="Concordance (CCC) with the labels: 1 is agreement in order, mean and spread, 0 is "
        "chance. Grey is the random model.",
        charts=_correctness,
        measured=numbers.correctness,
        needs="No evaluation is among the runs.",
        command="raysers evaluate --labels CORPUS --predictions ANNOTATED --output EVALUATED",
    ),
    Figure(
        number=3,
        title="What small changes of the sound do to the scores",
        lead="Share of scores that move by less than .05 when the clip is changed in a way that "
        "should not matter. It says nothing about being right.",
        charts=_robustness,
        measured=numbers.robustness_by_model,
        needs="No robustness run is among the runs.",
        command="raysers robustness --input CORPUS --model MODEL --output ROBUSTNESS",
    ),
    Figure(
        number=4,
        title="Whether women and men are treated alike",
        lead="0 is fair. The score compares how well the two are predicted, the bias how far "
        "their values are shifted.",
        charts=_fairness,
        measured=lambda values: numbers.fairness(values, "sex_fairness_score"),
        needs="No evaluation knows clips of both sexes.",
        command="raysers evaluate --labels CORPUS --speakers SEXES.csv "
        "--predictions ANNOTATED --output EVALUATED",
    ),
    Figure(
        number=5,
        title="Which speakers are hard, and whether models agree on them",
        lead="The same number of clips is drawn from every speaker, again and again. Speakers "
        "are sorted by their mean.",
        charts=_speakers,
        measured=numbers.speakers,
        needs="No evaluated speaker has more clips than are drawn (200, as in the paper).",
        command="raysers evaluate --labels CORPUS --predictions ANNOTATED "
        "--speaker-samples 30 --output EVALUATED",
    ),
    Figure(
        number=6,
        title="Whether the words help beside the sound",
        lead="To the right of 0 the fused scores agree better with the labels than those they are "
        "compared with, on the same clips.",
        charts=_fusion,
        needs="No trained fusion is among the runs.",
        command="raysers fuse train --data CORPUS --model MODEL --output FUSION",
    ),
    Figure(
        number=7,
        title="What pre-training is worth",
        lead="The same network from pre-trained and from random weights.",
        charts=_by_factor("pretraining", "figure-7"),
        needs="No cell of the study pretraining is among the runs.",
        command=_STUDY.format("pretraining"),
    ),
    Figure(
        number=8,
        title="Where the embeddings lie",
        lead="Each dot is a clip, near its like (t-SNE). Colours tell what the clips have in "
        "common; distances between groups mean nothing.",
        charts=map_charts,
        needs="No annotation has embeddings of at least 20 clips, or scikit-learn is not there "
        "(pip install 'raysers[report]').",
        command="raysers annotate --input CORPUS --embeddings --output ANNOTATED",
    ),
    Figure(
        number=9,
        title="What fine-tuning the whole network adds to its frozen embeddings",
        lead="The same pre-trained network with only the head trained, and fine-tuned.",
        charts=_by_factor("frozen", "figure-9"),
        needs="No cell of the study frozen is among the runs.",
        command=_STUDY.format("frozen"),
    ),
    Figure(
        number=10,
        title="Which words go with low and high valence, and how models score them",
        lead="Words by the mean valence of the clips they are said in, and the scores of spoken "
        "sentences whose words, not whose voice, are positive or negative.",
        charts=lambda found: iter([*word_charts(found), *sentence_charts(found)]),
        needs="No probe is among the runs.",
        command="raysers probe --model MODEL --data CORPUS --output PROBE",
    ),
    Figure(
        number=11,
        title="What is left when a neutral voice says the same words",
        lead="The test clips re-spoken from their transcripts: only the words can tell.",
        charts=respoken_charts,
        needs="No probe with re-spoken clips is among the runs.",
        command="raysers probe --model MODEL --data CORPUS --output PROBE",
    ),
    Figure(
        number=12,
        title="How steady training is",
        lead="Mean CCC on the dev set over the seeds, with one standard deviation to each side.",
        charts=_curves,
        needs="No learning curves of the study seeds are among the runs.",
        command=_STUDY.format("seeds"),
    ),
    Figure(
        number=13,
        title="How many layers are needed",
        lead="The network cut above its lowest layers before it is fine-tuned.",
        charts=_over("layers", "figure-13", LineStyle(axis="layers")),
        needs="No cell of the study layers is among the runs.",
        command=_STUDY.format("layers"),
    ),
    Figure(
        number=14,
        title="How much labelled data is needed",
        lead="Fine-tuned on nested parts of the training clips.",
        charts=_over(
            "fraction",
            "figure-14",
            LineStyle(axis="share of the training clips", tick=percent, log=True),
        ),
        needs="No cell of the study fraction is among the runs.",
        command=_STUDY.format("fraction"),
    ),
)


def paper_figures(found: ReportData) -> tuple[list[Exhibit], list[Missing]]:
    """The figures there are data for, and the others."""
    exhibits: list[Exhibit] = []
    missing: list[Missing] = []
    for figure in FIGURES:
        charts = [chart for chart in figure.charts(found) if chart is not None]
        if charts:
            exhibits.append(_exhibit(figure, charts))
        else:
            name, why = f"Figure {figure.number}", _why(figure, found)
            missing.append(Missing(name=name, title=figure.title, why=why, command=figure.command))
    return exhibits, missing


def _why(figure: Figure, found: ReportData) -> str:
    """Why there is none: nothing was measured, or only in studies that are shown by themselves."""
    studies = by_study(found.values)
    others = [name for name, own in studies.items() if figure.measured(by_themselves(own))]
    if not others:
        return figure.needs
    return f"What the runs measured of it is of other studies: {', '.join(others)}."


def _exhibit(figure: Figure, charts: Sequence[Chart]) -> Exhibit:
    key = f"figure-{figure.number}"
    return Exhibit(
        key=key,
        name=f"Figure {figure.number}",
        title=figure.title,
        lead=figure.lead,
        charts=charts,
        facts=paper_facts(key),
    )

"""The paper's figures from the runs: one row per figure, what it shows and what makes its data.

Studies that are none of the paper's are shown by themselves with the same charts, never mixed with
others: their models may be trained in other ways under the same names. A comparison is drawn only
of models of which at least two variants have been measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from raysers.display import Picture, printable
from raysers.evaluation.published import asset, paper_numbers
from raysers.evaluation.scores import RANDOM
from raysers.io import storage
from raysers.report.charts import (
    MOST_SERIES,
    Chart,
    Dots,
    Exhibit,
    Lines,
    Missing,
    Table,
    chart,
    dots,
    frame_table,
    table,
)
from raysers.report.embeddings import map_charts
from raysers.report.evidence import (
    PAPER_STUDIES,
    PARTS,
    Evidence,
    by_themselves,
    factor_values,
    frame_of,
    is_network,
    main_splits,
    of_studies,
    over_seeds,
    own_studies,
)
from raysers.robustness.comparison import paper_share
from raysers.types import DIMENSIONS

_INTERVAL = "with its 95 % interval"
_COMMAND = "raysers study --study FILE.yaml --data CORPUS --output STUDY"
#: Jobs whose cells leave values of a study; what the others leave is in figures of any study.
_MEASURING = ("train", "evaluate", "robustness")
_ALL = "all"  # the dataset of means over datasets


def paper_document() -> dict[str, Any]:
    """Texts of the figures, related work and the paper's statements, as they come with raysers."""
    return asset("report/paper_report")


def correctness(metrics: pd.DataFrame) -> pd.DataFrame:
    """Figure 2: CCC by dataset, dimension and model."""
    found = of_studies(metrics, "backbones")
    found = over_seeds(_ccc(found[~found.model.isin(PARTS)]))
    return dots(found, found.model)


def _ccc(metrics: pd.DataFrame) -> pd.DataFrame:
    """CCC of whole datasets, each by its main split."""
    whole = (metrics.metric == "ccc") & (metrics.group == "") & (metrics.dataset != _ALL)
    return main_splits(metrics[whole])


def _robustness(metrics: pd.DataFrame) -> pd.DataFrame:
    found = of_studies(metrics, "robustness")
    found = found[(found.group == "") & found.dimension.isin(DIMENSIONS)]
    return found[found.metric.str.startswith("robustness")]


def robustness_by_model(metrics: pd.DataFrame) -> pd.DataFrame:
    """Figure 3: mean share of unchanged scores over the small perturbations, by model."""
    found = _robustness(metrics)
    found = over_seeds(found[found.metric == "robustness"])
    return dots(found, found.model)


def robustness_by_change(metrics: pd.DataFrame) -> pd.DataFrame:
    """Figure 3: share of unchanged scores by perturbation; each model is a series."""
    found = _robustness(metrics)
    found = over_seeds(found[(found.metric != "robustness") & (found.model != RANDOM)])
    change = found.metric.str.removeprefix("robustness_").str.replace("_", " ")
    return dots(found, change, found.model)


def robustness_means(metrics: pd.DataFrame, of: str) -> pd.DataFrame:
    """Section 4.5: mean share of unchanged scores by `model`, or by `perturbation` over the models.

    Beside the paper's means only where corpora and perturbations are those of the paper.
    """
    found = main_splits(_robustness(metrics))
    found = found[(found.metric == "robustness") == (of == "model")]
    if of == "perturbation":
        found = found[found.model != RANDOM]
    name = found.model if of == "model" else found.metric.str.removeprefix("robustness_")
    means = found.groupby(name, sort=False).value.agg(value="mean", n="count")
    means = means.reset_index(names="row")
    is_paper = set(found.dataset) == set(paper_numbers().datasets)
    return means.assign(
        row=means.row.str.replace("_", " "), column="mean", series="", low=math.nan, high=math.nan,
        block="mean over corpora and dimensions" + ", and models" * (of != "model"),
        paper=means.row.map(paper_share) if is_paper else math.nan,
    )  # fmt: skip


def fairness(metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Figure 4: CCC of women minus that of men, or the shift of their values, by model."""
    found = of_studies(metrics, "backbones", "fairness")
    found = found[(found.metric == metric) & found.dimension.isin(DIMENSIONS)]
    found = over_seeds(main_splits(found[found.model != RANDOM]))
    return dots(found, found.model)


def speakers(metrics: pd.DataFrame) -> pd.DataFrame:
    """Figure 5: CCC of every speaker, those with the lowest mean first; models are series."""
    found = of_studies(metrics, "backbones", "speakers")
    found = over_seeds(main_splits(found[found.metric == "speaker_ccc"]))
    mean = found.groupby(["dataset", "split", "group_value"]).value.transform("mean")
    found = found.assign(mean=mean, place=pd.factorize(found.model)[0], speakers=0)
    found = found.sort_values(["dataset", "split", "mean", "group_value", "place"], kind="stable")
    return dots(found, found.group_value, found.model)


def speaker_ranks(metrics: pd.DataFrame) -> pd.DataFrame:
    """Figure 5: rank correlation of the speakers between two models."""
    found = of_studies(metrics, "backbones", "speakers")
    found = over_seeds(found[found.metric == "speaker_spearman"])
    return dots(found, found.model + " and " + found.group_value)


def fusion(metrics: pd.DataFrame) -> pd.DataFrame:
    """Figure 6: CCC of fused scores minus that of the acoustic model, and of either head."""
    of_fused = (metrics.metric == "ccc_difference") & (metrics.model == PARTS[0])
    found = over_seeds(main_splits(metrics[of_fused]))
    return dots(found, (found.group_value + ", " + found.backbone).str.removesuffix(", "))


def by_factor(metrics: pd.DataFrame, study: str) -> pd.DataFrame:
    """Figures 7 and 9: CCC by model, once for each value of what the study varies."""
    found = over_seeds(_ccc(metrics[(metrics.study == study) & (metrics.model != RANDOM)]))
    found = dots(found, found.model, found.factor_value)
    known = found.series.where(found.value.notna())
    several = known.groupby([found.block, found.row]).transform("nunique") > 1
    if not several.any() and found.series.nunique() > 1:
        return found  # models that differ in it, instead of models with and without
    return found[several]


def over_numbers(metrics: pd.DataFrame, study: str) -> pd.DataFrame:
    """Figures 13 and 14: CCC over layers or share of data; lines are models and datasets."""
    found = _ccc(metrics[(metrics.study == study) & (metrics.model != RANDOM)])
    several = [name for name in ("model", "dataset") if found[name].nunique() > 1] or ["dataset"]
    found = over_seeds(found.assign(factor=""))
    model = found.model.str.replace(r", [\d to]+ seeds$", "", regex=True)
    parts = [model if name == "model" else found[name] for name in several]
    series = parts[0] if len(parts) == 1 else parts[0] + ", " + parts[1]
    points = pd.DataFrame(
        {"column": found.dimension, "series": series, "x": found.factor_value.map(number_in),
         "value": found.value, "low": found.ci_low, "high": found.ci_high, "n": found.seeds}
    )  # fmt: skip
    return points.dropna(subset="x").sort_values(["column", "series", "x"], ignore_index=True)


def number_in(text: str) -> float:
    """The number a factor's value stands for; NaN when it is none.

    >>> number_in("12"), number_in("25 %"), number_in("all")
    (12.0, 0.25, nan)
    """
    try:
        number = float(text.strip().rstrip("% "))
    except ValueError:
        return math.nan
    return number / 100 if text.strip().endswith("%") else number


def learning(curves: pd.DataFrame, study: str = "seeds") -> pd.DataFrame:
    """Figure 12: mean dev CCC over the seeds by epoch, with one standard deviation to each side.

    Evaluations between epochs lie at their share of the steps.
    """
    if curves.empty:
        return pd.DataFrame(columns=["column", "series", "x", "value", "low", "high", "n"])
    found = curves[(curves.study == study) & curves.dimension.isin(DIMENSIONS)].dropna(subset="ccc")
    last = found.groupby("model")[["epoch", "step"]].transform("max")
    found = found.assign(x=(found.step * last.epoch / last.step).fillna(found.epoch))
    keys = ["dimension", "model", "x"]
    found = found.drop_duplicates([*keys, "seed"], keep="last")
    found = found.groupby(keys).ccc.agg(value="mean", sd="std", n="size").reset_index()
    found = found.assign(low=found.value - found.sd, high=found.value + found.sd)
    return found.rename(columns={"dimension": "column", "model": "series"})


def percent(share: float) -> str:
    """A share as a tick."""
    return f"{100 * share:g} %"


def pictures_of(folder: str) -> dict[str, Picture]:
    """Pictures a job left beside its tables, by name, as `svg` and `png`."""
    found: dict[str, Picture] = {}
    for uri in sorted(one.uri for one in storage.list_objects(folder, suffixes={".svg", ".png"})):
        place, _, file = uri.rpartition("/")
        if place == folder.rstrip("/"):
            name, _, kind = file.rpartition(".")
            found.setdefault(name, {})[kind.lower()] = storage.read_bytes(uri)
    return found


def _probed(found: Evidence, kinds: Sequence[str], number: int) -> Iterator[Chart]:
    """Pictures of the word probes as their jobs drew them, with their numbers."""
    for place, run in enumerate(found.of_job("probe")):
        pictures = pictures_of(run.folder)
        for kind in kinds:
            own = {n: one for n, one in pictures.items() if n.startswith(kind)}
            files = {f"figure-{number}-{place}-{name}": one for name, one in own.items()}
            alt = f"Pictures of the word probe ({', '.join(own)}); the numbers are in the table."
            numbers = _words(run.folder) if kind == "word" else _group(found.metrics, kind)
            if own:
                yield Chart(f"{kind}, {run.name}", alt, files, numbers)


def _words(folder: str) -> Table:
    words = frame_of(folder, "words")
    words = words[words.side.fillna("") != ""].sort_values("valence") if len(words) else words
    known = ("word", "source", "side", "valence", "ci_low", "ci_high", "occurrences")
    columns = [name for name in known if name in words]
    return frame_table("Words by the mean valence of the clips they are said in", words[columns])


def _group(metrics: pd.DataFrame, kind: str) -> Table:
    own = metrics[metrics.group == {"sentiment": "sentiment", "respoken": "speech"}[kind]]
    columns = ["group_value", "metric", "model", "dataset", "split", "dimension", "value"]
    own = own[[*columns, "ci_low", "ci_high", "n", "speakers"]]
    own = own.astype({"n": int, "speakers": int}).rename(columns={"n": "clips"})
    return frame_table("Values with their 95 % intervals", own)


_CCC = partial(Dots, axis=f"CCC {_INTERVAL}")
_DIFFERENCE = partial(Dots, limits=(-0.1, 0.1), at=0.0, digits=3)
_UNCHANGED = partial(Dots, axis=f"share of scores unchanged {_INTERVAL}")
#: By number of the figure, its dot and line charts, or what makes its charts of all the evidence.
CHARTS: Mapping[int, Sequence[Dots | Lines] | Callable[[Evidence], Iterator[Chart]]] = {
    2: [_CCC(key="figure-2", rows=correctness)],
    3: [
        _UNCHANGED(key="figure-3-models", title="mean over perturbations",
                   rows=robustness_by_model),
        _UNCHANGED(key="figure-3", title="by perturbation", rows=robustness_by_change,
                   row="perturbation", series="model"),
        *(
            _UNCHANGED(key=f"figure-3-mean-{of}", row=of, rows=partial(robustness_means, of=of),
                       title=f"mean over all but the {of} (section 4.5)")
            for of in ("model", "perturbation")
        ),
    ],
    4: [
        _DIFFERENCE(key=f"figure-4-{name}", title=name, axis=f"{axis}, {_INTERVAL}",
                    rows=partial(fairness, metric=f"sex_fairness_{name}"))
        for name, axis in (
            ("score", "CCC of women minus CCC of men"),
            ("bias", "shift of women's values minus that of men's"),
        )
    ],
    5: [
        Dots(key="figure-5", title="by speaker", rows=speakers, row="speaker", series="model",
             axis="CCC, mean over draws, with their middle 95 %"),
        Dots(key="figure-5-ranks", title="agreement of two models", rows=speaker_ranks,
             row="models", axis="rank correlation of speakers (Spearman)", limits=(-1.0, 1.0),
             at=0.0),
    ],
    6: [
        _DIFFERENCE(key="figure-6", rows=fusion, row="against",
                    axis=f"CCC of fused scores minus CCC of the other, paired, {_INTERVAL}")
    ],
    7: [_CCC(key="figure-7", rows=partial(by_factor, study="pretraining"), series="variant")],
    8: map_charts,
    9: [_CCC(key="figure-9", rows=partial(by_factor, study="frozen"), series="variant")],
    10: partial(_probed, kinds=("word", "sentiment"), number=10),
    11: partial(_probed, kinds=("respoken",), number=11),
    12: [Lines(key="figure-12", rows=learning, axis="epoch", bounds="± 1 sd")],
    13: [Lines(key="figure-13", rows=partial(over_numbers, study="layers"), axis="layers")],
    14: [
        Lines(key="figure-14", rows=partial(over_numbers, study="fraction"),
              axis="share of the training clips", tick=percent, log=True)
    ],
}  # fmt: skip
#: Figures whose charts also show a study that is none of the paper's.
_OF_ANY_STUDY = (3, 4, 5)


def charts_of(number: int, found: Evidence, prefix: str = "") -> list[Chart]:
    """The charts of a figure that the evidence has data for; `prefix` goes before file names."""
    specs = CHARTS[number]
    if callable(specs):
        return list(specs(found))
    return list(_made((replace(one, key=prefix + one.key) for one in specs), found))


def _made(specs: Iterator[Dots | Lines], found: Evidence) -> Iterator[Chart]:
    for spec in specs:
        frame = found.curves if spec.axis == "epoch" else found.metrics
        if (made := chart(spec, frame)) is not None:
            yield made


def paper_figures(found: Evidence) -> tuple[list[Exhibit], list[Missing]]:
    """The figures there are data for, and the others."""
    exhibits, missing = [], []
    for row in paper_document()["figures"]:
        name, key = f"Figure {row['number']}", f"figure-{row['number']}"
        charts = charts_of(row["number"], found)
        facts = [tuple(fact.values()) for fact in paper_document()["facts"].get(key, ())]
        caption = "The paper, for orientation: its own models, data and splits"
        paper = table(caption, ("claim", "value", "section"), facts) if facts else None
        if charts:
            made = Exhibit(key, row["title"], row["lead"], name, charts=charts, facts=paper)
            exhibits.append(made)
        else:
            missing.append(Missing(name, row["title"], row["needs"], row["command"]))
    return exhibits, missing


def study_exhibits(found: Evidence) -> tuple[list[Exhibit], list[Missing]]:
    """An exhibit for every study that is none of the paper's, and those without any value."""
    exhibits, own = [], own_studies(found.metrics)
    for number, (study, metrics) in enumerate(own.items(), 1):
        charts = list(_study_charts(f"study-{number}-", study, metrics, found))
        if charts:
            lead = f"Concordance (CCC) with the labels by {_compared(metrics)}."
            exhibits.append(Exhibit(f"study-{number}", f"Study {study}", lead, charts=charts))
    measuring = found.cells[found.cells.kind.isin(_MEASURING)].study if len(found.cells) else ()
    why = "A study of your own", "None of its runs has been measured.", _COMMAND
    missing = [
        Missing(f"Study {printable(study)}", *why)
        for study in dict.fromkeys(measuring)
        if study not in own and study not in PAPER_STUDIES
    ]
    return exhibits, missing


def _compared(metrics: pd.DataFrame) -> str:
    if not factor_values(metrics):
        return "model"
    factor = str(metrics.factor[metrics.factor_value != ""].iloc[0])
    return f"model and {factor}" if metrics.model[is_network(metrics)].nunique() > 1 else factor


def _study_charts(key: str, study: str, metrics: pd.DataFrame, found: Evidence) -> Iterator[Chart]:
    varied, alone = factor_values(metrics), by_themselves(metrics)
    compared = _compared(metrics)
    factor = compared.removeprefix("model and ")
    spec: Dots | Lines = _CCC(key=f"{key}ccc", rows=lambda _: correctness(alone), row=compared)
    if len(varied) > 1 and not any(math.isnan(number_in(one)) for one in varied):
        tick = percent if any("%" in one for one in varied) else "{:g}".format
        rows = partial(over_numbers, study=study)
        spec = Lines(key=f"{key}ccc", rows=rows, axis=factor, tick=tick)
    elif 1 < len(varied) <= MOST_SERIES and compared != factor:
        spec = _CCC(key=f"{key}ccc", rows=partial(by_factor, study=study), series=factor)
    yield from _made(iter([spec]), found)
    curves = learning(found.curves, study)
    if not varied and len(curves) and curves.n.max() > 1:
        title, rows = "learning curves, mean of the seeds", partial(learning, study=study)
        lines = Lines(key=f"{key}curves", title=title, rows=rows, axis="epoch")
        lines = replace(lines, values="CCC on dev", bounds="± 1 sd")
        yield from _made(iter([lines]), found)
    for row in paper_document()["figures"]:
        if row["number"] in _OF_ANY_STUDY:
            for made in charts_of(row["number"], replace(found, metrics=alone), key):
                yield replace(made, title=f"{row['title']}: {made.title}")

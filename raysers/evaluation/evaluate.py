"""Everything an evaluation measures, as rows of the metrics table, and what to know about them.

The random baseline is measured as one more model, but not compared: differences, speakers and
cross-corpus drops are about the models themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raysers.evaluation.baseline import with_baseline
from raysers.evaluation.bootstrap import Bootstrap, interval_notes
from raysers.evaluation.categories import category_notes, category_rows
from raysers.evaluation.correctness import (
    comparison_rows,
    constant_notes,
    correctness_rows,
    drop_rows,
)
from raysers.evaluation.fairness import SAMPLES, fairness_rows, speaker_rows
from raysers.evaluation.join import COLUMNS
from raysers.evaluation.paper import with_paper
from raysers.evaluation.rows import Row
from raysers.evaluation.scores import Scores, base_subsets, subsets
from raysers.types import DIMENSIONS

#: The paper's own corpus, where no other is named.
_HOME = "msp-podcast"
_TRAIN = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        by: columns whose values get rows of their own.
        draws: bootstrap draws; 0: no intervals.
        seed: of every draw and of the random baseline.
        speaker_samples: clips drawn per speaker, who must have more.
        in_domain: dataset the models were trained on; empty: MSP-Podcast when it is there.
        backbones: by model, the backbone it was trained from, to find the paper's number.
    """

    by: Sequence[str] = ()
    draws: int = 1000
    seed: int = 0
    speaker_samples: int = SAMPLES
    in_domain: str = ""
    backbones: Mapping[str, str] = field(default_factory=dict)


def assess(scores: Scores, options: Options) -> tuple[list[Row], list[str]]:
    """All rows, with the paper's numbers beside them, and notes for the reader."""
    bootstrap = Bootstrap(draws=options.draws, seed=options.seed)
    both = with_baseline(scores, options.seed)
    rows = correctness_rows(both, by=options.by, draws=options.draws, seed=options.seed)
    rows += category_rows(scores, by=options.by, draws=options.draws, seed=options.seed)
    rows += fairness_rows(both, bootstrap)
    rows += comparison_rows(scores, bootstrap)
    rows += speaker_rows(scores, samples=options.speaker_samples, seed=options.seed)
    home = home_dataset(scores, options.in_domain)
    if home:
        rows += drop_rows(scores, home, bootstrap)
    rows, paper_notes = with_paper(_with_training(scores, rows), options.backbones)
    return rows, [*_notes(scores, options, rows), *paper_notes]


def _with_training(scores: Scores, rows: Sequence[Row]) -> list[Row]:
    """The rows with how many of their clips the model was trained on."""
    counts: Counter[tuple[str, ...]] = Counter()
    by = {row.group for row in rows} & {*COLUMNS}
    for model, trained in scores.trained.items():
        for cell in subsets(scores, sorted(by)):
            found = np.isfinite(scores.predictions[model][cell.rows]).any(axis=1)
            counts[model, *cell.key] = int((trained[cell.rows] & found).sum())
    # a row of another kind of group is about all clips of the dataset and split
    return [
        replace(
            row,
            trained_on=counts.get(
                (row.model, row.dataset, row.split, row.group, row.group_value),
                counts[row.model, row.dataset, row.split, "", ""],
            ),
        )
        for row in rows
    ]


def datasets(scores: Scores) -> list[str]:
    """Names of the datasets with a predicted clip."""
    return list(dict.fromkeys(cell.dataset for cell in base_subsets(scores)))


def home_dataset(scores: Scores, in_domain: str) -> str:
    """The dataset others are measured against; empty when there is none, or no other one."""
    names = datasets(scores)
    home = in_domain or _HOME
    return home if home in names and len(names) > 1 else ""


def _notes(scores: Scores, options: Options, rows: Sequence[Row]) -> Iterator[str]:
    cells = base_subsets(scores)
    for model, trained in scores.trained.items():
        found = trained & np.isfinite(scores.predictions[model]).any(axis=1)
        for cell in cells if found.any() else ():
            if count := int(found[cell.rows].sum()):
                yield (
                    f"{model} was trained on {count:,} of the {len(cell.rows):,} clips of "
                    f"{cell.dataset} {cell.split}: their figures say little about new speech"
                )
    for cell in cells:
        if cell.split == _TRAIN and not scores.trained:
            yield (
                f"{cell.dataset}: {len(cell.rows):,} predicted clips are training clips: their "
                "figures, and those of all its clips, say little about new speech"
            )
    for model, predicted in scores.predictions.items():
        missing = [d for i, d in enumerate(DIMENSIONS) if not np.isfinite(predicted[:, i]).any()]
        if missing:
            yield f"{model}: no scores of {', '.join(missing)}, so no figures of it"
    yield from category_notes(scores)
    yield from constant_notes(scores, subsets(scores, options.by))
    if options.draws:
        yield from interval_notes(scores, subsets(scores, options.by))
    if np.isfinite(scores.truth).any():
        yield from _gaps(scores, options, rows)


def _gaps(scores: Scores, options: Options, rows: Sequence[Row]) -> Iterator[str]:
    """Why figures of the dimensions are missing."""
    if not any(row.metric.startswith("sex_fairness") for row in rows):
        yield "no fairness between the sexes: the labels do not know clips of both"
    if not any(row.metric == "speaker_ccc" for row in rows):
        yield (
            f"no CCC per speaker: no speaker has more than {options.speaker_samples} clips "
            "(--speaker-samples lowers that)"
        )
    if len(datasets(scores)) > 1 and not home_dataset(scores, options.in_domain):
        yield "no cross-corpus drop: name the corpus the models were trained on with --in-domain"

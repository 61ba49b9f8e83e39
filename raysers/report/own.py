"""What the paper has no figure for: trainings, transcripts, and what can be compared.

Each exhibit is left out when the runs have nothing for it, apart from the note on what cannot be
compared, which is for every reader.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from raysers.report.dots import NARROW_IN
from raysers.report.evidence import ReportData, RunFacts
from raysers.report.parts import Cell, Chart, Exhibit, Grid, last_part, shown
from raysers.training.model_card import learning_curve
from raysers.types import DIMENSIONS

_MOST_SUBJECTS = 12


def training_exhibits(found: ReportData) -> list[Exhibit]:
    """The learning curve of every training that was given by itself."""
    return [_training(run) for run in found.runs if run.training.get("history")]


def _training(run: RunFacts) -> Exhibit:
    history: Sequence[Mapping[str, Any]] = run.training["history"]
    rows: list[list[Cell]] = [
        [
            str(record["epoch"]),
            shown(record["train_loss"]),
            *(shown((record.get("dev_ccc") or {}).get(d)) for d in DIMENSIONS),
            "kept" if record.get("kept") else "–",
        ]
        for record in history
    ]
    folder = run.folder.encode("utf-8", "surrogatepass")  # a name on a disk need not be UTF-8
    key = f"training-{hashlib.blake2b(folder, digest_size=4).hexdigest()}"
    config = run.training.get("config") or {}
    last = history[-1]
    return Exhibit(
        key=key,
        name="",
        title=f"Training of {last_part(run.folder)}",
        lead=f"{config.get('backbone', 'The network')}, {len(history)} epochs, seed "
        f"{config.get('seed', '–')}. One training: no interval can stand around its curve.",
        charts=[
            Chart(
                key=key,
                title="",
                alt=f"CCC on the dev set and training loss over {len(history)} epochs; the last "
                f"loss is {shown(last['train_loss'])}.",
                picture=learning_curve(history),
                narrow=learning_curve(history, width_in=NARROW_IN),
                grid=Grid(
                    caption="Every epoch",
                    columns=["epoch", "training loss", *DIMENSIONS, "weights"],
                    rows=rows,
                ),
            )
        ],
    )


def spoken_exhibits(found: ReportData) -> list[Exhibit]:
    """Some of what was recognised, by run."""
    return [
        Exhibit(
            key=f"transcripts-{number}",
            name="",
            title=f"Some of what was said in {last_part(folder)}",
            grids=[
                Grid(
                    caption="Recognised words, the first clips by name",
                    columns=["file", "text"],
                    rows=[(last_part(file), text or "(no speech)") for file, text in rows],
                )
            ],
        )
        for number, (folder, rows) in enumerate(found.spoken.items(), 1)
        if rows
    ]


def comparability(notes: Sequence[str]) -> Exhibit:
    """What a reader must not conclude, from the runs' own notes."""
    general = (
        "A number of the paper stands beside ours only where dataset, split, model, metric and "
        "dimension have the same names; where it does not, the paper's own numbers are listed "
        "under the figure for orientation.",
        "The paper's models have 95 to 317 million parameters and were fine-tuned on 84 hours of "
        "MSP-Podcast. A small network, other speech, labels made from categories or another split "
        "answer another question: such numbers show that the way works, not how good it is.",
        "Intervals are bootstraps over speakers where they are known, else over clips. They hold "
        "for new speakers of the same kind, not for other recordings. Several seeds stand with "
        "their mean, and an interval from the lowest to the highest bound of theirs.",
    )
    return Exhibit(
        key="comparable",
        name="",
        title="What can be compared with the paper, and what cannot",
        notes=[*general, *dict.fromkeys(notes)],
    )


def together(notes: Sequence[str]) -> list[str]:
    """Notes that say the same of several things as one.

    >>> together(["a is new: mind it", "well", "b is new: mind it"])
    ['a, b: is new: mind it', 'well']
    """
    about: dict[str, list[str]] = {}
    for note in notes:
        subject, verb, rest = note.partition(" is ")
        about.setdefault(f"is {rest}" if verb else note, []).append(subject)
    return [
        _one(said, subjects) if said.startswith("is ") else said for said, subjects in about.items()
    ]


def _one(said: str, subjects: Sequence[str]) -> str:
    if len(subjects) == 1:
        return f"{subjects[0]} {said}"
    named = ", ".join(subjects[:_MOST_SUBJECTS])
    more = len(subjects) - _MOST_SUBJECTS
    return f"{named}{f' and {more} more' if more > 0 else ''}: {said}"

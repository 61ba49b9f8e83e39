"""The model card of a training run: a README.md as readers of the model hub expect it.

Only what the run knows is claimed: an unstated licence is "unknown", a metric that
was not computed is not there, and a run with leaking splits or shuffled labels says so on top.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from raysers.evaluation.rows import Row
from raysers.text import fenced, one_line, plain, table, visible
from raysers.training.card_results import has_intervals, index_results, results_table
from raysers.training.terms import UNKNOWN, base_licence, data_licence, hub_fields
from raysers.training.usage import usage
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ

#: The picture a card shows, in the same folder.
CURVE_FILE = "learning_curve.png"

_INTENDED = """\
Research on emotion in speech: trends over many clips of material like the training data, and
starting weights for further training. Arousal is how excited a voice sounds, dominance how much in
control, valence how positive; 0 and 1 are the ends of the training labels' scale."""

_NOT_FOR = """\
Decisions about a person (hiring, credit, policing, insurance, schooling, health), lie detection,
monitoring people at work or without their consent, diagnosis, or a claim about what someone feels:
the scores say how listeners judged, or actors played, voices like these. The European Union's AI
Act forbids inferring emotions at work and in schools, with few exceptions."""

_MAPPED = """\
No listener rated these clips. The corpus has one emotion category a clip, and every clip of a
category was given the same three values:"""

_LIMITS = (
    "Other languages, recording conditions, ages and speaking styles than those of the training"
    " data lower the accuracy, and by how much is unknown until measured.",
    "Scores are comparable between clips of one kind of material; their absolute level moves with"
    " microphone, compression, background and distance.",
    "Every clip gets scores, silence, music and noise included: look at the level and find speech"
    " first.",
    "Groups of speakers may be scored differently; measure it where it matters.",
)


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
        name: what people call the model.
        backbone: what training started from, as it was asked for.
        parameters: all parameters of the network.
        trained_parameters: those of them that were not frozen.
        min_samples: shortest clip at 16 kHz.
        splits: what the data was.
        recipe: flag -> value, in the order to print.
        metrics: what was measured, the random baseline included.
        command: the shell line that repeats the training.
        versions: software -> version.
        best_epoch: the epoch whose weights these are; None: the last one's.
        audio_hours: trained on, repeats included.
        seconds: wall time of the training.
        leakage: what train and evaluation splits share, as a sentence; empty: nothing.
        base_hub_id: hub id of the starting weights; None: random ones, or a folder's.
        base_licence: of the starting weights; None: as known by `terms`.
        data_licences: corpus -> terms; others as known by `terms`.
        licence: of the model itself; None: unknown.
        notes: sentences about the data.
        mapping: emotion category -> arousal, dominance, valence it stood for in training.
        model_type: the network's family, as in its config.json.
        pooling: how frames become one vector: `masked`, `unmasked`, `statistics` or `attentive`.
        trained: dimensions with trained outputs.
        categories: emotion categories with trained outputs.
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
    shuffled_labels: bool = False
    failed_clips: int = 0
    base_hub_id: str | None = None
    base_licence: str | None = None
    data_licences: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    languages: Sequence[str] = ()
    notes: Sequence[str] = ()
    mapping: Mapping[str, Sequence[float]] = field(default_factory=dict)
    model_type: str = "wav2vec2"
    pooling: str = "masked"
    trained: Sequence[str] = DIMENSIONS
    categories: Sequence[str] = ()


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with YAML front matter, ready to be written as `README.md`."""
    sections = [
        f"# {plain(facts.name)}",
        _summary(facts),
        *_warnings(facts),
        *_titled("Results", _results(facts)),
        *_titled(
            "Use", usage(facts.name, facts.model_type, facts.pooling if facts.trained else None)
        ),
        *_titled("Data", _data(facts)),
        *_titled("Training", _training(facts)),
        *_titled("Intended use", _INTENDED),
        *_titled("Not for", _NOT_FOR),
        *_titled("Limits", "\n".join(f"- {limit}" for limit in _LIMITS)),
        *_titled("Licence", _licence(facts)),
    ]
    return f"---\n{_front_matter(facts)}---\n\n" + "\n\n".join(sections) + "\n"


def _titled(title: str, body: str) -> tuple[str, str]:
    return f"## {title}", body


def _front_matter(facts: CardFacts) -> str:
    content: dict[str, Any] = dict(hub_fields(facts.licence))
    languages = {code for code in facts.languages if re.fullmatch("[a-z]{2,3}", code)}
    content |= {"language": sorted(languages)} if languages else {}
    content |= {"base_model": facts.base_hub_id} if facts.base_hub_id else {}
    content |= {
        "library_name": "transformers",
        "pipeline_tag": "audio-classification",
        "tags": ["speech", "audio", "emotion-recognition", *facts.trained, facts.model_type],
        "metrics": ["ccc"] * bool(facts.trained) + ["recall"] * bool(facts.categories),
    }
    if results := index_results(facts.metrics):
        content["model-index"] = [{"name": one_line(facts.name) or "model", "results": results}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1_000)


def _summary(facts: CardFacts) -> str:
    drawn = facts.backbone.startswith("random:")
    start = "random weights" if drawn else plain(facts.backbone)
    milliseconds = 1000 * facts.min_samples / SAMPLE_RATE_HZ
    tasks, heads = [], []
    if facts.trained:
        tasks.append(f"Scores speech for {_listed(facts.trained)}, each about 0 to 1.")
        heads.append("a regression head")
    if facts.categories:
        names = plain(_listed(facts.categories))
        tasks.append(f"Gives each clip probabilities of the emotion categories {names}.")
        heads.append("a softmax head")
    return (
        f"{' '.join(tasks)} A {facts.model_type} network with {_listed(heads)},"
        f" {facts.parameters:,} parameters of which {facts.trained_parameters:,} were trained,"
        f" starting from {start}. It takes mono audio at 16 kHz, from {facts.min_samples} samples"
        f" ({milliseconds:.0f} ms) up."
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _warnings(facts: CardFacts) -> list[str]:
    found = []
    if facts.shuffled_labels:
        found.append(
            "> **A control, not a model.** The training labels were shuffled between clips, so"
            " nothing can be learnt but their distribution: the scores mean nothing."
        )
    untrained = [name for name in DIMENSIONS if name not in facts.trained]
    if untrained:
        found.append(
            f"> **Not trained for {_listed(untrained)}.** The network has all three outputs, but"
            " ignore these: raysers writes null for them."
        )
    if facts.leakage:
        found.append(
            f"> **The splits leak.** {plain(facts.leakage)} The figures are too good, by an unknown"
            " amount: do not report or compare them."
        )
    if not any(split.split != "train" for split in facts.splits):
        found.append(
            "> **No dev split.** No clip was held out to judge by, so nothing in this run says how"
            " good the model is on speakers it was not trained on."
        )
    return found


def _results(facts: CardFacts) -> str:
    if not facts.metrics:
        return "This run measured nothing on data the model was not trained on."
    text = results_table(facts.metrics)
    if has_intervals(facts.metrics):
        text += "\n\nIn brackets: 95 % intervals by bootstrap."
    if facts.best_epoch is not None:
        measure = "mean CCC" if facts.trained else "UAR"
        text += (
            f"\n\nThese weights are those of epoch {facts.best_epoch}, the best of {facts.epochs}"
            f" by {measure} on the dev split, which makes the figures of that split slightly too"
            " good."
        )
    return text


def _data(facts: CardFacts) -> str:
    rows = [
        (
            s.corpus,
            s.split,
            s.clips,
            f"{s.hours:.2f}",
            UNKNOWN if s.speakers is None else s.speakers,
        )
        for s in facts.splits
    ]
    text = table(("corpus", "split", "clips", "hours", "speakers"), rows, numbers=3)
    if facts.failed_clips:
        text += f"\n\n{facts.failed_clips} clips could not be read and were left out."
    text += "".join(f"\n\n{plain(note)}" for note in facts.notes)
    if facts.mapping:
        text += f"\n\n{_MAPPED}\n\n" + table(("category", *DIMENSIONS), _mapped(facts), numbers=3)
    return text + f"\n\nFingerprint of the data: {plain(facts.data_fingerprint)}."


def _mapped(facts: CardFacts) -> list[list[str]]:
    return [[name, *(f"{v:.3f}" for v in values)] for name, values in facts.mapping.items()]


def _training(facts: CardFacts) -> str:
    versions = ", ".join(f"{plain(name)} {plain(v)}" for name, v in facts.versions.items())
    noun = "worker" if facts.workers == 1 else "workers"
    # up to four, the pieces of a batch are the same, and so is what dropout leaves out
    same = "one to four workers" if facts.workers <= 4 else f"{facts.workers} workers"
    return "\n\n".join(
        (
            table(("setting", "value"), _settings(facts)),
            f"{facts.epochs} epochs, {facts.audio_hours:.2f} hours of audio trained on in"
            f" {facts.seconds / 60:.1f} minutes by {facts.workers} {noun} on"
            f" {plain(facts.device)}, seed {facts.seed}.",
            f"![Scores on the dev set and training loss by epoch]({CURVE_FILE})",
            f"The same command trains it again with {same}, wherever the data lie:",
            fenced(_runnable(visible(facts.command)), "bash"),
            f"Versions: {versions}.",
        )
    )


def _runnable(command: str) -> str:
    installed = command.startswith(("raysers ", "python "))
    return command if installed else f"python {command}"


def _settings(facts: CardFacts) -> list[tuple[str, object]]:
    return [(name.replace("_", "-"), value) for name, value in facts.recipe.items()]


def _licence(facts: CardFacts) -> str:
    drawn = facts.backbone.startswith("random:")
    start = "none, random weights" if drawn else base_licence(facts.base_hub_id, facts.base_licence)
    rows = [("this model", facts.licence or UNKNOWN), (f"start: {facts.backbone}", start)]
    for corpus in dict.fromkeys(split.corpus for split in facts.splits):
        rows.append((f"data: {corpus}", data_licence(corpus, facts.data_licences.get(corpus))))
    text = table(("of", "terms"), rows)
    if any(terms == UNKNOWN for _, terms in rows):
        text += "\n\nUnknown terms were not stated: find them out before you share the model."
    return text

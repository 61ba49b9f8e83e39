"""What a model says of a clip, read from its `config.json` without loading the network."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysers.errors import CheckpointError
from raysers.types import DIMENSIONS

_TRAINED, _CATEGORIES, _POINTS = "trained_dimensions", "categories", "category_points"
_UNCERTAINTY, _OOD = "uncertainty_heads", "ood_rank"

#: How the labels of emotion classifiers begin, in any case. Without two of them a classifier is of
#: something else: sex, language, accent.
_EMOTIONS = re.compile(
    r"ang|bor|calm|contempt|disg|exci|fea|frus|hap|joy|neu|sad|surp", re.IGNORECASE
)
#: A softmax over the outputs is right for these; of a regression it would mean nothing.
_CLASSIFIERS = (None, "single_label_classification")

_MOST_CATEGORIES, _MOST_NAME_CHARS = 256, 100
_MOST_UNCERTAINTY_HEADS, _MOST_OOD_RANK = 256, 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The outputs of a model beside its embedding.

    `trained` names the dimensions with trained scores; `categories` the emotions of the softmax,
    in the order of its outputs; `points` where each lies on the dimensions, for a model whose
    scores are the mean of these points under its probabilities, and empty for one with a head for
    the dimensions; `uncertainty_heads` (0: none) is how many heads the standard
    deviations come from; `ood_rank` (0: none) how many directions of the embeddings of the
    training speech the distance to it is measured in.
    """

    trained: tuple[str, ...] = DIMENSIONS
    categories: tuple[str, ...] = ()
    points: tuple[tuple[float, ...], ...] = ()
    uncertainty_heads: int = 0
    ood_rank: int = 0

    @classmethod
    def from_config(cls, config: dict[str, Any], where: object) -> Outputs:
        """Outputs as the keys of a `config.json` name them; without keys, the three dimensions.

        Raises:
            CheckpointError: a key holds what no model has.
        """
        if labels := category_labels(config):
            return cls(trained=(), categories=_names({_CATEGORIES: labels}, _CATEGORIES, (), where))
        categories = _names(config, _CATEGORIES, (), where)
        trained = _names(config, _TRAINED, DIMENSIONS, where)
        in_order = tuple(name for name in DIMENSIONS if name in trained)
        if len(in_order) != len(trained) or not (trained or categories):
            raise CheckpointError(
                f"{where}: {_TRAINED} is {json.dumps(trained)}, not a list of"
                f" {', '.join(DIMENSIONS)}"
            )
        return cls(
            trained=in_order,
            categories=categories,
            points=_points(config, len(categories), where),
            uncertainty_heads=_number(config, _UNCERTAINTY, _MOST_UNCERTAINTY_HEADS, where),
            ood_rank=_number(config, _OOD, _MOST_OOD_RANK, where),
        )

    def config(self) -> dict[str, Any]:
        """The keys of `config.json` that `from_config` reads."""
        keys = {
            _CATEGORIES: list(self.categories),
            _POINTS: [list(point) for point in self.points],
            _UNCERTAINTY: self.uncertainty_heads,
            _OOD: self.ood_rank,
        }
        partly = {_TRAINED: list(self.trained)} if len(self.trained) < len(DIMENSIONS) else {}
        return partly | {key: value for key, value in keys.items() if value}

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of numbers beside the dimensions: `p_*`, `*_sd`, `ood`."""
        return (
            *(f"p_{name}" for name in self.categories),
            *(f"{name}_sd" for name in DIMENSIONS if self.uncertainty_heads),
            *(["ood"] if self.ood_rank else []),
        )

    def row(self, scores: Sequence[float], extras: Sequence[float]) -> dict[str, Any]:
        """A clip's values by column, of its scores [3] and its numbers in `columns`."""
        by_name = dict(zip(DIMENSIONS, scores, strict=True))
        found: dict[str, Any] = {name: by_name[name] for name in self.trained}
        if self.categories:
            most = max(range(len(self.categories)), key=extras.__getitem__)
            found["emotion"] = self.categories[most]
        return found | dict(zip(self.columns, extras, strict=True))


def category_labels(config: dict[str, Any]) -> list[str]:
    """The labels of a classifier of emotions by other tools, in order; empty for other models."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or config.get("problem_type") not in _CLASSIFIERS:
        return []
    names = [labels.get(str(number)) for number in range(len(labels))]
    found = [name for name in names if isinstance(name, str)]
    emotions = sum(_EMOTIONS.match(name) is not None for name in found)
    return found if len(found) == len(labels) and emotions >= 2 else []


#: Of a model with the three dimensions and nothing else.
PLAIN = Outputs()


def _names(
    config: dict[str, Any], key: str, default: tuple[str, ...], where: object
) -> tuple[str, ...]:
    names = config.get(key, default)
    good = (
        isinstance(names, list | tuple)
        and len(names) <= _MOST_CATEGORIES
        and all(isinstance(n, str) and n and len(n) <= _MOST_NAME_CHARS for n in names)
        and len(set(names)) == len(names)
    )
    if not good:
        raise CheckpointError(f"{where}: {key} is {json.dumps(names)[:200]}, not a list of names")
    return tuple(names)


def _points(
    config: dict[str, Any], categories: int, where: object
) -> tuple[tuple[float, ...], ...]:
    points = config.get(_POINTS, [])
    good = isinstance(points, list | tuple) and len(points) in (0, categories)
    if not good or not all(_is_point(point) for point in points):
        raise CheckpointError(
            f"{where}: {_POINTS} is {json.dumps(points)[:200]}, not {', '.join(DIMENSIONS)} from"
            " 0 to 1 for each category"
        )
    return tuple(tuple(map(float, point)) for point in points)


def _is_point(point: object) -> bool:
    return (
        isinstance(point, list | tuple)
        and len(point) == len(DIMENSIONS)
        and all(isinstance(x, int | float) and 0 <= x <= 1 for x in point)
    )


def _number(config: dict[str, Any], key: str, most: int, where: object) -> int:
    number = config.get(key, 0)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
        raise CheckpointError(f"{where}: {key} is {str(number)[:40]!r}, not 0 to {most}")
    return number

"""The labelled clips of a training: train, dev, and those that are left out.

Every clip that is not used is counted under its reason; too many of them are refused before
anything is written.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers.data import splits
from raysers.data.corpora.emotions import category_of
from raysers.data.manifest import clips_of, fingerprint
from raysers.data.splits import identities
from raysers.engine.listing import index_labelled
from raysers.errors import ConfigError, RaysersError
from raysers.evaluation.join import dimensions_of
from raysers.models.losses import NO_CATEGORY
from raysers.training.config import LabelledFlags, TrainingFlags
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ, Clip, Status

#: A dimension with fewer train labels is not trained: no CCC is defined.
_LEAST_LABELS = 2

#: Reasons that follow from flags, so they are no failure of the data.
_TOO_LONG, _TOO_SHORT = "longer than --max-clip-s", "too short"

#: Flags that leave clips out, by how they do when they are not given.
_FILTERS = {"limit": 0, "train_fraction": 1.0, "min_clip_s": 0.0, "max_clip_s": 60.0}


class TooManyFailed(RaysersError):
    """More clips cannot be used than `--max-failed` allows: exit code 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Clips by identity; labels float32 [clips, 3] (NaN: none); categories int64 [clips] or -1."""

    clips: list[Clip]
    identities: Sequence[str]
    labels: NDArray[np.float32]
    categories: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def audio_s(self) -> float:
        """Seconds of audio in all clips."""
        return sum(clip.duration_s for clip in self.clips)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The data of a training.

    Attributes:
        table: the clips in use, as a labelled manifest whose `split` is train or dev.
        train: what the parameters are fitted to.
        dev: what chooses the epoch; may be empty.
        categories: names of the emotion categories, in the order of their numbers.
        left_out: clips of train and dev that are not used, by reason.
        leakage: what train shares with dev or a test split although it should not, a line each.
        notes: sentences for the terminal and the model card.
        trained: dimensions that train has labels for; the others have none in dev either.
    """

    table: pa.Table
    train: Examples
    dev: Examples
    categories: tuple[str, ...]
    left_out: Mapping[str, int]
    leakage: Sequence[str]
    notes: Sequence[str]
    trained: Sequence[str]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any clip, label, category or split."""
        digest = hashlib.blake2b(fingerprint(self.table).encode(), digest_size=8)
        for examples in (self.train, self.dev):
            ids = "\n".join(clip.clip_id for clip in examples.clips)
            digest.update(f"{len(ids)}\0{ids}\0{self.categories}".encode())
            digest.update(examples.labels.tobytes())
            digest.update(examples.categories.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One training, the same for all its workers.

    Attributes:
        flags: with the recipe filled in, precision and padded seconds settled.
        backbone: what to load, pinned to the revision that was checked.
        run_id: of the record in the output, which every worker must see.
        train: what the parameters are fitted to.
        dev: what chooses the epoch; may be empty.
        categories: emotion categories of the head that is trained; none without one.
        trained: dimensions with labels.
        threads: compute threads of a worker.
        io_threads: threads of a worker that fetch and decode.
        pieces: least micro-batches of a batch, whatever the number of workers; they decide the
            dropout.
    """

    flags: TrainingFlags
    backbone: str
    run_id: str
    train: Examples
    dev: Examples
    categories: tuple[str, ...]
    trained: Sequence[str]
    threads: int
    io_threads: int
    pieces: int

    @property
    def output(self) -> str:
        """The run's folder."""
        return self.flags.output


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """Data whose headers have been read: the labelled manifest, and notes about reading it."""

    manifest: str
    notes: tuple[str, ...] = ()


def index_data(flags: LabelledFlags) -> tuple[pa.Table, list[str]]:
    """The labelled manifest of all the data, before any is left out, and notes for the user.

    Many headers are read on the connected cluster.

    Raises:
        ConfigError: data that cannot be read.
    """
    tables, notes = [], []
    for uris, split in ((flags.data, None), (flags.train, "train"), (flags.dev, "dev")):
        if not uris:
            continue
        table, found = index_labelled(
            uris,
            corpus=flags.corpus,
            emotion_map=flags.emotion_map,
            speakers=flags.speakers,
            limit=flags.limit,
        )
        if split is not None:
            if "split" in table.column_names:
                table = table.drop_columns("split")
            table = table.append_column("split", pa.array([split] * len(table), pa.string()))
        tables.append(table)
        notes += [note for note in found if note not in notes]
    return pa.concat_tables(tables, promote_options="default"), notes


def choose(
    flags: LabelledFlags,
    table: pa.Table,
    notes: Sequence[str],
    *,
    seed: int,
    min_samples: int,
    dev_needed: bool,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    categories: bool = False,
) -> TrainingData:
    """Split, filter and check the clips that `index_data` has read.

    Args:
        flags: which data.
        table: the labelled manifest.
        notes: about reading it.
        seed: decides `--train-fraction` and `--shuffle-labels`.
        min_samples: what the network needs to give a score.
        dev_needed: whether training without dev clips makes sense.
        weights: of the dimensions in the loss; one of 0 is not trained.
        categories: whether emotion categories are trained, so that a clip may have one alone.

    Raises:
        ConfigError: data that cannot be used, or that leaks.
        TooManyFailed: too many clips cannot be used.
    """
    if flags.folds:
        try:
            table = splits.fold_splits(table, flags.folds, flags.fold)
        except ConfigError as error:
            if not flags.limit:
                raise
            raise ConfigError(f"{error}, or a --limit above {flags.limit:,} clips") from error
    if not len(table) or not _column(table, "split").is_valid().to_numpy().any():
        raise ConfigError(
            "--data has no split: give --folds N to split it by speaker, or --train and --dev"
        )
    leakage = splits.check_leakage(table, flags.allow_leakage)
    without = table["split"].null_count
    table = table.filter(pc.is_in(table["split"], pa.array(["train", "dev"])))
    table, left_out = _usable(flags, table, min_samples, categories=categories)
    left_out |= {"no split": without} if without else {}
    _check_labels(table)
    train, dev = (table.filter(pc.equal(table["split"], name)) for name in ("train", "dev"))
    train = splits.take_fraction(train, flags.train_fraction, seed)
    _require_rows({"train": train} | ({"dev": dev} if dev_needed else {}), flags, left_out)
    if flags.shuffle_labels:
        train = splits.shuffle_labels(train, seed)
    names = tuple(sorted({name for name in _emotions(train) if name}))
    counts = np.isfinite(_labels(train)).sum(axis=0) * (np.asarray(weights) > 0)
    trained = counts >= _LEAST_LABELS
    if not trained.any() and not categories:
        raise ConfigError(
            f"nothing to train: no dimension has {_LEAST_LABELS} train labels and a weight above "
            "0: give more labelled data, other --target-weights, or --categories"
        )
    notes = [*notes, *_label_notes(_labels(train), _labels(dev), trained)]
    train_examples, dev_examples = (_examples(part, names, trained) for part in (train, dev))
    dev_labels = np.isfinite(dev_examples.labels).sum(axis=0)
    by_category = categories and (dev_examples.categories >= 0).any()
    if dev_needed and dev_labels.max(initial=0) < _LEAST_LABELS and not by_category:
        raise ConfigError(
            f"no dimension that is trained has {_LEAST_LABELS} dev labels: give labelled dev "
            "clips, or --keep last to train without"
        )
    return TrainingData(
        table=pa.concat_tables([train, dev]),
        train=train_examples,
        dev=dev_examples,
        categories=names,
        left_out=left_out,
        leakage=leakage,
        notes=notes,
        trained=tuple(name for name, of in zip(DIMENSIONS, trained, strict=True) if of),
    )


def _examples(table: pa.Table, categories: Sequence[str], trained: NDArray[np.bool_]) -> Examples:
    """Rows of a labelled manifest, in an order that stays wherever the corpus lies."""
    table = table.append_column("identity", pa.array(identities(table), pa.string()))
    table = table.sort_by("identity")
    numbers = {name: number for number, name in enumerate(categories)}
    labels = _labels(table)
    labels[:, ~trained] = np.nan
    return Examples(
        clips=clips_of(table),
        identities=table["identity"].to_pylist(),
        labels=labels,
        categories=np.array(
            [numbers.get(name or "", NO_CATEGORY) for name in _emotions(table)], np.int64
        ),
    )


def _label_notes(
    train: NDArray[np.float32], dev: NDArray[np.float32], trained: NDArray[np.bool_]
) -> Iterator[str]:
    """Dimensions that are not trained, and those whose labels never vary."""
    for column, name in enumerate(DIMENSIONS):
        values, dev_values = (
            labels[np.isfinite(labels[:, column]), column] for labels in (train, dev)
        )
        if not trained[column]:
            why = "no weight" if len(values) >= _LEAST_LABELS else "too few train labels"
            yield f"{name} is not trained ({why}, {len(values):,} labels): its scores will be null"
            continue
        if (values == values[0]).all():
            yield (
                f"{name}: all {len(values):,} train labels are {values[0]:g}, so the model cannot "
                "learn it"
            )
        if len(dev_values) and (dev_values == dev_values[0]).all():
            yield (
                f"{name}: all {len(dev_values):,} dev labels are {dev_values[0]:g}, so its dev CCC "
                "is 0 for any model"
            )


def _usable(
    flags: LabelledFlags, table: pa.Table, min_samples: int, *, categories: bool
) -> tuple[pa.Table, dict[str, int]]:
    """The rows to use, and how many are not by reason."""
    unlabelled = np.all(np.isnan(_labels(table)), axis=1)
    if categories:
        unlabelled &= np.array([name is None for name in _emotions(table)], bool)
    status = np.array(table["status"].to_pylist(), object)
    lengths_s = _column(table, "duration_s").to_pylist()
    lengths = np.array(lengths_s, np.float64)  # None becomes NaN
    least_s = max(flags.min_clip_s, min_samples / SAMPLE_RATE_HZ)
    reasons = np.select(
        [
            status != str(Status.OK),
            unlabelled,
            np.isnan(lengths),
            lengths > flags.max_clip_s,
            lengths < least_s,
        ],
        [status, "no label", "unknown length", _TOO_LONG, _TOO_SHORT],
        "",
    )
    left_out = dict(Counter(reason for reason in reasons.tolist() if reason).most_common())
    if left_out == {"no label": len(table)}:
        raise ConfigError(
            f"none of the {len(table):,} clips has a label for {', '.join(DIMENSIONS)}: give "
            "labelled data, or --emotion-map or --categories for emotion categories"
        )
    lost = np.flatnonzero(~np.isin(reasons.astype(str), ("", _TOO_LONG, _TOO_SHORT)))
    if len(lost) > flags.max_failed * max(len(table), 1):
        first = int(lost[0])
        raise TooManyFailed(
            f"{len(lost)} of {len(table)} clips cannot be used ({_counted(left_out)}), more than "
            f"--max-failed {flags.max_failed:g} allows; the first is {table['file'][first]}: "
            f"{table['error'][first].as_py() or reasons[first]}"
        )
    return table.filter(pa.array(reasons == "", pa.bool_())), left_out


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


def _check_labels(table: pa.Table) -> None:
    labels = _labels(table)
    outside = np.argwhere((labels < 0) | (labels > 1)).tolist()
    if outside:
        row, column = outside[0]
        raise ConfigError(
            f"{table['file'][row]} has {DIMENSIONS[column]} {labels[row, column]:g}, outside "
            "0..1: rescale the labels of --data"
        )


def _require_rows(
    tables: Mapping[str, pa.Table], flags: LabelledFlags, left_out: Mapping[str, int]
) -> None:
    """Refuse splits with too few clips for a CCC after all filters."""
    source = "--train" if flags.train else "--data"
    fixes = {
        "train": "see its split column",
        "dev": "give --dev, or --folds N to keep speakers apart, or --keep last to train without",
    }
    used = [name for name, default in _FILTERS.items() if getattr(flags, name) != default]
    others = "".join(f", or another --{name.replace('_', '-')}" for name in used)
    for name, table in tables.items():
        if len(table) < _LEAST_LABELS:
            clips = f"only 1 {name} clip" if len(table) else f"no {name} clips"
            why = f"; left out: {_counted(left_out)}" if left_out else ""
            raise ConfigError(
                f"{source} leaves {clips} that can be used, {_LEAST_LABELS} are needed{why}: "
                f"{fixes[name]}{others}"
            )


def _emotions(table: pa.Table) -> list[str | None]:
    return [category_of(word) for word in _column(table, "emotion").to_pylist()]


def _labels(table: pa.Table) -> NDArray[np.float32]:
    return dimensions_of(table).astype(np.float32)


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table[name]
    return pa.chunked_array([pa.nulls(len(table), pa.string())])

"""The labelled clips of a training: train, dev, and those that are left out, counted by reason."""

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
from raysers.data.corpora import category_of
from raysers.data.manifest import clips_of, fingerprint
from raysers.data.splits import identities
from raysers.engine.listing import index_labelled
from raysers.errors import ConfigError, RaysersError
from raysers.evaluation.scores import dimensions_of
from raysers.models.heads import NO_CATEGORY
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
    """Clips by identity; labels float32 [clips, 3] (NaN: none), others int64 [clips] (-1: none)."""

    clips: list[Clip]
    identities: Sequence[str]
    labels: NDArray[np.float32]
    categories: NDArray[np.int64]
    sexes: NDArray[np.int64]
    corpora: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def audio_s(self) -> float:
        """Seconds of audio in all clips."""
        return sum(clip.duration_s for clip in self.clips)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The clips in use: `table` is a labelled manifest whose `split` is train or dev.

    `dev` may be empty. `categories` and `sexes` (empty unless trained) are in the order of their
    numbers; `left_out` counts unused clips by reason; `leakage` has a line for whatever train
    shares with dev or a test split; `trained` names the dimensions that have labels.
    """

    table: pa.Table
    train: Examples
    dev: Examples
    categories: tuple[str, ...]
    sexes: tuple[str, ...]
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
            if self.sexes:
                digest.update(examples.sexes.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """Data whose headers have been read: the labelled manifest, and notes about reading it."""

    manifest: str
    notes: tuple[str, ...] = ()


def index_data(flags: LabelledFlags) -> tuple[pa.Table, list[str]]:
    """The labelled manifest of all the data, before any is left out, and notes for the user."""
    tables, notes = [], dict[str, None]()
    for flag, split in (("data", None), ("train", "train"), ("dev", "dev")):
        uris = getattr(flags, flag)
        if not uris:
            continue
        table, found = index_labelled(
            uris,
            corpus=flags.corpus,
            emotion_map=flags.emotion_map,
            speakers=flags.speakers,
            limit=flags.limit,
            flag=f"--{flag}",
        )
        if split is not None:
            given = table.drop_columns([n for n in ("split",) if n in table.column_names])
            table = given.append_column("split", pa.array([split] * len(table), pa.string()))
        tables.append(table)
        notes |= dict.fromkeys(found)
    return pa.concat_tables(tables, promote_options="default"), list(notes)


def choose(
    flags: TrainingFlags, table: pa.Table, notes: Sequence[str], *, min_samples: int
) -> TrainingData:
    """Split, filter and check the clips (and notes about them) that `index_data` has read.

    Clips with fewer than `min_samples` are left out; with categories, one may have nothing else.
    Raises ConfigError: data that cannot be used, or that leaks; TooManyFailed.
    """
    by_category = flags.categories or flags.category_weight > 0
    dev_needed = flags.keep != "last"
    if flags.folds:
        try:
            table = splits.fold_splits(table, flags.folds, flags.fold)
        except ConfigError as error:
            if not flags.limit:
                raise
            raise ConfigError(f"{error}, or a --limit above {flags.limit:,} clips") from error
    if not len(table) or not column_of(table, "split").is_valid().to_numpy().any():
        raise ConfigError(
            "--data has no split: give --folds N to split it by speaker, or --train and --dev"
        )
    leakage = splits.check_leakage(table, flags.allow_leakage)
    without = table["split"].null_count
    table = table.filter(pc.is_in(table["split"], pa.array(["train", "dev"])))
    table, left_out = _usable(flags, table, min_samples, categories=by_category)
    left_out |= {"no split": without} if without else {}
    outside = np.argwhere(np.abs(_labels(table) - 0.5) > 0.5).tolist()
    if outside:
        row, column = outside[0]
        value = table[DIMENSIONS[column]][row].as_py()
        raise ConfigError(
            f"{table['file'][row]} has {DIMENSIONS[column]} {value:g}, outside 0..1: rescale the "
            "labels of --data"
        )
    train, dev = (table.filter(pc.equal(table["split"], name)) for name in ("train", "dev"))
    train = splits.take_fraction(train, flags.train_fraction, flags.seed)
    _require_rows({"train": train} | ({"dev": dev} if dev_needed else {}), flags, left_out)
    if flags.shuffle_labels:
        train = splits.shuffle_labels(train, flags.seed)
    names = tuple(sorted({name for name in _emotions(train) if name}))
    known = {*column_of(train, "sex").to_pylist()} if flags.sex_weight else set()
    sexes = tuple(sorted(known - {None, ""}))
    counts = np.isfinite(_labels(train)).sum(axis=0) * (np.asarray(flags.target_weights) > 0)
    trained = counts >= _LEAST_LABELS
    if not trained.any() and not by_category:
        raise ConfigError(
            f"nothing to train: no dimension has {_LEAST_LABELS} train labels and a weight above "
            "0: give more labelled data, other --target-weights, or --categories"
        )
    train_examples, dev_examples = (_examples(part, names, sexes, trained) for part in (train, dev))
    dev_labels = np.isfinite(dev_examples.labels).sum(axis=0)
    has_category = by_category and (dev_examples.categories >= 0).any()
    if dev_needed and dev_labels.max(initial=0) < _LEAST_LABELS and not has_category:
        raise ConfigError(
            f"no dimension that is trained has {_LEAST_LABELS} dev labels: give labelled dev "
            "clips, or --keep last to train without"
        )
    return TrainingData(
        table=pa.concat_tables([train, dev]),
        train=train_examples,
        dev=dev_examples,
        categories=names,
        sexes=sexes,
        left_out=left_out,
        leakage=leakage,
        notes=[*notes, *_label_notes(_labels(train), _labels(dev), trained)],
        trained=tuple(name for name, of in zip(DIMENSIONS, trained, strict=True) if of),
    )


def _examples(
    table: pa.Table, categories: Sequence[str], sexes: Sequence[str], trained: NDArray[np.bool_]
) -> Examples:
    """Rows of a labelled manifest, in an order that stays wherever the corpus lies."""
    table = table.append_column("identity", pa.array(identities(table), pa.string()))
    table = table.sort_by("identity")
    labels = _labels(table)
    labels[:, ~trained] = np.nan
    corpora = [name or "" for name in column_of(table, "corpus").to_pylist()]
    return Examples(
        clips=clips_of(table),
        identities=table["identity"].to_pylist(),
        labels=labels,
        categories=_numbered(_emotions(table), categories),
        sexes=_numbered(column_of(table, "sex").to_pylist(), sexes),
        corpora=np.unique(corpora, return_inverse=True)[1].astype(np.int64),
    )


def _numbered(words: Sequence[str | None], names: Sequence[str]) -> NDArray[np.int64]:
    """int64 [words]: the place of each among `names`, or `NO_CATEGORY`."""
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers.get(word or "", NO_CATEGORY) for word in words], np.int64)


def _label_notes(
    train: NDArray[np.float32], dev: NDArray[np.float32], trained: NDArray[np.bool_]
) -> Iterator[str]:
    for column, name in enumerate(DIMENSIONS):
        values, dev_values = (part[~np.isnan(part[:, column]), column] for part in (train, dev))
        if not trained[column]:
            why = "no weight" if len(values) >= _LEAST_LABELS else "too few train labels"
            yield f"{name} is not trained ({why}, {len(values):,} labels): its scores will be null"
            continue
        for found, split, so in (
            (values, "train", "the model cannot learn it"),
            (dev_values, "dev", "its dev CCC is 0 for any model"),
        ):
            if len(found) and (found == found[0]).all():
                yield f"{name}: all {len(found):,} {split} labels are {found[0]:g}, so {so}"


def _usable(
    flags: LabelledFlags, table: pa.Table, min_samples: int, *, categories: bool
) -> tuple[pa.Table, dict[str, int]]:
    unlabelled = np.all(np.isnan(_labels(table)), axis=1)
    if categories:
        unlabelled &= np.array([name is None for name in _emotions(table)], bool)
    status = np.array(table["status"].to_pylist(), object)
    lengths_s = np.array(column_of(table, "duration_s").to_pylist(), np.float64)  # None becomes NaN
    tests = {
        "no label": unlabelled,
        "unknown length": np.isnan(lengths_s),
        _TOO_LONG: lengths_s > flags.max_clip_s,
        _TOO_SHORT: lengths_s < max(flags.min_clip_s, min_samples / SAMPLE_RATE_HZ),
    }
    reasons = np.select([status != str(Status.OK), *tests.values()], [status, *tests.keys()], "")
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


def _require_rows(
    tables: Mapping[str, pa.Table], flags: LabelledFlags, left_out: Mapping[str, int]
) -> None:
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


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


def _emotions(table: pa.Table) -> list[str | None]:
    return [category_of(word) for word in column_of(table, "emotion").to_pylist()]


def _labels(table: pa.Table) -> NDArray[np.float32]:
    return dimensions_of(table).astype(np.float32)


def column_of(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column of texts, all null where the table has none."""
    if name in table.column_names:
        return table[name]
    return pa.chunked_array([pa.nulls(len(table), pa.string())])

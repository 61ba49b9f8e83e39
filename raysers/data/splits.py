"""Which clips are trained on: folds, leaks between splits, subsets, the shuffled control.

Nothing here depends on the order of the rows. A group (a speaker, or a session whose speakers share
a room) stays in one split; clips of unknown speakers are trained on and never evaluated on.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.errors import ConfigError
from raysers.schemas import LABEL_FIELDS, PARTS_OF_FILE
from raysers.types import DIMENSIONS, clip_id, seed_of

_TRAIN, _DEV, _TEST = "train", "dev", "test"
#: Columns whose values must not cross splits; usually both. An actor of IEMOCAP is in one session,
#: so the session is enough.
_GROUPS = {"iemocap": ("session",)}
_USUAL_GROUPS = ("speaker", "session")
#: Its sessions are podcasts with many speakers.
_PODCASTS = "msp-podcast"
_WORDS = {("cmu-mosi", "session"): "video", (_PODCASTS, "session"): "podcast"}
_TOLD = 3


class Group(NamedTuple):
    """Clips that belong together: one speaker, session, video or podcast of one corpus."""

    corpus: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f" of {self.corpus}" if self.corpus else "")


class Leak(NamedTuple):
    """A group that is in train and in other splits, and how many clips it has there."""

    group: Group
    splits: tuple[str, ...]
    clips: int

    def __str__(self) -> str:
        return f"{self.group} is in train and in {', '.join(self.splits)} ({self.clips:,} clips)"


def identities(table: pa.Table) -> list[str]:
    """32 hex digits per row, by its corpus, its path below the folder of that corpus, and its span.

    The draws of a training follow from these and not from `clip_id`, which holds the whole path, so
    that the same seed gives the same training wherever a copy of the corpus lies. The folder (or
    tar) is the deepest one that holds all rows of the corpus; rows of no known corpus are taken as
    one. The table has `file`, `start`, `end`, perhaps `corpus`, channel, stream, and no clip twice.
    """
    files = table["file"].to_pylist()
    corpora = [corpus or "" for corpus in _values(table, "corpus")]
    of_corpus: dict[str, list[str]] = defaultdict(list)
    for corpus, file in zip(corpora, files, strict=True):
        of_corpus[corpus].append(file)
    skip = {}
    for corpus, found in of_corpus.items():
        shared = os.path.commonprefix([min(found), max(found)])  # noqa: RUF071  cut at a slash
        skip[corpus] = max(shared.rfind("/"), shared.rfind("#")) + 1
    spans = (table[name].cast(pa.int64()).to_pylist() for name in ("start", "end"))
    parts = (_values(table, field.name) for field in PARTS_OF_FILE)
    return [
        clip_id(f"{corpus}\0{file[skip[corpus] :]}", start or 0, *rest)
        for corpus, file, start, *rest in zip(corpora, files, *spans, *parts, strict=True)
    ]


def fold_splits(table: pa.Table, folds: int, fold: int) -> pa.Table:
    """`table` with `split` decided anew: `dev` is fold number `fold` of `folds`, `train` the rest.

    Speakers are dealt round robin, sorted by corpus, sex and name, so the sexes are balanced over
    folds; a corpus in which a unit holds both sexes, as IEMOCAP's sessions do, is dealt as a whole.
    Where speakers share sessions, whole sessions are dealt. Clips of an unknown speaker are trained
    on; clips of a test split stay there. Raises ConfigError: no speakers, fewer than folds, or an
    impossible number.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise ConfigError(f"--folds {folds}, fold {fold}: give 2 or more, and a fold below that")
    splits, sexes = _values(table, "split"), _values(table, "sex")
    open_rows = [row for row, split in enumerate(splits) if not (split or "").startswith(_TEST)]
    units = _units(table, open_rows)
    sex_of = {unit: {sexes[row] or "" for row in rows} for unit, rows in units.items()}
    mixed = {unit.corpus for unit, found in sex_of.items() if len(found) > 1}
    hands: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for unit in sorted(units):
        hands[unit.corpus, "" if unit.corpus in mixed else min(sex_of[unit])].append(unit)
    dealt = chain.from_iterable(hands.values())
    dev = {row for rank, unit in enumerate(dealt) if rank % folds == fold for row in units[unit]}
    if not dev or len(dev) == len(open_rows):
        count = f"only {len(units)} speakers or sessions are" if units else "no speaker is"
        count = "only one speaker or session is" if len(units) == 1 else count
        empty = "is empty" if not dev else "leaves no train clips"
        fix = "give fewer folds" if len(units) > 1 else "give data of several known speakers"
        raise ConfigError(f"--folds {folds}: fold {fold} {empty}, {count} known: {fix}")
    for row in open_rows:
        splits[row] = _DEV if row in dev else _TRAIN
    return with_labels(table, "split", pa.array(splits, pa.string()))


def _units(table: pa.Table, rows: Sequence[int]) -> dict[Group, list[int]]:
    """Rows by what must stay together: groups that share a clip are one, named by the first."""
    above: dict[Group, Group] = {}

    def top(group: Group) -> Group:
        while above.setdefault(group, group) != group:
            group = above[group]
        return group

    of_row: dict[int, Group] = {}
    wanted = set(rows)
    for row, groups in enumerate(_groups(table)):
        if row not in wanted or not groups or groups[0].kind == "podcast":
            continue
        first, *others = sorted({top(group) for group in groups})
        above |= dict.fromkeys(others, first)
        of_row[row] = first
    units: dict[Group, list[int]] = defaultdict(list)
    for row, group in of_row.items():
        units[top(group)].append(row)
    return dict(units)


def leaks(table: pa.Table) -> list[Leak]:
    """Groups with clips in train and also in dev or a test split, sorted; best none.

    Groups are speakers and sessions; in IEMOCAP the sessions alone, in CMU-MOSI videos, in
    MSP-Podcast podcasts for clips of unknown speakers (against each other), and files where neither
    is known. Test splits may share speakers with one another.
    """
    found: dict[Group, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    labels = [name for name in (*DIMENSIONS, "emotion") if name in table.column_names]
    values = table.select(labels).to_pylist() if labels else [{"any": 1}] * len(table)
    labelled = [any(value is not None for value in row.values()) for row in values]
    rows = zip(_values(table, "split"), _groups(table), _values(table, "file"), strict=True)
    for judged, (split, groups, file) in zip(labelled, rows, strict=True):
        if not split or not judged:  # clips without labels evaluate nothing
            continue
        # of an unknown speaker at least the same file must not be on both sides
        for group in groups or ([Group("", "file", file)] if file else []):
            found[group][split] += 1
    return [
        Leak(group, others, sum(counts[split] for split in others))
        for group, counts in sorted(found.items())
        if _TRAIN in counts and (others := tuple(sorted(set(counts) - {_TRAIN})))
    ]


def check_leakage(table: pa.Table, allow: bool) -> list[str]:
    """One line for each leak; ConfigError naming the first ones unless they are allowed."""
    found = leaks(table)
    if found and not allow:
        told = "; ".join(map(str, found[:_TOLD]))
        more = f"; and {len(found) - _TOLD:,} more" if len(found) > _TOLD else ""
        raise ConfigError(
            f"training and evaluation share speakers: {told}{more}. Split by speaker, or give "
            "--allow-leakage, which marks the results"
        )
    return [str(leak) for leak in found]


def take_fraction(table: pa.Table, fraction: float, seed: int) -> pa.Table:
    """A share of the clips, at least one, in their order; larger shares hold the smaller ones."""
    if not 0 < fraction <= 1:
        raise ConfigError(f"--train-fraction is {fraction:g}: give a share above 0 and at most 1")
    count = max(1, round(fraction * len(table)))
    return table.take(np.sort(_by_hash(table, seed)[:count]))


def shuffle_labels(table: pa.Table, seed: int) -> pa.Table:
    """The same clips with the labels dealt anew among them, dimensions and category together.

    A control: what a model still learns from these does not come from the speakers.
    """
    receivers = np.argsort(np.array(identities(table)), kind="stable")
    source = np.empty(len(table), np.int64)
    source[receivers] = _by_hash(table, seed)
    for name in (*DIMENSIONS, "emotion"):
        if name in table.column_names:
            table = with_labels(table, name, table[name].take(pa.array(source)))
    return table


def _by_hash(table: pa.Table, seed: int) -> NDArray[np.int64]:
    """Row numbers in the order of a hash of seed and clip."""
    hashes = [seed_of(seed, clip) for clip in identities(table)]
    return np.array(sorted(range(len(hashes)), key=hashes.__getitem__), np.int64)


def _groups(table: pa.Table) -> Iterator[list[Group]]:
    """The groups of each row."""
    columns = (_values(table, name) for name in ("corpus", "speaker", "session"))
    for named, speaker, session in zip(*columns, strict=True):
        corpus = named or ""
        kinds = _GROUPS.get(corpus, _USUAL_GROUPS)
        if corpus == _PODCASTS:
            kinds = ("speaker",) if speaker else ("session",)
        names = {"speaker": speaker, "session": session}
        if not any(names[kind] for kind in kinds):
            kinds = _USUAL_GROUPS  # a copy of the corpus that names only the other
        yield [
            Group(corpus, _WORDS.get((corpus, kind), kind), name)
            for kind in kinds
            if (name := names[kind])
        ]


def _values(table: pa.Table, name: str) -> list[Any]:
    if name not in table.column_names:
        return [None] * len(table)
    return list(table[name].to_pylist())


def with_labels(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with a column of labels in place of the one it has."""
    field = next(field for field in LABEL_FIELDS if field.name == name)
    if name not in table.column_names:
        return table.append_column(field, column)
    return table.set_column(table.schema.get_field_index(name), field, column)

"""The corpora of a study: which is trained on, which clips the models are judged by.

All of them become manifests in OUTPUT/corpora once: `training` (the clips of the home corpora, by
split) and `judged` (their test clips, and the other corpora). Every cell reads these two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raysers.data import splits
from raysers.data.manifest import fingerprint, write_manifest
from raysers.engine.labelled import index_labelled
from raysers.errors import ConfigError
from raysers.evaluation.join import labelled_only
from raysers.io import storage
from raysers.schemas import LABEL_FIELDS
from raysers.types import DIMENSIONS

TRAINING, EVALUATION = "training", "judged"
#: A corpus without splits is split by speaker: a third for testing, a third of the rest is dev.
_FOLDS = 3
_MAP = "russell-mehrabian"


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpora:
    """The data of a study.

    Attributes:
        training: clips with splits train, dev and test.
        judged: clips the models are judged by.
        home: corpora that are trained on.
        others: the other ones.
        notes: what the reader should know.
    """

    training: pa.Table
    judged: pa.Table
    home: tuple[str, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Changes with any clip, label or split."""
        tables = (self.training, self.judged)
        return "-".join(f"{fingerprint(t)}{_labels_mark(t)}" for t in tables)

    @property
    def in_domain(self) -> str:
        """The corpus others are compared with; empty when several are trained on."""
        return self.home[0] if len(self.home) == 1 else ""


def training_uri(output: str) -> str:
    """Folder of the manifest that is trained on."""
    return storage.join(output, "corpora", TRAINING)


def evaluation_uri(output: str) -> str:
    """Folder of the manifest the models are judged by."""
    return storage.join(output, "corpora", EVALUATION)


def read_corpora(
    uris: Sequence[str], *, emotion_map: str, speakers: str
) -> tuple[dict[str, pa.Table], list[str], list[str]]:
    """Labelled manifests by corpus of `--data`, on the connected cluster.

    Returns:
        The manifests, the corpora of the first of `uris`, and notes.

    Raises:
        ConfigError: data that cannot be read or have no labels.
    """
    tables: dict[str, pa.Table] = {}
    notes: list[str] = []
    firsts: list[str] = []
    for uri in uris:
        mapping = "" if emotion_map in ("auto", "none") else emotion_map
        table, found = index_labelled([uri], emotion_map=mapping, speakers=speakers)
        if emotion_map == "auto" and not len(labelled_only(table)):
            table, found = index_labelled([uri], emotion_map=_MAP, speakers=speakers)
        table = labelled_only(_named(table, uri))
        if not len(table):
            raise ConfigError(f"--data {uri}: no clip has a label for {', '.join(DIMENSIONS)}")
        notes += [note for note in found if note not in notes]
        for name in pc.unique(table["corpus"]).to_pylist():
            part = table.filter(pc.equal(table["corpus"], name))
            if name in tables:
                raise ConfigError(f"--data {uri}: corpus {name!r} is there twice: give it once")
            tables[name] = part
        firsts = firsts or list(tables)
    return tables, firsts, notes


def arrange(
    tables: Mapping[str, pa.Table], home: Sequence[str], notes: Sequence[str], limit: int
) -> Corpora:
    """Decide splits and which clips judge.

    Args:
        tables: labelled manifests by corpus.
        home: names of the corpora to train on.
        notes: to pass on.
        limit: clips of each corpus to use, spread evenly; 0: all.

    Raises:
        ConfigError: a home corpus that cannot be split.
    """
    told = list(notes)
    tables = {name: _limited(table, limit) for name, table in tables.items()}
    parts = []
    for name in home:
        table, note = _with_splits(name, tables[name])
        told += [note] if note else []
        parts.append(table)
    training = pa.concat_tables(parts, promote_options="default").combine_chunks()
    judged = [training.filter(pc.starts_with(training["split"], "test"))]
    if not len(judged[0]):
        raise ConfigError(f"--data {' '.join(home)}: no clip is for testing: see its split column")
    others = [name for name in tables if name not in home]
    for name in others:
        part, note = _judging(name, tables[name])
        told += [note] if note else []
        judged.append(part)
    return Corpora(
        training=training,
        judged=pa.concat_tables(judged, promote_options="default").combine_chunks(),
        home=tuple(home),
        others=tuple(others),
        notes=tuple(dict.fromkeys(told)),
    )


def write_corpora(output: str, corpora: Corpora) -> None:
    """Write the two manifests.

    Raises:
        WriteError: the output cannot be written.
    """
    for uri, table in (
        (training_uri(output), corpora.training),
        (evaluation_uri(output), corpora.judged),
    ):
        write_manifest(storage.join(uri, "manifest"), table)


def _named(table: pa.Table, uri: str) -> pa.Table:
    """Clips without a corpus are of the folder (or table) they were found in."""
    name = uri.rstrip("/").rpartition("/")[2].partition(".")[0] or "data"
    place = table.schema.get_field_index("corpus")
    column = pc.fill_null(table["corpus"], name)
    return table.set_column(place, table.schema.field(place), column)


def _limited(table: pa.Table, limit: int) -> pa.Table:
    if not limit or len(table) <= limit:
        return table
    return table.take(pa.array([i * len(table) // limit for i in range(limit)]))


def _with_splits(name: str, table: pa.Table) -> tuple[pa.Table, str]:
    """The table with train, dev and test; what it has is kept."""
    known = {split for split in pc.unique(table["split"]).to_pylist() if split}
    has_test = any(split.startswith("test") for split in known)
    if {"train", "dev"} <= known and has_test:
        return table.filter(pc.is_valid(table["split"])), ""
    if known - {"train"}:
        missing = ({"train", "dev"} - known) | (set() if has_test else {"test"})
        raise ConfigError(
            f"--data: {name} has splits but no clips for {', '.join(sorted(missing))}: complete "
            "its split column, or leave it out to split the speakers"
        )
    table = splits.fold_splits(_without_splits(table), _FOLDS, 0)
    testing = pc.equal(table["split"], "dev")
    marked = pc.if_else(testing, "test", pa.nulls(len(table), pa.string()))
    table = splits.fold_splits(_with(table, marked), _FOLDS, 0)
    count = {
        split: pc.count_distinct(table.filter(pc.equal(table["split"], split))["speaker"]).as_py()
        for split in ("train", "dev", "test")
    }
    words = ", ".join(f"{n} {split}" for split, n in count.items())
    return table, f"{name} has no splits: its speakers are split ({words})"


def _judging(name: str, table: pa.Table) -> tuple[pa.Table, str]:
    """Test clips of a corpus that has some, else all of it."""
    testing = pc.fill_null(pc.starts_with(table["split"], "test"), False)
    if pc.any(testing).as_py():
        return table.filter(testing), ""
    known = any(pc.unique(table["split"]).to_pylist())
    note = f"{name}: its splits have no test clips, so all its clips judge" if known else ""
    return _without_splits(table), note


def _without_splits(table: pa.Table) -> pa.Table:
    return _with(table, pa.nulls(len(table), pa.string()))


def _with(table: pa.Table, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    place = table.schema.get_field_index("split")
    return table.set_column(place, table.schema.field(place), column)


def _labels_mark(table: pa.Table) -> str:
    """8 hex digits of labels and splits, which the fingerprint of a manifest leaves out."""
    digest = hashlib.blake2b(digest_size=4)
    rows = table.sort_by("clip_id")
    for field in LABEL_FIELDS:
        if field.name in rows.column_names:
            digest.update(repr(rows[field.name].to_pylist()).encode())
    return digest.hexdigest()

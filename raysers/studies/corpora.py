"""The corpora of a study: which is trained on, which clips the models are evaluated on.

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
from raysers.engine.listing import index_labelled
from raysers.errors import ConfigError
from raysers.evaluation.join import labelled_only
from raysers.io import storage
from raysers.schemas import LABEL_FIELDS
from raysers.types import DIMENSIONS

#: A corpus without splits is split by speaker: a third for testing, a third of the rest is dev.
_FOLDS = 3
_MAP = "russell-mehrabian"


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpora:
    """The data of a study: clips to train on, with splits, and clips to evaluate on.

    `home` names the corpora that are trained on, `others` the other ones; `notes` are for the user.
    """

    training: pa.Table
    judged: pa.Table
    home: tuple[str, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Changes with any clip, label or split."""
        marks = []
        for table in (self.training, self.judged):
            digest = hashlib.blake2b(digest_size=4)  # what the one of a manifest leaves out
            rows = table.sort_by("clip_id")
            for field in LABEL_FIELDS:
                if field.name in rows.column_names:
                    digest.update(repr(rows[field.name].to_pylist()).encode())
            marks.append(fingerprint(table) + digest.hexdigest())
        return "-".join(marks)

    @property
    def in_domain(self) -> str:
        """The corpus others are compared with; empty when several are trained on."""
        return self.home[0] if len(self.home) == 1 else ""

    def write(self, output: str) -> None:
        """Write the two manifests; raises WriteError."""
        write_manifest(storage.join(training_uri(output), "manifest"), self.training)
        write_manifest(storage.join(evaluation_uri(output), "manifest"), self.judged)


def training_uri(output: str) -> str:
    """Folder of the manifest that is trained on."""
    return storage.join(output, "corpora", "training")


def evaluation_uri(output: str) -> str:
    """Folder of the manifest that models are evaluated on."""
    return storage.join(output, "corpora", "judged")


def read_corpora(
    uris: Sequence[str], *, emotion_map: str, speakers: str
) -> tuple[dict[str, pa.Table], list[str], list[str]]:
    """Labelled manifests by corpus of `--data`, on the connected cluster.

    Returns:
        The manifests, the corpora of the first of `uris`, and notes.

    Raises ConfigError: data that cannot be read or have no labels.
    """
    tables: dict[str, pa.Table] = {}
    notes: list[str] = []
    firsts: list[str] = []
    for uri in uris:
        mapping = "" if emotion_map in ("auto", "none") else emotion_map
        table, found = index_labelled([uri], emotion_map=mapping, speakers=speakers, flag="--data")
        if emotion_map == "auto" and not len(labelled_only(table)):
            table, found = index_labelled([uri], emotion_map=_MAP, speakers=speakers, flag="--data")
        # clips without a corpus are of the folder (or table) they were found in
        folder = uri.rstrip("/").rpartition("/")[2].partition(".")[0] or "data"
        table = labelled_only(_with(table, "corpus", pc.fill_null(table["corpus"], folder)))
        if not len(table):
            raise ConfigError(f"--data {uri}: no clip has a label for {', '.join(DIMENSIONS)}")
        notes += [note for note in found if note not in notes]
        for name in pc.unique(table["corpus"]).to_pylist():
            if name in tables:
                raise ConfigError(f"--data {uri}: corpus {name!r} is there twice: give it once")
            tables[name] = table.filter(pc.equal(table["corpus"], name))
        firsts = firsts or list(tables)
    return tables, firsts, notes


def arrange(
    tables: Mapping[str, pa.Table], home: Sequence[str], notes: Sequence[str], limit: int
) -> Corpora:
    """Decide splits, and which clips of the manifests by corpus the models are evaluated on.

    Of each corpus `limit` clips are used, spread evenly; 0: all. Raises ConfigError: a home corpus
    that cannot be split.
    """
    told = list(notes)
    parts: dict[str, pa.Table] = {}
    for name, table in tables.items():
        count = min(limit or len(table), len(table))
        some = table.take(pa.array([i * len(table) // count for i in range(count)], pa.int64()))
        parts[name], note = (_with_splits if name in home else _evaluated)(name, some)
        told += [note] if note else []
    training = pa.concat_tables([parts[n] for n in home], promote_options="default")
    training = training.combine_chunks()
    testing = training.filter(pc.starts_with(training["split"], "test"))
    if not len(testing):
        raise ConfigError(f"--data {' '.join(home)}: no clip is for testing: see its split column")
    others = [name for name in parts if name not in home]
    judged = [testing, *(parts[name] for name in others)]
    return Corpora(
        training=training,
        judged=pa.concat_tables(judged, promote_options="default").combine_chunks(),
        home=tuple(home),
        others=tuple(others),
        notes=tuple(dict.fromkeys(told)),
    )


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
    none = pa.nulls(len(table), pa.string())
    table = splits.fold_splits(_with(table, "split", none), _FOLDS, 0)
    marked = pc.if_else(pc.equal(table["split"], "dev"), "test", none)
    table = splits.fold_splits(_with(table, "split", marked), _FOLDS, 0)
    counts = [
        f"{pc.count_distinct(table.filter(pc.equal(table['split'], split))['speaker'])} {split}"
        for split in ("train", "dev", "test")
    ]
    return table, f"{name} has no splits: its speakers are split ({', '.join(counts)})"


def _evaluated(name: str, table: pa.Table) -> tuple[pa.Table, str]:
    """Test clips of a corpus that has some, else all of it."""
    testing = pc.fill_null(pc.starts_with(table["split"], "test"), False)
    if pc.any(testing).as_py():
        return table.filter(testing), ""
    known = any(pc.unique(table["split"]).to_pylist())
    note = f"{name}: its splits have no test clips, so all its clips judge" if known else ""
    return _with(table, "split", pa.nulls(len(table), pa.string())), note


def _with(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), column)

"""The labelled clips of a fusion: all splits, because the frozen encoders look at each clip once.

What clips are used is decided here; clips whose audio fails later become rows with a status.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data import splits
from raysers.data.sorting import sort_manifest
from raysers.engine.labelled import index_labelled
from raysers.errors import ConfigError
from raysers.evaluation.join import dimensions_of, labelled_only
from raysers.models.fusion import LEAST_LABELS
from raysers.types import DIMENSIONS, Status
from raysers.words.fusion_flags import FuseTrainFlags

TRAIN, DEV = "train", "dev"


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionData:
    """What a fusion is trained and judged on.

    Attributes:
        table: labelled manifest with a `split` in every row.
        leakage: what train shares with other splits although it should not, a line each.
        notes: what the user should know.
    """

    table: pa.Table
    leakage: Sequence[str]
    notes: Sequence[str]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any clip, label or split."""
        table = self.table.sort_by("clip_id")
        digest = hashlib.blake2b(digest_size=8)
        for name in ("clip_id", "split", *DIMENSIONS):
            digest.update(repr(table[name].to_pylist()).encode())
        return digest.hexdigest()


def load(flags: FuseTrainFlags) -> FusionData:
    """Index, split and check the data, on the connected cluster.

    Raises:
        ConfigError: data that cannot be read or used, or that leaks.
    """
    table, notes = index_labelled(
        flags.data,
        corpus=flags.corpus,
        emotion_map=flags.emotion_map,
        speakers=flags.speakers,
        limit=flags.limit,
    )
    if flags.folds:
        table = splits.fold_splits(table, flags.folds, flags.fold)
    leakage = splits.check_leakage(table, flags.allow_leakage)
    kept = labelled_only(table)
    if lost := len(table) - len(kept):
        notes.append(f"{lost:,} clips have no label and are left out")
    table = kept.filter(pc.is_valid(kept["split"]))
    if unsplit := len(kept) - len(table):
        notes.append(f"{unsplit:,} clips have no split and are left out")
    present = set(table["split"].to_pylist())
    for name in (TRAIN, DEV):
        if name not in present:
            raise ConfigError(
                f"--data has no labelled {name} clips: give data with a split column, or --folds "
                "N to split it by speaker"
            )
    if lacking := nothing_to_learn(dimensions_of(table), table["split"].to_pylist()):
        raise ConfigError(f"--data: {lacking}")
    return FusionData(table=sort_manifest(table), leakage=leakage, notes=notes)


def nothing_to_learn(labels: npt.NDArray[np.floating[Any]], split: Sequence[str]) -> str:
    """Why no head can be trained and judged on these labels [clips, 3]; empty when one can.

    A CCC needs two clips, so without two labels of one dimension in train and dev, every epoch
    would be as good as any other.
    """
    of = np.array(split, object)
    counts = [np.isfinite(labels[of == name]).sum(axis=0) for name in (TRAIN, DEV)]
    if (np.minimum(*counts) >= LEAST_LABELS).any():
        return ""
    return (
        f"no dimension has {LEAST_LABELS} or more labels in both train and dev: give more labelled "
        "clips, or other splits"
    )


def require_words(table: pa.Table) -> None:
    """Refuse clips without words when there is no recogniser.

    Raises:
        ConfigError: naming the first of them.
    """
    speechless = without_words(table)
    if len(speechless):
        raise ConfigError(
            f"--asr manifest: {len(speechless):,} of {len(table):,} clips have no transcript (the "
            f"first is {speechless['file'][0]}): give a recogniser, as --asr moonshine"
        )


def without_words(table: pa.Table) -> pa.Table:
    """The clips whose audio may be read and whose words the manifest does not know."""
    good = table.filter(pc.equal(table["status"], str(Status.OK)))
    if "transcript" not in table.column_names:
        return good
    return good.filter(pc.is_null(good["transcript"]))


def words_fingerprint(table: pa.Table) -> str:
    """16 hex digits that change with any transcript."""
    if "transcript" not in table.column_names:
        return ""
    table = table.sort_by("clip_id")
    words = repr([table[name].to_pylist() for name in ("clip_id", "transcript")])
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

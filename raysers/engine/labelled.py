"""The manifest of labelled clips; apart, so that jobs without labels load no corpus' reader."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from raysers.data.labelled import read_labelled
from raysers.data.segments import Segmenting
from raysers.engine.plan import refuse_cutting, to_manifest


def index_labelled(
    inputs: Sequence[str],
    *,
    corpus: str = "auto",
    emotion_map: str = "",
    speakers: str = "",
    segmenting: Segmenting | None = None,
    limit: int = 0,
) -> tuple[pa.Table, list[str]]:
    """The manifest of labelled inputs, as `plan.index` makes it, and notes for the user.

    Every label column is there, null where nothing is known. Finished manifests among the inputs
    are not inspected again.

    Args:
        inputs: corpora, tables, manifests, audio.
        corpus: as `read_labelled`, like the next two.
        emotion_map: a map from categories to missing dimensions; empty for none.
        speakers: a table of speakers and their sex; empty for none.
        segmenting: for rows without a segment of their own; None leaves files whole.
        limit: only the first clips; 0 takes all.

    Raises:
        ConfigError: as `read_labelled` and `plan.index`.
        CredentialsError, TransientStorageError: the store does not answer as it should.
    """
    segmenting = segmenting or Segmenting()
    refuse_cutting(inputs, segmenting)
    found = read_labelled(inputs, corpus=corpus, emotion_map=emotion_map, speakers=speakers)
    finished, listed = found.table.slice(0, found.finished), found.table.slice(found.finished)
    clips = to_manifest([finished], [listed], segmenting, limit=limit)
    return clips.table(), list(found.notes)

"""Names of clips that stay when their corpus moves: what the draws of a training follow from.

A `clip_id` holds the whole path, so it says which object was read. A training by the same seed has
to be the same training wherever a copy of the corpus lies, so its draws follow from these instead.
"""

from __future__ import annotations

import os
from collections import defaultdict

import pyarrow as pa

from raysers.types import clip_id


def identities(table: pa.Table) -> list[str]:
    """32 hex digits per row, by its corpus, its path below the folder of that corpus, and its span.

    The folder (or tar) is the deepest one that holds all rows of the corpus; rows of no known
    corpus are taken as one.

    Args:
        table: clips with `file`, `start`, `end` and perhaps `corpus`; no clip twice.
    """
    files = table["file"].to_pylist()
    if "corpus" in table.column_names:
        corpora = [corpus or "" for corpus in table["corpus"].to_pylist()]
    else:
        corpora = [""] * len(files)
    of_corpus: dict[str, list[str]] = defaultdict(list)
    for corpus, file in zip(corpora, files, strict=True):
        of_corpus[corpus].append(file)
    skip = {corpus: len(_folder(found)) for corpus, found in of_corpus.items()}
    spans = (table[name].cast(pa.int64()).to_pylist() for name in ("start", "end"))
    return [
        clip_id(f"{corpus}\0{file[skip[corpus] :]}", start or 0, end)
        for corpus, file, start, end in zip(corpora, files, *spans, strict=True)
    ]


def _folder(files: list[str]) -> str:
    """The deepest folder or tar of all files, with its slash or #; empty when they share none."""
    shared = os.path.commonprefix([min(files), max(files)])  # noqa: RUF071  cut at a slash below
    return shared[: max(shared.rfind("/"), shared.rfind("#")) + 1]

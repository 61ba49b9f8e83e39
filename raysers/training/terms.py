"""Licences of what a model is made from, for its card, and the `license` field of the model hub.

A model inherits duties from its starting weights and its data. What is not stated is "unknown",
which is not the same as free.
"""

from __future__ import annotations

from raysers.text import one_line

UNKNOWN = "unknown"

#: Licences of the weights training may start from, as their hub pages state them.
BASE_LICENCES: dict[str, str] = {
    "facebook/wav2vec2-base": "apache-2.0",
    "facebook/wav2vec2-large-lv60": "apache-2.0",
    "facebook/wav2vec2-large-robust": "apache-2.0",
    "facebook/wav2vec2-large-100k-voxpopuli": "cc-by-nc-4.0",
    "facebook/wav2vec2-xls-r-300m": "apache-2.0",
    "facebook/hubert-base-ls960": "apache-2.0",
    "facebook/hubert-large-ll60k": "apache-2.0",
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim": "cc-by-nc-sa-4.0",
}

#: Terms of the corpora there are readers for.
DATA_LICENCES: dict[str, str] = {
    "msp-podcast": "licence of the University of Texas at Dallas, no redistribution",
    "iemocap": "release form of the University of Southern California, no redistribution",
    "cmu-mosi": "cc-by-nc-4.0 as its audformat edition states",
    "emodb": "cc0-1.0",
}

#: What the hub's `license` field takes; anything else is `other` with a name.
_HUB_LICENCES = (
    "apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "bsd-3-clause", "odbl", UNKNOWN,
)  # fmt: skip


def hub_fields(licence: str | None) -> dict[str, str]:
    """`license`, and `license_name` where it is none of the hub's own.

    >>> hub_fields("CC0-1.0")
    {'license': 'cc0-1.0'}
    """
    name = one_line(licence or UNKNOWN)
    known = name.lower() in _HUB_LICENCES
    return {"license": name.lower()} if known else {"license": "other", "license_name": name}


def data_licence(corpus: str, stated: str | None = None) -> str:
    """Terms of a corpus: as stated, else as known here."""
    return stated or DATA_LICENCES.get(corpus, UNKNOWN)


def base_licence(hub_id: str | None, stated: str | None = None) -> str:
    """Terms of the starting weights: as stated, else as known here."""
    return stated or BASE_LICENCES.get(hub_id or "", UNKNOWN)

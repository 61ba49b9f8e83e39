"""Models that come with the package: small, and there without any network.

Each is a checkpoint folder like any other, found by its name on whatever machine runs: the name
travels to workers, never the path, and the revision is a hash of the folder's files.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

#: Their names; each is a folder of `ASSETS`.
EMBEDDED = ("emodb-tiny",)

ASSETS = Path(str(resources.files("raysers"))) / "assets"


def embedded_folder(name: str) -> Path:
    """The folder of one of `EMBEDDED`."""
    return ASSETS / name

"""Where a training run stands, in `OUTPUT/state/<step>/`: whole or absent, locally and on S3.

`state.json` is written last and deleted first, so a folder without it does not count; an older
state goes only after the new one is complete. One state is always there once one was written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raysers.errors import ObjectMissing, RaysersError
from raysers.io import storage

_MARK = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A complete state: where it is, after how many steps, and its notes."""

    uri: str
    step: int
    notes: Mapping[str, Any]

    def read(self, name: str) -> bytes:
        """One of its files.

        Raises:
            RaysersError: it is gone, so someone else changed the folder.
        """
        try:
            return storage.read_bytes(storage.join(self.uri, name))
        except ObjectMissing as error:
            raise RaysersError(f"{self.uri} was changed from outside: {name} is gone") from error


def save(output: str, step: int, files: Mapping[str, bytes], notes: Mapping[str, Any]) -> None:
    """Write a state and then delete the others.

    Args:
        output: the run's folder.
        step: steps done.
        files: contents by name.
        notes: JSON-ready values; NaN is fine.

    Raises:
        WriteError: disk full, no permission.
    """
    uri = _folder(output, step)
    storage.delete(storage.join(uri, _MARK))  # a state of this step that is written again
    for name, content in files.items():
        storage.write_atomic(storage.join(uri, name), content)
    note(output, step, notes)
    clear(output, keep=step)


def note(output: str, step: int, notes: Mapping[str, Any]) -> None:
    """Replace the notes of the state of `step`.

    Raises:
        WriteError: disk full, no permission.
    """
    text = json.dumps({"step": step, **notes}, indent=1)
    storage.write_atomic(storage.join(_folder(output, step), _MARK), text.encode())


def latest(output: str) -> Saved | None:
    """The complete state with the most steps, or None."""
    marks = [uri for uri in _files(output) if uri.endswith(f"/{_MARK}")]
    if not marks:
        return None
    uri = max(marks).removesuffix(f"/{_MARK}")
    notes = json.loads(storage.read_bytes(storage.join(uri, _MARK)))
    return Saved(uri=uri, step=notes.pop("step"), notes=notes)


def clear(output: str, keep: int | None = None) -> None:
    """Delete every state, or every one but that of step `keep`."""
    kept = None if keep is None else _folder(output, keep)
    gone = [uri for uri in _files(output) if storage.parent(uri) != kept]
    for uri in sorted(gone, key=lambda uri: not uri.endswith(f"/{_MARK}")):
        storage.delete(uri)
    if not storage.is_remote(output):
        # with what a killed process left half-written
        root = storage.join(output, "state")
        folders = {storage.parent(uri) for uri in gone} if keep is not None else {root}
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _files(output: str) -> list[str]:
    try:
        return [found.uri for found in storage.list_objects(storage.join(output, "state"))]
    except ObjectMissing:
        return []


def _folder(output: str, step: int) -> str:
    return storage.join(output, "state", f"{step:08d}")

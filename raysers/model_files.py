"""Model folders on object storage, brought to this machine once.

The local folder's name is a hash of the objects' versions, so a changed model is fetched anew and
two processes that fetch at the same time end with the same folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from raysers.errors import ConfigError, ObjectForbidden, ObjectMissing
from raysers.io import storage

_COPY_BYTES = 8 << 20
#: Of text models also vocabularies.
_WANTED = (".json", ".safetensors", ".bin", ".md", ".txt", ".model")


def local_model(model: str, flag: str = "--model") -> str:
    """`model` itself, or for an `s3://` prefix the local folder it was fetched to.

    Raises:
        ConfigError: nothing there, or it may not be read; it names `flag`.
    """
    if not storage.is_remote(model):
        return model
    try:
        found = sorted(storage.list_objects(model), key=lambda o: o.uri)
    except (ObjectMissing, ObjectForbidden) as error:
        raise ConfigError(f"{flag} {model}: {error}") from error
    prefix = model.rstrip("/") + "/"
    files = {o.uri.removeprefix(prefix): o for o in found if o.uri.endswith(_WANTED)}
    # a model folder is flat; anything nested (or oddly named) is not part of it
    files = {name: o for name, o in files.items() if "/" not in name and "\\" not in name}
    if "config.json" not in files:
        raise ConfigError(f"{flag} {model}: no config.json under this prefix")
    versions = "\n".join(f"{o.uri} {o.etag} {o.num_bytes}" for o in files.values())
    digest = hashlib.sha256(versions.encode()).hexdigest()[:24]
    folder = _cache_folder() / digest
    if not folder.is_dir():
        _fetch({name: o.uri for name, o in files.items()}, folder)
    return str(folder)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "raysers" / "models"


def _fetch(uris: dict[str, str], folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    except OSError as error:
        raise ConfigError(f"{folder.parent} cannot be written; set XDG_CACHE_HOME") from error
    try:
        for name, uri in uris.items():
            with storage.open_file(uri) as source, (partial / name).open("wb") as copy:
                shutil.copyfileobj(source, copy, _COPY_BYTES)
        with suppress(OSError):  # another process was first; its copy is the same
            partial.rename(folder)
    except OSError as error:
        raise ConfigError(f"no room for the model in {folder.parent}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)

"""Files and objects by one set of names: local paths, `s3://bucket/key`, URLs that fsspec reads.

Every function raises the errors of `raysers.errors`, never `OSError` or boto's. Reading raises
ObjectMissing (ObjectUnreadable for a folder, pipe, device or socket) and ObjectForbidden, writing
WriteError (no permission, no space, no such bucket); both raise CredentialsError and
TransientStorageError. S3 is reached with the standard `AWS_*` environment (`AWS_ENDPOINT_URL` for
any compatible store), see `S3Settings`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

from raysers.audio.source import AudioSource
from raysers.errors import (
    ClipError,
    ConditionsUnsupported,
    ConfigError,
    ObjectChanged,
    ObjectForbidden,
    ObjectMissing,
    ObjectUnreadable,
    StorageError,
    TransientStorageError,
    status_of,
)
from raysers.io import local
from raysers.io.objects import (
    ObjectInfo,
    RangedFile,
    absolute,
    is_remote,
    is_s3,
    join,
    open_row,
    parent,
    row_of,
    suffix_of,
    tar_uri_of,
)

#: Names of other modules that belong to this face.
__all__ = ["AudioSource", "ObjectInfo", "absolute", "is_remote", "join", "parent", "suffix_of"]

#: `read_bytes` without a limit still stops somewhere.
_MAX_READ_BYTES = 5 * 2**30
_COPY_BYTES = 8 << 20
#: Files of a model folder; text models also have vocabularies.
_MODEL_SUFFIXES = (".json", ".safetensors", ".bin", ".md", ".txt", ".model")
#: 1 makes every S3 request at the caller's expense; see `s3_client.S3Settings`.
REQUESTER_PAYS = "RAYSERS_S3_REQUESTER_PAYS"
#: Holds nearly every audio header.
_HEADER_BYTES = 2**16


class Breaker:
    """Separates an outage of the store from single objects that cannot be read; thread-safe.

    Outage: in the last `window_s` seconds of `clock` at least `least` different objects failed
    after every retry, and more failed than were read.
    """

    def __init__(
        self, *, least: int = 5, window_s: float = 120, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._least, self._window_s, self._clock = least, window_s, clock
        self._lock = threading.Lock()
        self._failed_s: dict[str, float] = {}
        self._read_s: deque[float] = deque(maxlen=1000)

    def succeeded(self, uri: str) -> None:
        """The object was read, or the store gave a definite answer about it."""
        with self._lock:
            self._failed_s.pop(uri, None)
            self._read_s.append(self._clock())

    def failed(self, uri: str, error: Exception) -> ClipError:
        """The error for the row of `uri`, by `status_of`.

        Raises `error` itself where that stops the job, and TransientStorageError for an outage.
        """
        if (failure := status_of(error)) is None:
            raise error
        definite = (ObjectMissing, ObjectForbidden, ObjectChanged)
        if not isinstance(error, StorageError) or isinstance(error, definite):
            self.succeeded(uri)
            return failure
        with self._lock:
            now_s = self._clock()
            recent = {u: s for u, s in self._failed_s.items() if now_s - s <= self._window_s}
            self._failed_s = {**recent, uri: now_s}
            failed = len(self._failed_s)
            read = sum(now_s - s <= self._window_s for s in self._read_s)
        if failed >= self._least and failed > read:
            store = "/".join(uri.split("/")[:3]) if is_remote(uri) else "the disk"
            raise TransientStorageError(
                f"storage outage: of {store} {failed} objects failed and {read} were read "
                f"within {self._window_s:.0f} s; the last error: {error}"
            ) from error
        return failure


def list_objects(
    uri: str,
    *,
    suffixes: Collection[str] | None = None,
    skipped: Callable[[str, str], None] = lambda reason, path: None,
) -> Iterator[ObjectInfo]:
    """Every file below a folder or prefix, of lower-case `suffixes` (.wav), in no particular order.

    Hidden names (`.…`, `__MACOSX`) and folder markers are left out. Dangling links, pipes, sockets,
    devices and paths that are too long have 0 bytes and no etag: reading them gives the reason.
    `skipped` is called, in any thread, with a reason and the path of a folder that is not entered,
    or of a leftover of macOS.
    """
    uri, kept = absolute(uri), None if suffixes is None else frozenset(suffixes)
    return cast(Iterator[ObjectInfo], _store(uri).list_objects(uri, kept, skipped))


def list_parts(uri: str) -> list[ObjectInfo]:
    """`part-*.parquet` directly in the folder, sorted by name; empty when it does not exist."""
    start = join(absolute(uri), "part-")
    with suppress(ObjectMissing):
        found = list_objects(uri, suffixes=[".parquet"])
        parts = (o for o in found if o.uri.startswith(start) and "/" not in o.uri[len(start) :])
        return sorted(parts, key=lambda part: part.uri)
    return []


def stat(uri: str) -> ObjectInfo:
    """Size and version mark of one file or object."""
    return cast(ObjectInfo, _store(uri).stat(uri))


def is_folder(uri: str) -> bool:
    """Whether `uri` is a local folder, an existing bucket, or a prefix of some object."""
    return bool(_store(uri).is_folder(uri))


def read_bytes(uri: str, *, max_bytes: int | None = None) -> bytes:
    """The whole object; StorageError where it is larger than `max_bytes`."""
    most = _MAX_READ_BYTES if max_bytes is None else max_bytes
    found = _store(uri).fetch(uri, 0, most)
    if found.total_bytes > most:
        raise StorageError(
            f"{uri} has {found.total_bytes} bytes, more than the {most} expected here"
        )
    return cast(bytes, found.data)


def read_range(uri: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`, fewer at the end of the object."""
    return cast(bytes, _store(uri).fetch(uri, offset, size).data)


def open_file(uri: str, **window: Any) -> RangedFile:
    """A seekable file over ranged reads, in bounded memory; `window` is that of `RangedFile`."""
    return RangedFile(partial(_store(uri).fetch, uri), **{"name": uri, **window})


def fetch_folder(uri: str, flag: str = "--model") -> str:
    """The model folder `uri`, or the local copy of an `s3://` prefix; ConfigErrors name `flag`."""
    if not is_remote(uri):
        return uri
    try:
        found = sorted(list_objects(uri, suffixes=_MODEL_SUFFIXES), key=lambda o: o.uri)
    except (ObjectMissing, ObjectForbidden) as error:
        raise ConfigError(f"{flag} {uri}: {error}") from error
    prefix = uri.rstrip("/") + "/"
    files = {o.uri.removeprefix(prefix): o for o in found}
    # a model folder is flat: what is nested or oddly named is no part of it, nor is a claim
    files = {n: o for n, o in files.items() if not {"/", "\\"} & set(n) and n[0] != "_"}
    if "config.json" not in files:
        raise ConfigError(f"{flag} {uri}: no config.json under this prefix")
    versions = "\n".join(f"{o.uri} {o.etag} {o.num_bytes}" for o in files.values())
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(cache, "raysers", "models", hashlib.sha256(versions.encode()).hexdigest()[:24])
    if folder.is_dir():
        return str(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=".partial-", ignore_cleanup_errors=True
        ) as copy:
            for name, about in files.items():
                with open_file(about.uri) as source, Path(copy, name).open("wb") as file:
                    shutil.copyfileobj(source, file, _COPY_BYTES)
            with suppress(OSError):  # another process was first; its copy is the same
                os.rename(copy, folder)
    except OSError as error:
        raise ConfigError(
            f"{flag} {uri}: no copy in {folder.parent} ({error}): set XDG_CACHE_HOME to a folder "
            "with room"
        ) from error
    return str(folder)


def open_source(
    uri: str,
    *,
    num_bytes: int | None = None,
    byte_offset: int | None = None,
    byte_size: int | None = None,
    etag: str = "",
    headers_only: bool = False,
) -> AudioSource:
    """What the audio decoder opens: the path of a local file, else a file over ranged reads.

    `uri` is a file, an object, a tar, the audio in a row of a Parquet table (`objects.row_uri`),
    or, with a `byte_offset` and `byte_size`, a member of a tar (`<tar>#<member>`); `num_bytes` is
    the size of an object that is not in a tar. With an `etag`, another version is an error: at once
    for a local file, else from `read()` and the decoder. `headers_only` fetches pieces of 64 KiB.
    """
    if byte_offset is None and (place := row_of(uri)) is not None:
        return open_row(*place, open_file(place[0], etag=etag))
    if byte_offset is None and not is_remote(uri):
        if etag and stat(uri).etag != etag:
            raise ObjectChanged(f"{uri} changed since it was listed: index again")
        return uri
    if min(byte_offset or 0, byte_size or 0) < 0:
        raise ObjectUnreadable(f"{uri}: byte_offset {byte_offset}, byte_size {byte_size}")
    little = {"whole_bytes": _HEADER_BYTES, "block_bytes": _HEADER_BYTES} if headers_only else {}
    if byte_offset is None:
        source = open_file(uri, total_bytes=num_bytes, etag=etag, **little)
    else:
        window = {"base_bytes": byte_offset, "num_bytes": byte_size, "etag": etag, **little}
        source = open_file(tar_uri_of(uri), name=uri, **window)
    return cast(BinaryIO, source)


def write_atomic(uri: str, data: bytes) -> None:
    """Writes the whole object; readers see the old one or the new one, never a part."""
    _store(uri).write_atomic(uri, data)


def put_if(uri: str, data: bytes, etag: str | None = None) -> str | None:
    """Writes the object only if there is none of this name, atomically against other writers.

    With an `etag` of `read_versioned`: only if that is still its version. Returns the new version
    mark; None when another object is there, or none at all. Content that is equal counts as written
    by this call, because the answer to a first try may be lost: put something unique into `data`.
    Raises ConditionsUnsupported where the store refuses the condition (501), or tells no versions
    apart.
    """
    if etag == "":
        raise ConditionsUnsupported(f"{uri}: the store does not tell versions apart")
    return cast("str | None", _store(uri).put_if(uri, data, etag))


def read_versioned(uri: str) -> tuple[bytes, str]:
    """Content and version mark for `put_if`."""
    data, _, etag = _store(uri).fetch(uri, 0, _MAX_READ_BYTES)
    return data, etag if is_remote(uri) else local.content_etag(data)


def delete(uri: str) -> None:
    """Removes the object; fine when it is not there."""
    _store(uri).delete(uri)


def sweep(uri: str) -> None:
    """Removes half-written files from the folder itself; no other process may be writing there."""
    if not is_remote(uri):
        local.sweep(uri)


def require_answer(variable: str, address: str) -> None:
    """Raises ConfigError where no server answers at the host and port that a variable names."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    if not parts.hostname or port is None or (parts.scheme != "ray" and getproxies()):
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=5.0).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            f"{variable}={address} does not answer ({why}): correct or unset {variable}, or start "
            "the server"
        ) from error


def _store(uri: str) -> ModuleType:
    if not is_remote(uri):
        return local
    if not is_s3(uri):
        from raysers.io import fsspec_store

        return fsspec_store
    from raysers.io import s3  # boto3, which local files do not need

    return s3

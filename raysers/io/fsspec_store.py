"""Places that fsspec reads (`https://`, `gs://`, `abfs://`, `hf://`): inputs, never outputs.

Of these file systems none can pin a range to a version: size and version mark are compared at the
first read of an object and again every `_KNOWN_S` seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

from fsspec.core import url_to_fs

from raysers.errors import (
    ConfigError,
    ObjectForbidden,
    ObjectMissing,
    ObjectUnreadable,
    StorageError,
    TransientStorageError,
)
from raysers.io.objects import Fetched, ObjectInfo, is_shown, suffix_of

Result = TypeVar("Result")

_THREADS = 16
_WAITS_S = (0.5, 1.0, 2.0, 4.0)
#: After so many seconds nothing is tried again: some file systems retry for a minute themselves.
_PATIENCE_S = 30.0
#: Packages that log every error, with its traceback, before they raise it.
_LOGGERS = ("fsspec", "gcsfs", "adlfs", "azure")
#: Seconds for which size and version of an object are taken as known.
_KNOWN_S = 30
#: What file systems call the version of an object, the surest first.
_MARKS = (
    "ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "blob_id", "last_modified",
    "Last-Modified", "mtime", "created",
)  # fmt: skip
_KIND_OF_STATUS: dict[int, type[StorageError]] = {
    401: ObjectForbidden,
    403: ObjectForbidden,
    404: ObjectMissing,
    410: ObjectMissing,
}


def stat(uri: str) -> ObjectInfo:
    """Size and version mark; errors as `storage.stat`."""
    return _stat(uri, int(time.monotonic() / _KNOWN_S))


@lru_cache(maxsize=4096)
def _stat(uri: str, period: int) -> ObjectInfo:
    about = _call(uri, lambda fs, path: fs.info(path))
    if about["type"] == "directory":
        raise ObjectUnreadable(f"{uri}: a folder, not a file")
    return _info(uri, about)


def fetch(
    uri: str, offset: int, size: int, *, etag: str = "", total_bytes: int | None = None
) -> Fetched:
    """Up to `size` bytes from `offset`; see `objects.Fetch`."""
    about = stat(uri)
    end = min(offset + size, about.num_bytes)

    def read(fs: Any, path: str) -> Fetched:
        data = fs.cat_file(path, start=offset, end=end) if end > offset else b""
        if len(data) == about.num_bytes > end - offset:  # a server that ignores ranges
            data = data[offset:end]
        found = Fetched(data, about.num_bytes, about.etag)
        found.verified(uri, (offset, size), etag, total_bytes)
        return found

    return _call(uri, read)


def is_folder(uri: str) -> bool:
    """Whether a folder is there; of a web server, a page with links."""
    if uri.startswith("http"):
        try:
            return bool(_call(uri, lambda fs, path: fs.info(path).get("mimetype") == "text/html"))
        except ObjectMissing:
            return False
    return bool(_call(uri, lambda fs, path: fs.isdir(path)))


def list_objects(
    uri: str, suffixes: frozenset[str] | None, skipped: Callable[[str, str], None]
) -> Iterator[ObjectInfo]:
    """Files below a folder; see `storage.list_objects`. All names are held in memory."""
    found: dict[str, Any] = _call(uri, lambda fs, path: fs.find(path, detail=True))
    if not found and not is_folder(uri):
        raise ObjectMissing(f"{uri}: no such folder")
    root = _path(uri)

    def kept(path: str) -> bool:
        below = path.removeprefix(root).strip("/")
        is_kept = suffixes is None or suffix_of(path) in suffixes
        is_file = bool(below) and not path.endswith("/")
        return is_file and is_shown(below, path, skipped) and is_kept

    def info(path: str) -> ObjectInfo:
        place = f"{uri.rstrip('/')}/{path.removeprefix(root).strip('/')}"
        about = found[path]
        try:
            return stat(place) if about.get("size") is None else _info(place, about)
        except ObjectMissing:  # reading it gives the reason
            return ObjectInfo(place, 0, "")

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(info, filter(kept, found))


def write_atomic(uri: str, *_: object) -> NoReturn:
    """Raises ConfigError: results go elsewhere."""
    raise ConfigError(f"{uri} is only read: write to a local folder or an s3:// prefix")


put_if = delete = write_atomic


def _info(uri: str, about: dict[str, Any]) -> ObjectInfo:
    if about.get("size") is None:
        raise ObjectUnreadable(f"{uri}: the server gives no Content-Length")
    mark = next((about[name] for name in _MARKS if about.get(name)), "")
    return ObjectInfo(uri, int(about["size"]), str(mark).removeprefix("W/").strip('"'))


@lru_cache(maxsize=64)
def _file_system(root: str) -> Any:
    scheme = root.partition("://")[0]
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        # listings are not cached: files are added
        return url_to_fs(root, use_listings_cache=False)[0]
    except ImportError as error:
        fix = "pip install 'raysers[fsspec]' for https, gs, abfs and hf"
        raise ConfigError(f"{scheme}:// needs another package ({error}): {fix}") from error
    except Exception as error:
        raise ConfigError(f"{scheme}:// cannot be opened: {error}") from error


def _path(uri: str) -> str:
    """The name that the file system itself uses."""
    return str(_file_system("/".join(uri.split("/")[:3]))._strip_protocol(uri))


def _call(uri: str, work: Callable[[Any, str], Result]) -> Result:
    """`work` with the file system and the path in it, repeated while it fails as may pass."""
    file_system, path = _file_system("/".join(uri.split("/")[:3])), _path(uri)
    started_s = time.monotonic()
    for wait_s in (*_WAITS_S, None):
        try:
            return work(file_system, path)
        except StorageError:
            raise
        except Exception as error:  # every file system raises its own errors
            kind, why = _kind_of(error)
            is_late = time.monotonic() - started_s > _PATIENCE_S
            if kind is not TransientStorageError or wait_s is None or is_late:
                raise kind(f"{uri}: {why}") from error
        time.sleep(wait_s)
    raise AssertionError("the loop above returns or raises")


def _kind_of(error: BaseException) -> tuple[type[StorageError], str]:
    """The class of an error, and its text; http hides the cause behind FileNotFoundError."""
    cause = error.__cause__ or error
    why = " ".join(str(cause).split()) or type(cause).__name__
    status = next((getattr(cause, n, None) for n in ("status", "status_code", "code")), None)
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
        return _KIND_OF_STATUS.get(status, StorageError), f"HTTP {status} {why}"
    if isinstance(cause, IsADirectoryError):
        return ObjectUnreadable, why
    if isinstance(cause, PermissionError):
        return ObjectForbidden, why
    if isinstance(cause, FileNotFoundError):
        return ObjectMissing, "no such file"
    return TransientStorageError, why

"""Files on a mounted disk, with the errors of an object store.

Network disks fail for moments (EIO, ESTALE), so reads are tried again before they count as failed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat as stat_module
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from raysers.errors import (
    ConditionsUnsupported,
    ObjectForbidden,
    ObjectMissing,
    StorageError,
    TransientStorageError,
    WriteError,
)
from raysers.io.listing import crawl
from raysers.io.ranged import Fetched
from raysers.io.uris import ObjectInfo, is_hidden, suffix_of

Result = TypeVar("Result")

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
#: Nothing a second write could change.
_UNWRITABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EFBIG, *_FORBIDDEN}
)
_ATTEMPTS = 3
_WAIT_S = 0.05
_PAGE = 1000
_HALF_WRITTEN = ".part-"
_LOCK = ".raysers-lock"
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


def stat(path: str) -> ObjectInfo:
    """Size and version mark of a regular file.

    Raises:
        ObjectMissing: no such file, or a folder.
        ObjectForbidden: a folder on the way may not be entered.
    """
    return _info(path, _retried(lambda: os.stat(path), path))


def is_folder(path: str) -> bool:
    """Whether a folder is there."""
    return os.path.isdir(path)


def _opener(path: str, flags: int) -> int:
    # a pipe without a writer would block for ever
    return os.open(path, flags | os.O_NONBLOCK)


def fetch(path: str, offset: int, size: int) -> Fetched:
    """Up to `size` bytes from `offset`; fewer at the end of the file."""

    def read() -> Fetched:
        with open(path, "rb", opener=_opener) as file:
            info = _info(path, os.fstat(file.fileno()))
            file.seek(offset)
            # not more than there is: read() makes room for all it is asked for
            left = max(0, info.num_bytes - offset)
            return Fetched(file.read(min(size, left)), info.num_bytes, info.etag)

    return _retried(read, path)


class _Folder(NamedTuple):
    path: str
    #: (device, inode) of the folder and those above it: a link back to one of them is a loop
    above: tuple[tuple[int, int], ...]
    #: it, or one above it, was reached by a link
    is_linked: bool = False


def list_objects(path: str, suffixes: frozenset[str] | None) -> Iterator[ObjectInfo]:
    """Regular files below the folder `path`, links followed; see `storage.list_objects`."""
    if not os.path.isdir(path):
        raise ObjectMissing(f"{path}: no such folder")

    def expand(folder: _Folder) -> Iterator[tuple[list[ObjectInfo], list[_Folder]]]:
        return _expand(folder, suffixes)

    # not abspath but the identity of the folder itself, however it was reached
    return crawl(_Folder(path, (_identity(os.stat(path)),)), expand)


def list_parts(path: str) -> list[ObjectInfo]:
    """`part-*.parquet` directly in the folder, by name; none when there is no such folder."""
    try:
        names = sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _storage_error(error, path) from error
    parts = (n for n in names if n.startswith("part-") and n.endswith(".parquet"))
    return [stat(os.path.join(path, name)) for name in parts]


def write_atomic(path: str, data: bytes) -> None:
    """Writes through a hidden file beside `path`: readers see the old bytes or the new, never half.

    Raises:
        WriteError: disk full, quota, read-only, no permission.
    """
    _writing(lambda: _write(Path(path), data), path)


def delete(path: str) -> None:
    """Removes the file; it need not exist.

    Raises:
        WriteError: it may not be removed.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise WriteError(f"cannot delete {path}: {error.strerror or error}") from error


def sweep(path: str) -> None:
    """Removes from the folder what a process that died in `write_atomic` left half-written."""
    for left in Path(path).glob(f"{_HALF_WRITTEN}*"):
        with suppress(OSError):
            left.unlink(missing_ok=True)


def content_etag(data: bytes) -> str:
    """Version mark of a small file that is replaced often: file times are too coarse for that."""
    return hashlib.sha256(data).hexdigest()


def put_if(path: str, data: bytes, etag: str = "") -> str | None:
    """Writes the file if it is absent, or with `etag` if its content has it; see `storage`."""

    def attempt() -> str | None:
        if not etag:
            try:
                _write(Path(path), data, publish=_publish_new)
            except FileExistsError:
                return content_etag(data) if _content(path) == data else None
            return content_etag(data)
        with _locked(path):
            now = _content(path)
            if now is None or content_etag(now) != etag:
                return content_etag(data) if now == data else None
            _write(Path(path), data)
            return content_etag(data)

    return _writing(attempt, path)


def delete_if(path: str, etag: str) -> bool:
    """Removes the file if its content has `etag`; see `storage`."""

    def attempt() -> bool:
        with _locked(path):
            now = _content(path)
            if now is None or content_etag(now) != etag:
                return False
            os.unlink(path)
            return True

    return _writing(attempt, path)


def _writing(call: Callable[[], Result], path: str) -> Result:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return call()
        except OSError as error:
            if error.errno in _UNWRITABLE or attempt == _ATTEMPTS:
                raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
            time.sleep(_WAIT_S * 2**attempt)
    raise AssertionError("the loop above returns or raises")


def _content(path: str) -> bytes | None:
    try:
        return fetch(path, 0, 1 << 30).data
    except ObjectMissing:
        return None


#: `flock` excludes other processes, on network disks not the threads of the same one.
_threads = threading.Lock()


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Excludes other conditional writes to the folder, through a hidden file that stays there."""
    lock = os.path.join(os.path.dirname(path), _LOCK)
    with _threads, suppress(FileNotFoundError), open(lock, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise ConditionsUnsupported(f"{lock} cannot be locked: {error.strerror}") from error
        yield
        return
    yield  # no such folder, so no such file


def _publish_new(temporary: Path, path: Path) -> None:
    """Gives a written file its name if nothing has that name yet."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # disks without links: readers may see the file before it is complete
        with open(path, "xb") as file:
            file.write(temporary.read_bytes())
            file.flush()
            os.fsync(file.fileno())
    temporary.unlink()


def _write(path: Path, data: bytes, publish: Callable[[Path, Path], object] = os.replace) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # not derived from the name, which may already be as long as the disk allows
    temporary = path.parent / f"{_HALF_WRITTEN}{uuid.uuid4().hex}"
    try:
        # 0o666 with the user's mask, where tempfile would make it private
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        (publish or os.replace)(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the disk supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _expand(
    folder: _Folder, suffixes: frozenset[str] | None
) -> Iterator[tuple[list[ObjectInfo], list[_Folder]]]:
    found: list[ObjectInfo] = []
    children: list[_Folder] = []
    for name in _retried(lambda: sorted(os.listdir(folder.path)), folder.path):
        path = os.path.join(folder.path, name)
        info = None if is_hidden(name) else _look(path, folder, suffixes)
        if isinstance(info, ObjectInfo):
            found.append(info)
        elif info is not None:
            children.append(info)
        if len(found) >= _PAGE:
            yield found, []
            found = []
    yield found, children


def _look(
    path: str, folder: _Folder, suffixes: frozenset[str] | None
) -> ObjectInfo | _Folder | None:
    """A file to list, a folder to enter, or nothing of interest."""
    wanted = suffixes is None or suffix_of(path) in suffixes
    try:
        result = _retried(lambda: os.stat(path), path)
    except ObjectMissing:
        # a dangling or circular link, or gone since: reading it will say so, in a row of its own
        return ObjectInfo(path, 0, "") if wanted else None
    if stat_module.S_ISDIR(result.st_mode):
        identity, is_link = _identity(result), os.path.islink(path)
        # links in linked folders could multiply without end
        if identity in folder.above or (is_link and folder.is_linked):
            return None
        return _Folder(path, (*folder.above, identity), folder.is_linked or is_link)
    regular = stat_module.S_ISREG(result.st_mode)
    return _info(path, result) if wanted and regular else None


def _identity(result: os.stat_result) -> tuple[int, int]:
    return result.st_dev, result.st_ino


def _info(path: str, result: os.stat_result) -> ObjectInfo:
    if not stat_module.S_ISREG(result.st_mode):
        raise ObjectMissing(f"{path}: not a regular file")
    return ObjectInfo(path, result.st_size, f"{result.st_mtime_ns:x}-{result.st_size:x}")


def _retried(call: Callable[[], Result], path: str) -> Result:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return call()
        except ValueError as error:
            raise ObjectMissing(f"{path!r}: no file can have this name") from error
        except OSError as error:
            fate = _storage_error(error, path)
            if not isinstance(fate, TransientStorageError) or attempt == _ATTEMPTS:
                raise fate from error
            time.sleep(_WAIT_S * 2**attempt)
    raise AssertionError("the loop above returns or raises")


def _storage_error(error: OSError, path: str) -> StorageError:
    message = f"{path}: {error.strerror or error}"
    if error.errno in _MISSING:
        return ObjectMissing(message)
    if error.errno in _FORBIDDEN:
        return ObjectForbidden(message)
    return TransientStorageError(message)

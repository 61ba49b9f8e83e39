"""Bytes of an audio file, from a local path or a file object, for libsndfile and for our parsers.

libsndfile calls file objects back through C, where an exception would be printed and lost and the
file would look broken: it is kept here and raised again by `check`, so a storage failure never
turns into a verdict on the audio.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from raysers.errors import ClipError, StorageError, TransientStorageError
from raysers.types import Status

Result = TypeVar("Result")

#: A local path, or a seekable binary file object (a ranged object of a store, BytesIO).
AudioSource = str | BinaryIO

#: Read at once at the start of a file: holds the header of nearly every file.
HEAD_BYTES = 4096

#: File objects are read in pieces of at least this size: libsndfile asks for 4 bytes at a time.
READ_AHEAD_BYTES = 1 << 16


class Bytes:
    """Random access to `size` bytes; `handle` is what libsndfile opens."""

    size: int
    handle: int | Cursor

    def at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`; fewer only at the end."""
        raise TypeError("use LocalBytes, ObjectBytes or SplicedBytes")

    def check(self) -> None:
        """Raise what a read from inside libsndfile failed with, if one did."""

    def tell(self) -> int:
        """Where libsndfile has read to."""
        return self.handle.tell() if isinstance(self.handle, Cursor) else 0

    def rewind(self) -> None:
        """Back to the start, to open the file once more."""
        if isinstance(self.handle, Cursor):
            self.handle.seek(0)

    def close(self) -> None:
        """Release what this object opened itself."""


class LocalBytes(Bytes):
    """A local file by descriptor: libsndfile reads it without Python, and never sees its name.

    That matters: given a name, libsndfile decides some formats by the extension.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = _open_local(path)
        self.handle = self._fd
        try:
            self.size = _regular_size(self._fd)
            self._head = self._read(HEAD_BYTES, 0)
        except BaseException:
            os.close(self._fd)
            raise

    def at(self, offset: int, count: int) -> bytes:
        """See `Bytes`."""
        if offset + count <= len(self._head):
            return self._head[offset : offset + count]
        return self._read(count, max(offset, 0))

    def _read(self, count: int, offset: int) -> bytes:
        return _steadily(lambda: os.pread(self._fd, count, offset), self._path)

    def check(self) -> None:
        """See `Bytes`."""
        # libsndfile takes a disk that fails for the end of the file, and stops where it failed
        self._read(1, self.tell())

    def tell(self) -> int:
        """See `Bytes`."""
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def rewind(self) -> None:
        """See `Bytes`."""
        os.lseek(self._fd, 0, os.SEEK_SET)

    def close(self) -> None:
        """See `Bytes`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ObjectBytes(Bytes):
    """A seekable binary file object, read in pieces; the caller keeps and closes the object."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        self.handle = Cursor(self)
        self.failure: BaseException | None = None
        self._start = 0
        self._piece = b""
        # kept beside the moving piece: headers are asked for again and again
        self._head = self._fetch(0, min(READ_AHEAD_BYTES, self.size))

    def at(self, offset: int, count: int) -> bytes:
        """See `Bytes`."""
        offset = max(offset, 0)
        count = min(count, self.size - offset)
        if count <= 0:
            return b""
        if offset + count <= len(self._head):
            return self._head[offset : offset + count]
        first = offset - self._start
        if first < 0 or first + count > len(self._piece):
            self._piece = self._fetch(offset, max(count, READ_AHEAD_BYTES))
            self._start, first = offset, 0
        return self._piece[first : first + count]

    def _fetch(self, offset: int, count: int) -> bytes:
        """`count` bytes or all up to the end: raw streams may return less than asked."""
        self._file.seek(offset)
        data = self._file.read(count)
        while data and len(data) < count and (more := self._file.read(count - len(data))):
            data += more
        return data

    def check(self) -> None:
        """See `Bytes`."""
        if self.failure is not None:
            raise self.failure


class SplicedBytes(Bytes):
    """`prefix` in front of what `inner` holds from `skip` on."""

    def __init__(self, prefix: bytes, inner: Bytes, skip: int) -> None:
        self._prefix, self._inner, self._skip = prefix, inner, skip
        self.size = len(prefix) + inner.size - skip
        self.handle = Cursor(self)
        self.failure: BaseException | None = None

    def at(self, offset: int, count: int) -> bytes:
        """See `Bytes`."""
        own = self._prefix[offset : offset + count]
        behind = max(offset - len(self._prefix), 0) + self._skip
        return own + self._inner.at(behind, count - len(own)) if len(own) < count else own

    def check(self) -> None:
        """See `Bytes`."""
        if self.failure is not None:
            raise self.failure
        self._inner.check()

    def close(self) -> None:
        """See `Bytes`."""
        self._inner.close()


class Cursor:
    """A reading position on `ObjectBytes` or `SplicedBytes` whose methods never raise."""

    def __init__(self, source: ObjectBytes | SplicedBytes) -> None:
        self._source = source
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file."""
        base = (0, self._position, self._source.size)[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        """As of a file."""
        return self._position

    def read(self, count: int) -> bytes:
        """As of a file; nothing once a read has failed."""
        if self._source.failure is not None:
            return b""
        try:
            data = self._source.at(self._position, count)
        except BaseException as error:  # raised again by check(), outside the C call
            self._source.failure = error
            return b""
        self._position += len(data)
        return data


def open_bytes(source: AudioSource) -> Bytes:
    """Open a local path or wrap a file object.

    Raises:
        ClipError: `missing`, `forbidden` or `unreadable` (a folder, a pipe) for a local path.
        StorageError: any other failure to open a local path.
    """
    return LocalBytes(source) if isinstance(source, str) else ObjectBytes(source)


_NO_SUCH_FILE = (Status.MISSING, "no such file")
_NO_PERMISSION = (Status.FORBIDDEN, "no permission to read the file")
_NOT_A_FILE = (Status.UNREADABLE, "not a regular file")

#: What the system says of one file's own fate; anything else (too many open files) is not its own.
_LOCAL_FATES = {
    errno.ENOENT: _NO_SUCH_FILE,
    errno.ENOTDIR: _NO_SUCH_FILE,
    errno.ELOOP: _NO_SUCH_FILE,
    errno.ENAMETOOLONG: _NO_SUCH_FILE,
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.ENXIO: _NOT_A_FILE,
}


#: A network disk in trouble; it often passes.
_PASSING = frozenset({errno.EIO, errno.ESTALE})
_WAITS_S = (0.05, 0.1, 0.2)


def _steadily(call: Callable[[], Result], path: str) -> Result:
    """`call()`, tried again while a network disk is in trouble."""
    for wait_s in (*_WAITS_S, None):
        try:
            return call()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            if wait_s is None:
                message = f"{printable(path)}: {error.strerror}, still after every retry"
                raise TransientStorageError(message) from error
        time.sleep(wait_s)
    raise AssertionError("the loop above returns or raises")


def _open_local(path: str) -> int:
    # a pipe without a writer would block for ever
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return _steadily(lambda: os.open(os.fsencode(path), flags), path)
    except ValueError as error:  # a null byte in the name
        raise ClipError(*_NO_SUCH_FILE) from error
    except OSError as error:
        if error.errno in _LOCAL_FATES:
            raise ClipError(*_LOCAL_FATES[error.errno]) from error
        raise StorageError(f"cannot open {printable(path)}: {error.strerror}") from error


def _regular_size(fd: int) -> int:
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        raise ClipError(*_NOT_A_FILE)
    return about.st_size


def printable(name: str) -> str:
    """`name` as valid text: bytes that are not UTF-8 are shown as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")

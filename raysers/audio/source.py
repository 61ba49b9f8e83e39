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
from io import BytesIO
from typing import BinaryIO, NamedTuple, TypeVar

from raysers.errors import (
    STATUS_OF,
    ClipError,
    ConfigError,
    ObjectChanged,
    ObjectForbidden,
    ObjectMissing,
    ObjectUnreadable,
    StorageError,
    TransientStorageError,
)

Result = TypeVar("Result")

#: A local path, or a seekable binary file object (a ranged object of a store, BytesIO).
AudioSource = str | BinaryIO

#: Bytes in memory up to this size are copied to a file there.
_COPIED_BYTES = 8 << 20
#: Read at once at the start of a local file: holds the header of nearly every file.
HEAD_BYTES = 1 << 16

_NO_SUCH_FILE = (ObjectMissing, "no such file")
_NO_PERMISSION = (ObjectForbidden, "no permission to read the file")
_NOT_A_FILE = (ObjectUnreadable, "not a regular file")
#: What the system says of one path; every other error may pass.
_LASTING: dict[int | None, tuple[type[StorageError], str]] = {
    errno.ENOENT: _NO_SUCH_FILE,
    errno.ENOTDIR: _NO_SUCH_FILE,
    errno.ELOOP: _NO_SUCH_FILE,
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EISDIR: _NOT_A_FILE,
    errno.ENXIO: _NOT_A_FILE,
    errno.ENODEV: _NOT_A_FILE,
    errno.ENAMETOOLONG: (ObjectUnreadable, "the path is too long to be opened"),
}
_LONGEST_PATH_BYTES = 4096
_WAITS_S = (0.05, 0.1, 0.2)


def retried(call: Callable[[], Result], path: str) -> Result:
    """`call()` on a local path, repeated while a network disk is in trouble (EIO, ESTALE).

    Raises ObjectMissing, ObjectForbidden or ObjectUnreadable at once; TransientStorageError after
    every retry; ConfigError where this process has too many files open.
    """
    for wait_s in (*_WAITS_S, None):
        try:
            return call()
        except ValueError as error:  # a null byte in the name
            raise ObjectMissing(f"{printable(path)!r}: no file can have this name") from error
        except OSError as error:
            number = error.errno
            if number == errno.ENAMETOOLONG and len(os.fsencode(path)) < _LONGEST_PATH_BYTES:
                number = errno.ENOENT  # no file can have so long a name
            if number in _LASTING:
                kind, reason = _LASTING[number]
                raise kind(f"{printable(path)}: {reason}") from error
            if wait_s is None:
                reason = f"{printable(path)}: {error.strerror or error}"
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise ConfigError(f"{reason}; allow more with ulimit -n") from error
                raise TransientStorageError(f"{reason}, still after every retry") from error
        time.sleep(wait_s)
    raise AssertionError("the loop above returns or raises")


def open_regular(path: str) -> tuple[int, os.stat_result]:
    """Descriptor and status of a regular file. Raises OSError and ObjectUnreadable."""
    # a pipe without a writer would block for ever
    descriptor = os.open(os.fsencode(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise ObjectUnreadable(f"{printable(path)}: not a regular file")
    return descriptor, about


class Bytes:
    """Random access to `size` bytes; `handle` is what libsndfile opens."""

    size: int
    handle: int | Cursor
    #: What a read from inside libsndfile failed with.
    failure: BaseException | None = None

    def at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`; fewer only at the end."""
        raise TypeError("use open_bytes or SplicedBytes")

    def check(self) -> None:
        """Raise what a read from inside libsndfile failed with, if one did."""
        if self.failure is not None:
            raise self.failure

    def tell(self) -> int:
        """Where libsndfile has read to."""
        return self.handle.tell() if isinstance(self.handle, Cursor) else 0

    def rewind(self) -> None:
        """Back to the start, to open the file once more."""
        if isinstance(self.handle, Cursor):
            self.handle.seek(0)

    def close(self) -> None:
        """Release what this object opened itself."""


class _DescriptorBytes(Bytes):
    """A file on disk or in memory: libsndfile reads it without Python, and never sees its name.

    That matters: given a name, libsndfile decides some formats by the extension.
    """

    def __init__(self, path: str, descriptor: int, num_bytes: int) -> None:
        self._path, self._fd = path, descriptor
        self.handle, self.size = descriptor, num_bytes
        try:
            self._head = self._read(HEAD_BYTES, 0)
        except BaseException:
            self.close()
            raise

    def at(self, offset: int, count: int) -> bytes:
        offset = max(offset, 0)
        if offset + count <= len(self._head):
            return self._head[offset : offset + count]
        return self._read(count, offset)

    def _read(self, count: int, offset: int) -> bytes:
        data = retried(lambda: os.pread(self._fd, count, offset), self._path)
        if len(data) < min(count, self.size - offset):
            raise ObjectChanged(f"{printable(self._path)} became shorter while it was read")
        return data

    def check(self) -> None:
        # libsndfile takes a disk that fails for the end of the file, and stops where it failed
        self._read(1, self.tell())

    def tell(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def rewind(self) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _ObjectBytes(Bytes):
    """A seekable binary file object, which does its own caching; the caller closes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        self.handle = Cursor(self)

    def at(self, offset: int, count: int) -> bytes:
        offset = max(offset, 0)
        count = min(count, self.size - offset)
        if count <= 0:
            return b""
        self._file.seek(offset)
        data = self._file.read(count)
        while len(data) < count:  # raw streams may return less than asked
            if not (more := self._file.read(count - len(data))):
                raise ObjectChanged(f"the file became shorter while it was read, at byte {offset}")
            data += more
        return data


class SplicedBytes(Bytes):
    """What `inner` holds with `new` in place of its bytes `[start, stop)`."""

    def __init__(self, inner: Bytes, new: bytes, stop: int, *, start: int = 0) -> None:
        self._inner, self._new, self._start, self._stop = inner, new, start, stop
        self.size = inner.size - (stop - start) + len(new)
        self.handle = Cursor(self)

    def at(self, offset: int, count: int) -> bytes:
        """See `Bytes`."""
        offset = max(offset, 0)
        data = b""
        if offset < self._start:
            data = self._inner.at(offset, min(count, self._start - offset))
        inside = offset + len(data) - self._start
        data += self._new[inside : inside + count - len(data)]
        if len(data) < count:
            behind = max(inside - len(self._new), 0)
            data += self._inner.at(self._stop + behind, count - len(data))
        return data

    def check(self) -> None:
        """See `Bytes`."""
        super().check()
        self._inner.check()

    def close(self) -> None:
        """See `Bytes`."""
        self._inner.close()


class Cursor:
    """A reading position on `Bytes` whose methods never raise."""

    def __init__(self, source: Bytes) -> None:
        self._source = source
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a position; see `io.IOBase.seek`."""
        base = (0, self._position, self._source.size)[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; none once a read has failed."""
        if self._source.failure is not None:
            return b""
        try:
            data = self._source.at(self._position, count)
        except BaseException as error:  # raised again by check(), outside the C call
            self._source.failure = error
            return b""
        self._position += len(data)
        return data


class Lengths(NamedTuple):
    """Frames that can be read, and those that the header, or a better count, promises.

    To read them open `source`: the file itself, or behind a corrected header. An estimate is
    computed from the file's size. `note` is why the others cannot be read, when they are not just
    missing.
    """

    frames: int
    promised_frames: int
    source: Bytes
    is_estimate: bool = False
    note: str = ""


def open_bytes(source: AudioSource) -> Bytes:
    """Open a local path, with ClipErrors for what cannot be opened, or wrap a file object."""
    if not isinstance(source, str):
        opened = _ObjectBytes(source)
        # what a ranged file fetches with one request, or a small file that is in memory already
        most_bytes = _COPIED_BYTES if type(source) is BytesIO else 0
        if opened.size <= getattr(source, "whole_bytes", most_bytes):
            return _in_memory(opened.at(0, opened.size)) or opened
        return opened
    try:
        descriptor, about = retried(lambda: open_regular(source), source)
        return _DescriptorBytes(source, descriptor, about.st_size)
    except (ObjectMissing, ObjectForbidden) as error:
        message = str(error).removeprefix(f"{printable(source)}: ")
        raise ClipError(STATUS_OF[type(error)], message) from error


def _in_memory(data: bytes) -> Bytes | None:
    """`data` as a file in memory; None where the system has none.

    libsndfile calls a file object some fifteen times a clip, and the threads of a worker wait for
    each other at every call.
    """
    try:
        descriptor = os.memfd_create("audio")
    except (AttributeError, OSError):
        return None
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError:  # no memory
        os.close(descriptor)
        return None
    return _DescriptorBytes("a file in memory", descriptor, len(data))


def printable(name: str) -> str:
    """`name` as valid text: bytes that are not UTF-8 are shown as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")

"""Files on a mounted disk, with the errors of an object store; reads are retried, see `retried`."""

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
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import NamedTuple, TypeVar

from raysers.audio.source import open_regular, retried
from raysers.errors import ConditionsUnsupported, ObjectMissing, ObjectUnreadable, WriteError
from raysers.io.objects import Fetched, ObjectInfo, is_shown, suffix_of

Node = TypeVar("Node")
Result = TypeVar("Result")
#: Objects of one node and nodes still to expand.
Page = tuple[list[ObjectInfo], list[Node]]
#: Called in a listing thread with a reason and the path that the listing leaves out for it.
Skipped = Callable[[str, str], None]

#: Latency, not bandwidth, limits a listing, on S3 and on network disks alike.
_THREADS = 16
_PAGE_NAMES = 1000

#: Nothing a second write could change.
_UNWRITABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM}
    | {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
)
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
_WRITE_WAITS_S = (0.1, 0.2)
_HALF_WRITTEN = ".part-"
_LOCK = ".raysers-lock"


def stat(path: str) -> ObjectInfo:
    """Size and version mark of a regular file; errors as `storage.stat`."""
    about = retried(lambda: os.stat(path), path)
    if not stat_module.S_ISREG(about.st_mode):
        raise ObjectUnreadable(f"{path}: not a regular file")
    return info(path, about)


def info(path: str, about: os.stat_result) -> ObjectInfo:
    """What `os.stat` says of a regular file; anything else has 0 bytes and no version mark."""
    if not stat_module.S_ISREG(about.st_mode):
        return ObjectInfo(path, 0, "")
    return ObjectInfo(path, about.st_size, f"{about.st_mtime_ns:x}-{about.st_size:x}")


def is_folder(path: str) -> bool:
    """Whether a folder is there."""
    return "\0" not in path and os.path.isdir(path)


class _Folder(NamedTuple):
    path: str
    #: (device, inode) of the folder and those above it: a link back to one of them is a loop
    above: tuple[tuple[int, int], ...]
    #: it, or one above it, was reached by a link
    is_linked: bool = False
    #: the names in it to look at; None: not read yet
    names: list[str] | None = None


def list_objects(
    path: str, suffixes: frozenset[str] | None, skipped: Skipped
) -> Iterator[ObjectInfo]:
    """Files below the folder `path`, links followed; see `storage.list_objects`."""
    if not is_folder(path):
        raise ObjectMissing(f"{path}: no such folder")

    def expand(folder: _Folder) -> Page[_Folder]:
        if folder.names is None:
            try:
                names = retried(lambda: sorted(os.listdir(folder.path)), folder.path)
            except ObjectMissing as error:
                skipped(str(error).removeprefix(f"{folder.path}: "), folder.path)
                return [], []
            places = (os.path.join(folder.path, name) for name in names)
            both = zip(names, places, strict=True)
            shown = [name for name, place in both if is_shown(name, place, skipped)]
            pages = range(0, len(shown), _PAGE_NAMES)
            return [], [folder._replace(names=shown[at : at + _PAGE_NAMES]) for at in pages]
        found: list[ObjectInfo] = []
        folders: list[_Folder] = []
        for path in (os.path.join(folder.path, name) for name in folder.names):
            is_kept = suffixes is None or suffix_of(path) in suffixes
            try:
                about = retried(partial(os.stat, path), path)
            except ObjectMissing as error:
                # a dangling link, a path that is too long, gone since: reading it gives the reason
                if isinstance(error, ObjectUnreadable) and not (is_kept and suffix_of(path)):
                    skipped(str(error).removeprefix(f"{path}: "), path)
                elif is_kept:
                    found.append(ObjectInfo(path, 0, ""))
                continue
            if not stat_module.S_ISDIR(about.st_mode):
                # pipes, sockets and devices as well: each becomes a row with the reason
                if is_kept:
                    found.append(info(path, about))
            elif (identity := (about.st_dev, about.st_ino)) in folder.above:
                skipped("a link back to a folder above it", path)
            elif folder.is_linked and os.path.islink(path):
                # these could multiply without end
                skipped("a linked folder inside a linked folder", path)
            else:
                is_linked = folder.is_linked or os.path.islink(path)
                folders.append(_Folder(path, (*folder.above, identity), is_linked))
        return found, folders

    about = os.stat(path)
    return crawl(_Folder(path, ((about.st_dev, about.st_ino),)), expand)


def crawl(root: Node, expand: Callable[[Node], Page[Node]]) -> Iterator[ObjectInfo]:
    """Every object below `root`, from at most `_THREADS` pages at a time; first error raised."""
    # last in, first out: depth first keeps the waiting list short
    nodes, running = [root], set[Future[Page[Node]]]()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        while nodes or running:
            while nodes and len(running) < _THREADS:
                running.add(pool.submit(expand, nodes.pop()))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                found, below = future.result()
                nodes += below
                yield from found
    finally:
        pool.shutdown(cancel_futures=True)


def fetch(
    path: str, offset: int, size: int, *, etag: str = "", total_bytes: int | None = None
) -> Fetched:
    """Up to `size` bytes from `offset`; see `objects.Fetch`."""

    def read() -> Fetched:
        descriptor, about = open_regular(path)
        with open(descriptor, "rb") as file:
            found = info(path, about)
            # not more than there is: read() makes room for all it is asked for
            left = min(size, max(0, found.num_bytes - offset))
            if left:
                file.seek(offset)
            fetched = Fetched(file.read(left), found.num_bytes, found.etag)
        fetched.verified(path, (offset, size), etag, total_bytes)
        return fetched

    return retried(read, path)


def write_atomic(path: str, data: bytes) -> None:
    """Writes through a hidden file beside `path`: readers see the old bytes or the new."""
    _writing(lambda: _write(path, data, os.replace), path)


def content_etag(data: bytes) -> str:
    """Version mark of a small file that is replaced often: file times are too coarse for that."""
    return hashlib.sha256(data).hexdigest()


def put_if(path: str, data: bytes, etag: str | None = None) -> str | None:
    """Writes the file if it is absent, or with `etag` if its content has it; see `storage`."""

    def put() -> bool:
        if etag is None:
            with suppress(FileExistsError):
                _write(path, data, _publish_new)
                return True
        else:
            with suppress(FileNotFoundError), _locked(path):
                if _content_etag(path) == etag:
                    _write(path, data, os.replace)
                    return True
        return _content_etag(path) == content_etag(data)

    return content_etag(data) if _writing(put, path) else None


def delete(path: str) -> None:
    """Removes the file; it need not exist."""

    def remove() -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)

    _writing(remove, path)


def sweep(path: str) -> None:
    """Removes from the folder what a process that died in `write_atomic` left half-written."""
    with suppress(OSError):
        for entry in os.scandir(path):
            if entry.name.startswith(_HALF_WRITTEN):
                os.unlink(entry.path)


def _writing(call: Callable[[], Result], path: str) -> Result:
    for wait_s in (*_WRITE_WAITS_S, None):
        try:
            return call()
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", errno.EPERM)
            if number in _UNWRITABLE or wait_s is None:
                reason = getattr(error, "strerror", None) or error
                raise WriteError(f"cannot write {path}: {reason}") from error
        time.sleep(wait_s)
    raise AssertionError("the loop above returns or raises")


def _content_etag(path: str) -> str | None:
    try:
        return content_etag(fetch(path, 0, 1 << 30).data)
    except ObjectMissing:
        return None


#: `flock` excludes other processes, on network disks not the threads of the same one.
_threads = threading.Lock()


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Excludes other conditional writes to the folder; some network disks only lock files."""
    folder = os.path.dirname(path)
    with ExitStack() as opened, _threads:
        for name, flags in (("", os.O_RDONLY), (_LOCK, os.O_RDWR | os.O_CREAT)):
            descriptor = os.open(os.path.join(folder, name), flags, 0o666)
            opened.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                break
            except OSError as error:
                failure = error
        else:
            raise ConditionsUnsupported(f"{folder} cannot be locked: {failure}") from failure
        yield


def _publish_new(temporary: str, path: str) -> None:
    """Gives a written file its name if nothing has that name yet."""
    try:
        os.link(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        if error.errno in _NO_LINKS:
            raise ConditionsUnsupported(f"{path}: the disk has no links: {error}") from error
        raise
    os.unlink(temporary)


def _write(path: str, data: bytes, publish: Callable[[str, str], None]) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    # not derived from the name, which may already be as long as the disk allows
    temporary = os.path.join(folder, f"{_HALF_WRITTEN}{uuid.uuid4().hex}")
    try:
        # 0o666 with the user's mask, where tempfile would make it private
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        publish(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    # the new name itself is durable only then, where the disk supports it
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

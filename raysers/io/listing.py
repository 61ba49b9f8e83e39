"""Lists every file below a folder or prefix with a few threads, in bounded memory.

Objects come in no particular order: code that needs the same order twice has to sort.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, NamedTuple, TypeVar

from raysers.audio.source import retried
from raysers.errors import ObjectMissing, ObjectUnreadable
from raysers.io import local
from raysers.io.uris import (
    MAC_LEFTOVER,
    S3_SCHEME,
    ObjectInfo,
    is_hidden,
    is_mac_leftover,
    split_s3,
    suffix_of,
)

Node = TypeVar("Node")
#: Objects of one node and nodes still to expand.
Page = tuple[list[ObjectInfo], list[Node]]
#: Called in a listing thread with a reason and the path that the listing leaves out for it.
Skipped = Callable[[str, str], None]

#: Latency, not bandwidth, limits a listing, on S3 and on network disks alike.
_THREADS = 16
_PAGE_NAMES = 1000
#: More sub-prefixes than this on a page keep every thread busy without looking deeper.
_FEW_PREFIXES = 16


class _Folder(NamedTuple):
    path: str
    #: (device, inode) of the folder and those above it: a link back to one of them is a loop
    above: tuple[tuple[int, int], ...]
    #: it, or one above it, was reached by a link
    is_linked: bool = False
    #: the names in it to look at; None: not read yet
    names: list[str] | None = None


class _Prefix(NamedTuple):
    prefix: str
    #: Whether sub-prefixes are listed on their own.
    is_delimited: bool = True
    token: str = ""


def list_local(
    path: str, suffixes: frozenset[str] | None, skipped: Skipped
) -> Iterator[ObjectInfo]:
    """Files below the folder `path`, links followed; see `storage.list_objects`."""
    if not local.is_folder(path):
        raise ObjectMissing(f"{path}: no such folder")

    def expand(folder: _Folder) -> Page[_Folder]:
        if folder.names is None:
            try:
                names = retried(lambda: sorted(os.listdir(folder.path)), folder.path)
            except ObjectMissing as error:
                skipped(str(error).removeprefix(f"{folder.path}: "), folder.path)
                return [], []
            shown = [name for name in names if not is_hidden(name)]
            for name in filter(is_mac_leftover, names):
                skipped(MAC_LEFTOVER, os.path.join(folder.path, name))
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
            if not stat.S_ISDIR(about.st_mode):
                # pipes, sockets and devices as well: each becomes a row with the reason
                if is_kept:
                    found.append(local.info(path, about))
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
    return _crawl(_Folder(path, ((about.st_dev, about.st_ino),)), expand)


def list_s3(
    uri: str, suffixes: frozenset[str] | None, skipped: Skipped, *, page_keys: int = 1000
) -> Iterator[ObjectInfo]:
    """Objects below the prefix `uri`; see `storage.list_objects`.

    Sub-prefixes are listed in parallel. Where there are more of them than fit a page, the prefix is
    listed key by key instead, so that a million tiny folders cost a thousand requests.
    """
    from raysers.io import s3

    bucket, key = split_s3(uri)
    root = key + "/" if key else ""
    if not s3.list_page(uri, Prefix=root, MaxKeys=1).get("KeyCount") and root:
        raise ObjectMissing(f"{uri}/: no objects with this prefix")

    def expand(node: _Prefix) -> Page[_Prefix]:
        options = {"Delimiter": "/"} if node.is_delimited else {}
        if node.token:
            options["ContinuationToken"] = node.token
        page = s3.list_page(uri, Prefix=node.prefix, MaxKeys=page_keys, **options)
        token = page.get("NextContinuationToken", "") if page.get("IsTruncated") else ""
        below = [item["Prefix"] for item in page.get("CommonPrefixes", [])]
        if token and below and not node.token:
            return [], [_Prefix(node.prefix, is_delimited=False)]
        is_few = len(below) <= _FEW_PREFIXES
        nodes = [_Prefix(b, is_few) for b in below if is_shown(b.rstrip("/"))]
        if token:
            nodes.append(node._replace(token=token))
        return [info(item) for item in page.get("Contents", []) if wanted(item["Key"])], nodes

    def info(item: Any) -> ObjectInfo:
        return ObjectInfo(f"{S3_SCHEME}{bucket}/{item['Key']}", item["Size"], s3.etag_of(item))

    def is_shown(key: str) -> bool:
        if is_mac_leftover(key[len(root) :]):
            skipped(MAC_LEFTOVER, f"{S3_SCHEME}{bucket}/{key}")
        return not is_hidden(key[len(root) :])

    def wanted(key: str) -> bool:
        is_kept = suffixes is None or suffix_of(key) in suffixes
        return not key.endswith("/") and is_shown(key) and is_kept

    return _crawl(_Prefix(root), expand)


def _crawl(root: Node, expand: Callable[[Node], Page[Node]]) -> Iterator[ObjectInfo]:
    """Every object below `root`, from at most `_THREADS` pages at a time.

    The first error of any thread is raised here; closing the iterator ends the threads.
    """
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

"""Walks a tree of folders or prefixes with a few threads, in bounded memory.

Objects come in no particular order: whoever needs the same order twice sorts.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

from raysers.io.uris import ObjectInfo

Node = TypeVar("Node")
Page = tuple[list[ObjectInfo], list[Node]]
Expand = Callable[[Node], Iterator[Page[Node]]]

#: Latency, not bandwidth, limits a listing, on S3 and on network disks alike.
THREADS = 16
_PAGES_AHEAD = 32
_POLL_S = 0.1


def crawl(root: Node, expand: Expand[Node], *, threads: int = THREADS) -> Iterator[ObjectInfo]:
    """Every object below `root`; `expand(node)` yields pages of (objects, sub-nodes).

    At most `_PAGES_AHEAD` pages wait for the consumer. The first error of any thread is raised
    here; closing the iterator early stops the threads.
    """
    walk = _Walk(root, expand)
    workers = [threading.Thread(target=walk.work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        while (page := walk.pages.get()) is not None:
            if isinstance(page, Exception):
                raise page
            yield from page
    finally:
        walk.stop(threads)
        for worker in workers:
            worker.join()


class _Walk(Generic[Node]):
    """State shared by the threads of one walk."""

    def __init__(self, root: Node, expand: Expand[Node]) -> None:
        self.pages: queue.Queue[list[ObjectInfo] | Exception | None] = queue.Queue(_PAGES_AHEAD)
        # last in, first out: depth first keeps the waiting list short
        self._nodes: queue.LifoQueue[Node | None] = queue.LifoQueue()
        self._expand = expand
        self._open_nodes = 1
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._nodes.put(root)

    def work(self) -> None:
        """Expands nodes until the walk is over."""
        while not self._stopped.is_set() and (node := self._nodes.get()) is not None:
            try:
                self._visit(node)
            except Exception as error:  # raised again in the consumer's thread
                self._offer(error)

    def stop(self, threads: int) -> None:
        """Wakes every thread so that it ends."""
        self._stopped.set()
        for _ in range(threads):
            self._nodes.put(None)

    def _visit(self, node: Node) -> None:
        for found, children in self._expand(node):
            if self._stopped.is_set():
                return
            with self._lock:
                self._open_nodes += len(children)
            for child in children:
                self._nodes.put(child)
            if found:
                self._offer(found)
        with self._lock:
            self._open_nodes -= 1
            over = self._open_nodes == 0
        if over:
            self._offer(None)

    def _offer(self, page: list[ObjectInfo] | Exception | None) -> None:
        """Waits for room, but never beyond the end of the walk."""
        while not self._stopped.is_set():
            with suppress(queue.Full):
                return self.pages.put(page, timeout=_POLL_S)
        return None

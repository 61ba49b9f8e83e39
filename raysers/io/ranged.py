"""A seekable file over ranged reads: what the audio decoder sees of an object or a tar member.

All of it comes from one version of the object: an object replaced between two reads would otherwise
give half of each, and sound like a healthy file.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from raysers.errors import ObjectChanged

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MIB = 2**20
#: Objects up to this size come with one request; one round trip costs more than the bytes.
WHOLE_BYTES = 8 * MIB
BLOCK_BYTES = MIB
#: Most blocks one request fetches when reading runs on.
MAX_AHEAD = 8
#: Blocks kept, enough for a read-ahead and the header the decoder returns to.
MAX_BLOCKS = MAX_AHEAD + 4


class Fetched(NamedTuple):
    """Bytes of a range (fewer only at the end), the size of the whole object and its etag."""

    data: bytes
    total_bytes: int
    etag: str


Fetch = Callable[[int, int], Fetched]


class RangedFile(io.RawIOBase):
    """Read-only window of an object: `fetch(offset, size)` brings bytes when they are asked for.

    Holds at most `whole_bytes`, or 12 blocks of `block_bytes`, whatever the object's size.

    Attributes:
        etag: The version read, as the store marks it: as given, else known after the first read;
            another version raises `ObjectChanged`.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        name: str,
        num_bytes: int | None = None,
        base_bytes: int = 0,
        etag: str = "",
        whole_bytes: int = WHOLE_BYTES,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        """Opens nothing yet; `num_bytes` None asks the store with the first read."""
        super().__init__()
        self.name = name
        self.etag = etag
        self._fetch = fetch
        self._base = base_bytes
        self._size = num_bytes
        self._whole_bytes = whole_bytes
        self._block_bytes = block_bytes
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        self._next_block = -1
        self._ahead = 1

    @property
    def num_bytes(self) -> int:
        """Size of the window in bytes."""
        if self._size is None:
            self._load_head()
        assert self._size is not None
        return self._size

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """Position in the window."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves without reading; a position past the end is legal and reads as empty."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        target = offset + (self.num_bytes if origin is None else origin)
        if target < 0:
            raise ValueError(f"negative seek position {target}")
        self._position = target
        return target

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills `buffer` unless the window ends; returns the bytes written."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view):
            piece = self._piece(len(view) - filled)
            if not piece:
                break
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._position += len(piece)
        return filled

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, all that remain when negative; fewer only at the end."""
        remaining = max(0, self.num_bytes - self._position)
        wanted = remaining if size is None or size < 0 else min(size, remaining)
        data = bytearray(wanted)
        return bytes(memoryview(data)[: self.readinto(data)])

    def close(self) -> None:
        """Forgets the cached bytes."""
        self._blocks.clear()
        super().close()

    def _piece(self, most_bytes: int) -> memoryview:
        """Cached bytes at the position, up to the end of their block."""
        if self._position >= self.num_bytes:
            return memoryview(b"")
        # a small object is one block, so both cases read alike
        width = self._width()
        index, inside = divmod(self._position, width)
        return memoryview(self._block(index, width))[inside : inside + most_bytes]

    def _width(self) -> int:
        return self._whole_bytes if self.num_bytes <= self._whole_bytes else self._block_bytes

    def _block(self, index: int, width: int) -> bytes:
        if index in self._blocks:
            self._blocks.move_to_end(index)
            return self._blocks[index]
        self._ahead = min(2 * self._ahead, MAX_AHEAD) if index == self._next_block else 1
        last = index + 1
        while last < index + self._ahead and last not in self._blocks:
            last += 1
        size = min(last * width, self.num_bytes) - index * width
        self._keep(index, width, self._get(index * width, size).data)
        self._next_block = last
        return self._blocks[index]

    def _keep(self, index: int, width: int, data: bytes) -> None:
        for offset in range(0, max(len(data), 1), width):
            self._blocks[index + offset // width] = data[offset : offset + width]
        while len(self._blocks) > MAX_BLOCKS:
            # never the block just asked for, even when one answer fills the cache
            self._blocks.pop(next(key for key in self._blocks if key != index))

    def _load_head(self) -> None:
        """One request that learns the size and brings a small object whole."""
        head = self._get(0, self._whole_bytes)
        self._size = head.total_bytes - self._base
        self._keep(0, self._width(), head.data)
        self._next_block = len(self._blocks)

    def _get(self, offset: int, size: int) -> Fetched:
        fetched = self._fetch(self._base + offset, size)
        if self.etag and fetched.etag and fetched.etag != self.etag:
            raise ObjectChanged(f"{self.name} changed since it was listed: index again")
        self.etag = self.etag or fetched.etag
        return fetched

"""What is common to all stores: names, versions, and files over ranged reads.

A name is a local path, `s3://bucket/key`, or a URL that fsspec reads. Keys are verbatim: `#`, `%`,
blanks and quotes belong to the name, so nothing here parses URLs.

A file comes from one version of its object: an object replaced between two reads would give half of
each version, and sound like a healthy file.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import unquote

from raysers.errors import ConfigError, ObjectChanged, ObjectMissing, ObjectUnreadable

if TYPE_CHECKING:
    import pyarrow as pa
    from _typeshed import WriteableBuffer

S3_SCHEME = "s3://"
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://")
_MEMBER = re.compile(r"\.tar#", re.IGNORECASE)
#: Of audio in a row of a Parquet table.
ROW_PATTERN = r"\.(?:parquet|pq)#\d+$"
_ROW = re.compile(r"(.*\.(?:parquet|pq))#(\d+)", re.DOTALL)
#: The reason why leftovers of macOS are not listed.
MAC_LEFTOVER = "a leftover of macOS"
#: Names that mean S3 to other tools (Hadoop, Spark).
_S3_NAMES = frozenset({"s3", "s3a", "s3n"})


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One file or object.

    `etag` is its version: the store's ETag without quotes, of a local file `<mtime ns>-<size>`;
    empty when unknown, as for a dangling link.
    """

    uri: str
    num_bytes: int
    etag: str


def is_remote(uri: str) -> bool:
    """Whether `uri` names something in a store; any other string is a local path."""
    return "://" in uri and _SCHEME.match(uri) is not None


def is_s3(uri: str) -> bool:
    """Whether `uri` names an S3 object or prefix; other stores are read by fsspec."""
    return uri.startswith(S3_SCHEME)


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key, the key verbatim and empty for a bucket.

    >>> split_s3("s3://corpus/a #1/x%20y.wav")
    ('corpus', 'a #1/x%20y.wav')
    """
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    if not bucket:
        raise ConfigError(f"{uri!r} names no bucket: write s3://bucket/prefix")
    return bucket, key


def absolute(uri: str) -> str:
    """The one spelling of `uri`: an absolute path, or a URI without a final slash."""
    if not uri:
        raise ConfigError("an empty path was given: name a local path or an s3:// URI")
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return os.path.abspath(os.path.expanduser(uri))
    name, rest = scheme[1].lower(), uri[scheme.end() :]
    if name == "file":
        return os.path.abspath(unquote("/" + rest.partition("/")[2]))
    if name not in _S3_NAMES:
        from fsspec.registry import known_implementations

        if name not in known_implementations:
            raise ConfigError(
                f"{uri!r}: {name}:// is not supported; give a local path, s3:// (any compatible "
                "store, with AWS_ENDPOINT_URL), https://, gs://, abfs:// or hf://"
            )
        return f"{name}://{rest.rstrip('/')}"
    uri = S3_SCHEME + rest.rstrip("/")
    split_s3(uri)
    return uri


def join(uri: str, *names: str) -> str:
    """`uri` with `names` below it, for both kinds of URI.

    >>> join("s3://corpus/wav/", "a b.wav"), join("/data", "x", "y.wav")
    ('s3://corpus/wav/a b.wav', '/data/x/y.wav')
    """
    return "/".join([uri.rstrip("/"), *(name.strip("/") for name in names)])


def parent(uri: str) -> str:
    """The folder or prefix that holds `uri`; a bucket is its own parent."""
    if not is_remote(uri):
        return os.path.dirname(uri)
    above = uri.rpartition("/")[0]
    return uri if above.endswith("/") else above


def resolve(folder: str, file: str) -> str:
    """`file` as a table in `folder` means it: absolute as it is, relative below `folder`."""
    if os.path.isabs(file) or _SCHEME.match(file):
        return absolute(file)
    if not is_remote(folder):
        return os.path.normpath(os.path.join(folder, file))
    if file.startswith(("./", "../")) or "/../" in file or "/./" in file:
        scheme, _, place = folder.partition("://")
        bucket, _, prefix = place.partition("/")
        return f"{scheme}://{bucket}/{posixpath.normpath(posixpath.join('/', prefix, file))[1:]}"
    return join(folder, file)


def suffix_of(uri: str) -> str:
    """Lower-case suffix with its dot, empty when there is none.

    >>> suffix_of("s3://b/A.B/x.WAV"), suffix_of("/a.b/README")
    ('.wav', '')
    """
    name = uri.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem else ""


def is_hidden(relative: str) -> bool:
    """Whether a path below the listed folder is hidden: dot files, macOS leftovers."""
    parts = relative.split("/")
    return "__MACOSX" in parts or any(part.startswith(".") and part.strip(".") for part in parts)


def is_shown(relative: str, uri: str, skipped: Callable[[str, str], None]) -> bool:
    """Whether a path below a listed folder is not hidden; a leftover of macOS is reported."""
    if is_mac_leftover(relative):
        skipped(MAC_LEFTOVER, uri)
    return not is_hidden(relative)


def is_mac_leftover(relative: str) -> bool:
    """Whether a path is what macOS leaves in archives: `._x.wav` beside `x.wav`, `__MACOSX`."""
    return any(part.startswith("._") or part == "__MACOSX" for part in relative.split("/"))


def tar_uri_of(file: str) -> str:
    """The tar object of a member's `file`: everything up to the first `.tar#`, in either case.

    >>> tar_uri_of("s3://b/shard-0.tar#a/b#1.wav")
    's3://b/shard-0.tar'
    """
    found = _MEMBER.search(file)
    return file[: found.end() - 1] if found else file


def is_member(file: str) -> bool:
    """Whether `file` is spelled like a tar member, `<tar URI>#<member>`."""
    return _MEMBER.search(file) is not None


def row_uri(table: str, row: int) -> str:
    """The `file` of audio inside a Parquet table; in the order of rows when sorted."""
    return f"{table}#{row:08d}"


def row_of(file: str) -> tuple[str, int] | None:
    """Table and row of `row_uri`; None for other files.

    >>> row_of("s3://b/train.parquet#00000012"), row_of("a.wav")
    (('s3://b/train.parquet', 12), None)
    """
    found = _ROW.fullmatch(file)
    return None if found is None else (found[1], int(found[2]))


#: Objects up to this size come with one request; one round trip costs more than the bytes.
WHOLE_BYTES = 8 << 20
BLOCK_BYTES = 1 << 20
#: Most blocks one request fetches when reading continues.
MAX_AHEAD = 8
#: Blocks kept: a read-ahead, the first block (headers), and some that parsers return to.
MAX_BLOCKS = MAX_AHEAD + 4
#: Bytes of row groups that a process keeps; the last one stays, whatever its size.
_GROUPS_BYTES = 256 << 20


class ShortAnswer(OSError):
    """Fewer bytes arrived than the answer itself, or the listing, claims: worth another try."""


class Fetched(NamedTuple):
    """Bytes of a range (fewer only at the end), the size of the whole object and its etag."""

    data: bytes
    total_bytes: int
    etag: str

    def verified(self, uri: str, span: tuple[int, int], etag: str, total_bytes: int | None) -> None:
        """Raises ObjectChanged (another version) or ShortAnswer (missing bytes, another size)."""
        if etag and self.etag and self.etag != etag:
            raise ObjectChanged(f"{uri} changed since it was listed: index again")
        if total_bytes is not None and self.total_bytes != total_bytes:
            raise ShortAnswer(f"{self.total_bytes} bytes instead of the {total_bytes} listed")
        due = max(0, min(span[1], self.total_bytes - span[0]))
        if len(self.data) != due:
            raise ShortAnswer(f"{len(self.data)} bytes arrived of {due} from byte {span[0]} on")


#: `fetch(offset, size, etag=..., total_bytes=...)` of one object: a range, verified and retried.
Fetch = Callable[..., Fetched]


class RangedFile(io.RawIOBase):
    """Read-only window of an object; holds at most `whole_bytes`, or 12 blocks of `block_bytes`.

    The window begins `base_bytes` into the object and has `num_bytes`; None: up to the object's
    end. The object's `total_bytes` and `etag`, where they are not known, are those of the first
    read; another size or version afterwards is an error. `name` is for messages.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        name: str,
        num_bytes: int | None = None,
        base_bytes: int = 0,
        total_bytes: int | None = None,
        etag: str = "",
        whole_bytes: int = WHOLE_BYTES,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        """Reads nothing yet."""
        super().__init__()
        self.name, self.etag = name, etag
        self._fetch = fetch
        self._base, self._total = base_bytes, total_bytes
        self._size = num_bytes if base_bytes or num_bytes is not None else total_bytes
        self.whole_bytes, self._block_bytes = whole_bytes, block_bytes
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        self._next_block = -1
        self._ahead = 1

    @property
    def num_bytes(self) -> int:
        """Size of the window in bytes; where it is unknown, the first bytes are read."""
        if self._size is None:
            head = self._get(0, self.whole_bytes)
            self._size = head.total_bytes - self._base
            self._keep(0, self._width(self._size), head.data)
            self._next_block = len(self._blocks)
        return self._size

    def readable(self) -> bool:
        """Always true."""
        return True

    seekable = readable

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

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, all that remain when negative; fewer only at the end."""
        left = max(0, self.num_bytes - self._position)
        left = left if size is None or size < 0 else min(size, left)
        pieces: list[bytes] = []
        while left:
            index, inside = divmod(self._position, self._width(self.num_bytes))
            piece = self._block(index)[inside : inside + left]
            pieces.append(piece)
            self._position += len(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills `buffer` unless the window ends; returns the bytes written."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Drops the cached bytes."""
        self._blocks.clear()
        super().close()

    def _width(self, num_bytes: int) -> int:
        # a small object is one block
        return self.whole_bytes if num_bytes <= self.whole_bytes else self._block_bytes

    def _block(self, index: int) -> bytes:
        if index in self._blocks:
            self._blocks.move_to_end(index)
            return self._blocks[index]
        self._ahead = min(2 * self._ahead, MAX_AHEAD) if index == self._next_block else 1
        last = index + 1
        while last < index + self._ahead and last not in self._blocks:
            last += 1
        width = self._width(self.num_bytes)
        size = min(last * width, self.num_bytes) - index * width
        self._keep(index, width, self._get(index * width, size).data)
        self._next_block = last
        return self._blocks[index]

    def _keep(self, index: int, width: int, data: bytes) -> None:
        for offset in range(0, max(len(data), 1), width):
            self._blocks[index + offset // width] = data[offset : offset + width]
        while len(self._blocks) > MAX_BLOCKS:
            # headers are read again and again, and the block just asked for is still to be used
            self._blocks.pop(next(key for key in self._blocks if key not in (0, index)))

    def _get(self, offset: int, size: int) -> Fetched:
        start = self._base + offset
        fetched = self._fetch(start, size, etag=self.etag, total_bytes=self._total)
        self._total, self.etag = fetched.total_bytes, self.etag or fetched.etag
        end = self._base + (self._size or 0)
        if max(self._base, end) > self._total:
            raise ObjectUnreadable(
                f"{self.name}: bytes {self._base} to {end} are not in the object, which has "
                f"{self._total} bytes"
            )
        return fetched


_lock = threading.Lock()
_groups: OrderedDict[tuple[str, str, int], pa.Array] = OrderedDict()
_footers: dict[tuple[str, str], pa.parquet.FileMetaData] = {}


def open_row(table: str, row: int, file: RangedFile) -> BinaryIO:
    """The audio of a row of the Parquet table that `file` reads, of the version `file.etag`.

    A row group is the least that Parquet reads, so the last ones are kept; rows of a shard are
    neighbours (see `data.shards`), which then costs one reading a group. Raises ObjectMissing (no
    such row, no audio in it) and ObjectUnreadable (no such column).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    version = table, file.etag
    with _lock:  # threads of a worker mostly need the same group
        try:
            if version not in _footers:
                _footers[version] = pq.read_metadata(file)
            footer = _footers[version]
            group, first = 0, 0
            while group < footer.num_row_groups and first + footer.row_group(group).num_rows <= row:
                first += footer.row_group(group).num_rows
                group += 1
            if group == footer.num_row_groups:
                raise ObjectMissing(f"{table} has no row {row}")
            key = (*version, group)
            if key not in _groups:
                whole = pq.ParquetFile(file, metadata=footer)
                names = [f.name for f in whole.schema_arrow if pa.types.is_struct(f.type)]
                name = "audio" if "audio" in names else (names or ["audio"])[0]
                found = whole.read_row_group(group, columns=[f"{name}.bytes"])[name]
                _groups[key] = found.combine_chunks().field("bytes")
            _groups.move_to_end(key)
            while len(_groups) > 1 and sum(g.nbytes for g in _groups.values()) > _GROUPS_BYTES:
                _groups.popitem(last=False)
            data = _groups[key][row - first].as_py()
        except (pa.ArrowException, OSError) as error:
            raise ObjectUnreadable(f"{table}, row {row}: {str(error).splitlines()[0]}") from error
    if data is None:
        raise ObjectMissing(f"{table}, row {row} has no audio")
    return io.BytesIO(data)

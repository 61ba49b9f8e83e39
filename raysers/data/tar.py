"""Lists the audio inside a tar by reading its headers alone, so members can be read in place.

Nothing is unpacked. A member that cannot be used (unsafe name, link, sparse, cut off) becomes a row
with its status, so no member is lost silently.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import IO, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.errors import ConfigError, ObjectMissing
from raysers.io import objects, storage
from raysers.io.objects import RangedFile
from raysers.schemas import MANIFEST
from raysers.types import Status

#: Tars whose members cannot be read in place.
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")

#: A header block is read with what follows it: members below this cost no request of their own.
_BLOCK_BYTES = 128 * 2**10
#: A long name or a pax header above this is an attack or damage, not a name.
_MAX_HEADER_BYTES = 2**20
#: Longer paths can be opened nowhere, and a million of them would fill the memory.
_MAX_NAME_CHARS = 4096
_TAR_BLOCK_BYTES = 512
#: Zeros skipped to find another tar behind the end mark; usual padding is 10 KiB to 1 MiB.
_MAX_PADDING_BYTES = 2**24


class TarMember(NamedTuple):
    """One audio member; `status` says why it cannot be used, `file` is unique within the tar."""

    file: str
    byte_offset: int
    byte_size: int
    etag: str
    status: Status = Status.OK
    error: str = ""


def is_compressed_tar(uri: str) -> bool:
    """Whether the name says that it is a compressed tar."""
    return uri.lower().endswith(_COMPRESSED)


def check_tar_name(uri: str) -> None:
    """Raises ConfigError for a compressed tar, or a path with `.tar#` in it."""
    if is_compressed_tar(uri):
        raise ConfigError(_decompress(uri))
    if objects.is_member(uri):
        raise ConfigError(
            f"{uri}: '.tar#' in a tar's path clashes with how members are named; rename it"
        )


def index_tar(
    info: objects.ObjectInfo,
    *,
    suffixes: Collection[str],
    skipped: Callable[[str, str], None] = lambda reason, path: None,
) -> Iterator[TarMember]:
    """Members with one of `suffixes`, in the order of the tar.

    Hidden members are skipped as in folders; `skipped` is called with each leftover of macOS. A tar
    that is cut or damaged ends with a separate `truncated` row, whatever its members are; one
    without members is an `empty` row.

    Raises:
        ConfigError: compressed, or not a tar at all.
        StorageError: the tar could not be read.
    """
    check_tar_name(info.uri)
    file = storage.open_file(
        info.uri, num_bytes=info.num_bytes, whole_bytes=_BLOCK_BYTES, block_bytes=_BLOCK_BYTES
    )
    if file.read(6).startswith(_COMPRESSED_MAGIC):
        raise ConfigError(_decompress(info.uri))
    file.seek(0)
    wanted = frozenset(suffixes)
    seen: set[int] = set()
    entry: tarfile.TarInfo | str | None = None
    for entry in _entries(file, info.uri):
        if isinstance(entry, str):
            yield _of_tar(info, Status.TRUNCATED, f"{entry}; later members are lost")
            continue
        if objects.is_mac_leftover(entry.name) and not entry.isdir():
            skipped(objects.MAC_LEFTOVER, f"{info.uri}#{_printable(entry.name)}")
        is_wanted = objects.suffix_of(entry.name) in wanted and not objects.is_hidden(entry.name)
        if entry.isdir() or not is_wanted:
            continue
        member = _member(entry, info)
        if hash(member.file) in seen:
            member = member._replace(
                file=f"{member.file}#{member.byte_offset}",
                status=Status.UNSUPPORTED,
                error="the tar has an earlier member of this name; only that one is used",
            )
        seen.add(hash(member.file))
        yield member
    if entry is None:
        yield _of_tar(info, Status.EMPTY, "the tar has no members")


def resolve_members(clips: pa.Table, *, suffixes: Collection[str]) -> pa.Table:
    """`clips` with offsets, sizes and etags of the tar members they name, and status and error.

    The name alone does not make a member: `x.tar#1/a.wav` may be a file in a folder, and stays one
    where no such tar exists. A member that its tar does not hold is `missing`; status is null for
    all other rows.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    named = pc.match_substring(clips["file"], ".tar#", ignore_case=True)
    for row in np.flatnonzero(pc.and_(named, pc.is_null(clips["byte_offset"])).to_numpy()).tolist():
        rows_of[objects.tar_uri_of(clips["file"][row].as_py())].append(row)
    found: list[TarMember | None] = [None] * len(clips)
    for uri, rows in rows_of.items():
        try:
            info = storage.stat(uri)
        except ObjectMissing:
            continue
        files = clips["file"].take(rows).to_pylist()
        wanted = {*files, uri}
        members = {m.file: m for m in index_tar(info, suffixes=suffixes) if m.file in wanted}
        damage = members.get(uri)
        error = f"{uri} has no such audio member" + (f" ({damage.error})" if damage else "")
        status = damage.status if damage else Status.MISSING
        absent = TarMember(uri, 0, 0, "", status, error)
        for row, file in zip(rows, files, strict=True):
            found[row] = members.get(file, absent)
    for name in ("num_bytes", "etag", "byte_offset", "byte_size") if rows_of else ():
        source = "byte_size" if name == "num_bytes" else name
        values = pa.array([m and getattr(m, source) for m in found], MANIFEST.field(name).type)
        place = clips.schema.get_field_index(name)
        clips = clips.set_column(place, MANIFEST.field(name), pc.coalesce(clips[name], values))
    bad = [m if m and m.status != Status.OK else None for m in found]
    for name in ("status", "error"):
        values = pa.array([m and str(getattr(m, name)) for m in bad], pa.string())
        clips = clips.append_column(MANIFEST.field(name), values)
    return clips


class _Headers:
    """The tar as `tarfile` sees it; a read that claims a header beyond the limit fails."""

    def __init__(self, file: RangedFile) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)


#: What the standard library raises on damaged headers.
#: (RecursionError: headers about headers about headers.)
_DAMAGE = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError)


def _entries(file: RangedFile, uri: str) -> Iterator[tarfile.TarInfo | str]:
    """Headers in order, and as the last item what is wrong with the rest, if anything is."""
    if file.num_bytes == 0:
        return
    try:
        tar = tarfile.open(fileobj=cast("IO[bytes]", _Headers(file)), mode="r:")  # noqa: SIM115
    except _DAMAGE as error:
        raise ConfigError(f"{uri} is not a tar ({error}): rename it or leave it out") from error
    position = -1
    while True:
        try:
            entry = tar.next()
        except _DAMAGE as error:
            yield f"damaged after byte {max(position, 0)}: {error}"
            return
        # tarfile would keep every header, and copy all global pax fields for each member
        tar.members, tar.pax_headers = [], {}  # type: ignore[attr-defined]
        if entry is None:
            following = _first_used(file, tar.offset)
            if following is None:
                if file.num_bytes < tar.offset + _TAR_BLOCK_BYTES:
                    yield "the tar ends without an end mark"
                return
            if following < 0:
                yield f"nothing but zeros from byte {tar.offset} on for {_MAX_PADDING_BYTES} bytes"
                return
            if following == tar.offset:
                # tarfile takes a broken header for the end of the archive
                yield f"the header at byte {tar.offset} is damaged"
                return
            # tars glued together: the next one starts behind the zeros that end this one
            tar.offset = following
            continue
        if entry.offset_data <= position:
            yield f"damaged after byte {position}: a header points back"
            return
        position = entry.offset_data
        yield entry
        if _is_cut(entry, file.num_bytes):
            yield f"the tar ends inside {_printable(entry.name)}"
            return


def _first_used(file: RangedFile, offset: int) -> int | None:
    """Where the first block with data starts; None: only padding to the end; -1: to the limit."""
    file.seek(offset)
    for start in range(offset, offset + _MAX_PADDING_BYTES, _BLOCK_BYTES):
        padding = file.read(_BLOCK_BYTES)
        zeros = len(padding) - len(padding.lstrip(b"\0"))
        if zeros < len(padding):
            return start + zeros - zeros % _TAR_BLOCK_BYTES
        if len(padding) < _BLOCK_BYTES:
            return None
    return -1


def _is_cut(entry: tarfile.TarInfo, total_bytes: int) -> bool:
    # the size of a sparse file is not the size it takes here
    stored = entry.isreg() and not entry.issparse()
    return stored and entry.offset_data + entry.size > total_bytes


def _of_tar(info: objects.ObjectInfo, status: Status, error: str) -> TarMember:
    return TarMember(info.uri, 0, info.num_bytes, info.etag, status, error)


def _member(entry: tarfile.TarInfo, info: objects.ObjectInfo) -> TarMember:
    status, error = Status.UNSUPPORTED, ""
    if reason := _unsafe(entry.name):
        error = f"unsafe member name: {reason}"
    elif entry.issparse() or not entry.isreg():
        kind = "a link" if entry.islnk() or entry.issym() else "no regular file"
        error = f"the member is {kind}; only plain files are read"
    elif entry.size < 0:
        error = "the header claims a negative size"
    elif _is_cut(entry, info.num_bytes):
        status, error = Status.TRUNCATED, "the tar ends inside this member"
    file, size = f"{info.uri}#{_printable(entry.name)}", max(0, entry.size)
    status = status if error else Status.OK
    return TarMember(file, entry.offset_data, size, info.etag, status, error)


def _unsafe(name: str) -> str:
    """Why the name must not become a path anywhere, empty when it may."""
    reasons = {
        f"{len(name)} characters": len(name) > _MAX_NAME_CHARS,
        "absolute": name.startswith("/"),
        "leaves its folder": ".." in name.split("/"),
        "null byte": "\0" in name,
        "backslash": "\\" in name,
        "drive letter": re.match(r"[A-Za-z]:", name),
    }
    return next((reason for reason, found in reasons.items() if found), "")


def _printable(name: str) -> str:
    """The name as valid text: Latin-1 names are common, and reading goes by offset anyway."""
    if len(name) > _MAX_NAME_CHARS:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8)
        name = f"{name[:100]}...{digest.hexdigest()}"
    return name.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def _decompress(uri: str) -> str:
    return f"{uri} is compressed, so members cannot be read in place: decompress it to a plain .tar"

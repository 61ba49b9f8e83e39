"""Lists of what a file holds or names: the audio of a tar, and the objects of an S3 Inventory.

A tar's headers alone are read, so that members can be read in place; nothing is unpacked. A member
that cannot be used (unsafe name, link, sparse, cut off) becomes a row with its status, so no member
is lost silently. An inventory is the list that S3 keeps of a bucket, which costs no listing:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import IO, NamedTuple, cast
from urllib.parse import unquote_plus

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from raysers.errors import ConfigError, ObjectMissing
from raysers.io import objects, storage
from raysers.io.objects import ObjectInfo, RangedFile, is_shown
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
    without members is an `empty` row. Raises ConfigError: compressed, or not a tar at all.
    StorageError: the tar could not be read.
    """
    check_tar_name(info.uri)
    file = storage.open_file(
        info.uri, total_bytes=info.num_bytes, whole_bytes=_BLOCK_BYTES, block_bytes=_BLOCK_BYTES
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


# S3 Inventory

INVENTORY = "manifest.json"
_MOST_INVENTORY_BYTES = 64 << 20
_COLUMNS = ("bucket", "key", "size", "e_tag", "is_latest", "is_delete_marker")


def inventory_objects(uri: str, skipped: Callable[[str, str], None]) -> Iterator[ObjectInfo]:
    """Every object that the inventory of a `manifest.json` names, as `storage.list_objects`.

    Raises ConfigError: it is no inventory in CSV or Parquet. StorageError: as reading its files.
    """
    try:
        manifest = json.loads(storage.read_bytes(uri, max_bytes=_MOST_INVENTORY_BYTES))
        bucket = manifest["destinationBucket"].rpartition(":")[2]
        kind, schema = manifest["fileFormat"].upper(), manifest["fileSchema"]
        places = [f"s3://{bucket}/{file['key']}" for file in manifest["files"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--input {uri} is no manifest of an S3 Inventory ({error!r})") from error
    if kind not in ("CSV", "PARQUET"):
        raise ConfigError(f"--input {uri}: an inventory in {kind}: let S3 write CSV or Parquet")
    for place in places:
        try:
            for rows in _of_csv(place, schema) if kind == "CSV" else _of_parquet(place):
                yield from _newest(rows, kind == "CSV", skipped)
        except (pa.ArrowException, OSError, EOFError, KeyError) as error:
            raise ConfigError(f"--input {uri}: {place} cannot be read: {error}") from error


def _of_csv(place: str, schema: str) -> Iterator[pa.RecordBatch]:
    names = [name.strip() for name in schema.split(",")]
    known = {name.replace("_", ""): name for name in _COLUMNS}
    names = [known.get(name.lower(), name) for name in names]
    options = {
        "read_options": pa.csv.ReadOptions(column_names=names),
        "parse_options": pa.csv.ParseOptions(newlines_in_values=True),
        "convert_options": pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=[name for name in names if name in _COLUMNS],
        ),
    }
    with gzip.open(storage.open_file(place)) as file:
        yield from pa.csv.open_csv(file, **options)


def _of_parquet(place: str) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(storage.open_file(place)) as file:
        there = [name for name in _COLUMNS if name in file.schema_arrow.names]
        yield from file.iter_batches(columns=there)


def _newest(
    rows: pa.RecordBatch, is_encoded: bool, skipped: Callable[[str, str], None]
) -> Iterator[ObjectInfo]:
    """The newest version of each object of a batch."""
    for name, wanted in (("is_latest", "true"), ("is_delete_marker", "false")):
        if name in rows.schema.names:
            rows = rows.filter(pc.equal(pc.utf8_lower(rows[name].cast(pa.string())), wanted))
    names = [name for name in _COLUMNS[:4] if name in rows.schema.names]
    for row in rows.select(names).to_pylist():
        key = unquote_plus(row["key"]) if is_encoded else row["key"]
        uri = f"s3://{row['bucket']}/{key}"
        if not key.endswith("/") and is_shown(key, uri, skipped):
            yield ObjectInfo(uri, int(row["size"] or 0), (row.get("e_tag") or "").strip('"'))

"""Files and objects by one set of names: local paths and `s3://bucket/key`.

Every function raises the errors of `raysers.errors`, never `OSError` or boto's; S3 is reached with
the standard `AWS_*` environment (`AWS_ENDPOINT_URL` for any compatible store), see `S3Settings`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import BinaryIO, cast

from raysers.audio.source import AudioSource
from raysers.errors import ConfigError, ObjectChanged, ObjectMissing, RaysersError, StorageError
from raysers.io import local, s3, s3_listing
from raysers.io.ranged import BLOCK_BYTES, WHOLE_BYTES, RangedFile
from raysers.io.s3 import S3Settings
from raysers.io.uris import ObjectInfo, absolute, is_remote, join, parent, suffix_of, tar_uri_of

__all__ = [
    "AudioSource",
    "ObjectInfo",
    "S3Settings",
    "absolute",
    "check_writable",
    "create",
    "delete",
    "delete_if",
    "is_folder",
    "is_remote",
    "join",
    "list_objects",
    "list_parts",
    "open_file",
    "open_source",
    "parent",
    "read_bytes",
    "read_range",
    "read_versioned",
    "replace",
    "stat",
    "suffix_of",
    "sweep",
    "write_atomic",
]

#: `read_bytes` without a limit still stops somewhere.
_MAX_READ_BYTES = 5 * 2**30
#: Holds nearly every audio header.
_HEADER_BYTES = 2**16


def list_objects(uri: str, *, suffixes: Collection[str] | None = None) -> Iterator[ObjectInfo]:
    """Every file below the folder or prefix `uri`, streamed in no particular order.

    Hidden names (`.…`, `__MACOSX`), folders and folder markers are skipped, and links that lead
    back up. A dangling link is listed with 0 bytes and no etag: reading it says what is wrong.

    Args:
        uri: folder or prefix.
        suffixes: lower-case suffixes with their dot to keep; None keeps all.

    Raises:
        ObjectMissing: no such folder, bucket or prefix.
        ObjectForbidden: it, or a folder in it, may not be listed.
        CredentialsError, TransientStorageError: as the store says.
    """
    uri = absolute(uri)
    wanted = None if suffixes is None else frozenset(suffixes)
    return (
        s3_listing.list_objects(uri, wanted) if is_remote(uri) else local.list_objects(uri, wanted)
    )


def list_parts(uri: str) -> list[ObjectInfo]:
    """`part-*.parquet` directly in the folder, sorted by name; empty when it does not exist."""
    uri = absolute(uri)
    if not is_remote(uri):
        return local.list_parts(uri)
    with suppress(ObjectMissing):
        return s3_listing.list_parts(uri)
    return []


def stat(uri: str) -> ObjectInfo:
    """Size and version mark of one file or object.

    Raises:
        ObjectMissing, ObjectForbidden, CredentialsError, TransientStorageError: as the store says.
    """
    return cast(ObjectInfo, _store(uri).stat(uri))


def is_folder(uri: str) -> bool:
    """Whether `uri` is a local folder, an existing bucket, or a prefix of some object."""
    if not is_remote(uri):
        return local.is_folder(uri)
    try:
        return s3_listing.is_folder(uri)
    except ObjectMissing:
        return False


def read_bytes(uri: str, *, max_bytes: int | None = None) -> bytes:
    """The whole object.

    Raises:
        StorageError: it is larger than `max_bytes`; else as `stat`.
    """
    most = _MAX_READ_BYTES if max_bytes is None else max_bytes
    data, total, _ = _store(uri).fetch(uri, 0, most)
    if total > most:
        raise StorageError(f"{uri} has {total} bytes, more than the {most} expected here")
    return cast(bytes, data)


def read_range(uri: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`, fewer at the end of the object; errors as `stat`."""
    return cast(bytes, _store(uri).fetch(uri, offset, size).data)


def open_file(
    uri: str,
    *,
    num_bytes: int | None = None,
    whole_bytes: int = WHOLE_BYTES,
    block_bytes: int = BLOCK_BYTES,
) -> RangedFile:
    """A seekable file over ranged reads of one file or object, in bounded memory.

    Nothing is read yet: errors (as `stat`) come out of the first read.
    """
    return RangedFile(
        partial(_store(uri).fetch, uri),
        name=uri,
        num_bytes=num_bytes,
        whole_bytes=whole_bytes,
        block_bytes=block_bytes,
    )


def open_source(
    uri: str,
    *,
    num_bytes: int | None = None,
    byte_offset: int | None = None,
    byte_size: int | None = None,
    etag: str = "",
    headers_only: bool = False,
) -> AudioSource:
    """What the audio decoder opens: the path of a local file, else a file over ranged reads.

    Args:
        uri: file, object, tar, or tar member (`<tar>#<member>`, when its offset is given).
        num_bytes: size of the object if known; otherwise its first bytes are read to learn it.
        byte_offset: where a tar member's data start; the source then is that member alone.
        byte_size: length of the member's data.
        etag: version of the object to insist on; empty takes any.
        headers_only: little of the source will be read, so it is fetched in pieces of 64 KiB.

    Raises:
        ObjectChanged, ObjectMissing, ObjectForbidden, TransientStorageError: at once for a local
            file with an etag; out of `read()` for everything else, with CredentialsError.
            Without an etag a local file is not looked at: its decoder says what is wrong.
    """
    if byte_offset is None and not is_remote(uri):
        if etag and stat(uri).etag != etag:
            raise ObjectChanged(f"{uri} changed since it was listed: index again")
        return uri
    held = uri if byte_offset is None else tar_uri_of(uri)
    source = RangedFile(
        partial(_store(held).fetch, held),
        name=uri,
        num_bytes=num_bytes if byte_offset is None else byte_size,
        base_bytes=byte_offset or 0,
        etag=etag,
        whole_bytes=_HEADER_BYTES if headers_only else WHOLE_BYTES,
        block_bytes=_HEADER_BYTES if headers_only else BLOCK_BYTES,
    )
    return cast(BinaryIO, source)


def write_atomic(uri: str, data: bytes) -> None:
    """Writes the whole object; readers see the old one or the new one, never a part.

    Raises:
        WriteError: no permission, no space, read-only, no such bucket.
        CredentialsError, TransientStorageError: the store's state, not the object's.
    """
    if is_remote(uri):
        s3.write(uri, data)
    else:
        local.write_atomic(uri, data)


def create(uri: str, data: bytes) -> bool:
    """Writes the object only if there is none of this name, atomically against other creators.

    Returns:
        False when it exists with other content. Content that is equal counts as written by this
        call, because the answer to a first try may be lost: put something unique into `data`.

    Raises:
        ConditionsUnsupported: the store ignores or refuses the condition.
        WriteError, CredentialsError, TransientStorageError: as `write_atomic`.
    """
    return _store(uri).put_if(uri, data) is not None


def read_versioned(uri: str) -> tuple[bytes, str]:
    """Content and version mark, for `replace` and `delete_if` alone; errors as `read_bytes`."""
    if not is_remote(uri):
        data = read_bytes(uri)
        return data, local.content_etag(data)
    data, _, etag = s3.fetch(uri, 0, _MAX_READ_BYTES)
    return data, etag


def replace(uri: str, data: bytes, etag: str) -> str | None:
    """Writes the object only if `etag` of `read_versioned` is still its version.

    Returns:
        The new version mark; None when the object was changed or removed. As with `create`, equal
        content counts as written by this call.

    Raises:
        ConditionsUnsupported, WriteError, CredentialsError, TransientStorageError: as `create`.
    """
    return cast("str | None", _store(uri).put_if(uri, data, etag))


def delete_if(uri: str, etag: str) -> bool:
    """Removes the object only if `etag` is still its version; whether it did.

    Best effort: stores without conditional deletes may remove what was written a moment before.
    Errors as `write_atomic`.
    """
    return cast(bool, _store(uri).delete_if(uri, etag))


def delete(uri: str) -> None:
    """Removes the object; fine when it is not there. Errors as `write_atomic`."""
    _store(uri).delete(uri)


def sweep(uri: str) -> None:
    """Removes from the folder, not from those below it, what died half-written.

    Only for folders that nobody writes to any more. Object stores keep nothing half-written.
    """
    if not is_remote(uri):
        local.sweep(uri)


def check_writable(uri: str) -> None:
    """Makes sure that objects can be written below `uri`, and makes a local folder.

    Raises:
        ConfigError: they cannot; one line with the reason.
    """
    probe = join(uri, f".raysers-probe-{uuid.uuid4().hex[:12]}")
    try:
        if not is_remote(uri) and os.path.exists(uri) and not os.path.isdir(uri):
            raise ConfigError(f"{uri} is a file: name a folder for the output")
        write_atomic(probe, b"")
    except ConfigError:
        raise
    except RaysersError as error:
        raise ConfigError(f"the output folder {uri} cannot be written: {error}") from error
    # some buckets let a job write and not delete; an empty hidden object harms nobody
    with suppress(RaysersError):
        delete(probe)


def _store(uri: str) -> ModuleType:
    return s3 if is_remote(uri) else local

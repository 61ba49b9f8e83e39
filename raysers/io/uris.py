"""Names of files and objects: a local path, `s3://bucket/key`, or a URL that fsspec reads.

Keys are verbatim: `#`, `%`, blanks and quotes belong to the name, so nothing here parses URLs.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from raysers.errors import ConfigError

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

    `etag` marks its version: the store's ETag without quotes, or `<mtime ns>-<size>` of a local
    file; empty when unknown, as for a dangling link.
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
    """The one spelling of `uri`: absolute local path, or `s3://bucket/key` without a final slash.

    Raises:
        ConfigError: a scheme that nothing here reads.
    """
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

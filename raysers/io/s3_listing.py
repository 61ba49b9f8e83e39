"""Listing an S3 prefix in parallel, whatever its shape: deep, wide or flat.

A prefix with few sub-prefixes is entered level by level. Where there are many, runs of neighbouring
sub-prefixes are listed without a delimiter, so a million tiny folders cost few requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raysers.errors import ObjectMissing
from raysers.io import s3
from raysers.io.listing import crawl
from raysers.io.uris import S3_SCHEME, ObjectInfo, is_hidden, split_s3, suffix_of

#: Fewer sub-prefixes than this on a page are entered one by one.
_FEW = 16
#: Runs one page of sub-prefixes is split into.
_RUNS_PER_PAGE = 64
#: Deeper than this nothing is entered level by level any more.
_MAX_LEVELS = 4


@dataclass(frozen=True, slots=True)
class _Branch:
    """A prefix still to list.

    `run` None: with a delimiter. Otherwise without one, from the first to the last of the two
    neighbouring sub-prefixes in `run`.
    """

    prefix: str
    level: int = 0
    run: tuple[str, str] | None = None


def list_objects(uri: str, suffixes: frozenset[str] | None) -> Iterator[ObjectInfo]:
    """Objects below the prefix `uri`; see `storage.list_objects`."""
    bucket, key = split_s3(uri)
    root = key + "/" if key else ""
    first = _page(uri, Bucket=bucket, Prefix=root, MaxKeys=1)
    if root and not first.get("KeyCount"):
        raise ObjectMissing(f"{uri}/: no objects with this prefix")

    def expand(branch: _Branch) -> Iterator[tuple[list[ObjectInfo], list[_Branch]]]:
        for contents, prefixes in _pages(bucket, branch):
            wanted = [
                _info(bucket, item) for item in contents if _wanted(item["Key"], root, suffixes)
            ]
            shown = [p for p in prefixes if not is_hidden(p[len(root) :].rstrip("/"))]
            yield wanted, _children(branch, shown)

    return crawl(_Branch(root), expand)


def list_parts(uri: str) -> list[ObjectInfo]:
    """`part-*.parquet` directly under the prefix, by name; none when there are none."""
    bucket, key = split_s3(uri)
    root = key + "/" if key else ""
    options = {"Bucket": bucket, "Prefix": root + "part-", "Delimiter": "/"}
    parts: list[ObjectInfo] = []
    while True:
        page = _page(uri, **options)
        parts += (_info(bucket, i) for i in page.get("Contents", []) if _is_part(i["Key"]))
        if not page.get("IsTruncated"):
            return sorted(parts, key=lambda part: part.uri)
        options["ContinuationToken"] = page["NextContinuationToken"]


def is_folder(uri: str) -> bool:
    """Whether any object has this prefix; a bucket always counts when it is there.

    Raises:
        ObjectMissing: there is no such bucket.
    """
    bucket, key = split_s3(uri)
    page = _page(uri, Bucket=bucket, Prefix=key + "/" if key else "", MaxKeys=1)
    return not key or bool(page.get("KeyCount"))


def _pages(bucket: str, branch: _Branch) -> Iterator[tuple[list[Any], list[str]]]:
    """(objects, sub-prefixes) of each page of a branch."""
    options: dict[str, Any] = {"Bucket": bucket, "Prefix": branch.prefix}
    if branch.run is None:
        options["Delimiter"] = "/"
    else:
        options["StartAfter"] = branch.run[0]
    uri = f"{S3_SCHEME}{bucket}/{branch.prefix}"
    while True:
        page = _page(uri, **options)
        contents = page.get("Contents", [])
        inside = contents if branch.run is None else [i for i in contents if _in_run(i, branch)]
        yield inside, [p["Prefix"] for p in page.get("CommonPrefixes", [])]
        if not page.get("IsTruncated") or (contents and _past_run(contents[-1]["Key"], branch)):
            return
        options["ContinuationToken"] = page["NextContinuationToken"]


def _children(branch: _Branch, prefixes: list[str]) -> list[_Branch]:
    if len(prefixes) < _FEW and branch.level < _MAX_LEVELS:
        return [_Branch(prefix, branch.level + 1) for prefix in prefixes]
    width = -(-len(prefixes) // _RUNS_PER_PAGE)
    runs = (prefixes[i : i + width] for i in range(0, len(prefixes), max(width, 1)))
    return [_Branch(branch.prefix, branch.level + 1, (run[0], run[-1])) for run in runs]


def _in_run(item: Any, branch: _Branch) -> bool:
    """Objects directly under the prefix came with the delimited page already."""
    key: str = item["Key"]
    return "/" in key[len(branch.prefix) :] and not _past_run(key, branch)


def _past_run(key: str, branch: _Branch) -> bool:
    # keys come in UTF-8 order, which for str is the order of code points
    return branch.run is not None and key > branch.run[1] and not key.startswith(branch.run[1])


def _wanted(key: str, root: str, suffixes: frozenset[str] | None) -> bool:
    if key.endswith("/") or is_hidden(key[len(root) :]):
        return False
    return suffixes is None or suffix_of(key) in suffixes


def _is_part(key: str) -> bool:
    return key.endswith(".parquet")


def _info(bucket: str, item: Any) -> ObjectInfo:
    uri = f"{S3_SCHEME}{bucket}/{item['Key']}"
    return ObjectInfo(uri, item["Size"], s3.etag_of(item))


def _page(uri: str, **options: Any) -> Any:
    return s3.retried(lambda: s3.client().list_objects_v2(**options), uri)

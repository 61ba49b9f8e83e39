"""S3 and compatible stores through boto3: ranged reads, one-call writes, listings, errors.

boto3 retries a request but never the reading of its body, so resets and short bodies are retried
here. S3 answers 403 both for "not yours" and for "your key is wrong", and 400 for an expired token;
only the code in the XML body tells them apart, and a HEAD answer has no body.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import Any, NamedTuple, TypeVar

import botocore.exceptions as boto
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from raysers.errors import (
    ConditionsUnsupported,
    CredentialsError,
    ObjectForbidden,
    ObjectMissing,
    StorageError,
    TransientStorageError,
    WriteError,
)
from raysers.io.local import Page, Skipped, crawl
from raysers.io.objects import Fetched, ObjectInfo, is_shown, split_s3, suffix_of
from raysers.io.s3_client import S3Settings, client, reader

Result = TypeVar("Result")

#: More sub-prefixes than this on a page keep every thread busy without looking deeper.
_FEW_PREFIXES = 16
#: Above this an upload goes in parts; one PUT may not be larger than 5 GiB.
MULTIPART_BYTES = 64 * 2**20

#: Codes of S3, HTTP statuses of answers without one, and exceptions of boto3 and urllib3; an error
#: goes by the first of its names that is here.
_NAMES: dict[type[StorageError], str] = {
    # ParamValidationError: a bucket name that S3 does not allow
    ObjectMissing: "NoSuchKey NoSuchBucket NoSuchVersion NotFound KeyTooLongError 404 405 410 "
    "ParamValidationError",
    # InvalidObjectState: archived (Glacier), to be restored first
    ObjectForbidden: "AccessDenied AllAccessDisabled AccountProblem InvalidObjectState 403",
    CredentialsError: "InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken ExpiredTokenException "
    "InvalidToken TokenRefreshRequired RequestTimeTooSkewed RequestExpired InvalidClientTokenId "
    "UnrecognizedClientException AuthFailure InvalidSecurity AuthorizationHeaderMalformed "
    "CredentialsNotSupported NotSignedUp 401 NoCredentialsError PartialCredentialsError "
    "CredentialRetrievalError TokenRetrievalError SSOError ProfileNotFound",
    TransientStorageError: "InternalError SlowDown ServiceUnavailable RequestTimeout "
    "RequestTimeoutException Throttling ThrottlingException RequestLimitExceeded "
    "BandwidthLimitExceeded OperationAborted ConditionalRequestConflict BadDigest IncompleteBody "
    "408 409 425 429 500 502 503 504 IncompleteReadError ResponseParserError HTTPClientError "
    "ConnectionError HTTPError OSError",
    StorageError: "501 505 SSLError BotoCoreError",
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}
#: Everything boto3 is known to raise out of a call or out of reading a body.
_CLIENT_FAILURES = (boto.BotoCoreError, boto.ClientError, ResponseParserError)
_FAILURES = (*_CLIENT_FAILURES, S3UploadFailedError, HTTPError, OSError)
#: Full store: no retry helps, so it must not look like a busy server.
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity", 507})
_ADVICE = {
    CredentialsError: " (check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, "
    "AWS_PROFILE, AWS_REGION and the clock)",
    TransientStorageError: " (still failing after every retry; try again later)",
}
_CONDITION_FAILED = frozenset({"PreconditionFailed", "412", "NoSuchKey", "404"})


def fetch(
    uri: str, offset: int, size: int, *, etag: str = "", total_bytes: int | None = None
) -> Fetched:
    """Up to `size` bytes from `offset` in one request; see `objects.Fetch`."""
    bucket, key = _object(uri)

    def get() -> Fetched:
        try:
            answer = reader().get(bucket, key, offset, size)
            if answer.offset != offset:
                raise StorageError(f"{uri}: the store ignores Range requests")
            found = Fetched(answer.data, answer.total_bytes, _bare(answer.etag))
        except boto.ClientError as error:
            if _reply(error)[0] not in ("InvalidRange", "416"):
                raise
            # nothing there: an empty object, or an offset at its end
            found = Fetched(b"", -1, "")
        if found.total_bytes < 0:
            head = client().head_object(Bucket=bucket, Key=key)
            found = Fetched(found.data, head["ContentLength"], found.etag or etag_of(head))
        found.verified(uri, (offset, size), etag, total_bytes)
        return found

    return retried(get, uri)


def stat(uri: str) -> ObjectInfo:
    """Size and ETag of an object."""
    found = fetch(uri, 0, 1)  # a HEAD answer has no body that gives the reason of a refusal
    return ObjectInfo(uri, found.total_bytes, found.etag)


def list_page(uri: str, **options: Any) -> Any:
    """One answer of `list_objects_v2` for the bucket of `uri`."""
    return retried(lambda: client().list_objects_v2(Bucket=split_s3(uri)[0], **options), uri)


def is_folder(uri: str) -> bool:
    """Whether a bucket is there, or an object below a prefix."""
    root = _root(uri)
    try:
        return bool(list_page(uri, Prefix=root, MaxKeys=1).get("KeyCount")) or not root
    except ObjectMissing:
        return False


def _root(uri: str) -> str:
    key = split_s3(uri)[1].rstrip("/")
    return f"{key}/" if key else ""


class _Keys(NamedTuple):
    """Keys of a prefix: one level of folders, or all of them after `after` up to `last`."""

    prefix: str
    is_level: bool = False
    after: str = ""
    #: Empty: up to the end.
    last: str = ""


def list_objects(
    uri: str, suffixes: frozenset[str] | None, skipped: Skipped, *, page_keys: int = 1000
) -> Iterator[ObjectInfo]:
    """Objects below the prefix `uri`; see `storage.list_objects`.

    Few folders are listed each on its own. More keys than a page are cut where their first
    characters change, so that a flat prefix is listed in parallel as well.
    """
    bucket, root = split_s3(uri)[0], _root(uri)
    if not list_page(uri, Prefix=root, MaxKeys=1).get("KeyCount") and root:
        raise ObjectMissing(f"{uri}/: no objects with this prefix")

    def expand(keys: _Keys) -> Page[_Keys]:
        options = {"Delimiter": "/"} if keys.is_level else {"StartAfter": keys.after}
        page = list_page(uri, Prefix=keys.prefix, MaxKeys=page_keys, **options)
        items, more = page.get("Contents", []), page.get("IsTruncated")
        below = [item["Prefix"] for item in page.get("CommonPrefixes", [])]
        if more and below:
            return [], [_Keys(keys.prefix)]
        nodes = [_Keys(b, len(below) <= _FEW_PREFIXES) for b in below if shown(b.rstrip("/"))]
        if more and (not keys.last or items[-1]["Key"] < keys.last):
            seen = items[-1]["Key"]
            cuts = _cuts(items[0]["Key"], seen, keys.last, keys.prefix)
            ends = pairwise([seen, *cuts, keys.last])
            nodes = [_Keys(keys.prefix, after=after, last=last) for after, last in ends]
        found = [
            ObjectInfo(f"s3://{bucket}/{item['Key']}", item["Size"], etag_of(item))
            for item in items
            if (not keys.last or item["Key"] <= keys.last) and is_wanted(item["Key"])
        ]
        return found, nodes

    def shown(key: str) -> bool:
        return is_shown(key[len(root) :], f"s3://{bucket}/{key}", skipped)

    def is_wanted(key: str) -> bool:
        is_kept = suffixes is None or suffix_of(key) in suffixes
        return not key.endswith("/") and shown(key) and is_kept

    return crawl(_Keys(root, is_level=True), expand)


def _cuts(first: str, seen: str, last: str, prefix: str) -> list[str]:
    """Where to cut the keys from `seen`, the last of a page that begins at `first`, to `last`.

    That is where a character that is the same on all of the page changes.
    """
    pairs = zip(first, seen, strict=False)
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), len(first))
    places = range(len(prefix), max(same, len(prefix) + 1))
    cuts = {seen[:at] + chr(ord(seen[at]) + 1) for at in places if seen[at] < "~"}
    return sorted(cut for cut in cuts if not last or cut < last)


def etag_of(answer: Any) -> str:
    """The version mark in an answer or a listing, bare; empty where the store gives none."""
    return _bare(str(answer.get("ETag", "")))


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def write_atomic(uri: str, data: bytes) -> None:
    """Stores the object in one call, large ones in parts; readers never see half of it."""
    bucket, key = _object(uri)

    def put() -> None:
        if len(data) <= MULTIPART_BYTES:
            client().put_object(Bucket=bucket, Key=key, Body=data)
        else:
            transfer = TransferConfig(multipart_threshold=MULTIPART_BYTES)
            client().upload_fileobj(io.BytesIO(data), bucket, key, Config=transfer)

    retried(put, uri, writing=True)


def put_if(uri: str, data: bytes, etag: str | None = None) -> str | None:
    """Stores the object if it is absent, or with `etag` if that is its version; see `storage`."""
    bucket, key = _object(uri)
    condition: Any = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}

    def put() -> str | None:
        try:
            return etag_of(client().put_object(Bucket=bucket, Key=key, Body=data, **condition))
        except boto.ClientError as error:
            if _reply(error)[0] in ("NotImplemented", "501"):
                raise ConditionsUnsupported(f"{uri}: no conditional writes here") from error
            if _reply(error)[0] not in _CONDITION_FAILED:
                raise
        return None

    if (written := retried(put, uri, writing=True)) is not None:
        return written
    # the answer to a first try that succeeded may have been lost, and the retry was refused
    try:
        found = fetch(uri, 0, len(data) + 1)
    except ObjectMissing:
        return None
    return found.etag if found.data == data else None


def delete(uri: str) -> None:
    """Removes the object; it need not exist."""
    bucket, key = _object(uri)
    retried(lambda: client().delete_object(Bucket=bucket, Key=key), uri, writing=True)


def retried(call: Callable[[], Result], uri: str, *, writing: bool = False) -> Result:
    """`call()`, repeated while it fails in a way that may pass."""
    settings, started_s = S3Settings.from_environment(), time.monotonic()
    for attempt in count(1):
        try:
            return call()
        except _FAILURES as error:
            kind, is_full = _kind_of(error), not _FULL.isdisjoint(_reply(error))
            waited_s = time.monotonic() - started_s
            may_pass = kind is TransientStorageError and not is_full
            if not may_pass or attempt >= settings.max_attempts or waited_s > settings.max_retry_s:
                if writing and (is_full or kind not in _ADVICE):
                    raise WriteError(f"cannot write {uri}: {_words(error)}") from error
                raise kind(f"{uri}: {_words(error)}{_ADVICE.get(kind, '')}") from error
        ceiling_s = min(settings.max_backoff_s, settings.backoff_s * 2 ** (attempt - 1))
        # jitter: many workers that one outage stopped must not come back in step
        time.sleep(random.uniform(ceiling_s / 2, ceiling_s))
    raise AssertionError("the loop above returns or raises")


def _kind_of(error: Exception) -> type[StorageError]:
    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, boto.ClientError):
        error = error.__context__
    code, status = _reply(error)
    if code.startswith("KMS."):
        return ObjectForbidden
    names = [code, str(status), *(kind.__name__ for kind in type(error).__mro__)]
    other = TransientStorageError if status > 500 else StorageError
    return next((_KINDS[name] for name in names if name in _KINDS), other)


def _reply(error: Exception) -> tuple[str, int]:
    """Code (`NoSuchKey`; of an answer without a body its bare status) and HTTP status."""
    answer: Any = error.response if isinstance(error, boto.ClientError) else {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(answer.get("Error", {}).get("Code", "")), int(status)


def _words(error: Exception) -> str:
    """One line: the store's code and message, or the library's own words."""
    text = str(error)
    if isinstance(error, boto.ClientError):
        (code, status), message = _reply(error), error.response.get("Error", {}).get("Message", "")
        text = f"{code} {message} (HTTP {status})"
    return " ".join(text.split()) or type(error).__name__


def _object(uri: str) -> tuple[str, str]:
    bucket, key = split_s3(uri)
    if not key:
        raise ObjectMissing(f"{uri} is a bucket, not an object")
    return bucket, key

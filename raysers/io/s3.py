"""S3 and its compatible stores: ranged reads, one-call writes, a parallel listing.

boto3 retries a request but never the reading of its body, so a reset in mid-object is retried here.
"""

from __future__ import annotations

import dataclasses
import io
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.exceptions as boto
from boto3.s3.transfer import TransferConfig
from botocore import UNSIGNED
from botocore.config import Config

from raysers.errors import (
    ConditionsUnsupported,
    ConfigError,
    CredentialsError,
    ObjectMissing,
    StorageError,
    TransientStorageError,
)
from raysers.io.ranged import Fetched
from raysers.io.s3_errors import FAILURES, code_of, is_full, storage_error, write_error
from raysers.io.uris import ObjectInfo, split_s3

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

Result = TypeVar("Result")

#: Above this an upload goes in parts; one PUT may not be larger than 5 GiB.
MULTIPART_BYTES = 64 * 2**20
#: Codes of a conditional write that was refused; the bare numbers where there is no body.
_CONDITION_FAILED = frozenset({"PreconditionFailed", "412", "NoSuchKey", "404"})
_NO_CONDITIONS = frozenset({"NotImplemented", "501"})
_ENVIRONMENT_PREFIX = "RAYSERS_S3_"
#: A change of any of these asks for another client.
_AWS_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """How patient the client is; each field is read from `RAYSERS_S3_<FIELD>` where that is set.

    Attributes:
        max_attempts: tries of one operation, each of which boto3 itself repeats up to
            `request_attempts` times; the default outlasts about a minute of refusals.
        anonymous: 1 sends no signature, for public buckets.
    """

    max_attempts: int = 8
    request_attempts: int = 3
    backoff_s: float = 0.5
    max_backoff_s: float = 20.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    pool_connections: int = 64
    anonymous: int = 0

    @classmethod
    def from_environment(cls) -> S3Settings:
        """Defaults, overridden by the environment.

        Raises:
            ConfigError: a variable that is not a number.
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            name = _ENVIRONMENT_PREFIX + field.name.upper()
            if (text := os.environ.get(name)) is not None:
                number = int if isinstance(field.default, int) else float
                try:
                    values[field.name] = number(text)
                except ValueError:
                    raise ConfigError(f"{name}={text!r} is not a number") from None
        return cls(**values)


def fetch(uri: str, offset: int, size: int) -> Fetched:
    """Up to `size` bytes from `offset` in one request; fewer only at the end of the object.

    Raises:
        ObjectMissing, ObjectForbidden, CredentialsError: as the store says.
        TransientStorageError: every retry failed.
    """
    bucket, key = _object(uri)
    if size <= 0:
        return _empty(uri)

    def get() -> Fetched:
        span = f"bytes={offset}-{offset + size - 1}"
        answer = client().get_object(Bucket=bucket, Key=key, Range=span)
        with answer["Body"] as body:
            got, _, total = answer.get("ContentRange", "").rpartition("/")
            whole = not got and offset == 0 and answer.get("ContentLength", size + 1) <= size
            if not whole and not got.startswith(f"bytes {offset}-"):
                raise StorageError(f"{uri}: the store ignores Range requests")
            data = body.read()
        if not whole and not total.isdigit():
            # a store need not tell the size with a range
            total = str(_head(uri).num_bytes)
        return Fetched(data, len(data) if whole else int(total), etag_of(answer))

    try:
        return _retried(get, uri)
    except _BeyondEnd:
        # nothing there: an empty object, or an offset at its end
        return _empty(uri)


def etag_of(answer: Any) -> str:
    """The version mark in an answer or a listing, bare; empty where the store gives none."""
    return str(answer.get("ETag", "")).removeprefix("W/").strip('"')


def stat(uri: str) -> ObjectInfo:
    """Size and ETag of an object; errors as for `fetch`."""
    try:
        return _head(uri)
    except (TransientStorageError, ObjectMissing):
        raise
    except StorageError:
        # a HEAD answer has no body to say why; one byte of a GET has
        fetch(uri, 0, 1)
        raise


def _empty(uri: str) -> Fetched:
    info = _head(uri)
    return Fetched(b"", info.num_bytes, info.etag)


def _head(uri: str) -> ObjectInfo:
    bucket, key = _object(uri)

    def head() -> ObjectInfo:
        answer = client().head_object(Bucket=bucket, Key=key)
        return ObjectInfo(uri, answer["ContentLength"], etag_of(answer))

    return _retried(head, uri)


def write(uri: str, data: bytes) -> None:
    """Stores the object in one call (in parts above 64 MiB); readers never see half of it.

    Raises:
        WriteError: refused, missing bucket, full.
        CredentialsError, TransientStorageError: as for `fetch`.
    """
    bucket, key = _object(uri)

    def put() -> None:
        if len(data) <= MULTIPART_BYTES:
            client().put_object(Bucket=bucket, Key=key, Body=data)
        else:
            transfer = TransferConfig(multipart_threshold=MULTIPART_BYTES)
            client().upload_fileobj(io.BytesIO(data), bucket, key, Config=transfer)

    _retried(put, uri, explain=write_error)


def put_if(uri: str, data: bytes, etag: str = "") -> str | None:
    """Stores the object if it is absent, or with `etag` if that is its version; see `storage`.

    Returns:
        The new etag, or None when the condition does not hold.

    Raises:
        ConditionsUnsupported, WriteError, CredentialsError, TransientStorageError.
    """
    bucket, key = _object(uri)
    condition: Any = {"IfMatch": f'"{etag}"'} if etag else {"IfNoneMatch": "*"}

    def put() -> str | None:
        try:
            answer = client().put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except boto.ClientError as error:
            if code_of(error) in _CONDITION_FAILED:
                return None
            if code_of(error) in _NO_CONDITIONS:
                raise ConditionsUnsupported(f"{uri}: no conditional writes here") from error
            raise
        return etag_of(answer)

    if (written := _retried(put, uri, explain=write_error)) is not None:
        return written
    # the answer to a first try that succeeded may have been lost, and the retry was refused
    try:
        found, _, now = fetch(uri, 0, len(data) + 1)
    except ObjectMissing:
        return None
    return now if found == data else None


def delete_if(uri: str, etag: str) -> bool:
    """Removes the object if `etag` is its version; see `storage`."""
    bucket, key = _object(uri)

    def remove() -> bool:
        try:
            if etag_of(client().head_object(Bucket=bucket, Key=key)) != etag:
                return False
            try:
                client().delete_object(Bucket=bucket, Key=key, IfMatch=f'"{etag}"')
            except boto.ClientError as error:
                if code_of(error) not in _NO_CONDITIONS:
                    raise
                client().delete_object(Bucket=bucket, Key=key)
        except boto.ClientError as error:
            if code_of(error) in _CONDITION_FAILED:
                return False
            raise
        return True

    return _retried(remove, uri, explain=write_error)


def delete(uri: str) -> None:
    """Removes the object; it need not exist.

    Raises:
        WriteError: refused.
        CredentialsError, TransientStorageError: as for `fetch`.
    """
    bucket, key = _object(uri)
    _retried(lambda: client().delete_object(Bucket=bucket, Key=key), uri, explain=write_error)


def client() -> S3Client:
    """This process's client: thread-safe, and made anew after a fork or a change of environment."""
    variables = tuple(os.environ.get(name, "") for name in _AWS_VARIABLES)
    with _lock:
        return _client(os.getpid(), variables, S3Settings.from_environment())


_lock = threading.Lock()


def _forget_lock() -> None:
    """A child forked while another thread held the lock would wait for ever."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


@lru_cache(maxsize=4)
def _client(pid: int, variables: tuple[str, ...], settings: S3Settings) -> S3Client:
    has_endpoint = any(variables[:2])
    config = Config(
        signature_version=UNSIGNED if settings.anonymous else None,
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        max_pool_connections=settings.pool_connections,
        retries={"mode": "standard", "total_max_attempts": settings.request_attempts},
        # other vendors: buckets are no host names there, and many refuse the newer checksums
        s3={"addressing_style": "path"} if has_endpoint else None,
        request_checksum_calculation="when_required" if has_endpoint else None,
        response_checksum_validation="when_required" if has_endpoint else None,
    )
    try:
        # a session of its own: boto3's default one is not safe to share between threads
        return boto3.session.Session().client("s3", config=config)
    except FAILURES as error:
        raise CredentialsError(f"no S3 client: {error}") from error
    except ValueError as error:
        raise ConfigError(f"no S3 client: {error}; check AWS_ENDPOINT_URL") from error


class _BeyondEnd(StorageError):
    """The range starts at or after the end of the object."""


def _retried(
    call: Callable[[], Result],
    uri: str,
    *,
    explain: Callable[[Exception, str], Exception] = storage_error,
) -> Result:
    settings = S3Settings.from_environment()
    attempt = 0
    while True:
        attempt += 1
        try:
            return call()
        except FAILURES as error:
            if code_of(error) in ("InvalidRange", "416"):
                raise _BeyondEnd(uri) from error
            fate = explain(error, uri)
            hopeless = is_full(error) or not isinstance(fate, TransientStorageError)
            if hopeless or attempt >= settings.max_attempts:
                raise fate from error
        ceiling_s = min(settings.max_backoff_s, settings.backoff_s * 2 ** (attempt - 1))
        # full jitter: many workers hit by one outage must not come back in step
        time.sleep(random.uniform(ceiling_s / 2, ceiling_s))


def retried(call: Callable[[], Result], uri: str) -> Result:
    """`call()` with the retries and the errors of every other operation here."""
    return _retried(call, uri)


def _object(uri: str) -> tuple[str, str]:
    bucket, key = split_s3(uri)
    if not key:
        raise ObjectMissing(f"{uri} is a bucket, not an object")
    return bucket, key

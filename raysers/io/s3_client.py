"""How S3 is used: its settings, this process's client, and ranged reads with it."""

from __future__ import annotations

import html
import os
import re
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import boto3
import botocore.session
import obstore
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from obstore.store import S3Store

from raysers.errors import ConfigError, CredentialsError

if TYPE_CHECKING:
    from botocore.session import Session
    from obstore.store import S3Credential
    from types_boto3_s3 import S3Client

#: Changing one of these makes another client.
_AWS_VARIABLES = [
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
]  # fmt: skip
_AWS_HOST = re.compile(r"^https?://[^/]*\.(amazonaws\.com(\.cn)?|api\.aws)(:\d+)?(/|$)")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
#: A refusal in obstore's words: the status and the body of the answer.
_REFUSAL = re.compile(r"non-2xx status code: (\d+)[^:]*:(.*)\n\nDebug source", re.DOTALL)
#: obstore's threads do not survive a fork.
_PID = os.getpid()
#: Keys that obstore names as they are: without empty segments, `.` and `..`.
_PLAIN_KEY = re.compile(r"(?!\.{1,2}(/|$))[^/]+(/(?!\.{1,2}(/|$))[^/]+)*")
#: Buckets that are signed for in the usual way; S3 Express and access points are not.
_PLAIN_BUCKET = re.compile(r"(?!.*--x-s3$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class S3Settings(NamedTuple):
    """How S3 is used; each field is read from `RAYSERS_S3_<FIELD>` where that is set.

    With the defaults, an object that always answers 500 fails after 16 to 40 s, one that always
    stalls after about 3 minutes: an operation is tried `max_attempts` times; no try begins
    `max_retry_s` after the first.
    """

    max_attempts: int = 7
    backoff_s: float = 0.5
    max_backoff_s: float = 20.0
    max_retry_s: float = 120.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    pool_connections: int = 512
    #: 1: no signature, for public buckets; 1: pay for requests and transfer (`--requester-pays`).
    anonymous: int = 0
    requester_pays: int = 0

    @classmethod
    def from_environment(cls) -> S3Settings:
        """Defaults, overridden by the environment; ConfigError for what is not a number."""
        values: dict[str, Any] = {}
        for name, default in cls._field_defaults.items():
            variable = f"RAYSERS_S3_{name.upper()}"
            text = os.environ.get(variable, str(default))
            try:
                values[name] = type(default)(text)
            except ValueError:
                raise ConfigError(f"{variable}={text!r} is not a number") from None
        return cls(**values)


class Answer(NamedTuple):
    """At most the bytes asked for, and what the header says; -1 where it does not give the size."""

    data: bytes
    offset: int
    total_bytes: int
    etag: str


class S3Reader:
    """Ranged reads outside of the interpreter's lock, for any number of threads.

    boto3 takes longer for a short clip than decoding it. It reads what obstore cannot: keys with
    empty segments, S3 Express, and buckets of which obstore's first read fails and boto3's does
    not (another region, proxy or certificate), so that no later read makes that detour.
    """

    def __init__(self, session: Session, client: S3Client, settings: S3Settings) -> None:
        """Reads like `client`, with the credentials and certificates of `session`."""
        self._client, self._settings = client, settings
        self._credentials = None if settings.anonymous else session.get_credentials()
        self._certificates = str(session.get_config_variable("ca_bundle") or "")
        self._stores: dict[str, S3Store | None] = {}
        self._reached: set[str] = set()

    def get(self, bucket: str, key: str, offset: int, size: int) -> Answer:
        """At most `size` bytes from `offset` on; errors are those of boto3, urllib3 and the OS."""
        store = self._store(bucket) if _PLAIN_KEY.fullmatch(key) else None
        if store is not None:
            try:
                found = obstore.get(store, key, options={"range": (offset, offset + size)})
                self._reached.add(bucket)
                about, (first, last) = found.meta, found.range
                if about["path"] == key and first == offset and last <= offset + size:
                    return Answer(bytes(found.bytes()), offset, about["size"], about["e_tag"] or "")
            except (obstore.exceptions.BaseError, OSError, ValueError) as error:
                refusal = _REFUSAL.search(str(error))
                if refusal and "AuthorizationHeaderMalformed" not in refusal[2]:
                    raise _refused(int(refusal[1]), refusal[2]) from error
        span = f"bytes={offset}-{offset + size - 1}"
        answer = self._client.get_object(Bucket=bucket, Key=key, Range=span)
        if store is not None and bucket not in self._reached:
            self._stores[bucket] = None
        with answer["Body"] as body:
            claim = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
            total_bytes = -1
            if claim and claim[2] != "*":
                total_bytes = int(claim[2])
            elif not claim and answer["ResponseMetadata"]["HTTPStatusCode"] == 200:
                total_bytes = answer["ContentLength"]
            first = int(claim[1]) if claim else 0
            return Answer(body.read(size), first, total_bytes, answer.get("ETag", ""))

    def _store(self, bucket: str) -> S3Store | None:
        if bucket not in self._stores:
            self._stores[bucket] = None
            if os.getpid() == _PID:
                # it refuses half of the variables that hold credentials
                with suppress(obstore.exceptions.BaseError):
                    self._stores[bucket] = self._opened(bucket)
        return self._stores[bucket]

    def _opened(self, bucket: str) -> S3Store | None:
        """None: boto3 has to read it, with sessions, or to say that there are no credentials."""
        if not _PLAIN_BUCKET.fullmatch(bucket):
            return None
        if self._credentials is None and not self._settings.anonymous:
            return None
        params = {"Bucket": bucket, "Key": "k"}
        signed = self._client.generate_presigned_url("get_object", Params=params)
        endpoint = signed.partition("?")[0].removesuffix("/k")
        is_path = endpoint.endswith(f"/{bucket}")
        settings = self._settings
        options: Any = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=settings.connect_timeout_s),
            "read_timeout": timedelta(seconds=settings.read_timeout_s),
            "timeout": timedelta(hours=1),  # of all that a large object takes
        }
        if self._certificates:
            options["root_certificate"] = Path(self._certificates).read_bytes()
        return S3Store(
            bucket,
            endpoint=endpoint.removesuffix(f"/{bucket}") if is_path else endpoint,
            virtual_hosted_style_request=not is_path,
            region=self._client.meta.region_name,
            skip_signature=bool(settings.anonymous),
            request_payer=bool(settings.requester_pays),
            client_options=options,
            retry_config={"max_retries": 0},
            credential_provider=None if settings.anonymous else self._current,
        )

    def _current(self) -> S3Credential:
        """Credentials, which botocore renews in time."""
        assert self._credentials is not None
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key or "",
            "secret_access_key": frozen.secret_key or "",
            "token": frozen.token,
            # asked again five minutes before
            "expires_at": datetime.now(UTC) + timedelta(minutes=10),
        }


def _refused(status: int, body: str) -> ClientError:
    """The error that boto3 would raise."""
    code, message = (
        html.unescape(found[1]) if (found := re.search(f"<{tag}>(.*?)</{tag}>", body)) else ""
        for tag in ("Code", "Message")
    )
    answer: Any = {
        "Error": {"Code": code or str(status), "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(answer, "GetObject")


def client() -> S3Client:
    """This process's client: thread-safe, and made anew after a fork or a change of environment."""
    return _made()[0]


def reader() -> S3Reader:
    """For reads of this process's client."""
    return _made()[1]


def _made() -> tuple[S3Client, S3Reader]:
    variables = tuple(os.environ.get(name, "") for name in _AWS_VARIABLES)
    with _lock:
        return _client(os.getpid(), variables, S3Settings.from_environment())


_lock = threading.Lock()


# a child forked while another thread held the lock would wait for ever
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock()))


@lru_cache(maxsize=4)
def _client(
    pid: int, variables: tuple[str, ...], settings: S3Settings
) -> tuple[S3Client, S3Reader]:
    config = Config(
        signature_version=UNSIGNED if settings.anonymous else None,
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        max_pool_connections=settings.pool_connections,
        retries={"total_max_attempts": 1},  # `s3.retried` retries
    )
    # other vendors: buckets are no host names there, and many refuse the newer checksums
    vendor = Config(
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        # not boto3's default session: threads must not share that while it makes clients
        core = botocore.session.Session()
        session = boto3.session.Session(botocore_session=core)
        made = session.client("s3", config=config)
        if not _AWS_HOST.match(made.meta.endpoint_url):
            made = session.client("s3", config=config.merge(vendor))
        if settings.requester_pays:
            made.meta.events.register("before-call.s3", _requester_pays)
        reads = S3Reader(core, made, settings)
    except (BotoCoreError, OSError) as error:
        raise CredentialsError(f"no S3 client: {error}") from error
    except ValueError as error:
        raise ConfigError(f"no S3 client: {error}; check AWS_ENDPOINT_URL") from error
    return made, reads


def _requester_pays(params: dict[str, Any], **_: object) -> None:
    params["headers"]["x-amz-request-payer"] = "requester"

"""What an S3 failure means for a job: missing, forbidden, bad credentials, or worth another try.

S3 answers 403 both for "not yours" and for "your key is wrong", and 400 for an expired token; only
the code in the XML body tells them apart, and a HEAD answer has no body.
"""

from __future__ import annotations

import errno

import botocore.exceptions as boto
from boto3.exceptions import S3UploadFailedError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from raysers.errors import (
    CredentialsError,
    ObjectForbidden,
    ObjectMissing,
    StorageError,
    TransientStorageError,
    WriteError,
)

#: Everything boto3 is known to raise out of a call or out of reading a body.
FAILURES = (
    boto.BotoCoreError,
    boto.ClientError,
    ResponseParserError,
    S3UploadFailedError,
    HTTPError,
    OSError,
)

_BY_CODE: dict[str, type[StorageError]] = {
    **dict.fromkeys(
        ("NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound", "KeyTooLongError"),
        ObjectMissing,
    ),
    # InvalidObjectState: archived (Glacier), to be restored first
    **dict.fromkeys(
        ("AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidObjectState"),
        ObjectForbidden,
    ),
    **dict.fromkeys(
        (
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "ExpiredTokenException",
            "InvalidToken",
            "TokenRefreshRequired",
            "RequestTimeTooSkewed",
            "RequestExpired",
            "InvalidClientTokenId",
            "UnrecognizedClientException",
            "AuthFailure",
            "InvalidSecurity",
            "AuthorizationHeaderMalformed",
            "CredentialsNotSupported",
            "NotSignedUp",
        ),
        CredentialsError,
    ),
    **dict.fromkeys(
        (
            "InternalError",
            "SlowDown",
            "ServiceUnavailable",
            "RequestTimeout",
            "RequestTimeoutException",
            "Throttling",
            "ThrottlingException",
            "RequestLimitExceeded",
            "BandwidthLimitExceeded",
            "OperationAborted",
            "ConditionalRequestConflict",
            "BadDigest",
            "IncompleteBody",
        ),
        TransientStorageError,
    ),
}

#: For answers whose code says nothing: HEAD, gateways, other vendors.
_BY_HTTP_STATUS: dict[int, type[StorageError]] = {
    401: CredentialsError,
    403: ObjectForbidden,
    404: ObjectMissing,
    405: ObjectMissing,
    408: TransientStorageError,
    409: TransientStorageError,
    410: ObjectMissing,
    425: TransientStorageError,
    429: TransientStorageError,
    501: StorageError,
}

_CREDENTIAL_FAILURES = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.ProfileNotFound,
)
_TRANSIENT_FAILURES = (
    boto.HTTPClientError,
    boto.ConnectionError,
    ResponseParserError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    HTTPError,
    OSError,
)
#: Full store: no retry helps, so it must not look like a busy server.
_FULL_CODES = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity"})
_HTTP_INSUFFICIENT_STORAGE = 507
_HTTP_SERVER_ERROR = 500

_ADVICE = {
    CredentialsError: "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, "
    "AWS_PROFILE, AWS_REGION and the clock",
    TransientStorageError: "still failing after every retry; try again later",
}


def code_of(error: Exception) -> str:
    """The S3 error code (`NoSuchKey`, …), or the bare HTTP status of an answer without a body."""
    if isinstance(error, boto.ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


def storage_error(error: Exception, uri: str) -> StorageError:
    """The error a caller sees for `error`, with the object and the next step in its message."""
    kind = _kind_of(error)
    advice = _ADVICE.get(kind)
    return kind(f"{uri}: {_words(error)}" + (f" ({advice})" if advice else ""))


def write_error(error: Exception, uri: str) -> StorageError | WriteError:
    """As `storage_error` for an upload: what cannot be written is a WriteError."""
    fate = storage_error(error, uri)
    if is_full(error) or not isinstance(fate, (CredentialsError, TransientStorageError)):
        return WriteError(f"cannot write {uri}: {_words(error)}")
    return fate


def is_full(error: Exception) -> bool:
    """Whether the store refused for lack of space."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return code_of(error) in _FULL_CODES or _http_status(error) == _HTTP_INSUFFICIENT_STORAGE


def _kind_of(error: Exception) -> type[StorageError]:
    if isinstance(error, boto.ClientError):
        by_code = _BY_CODE.get(code_of(error))
        return by_code or _kind_of_status(_http_status(error), code_of(error))
    if isinstance(error, _CREDENTIAL_FAILURES):
        return CredentialsError
    if isinstance(error, boto.ParamValidationError):
        # a bucket name that S3 does not allow
        return ObjectMissing
    if isinstance(error, boto.SSLError):
        return StorageError
    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, boto.ClientError):
        return _kind_of(error.__context__)
    return TransientStorageError if isinstance(error, _TRANSIENT_FAILURES) else StorageError


def _kind_of_status(status: int, code: str) -> type[StorageError]:
    if code.startswith("KMS."):
        return ObjectForbidden
    other = TransientStorageError if status >= _HTTP_SERVER_ERROR else StorageError
    return _BY_HTTP_STATUS.get(status, other)


def _http_status(error: Exception) -> int:
    if not isinstance(error, boto.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _words(error: Exception) -> str:
    """One line: the store's code and message, or the library's own words."""
    if not isinstance(error, boto.ClientError):
        return " ".join(str(error).split()) or type(error).__name__
    message = str(error.response.get("Error", {}).get("Message", ""))
    return " ".join(f"{code_of(error)} {message} (HTTP {_http_status(error)})".split())

"""Every error the project raises on purpose.

`status_of` maps errors of reading a clip to its row. The lasting failure of one object is a row
too; `storage.Breaker` stops the job when many objects fail. Storage errors of something that the
user named on the command line are configuration errors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING

from raysers.types import Status

if TYPE_CHECKING:
    import pyarrow as pa


class RaysersError(Exception):
    """Base of all errors below."""


class ConfigError(RaysersError):
    """A flag, file or input must be changed: exit 2, nothing written; one line names the fix."""


class CheckpointError(ConfigError):
    """A model that cannot be trusted: missing, incomplete or of another layout."""


class RefusedError(ConfigError):
    """The output folder holds results of other settings; the message names what differs."""


class ClipError(RaysersError):
    """Why one clip has no scores: a row, never the end of a job. Picklable: (status, message)."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


class StorageError(RaysersError):
    """An operation on a file or object failed."""


class ObjectMissing(StorageError):
    """The object does not exist."""


class ObjectUnreadable(ObjectMissing):
    """There, but no file: a folder, pipe, device, socket, too long a path, a range past the end."""


class ObjectForbidden(StorageError):
    """The object exists but may not be read."""


class ObjectChanged(StorageError):
    """The object is not the version that was listed, or changed while it was read."""


class CredentialsError(StorageError):
    """Credentials are missing, wrong or expired: stops the job at once."""


class ConditionsUnsupported(StorageError):
    """The store or disk cannot write on a condition (create if absent, replace if unchanged)."""


class TransientStorageError(StorageError):
    """The store kept failing (5xx, throttling, resets, time-outs) through all retries."""


class WriteError(RaysersError):
    """Output could not be written (full disk, read-only folder): stops the job."""


class DeviceLost(RaysersError):
    """The accelerator failed for good in this process; another process may have it working."""


class DecoderDied(RaysersError):
    """A process that decodes for this one died; what it had in work is tried again with care."""


class TrainingDiverged(RaysersError):
    """The loss or its gradient is not a finite number; nothing was learned from that batch."""


#: Status of a clip whose file could not be read, by the most specific class of the error.
STATUS_OF: dict[type[BaseException], Status] = {
    ObjectUnreadable: Status.UNREADABLE,
    ObjectMissing: Status.MISSING,
    ObjectForbidden: Status.FORBIDDEN,
    ObjectChanged: Status.UNREADABLE,
    StorageError: Status.UNREADABLE,
    MemoryError: Status.OUT_OF_MEMORY,
    Exception: Status.UNREADABLE,
}


def status_of(error: Exception) -> ClipError | None:
    """The error for the clip's row; None for errors that have to stop the job.

    Exceptions of other libraries become rows: one hostile file must not stop a million others.

    >>> status_of(ObjectMissing("s3://b/x.wav: NoSuchKey")).status
    <Status.MISSING: 'missing'>
    """
    if isinstance(error, ClipError):
        return error
    is_ours = isinstance(error, RaysersError)
    if isinstance(error, CredentialsError) or (is_ours and not isinstance(error, StorageError)):
        return None
    status = next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)
    return ClipError(status, str(error) if is_ours else f"{type(error).__name__}: {error}")


_CLASS, _MESSAGE = "error_class", "error_message"


def errors_as_rows(work: Callable[..., pa.Table]) -> Callable[..., pa.Table]:
    """`work`, returning its RaysersError as a table for `raise_from_rows` instead of raising it.

    Ray Data keeps only the text of a worker's exception, and the driver needs its class.
    """

    @wraps(work)
    def wrapped(*args: object, **kwargs: object) -> pa.Table:
        try:
            return work(*args, **kwargs)
        except ClipError:
            raise  # belongs in a row of its clip: a bug
        except RaysersError as error:
            import pyarrow as pa

            return pa.table({_CLASS: [type(error).__name__], _MESSAGE: [str(error)]})

    return wrapped


def raise_from_rows(table: pa.Table) -> pa.Table:
    """The table itself, or the error it carries, raised."""
    if _CLASS in table.column_names:
        kind = globals().get(table[_CLASS][0].as_py(), RaysersError)
        raise kind(table[_MESSAGE][0].as_py())
    return table

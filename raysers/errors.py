"""Every error the project raises on purpose.

    RaysersError
    ├── ConfigError            a flag, file or input the user must change: exit 2, nothing written
    │   ├── CheckpointError    a model that cannot be trusted to score
    │   └── RefusedError       the output folder belongs to another run
    ├── ClipError              one clip's fate: becomes a row with its status, never stops a job
    ├── StorageError           an object store operation failed
    │   ├── ObjectMissing      not there (404)
    │   ├── ObjectForbidden    there, but not for us (403)
    │   ├── ObjectChanged      another version than the one that was listed
    │   ├── CredentialsError   the credentials themselves are bad: stops the job at once
    │   ├── ConditionsUnsupported  the store has no conditional writes
    │   └── TransientStorageError  still failing after every retry: stops the job
    ├── DeviceLost             the accelerator failed this process, which has to end
    ├── TrainingDiverged       loss or gradients are not finite: the parameters stay as they were
    └── WriteError             output cannot be written (disk full, no permission): stops it too

`ObjectMissing`, `ObjectForbidden` and `ObjectChanged` become rows when they hit a clip, and the
first two configuration errors when they hit something the user named on the command line.
"""

from __future__ import annotations

from raysers.types import Status


class RaysersError(Exception):
    """Base of all errors below."""


class ConfigError(RaysersError):
    """The user must change something; the message is one line that names it and the fix."""


class CheckpointError(ConfigError):
    """A model folder that is missing, incomplete or of another layout."""


class RefusedError(ConfigError):
    """The output folder holds results of other settings; the message names what differs."""


class ClipError(RaysersError):
    """Why one clip has no scores. Picklable: (status, message)."""

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


class ObjectForbidden(StorageError):
    """The object exists but may not be read."""


class ObjectChanged(StorageError):
    """The object is not the version that was listed, or changed while it was read."""


class CredentialsError(StorageError):
    """Credentials are missing, wrong or expired."""


class ConditionsUnsupported(StorageError):
    """The store or disk cannot write on a condition (create if absent, replace if unchanged)."""


class TransientStorageError(StorageError):
    """The store kept failing (5xx, throttling, resets, time-outs) through all retries."""


class WriteError(RaysersError):
    """Output could not be written: full disk, read-only folder."""


class DeviceLost(RaysersError):
    """The accelerator failed for good in this process; another process may have it working."""


class TrainingDiverged(RaysersError):
    """The loss or its gradient is not a finite number; nothing was learned from that batch."""

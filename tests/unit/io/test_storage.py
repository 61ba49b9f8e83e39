"""Outages are told from objects that cannot be read; every storage error has its row."""

from __future__ import annotations

import pytest

from raysers.errors import (
    STATUS_OF,
    ClipError,
    ConfigError,
    CredentialsError,
    DeviceLost,
    ObjectChanged,
    ObjectForbidden,
    ObjectMissing,
    ObjectUnreadable,
    StorageError,
    TransientStorageError,
    WriteError,
    status_of,
)
from raysers.io.storage import Breaker
from raysers.types import Status

LASTING = TransientStorageError("s3://corpus/x.wav: HTTP 500 (still failing after every retry)")
DEFINITE = [ObjectMissing, ObjectForbidden, ObjectChanged, ObjectUnreadable, RuntimeError]

#: Steps of a breaker: objects that fail (with which error) or are read, or seconds that pass.
FAILED, READ, WAIT = "failed", "read", "wait"


@pytest.mark.parametrize(
    ("steps", "outage"),
    [
        ([(FAILED, range(4))], False),
        ([(FAILED, range(5))], True),
        ([(FAILED, [1, 2, 3, 4] * 100)], False),  # one object is one however often it fails
        ([(READ, range(1000)), (FAILED, range(1000))], False),  # as many reads as failures
        ([(READ, range(50)), (FAILED, range(10)), (WAIT, 121), (FAILED, range(20, 24))], False),
        ([(READ, range(50)), (FAILED, range(10)), (WAIT, 121), (FAILED, range(20, 25))], True),
        ([(FAILED, range(4)), (READ, [0]), (FAILED, [4])], False),  # 0 was read at last
    ],
)
def test_many_objects_that_fail_are_an_outage_and_few_are_rows(steps, outage: bool) -> None:
    now_s = 1000.0
    breaker = Breaker(clock=lambda: now_s)
    caught = None
    for what, which in steps:
        if what == WAIT:
            now_s += which
            continue
        for name in which:
            uri = f"s3://corpus/{name}.wav"
            try:
                breaker.succeeded(uri) if what == READ else breaker.failed(uri, LASTING)
            except TransientStorageError as error:
                caught = caught or str(error)
    assert bool(caught) is outage
    if caught:
        assert "outage: of s3://corpus 5 objects failed and 0 were read" in caught
        assert "500" in caught


@pytest.mark.parametrize("kind", DEFINITE)
def test_a_definite_answer_shows_that_the_store_works(kind: type[Exception]) -> None:
    breaker = Breaker()
    for error in (kind("x"), LASTING):
        for number in range(100):
            breaker.failed(f"s3://corpus/{type(error).__name__}-{number}.wav", error)


def test_bad_credentials_stop_at_once() -> None:
    with pytest.raises(CredentialsError):
        Breaker().failed("s3://corpus/x.wav", CredentialsError("x"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ObjectMissing("x"), "missing"),
        (ObjectForbidden("x"), "forbidden"),
        (ObjectChanged("x"), "unreadable"),
        (ObjectUnreadable("x"), "unreadable"),
        (TransientStorageError("x"), "unreadable"),
        (StorageError("x"), "unreadable"),
        (MemoryError(), "out_of_memory"),
        (ZeroDivisionError("x"), "unreadable"),
        (ClipError(Status.TOO_LONG, "x"), "too_long"),
        (CredentialsError("x"), None),
        (ConfigError("x"), None),
        (WriteError("x"), None),
        (DeviceLost("x"), None),
    ],
)
def test_each_error_has_its_row_or_stops_the_job(error: Exception, status: str | None) -> None:
    failure = status_of(error)
    assert (failure and failure.status) == status


def test_the_table_of_rows_covers_every_storage_error() -> None:
    kinds = {StorageError, *StorageError.__subclasses__(), *ObjectMissing.__subclasses__()}
    for kind in kinds - {CredentialsError}:
        failure = status_of(kind("x"))
        assert failure is not None
        assert failure.status in STATUS_OF.values()

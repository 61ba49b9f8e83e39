"""Outages are told from objects that cannot be read; every storage error has its row."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

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


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def fail(breaker: Breaker, *names: object, error: Exception = LASTING) -> None:
    for name in names:
        breaker.failed(f"s3://corpus/{name}.wav", error)


def test_few_objects_that_fail_are_rows() -> None:
    breaker = Breaker()
    fail(breaker, *range(4))
    with pytest.raises(
        TransientStorageError, match=r"outage: of s3://corpus 5 objects failed and 0 were read.*500"
    ):
        fail(breaker, 4)


def test_one_object_is_one_however_often_it_fails() -> None:
    breaker = Breaker()
    fail(breaker, *[1, 2, 3, 4] * 100)


def test_as_many_reads_as_failures_are_no_outage() -> None:
    breaker = Breaker()
    for number in range(1000):
        breaker.succeeded(f"s3://corpus/good-{number}.wav")
        fail(breaker, number)


def test_reads_and_failures_of_long_ago_do_not_count() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    for number in range(50):
        breaker.succeeded(f"s3://corpus/good-{number}.wav")
    fail(breaker, *range(10))
    clock.now_s += 121
    fail(breaker, *range(20, 24))
    with pytest.raises(TransientStorageError, match="5 objects failed"):
        fail(breaker, 24)


def test_an_object_that_is_read_at_last_has_not_failed() -> None:
    breaker = Breaker()
    fail(breaker, *range(4))
    breaker.succeeded("s3://corpus/0.wav")
    fail(breaker, 4)


@pytest.mark.parametrize(
    "error",
    [
        ObjectMissing("x"),
        ObjectForbidden("x"),
        ObjectChanged("x"),
        ObjectUnreadable("x"),
        ClipError(Status.TRUNCATED, "x"),
        RuntimeError("x"),
    ],
)
def test_a_definite_answer_shows_that_the_store_works(error: Exception) -> None:
    breaker = Breaker()
    fail(breaker, *range(100), error=error)
    fail(breaker, *range(100, 140))


def test_bad_credentials_stop_at_once() -> None:
    with pytest.raises(CredentialsError):
        Breaker().failed("s3://corpus/x.wav", CredentialsError("x"))


def test_threads_share_a_breaker() -> None:
    breaker, start = Breaker(least=800), threading.Barrier(8)

    def work(thread: int) -> int:
        start.wait()
        outages = 0
        for number in range(100):
            try:
                fail(breaker, f"{thread}-{number}")
            except TransientStorageError:
                outages += 1
        return outages

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 1


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

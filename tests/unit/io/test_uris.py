"""Names: joining, resolving, tar members."""

from __future__ import annotations

import doctest
import os
from pathlib import Path

import pytest

from raysers.data import shards
from raysers.errors import ConfigError
from raysers.io import objects, storage


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://b/a//b/", "s3://b/a//b"),
        ("s3://b", "s3://b"),
        ("S3A://b/k%20 #", "s3://b/k%20 #"),
        ("/x/../y/", "/y"),
        ("file:///a%20b/c.wav", "/a b/c.wav"),
        ("/100%.wav", "/100%.wav"),
    ],
)
def test_absolute(given: str, expected: str) -> None:
    assert storage.absolute(given) == expected
    assert storage.absolute(expected) == expected


def test_absolute_of_home_and_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("~/x") == storage.absolute("x") == os.path.realpath(tmp_path) + "/x"


@pytest.mark.parametrize("bad", ["", "s3://", "s3:///key", "magnet://b/k"])
def test_names_that_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError):
        storage.absolute(bad)


@pytest.mark.parametrize(
    ("folder", "file", "expected"),
    [
        ("/t", "a/x.wav", "/t/a/x.wav"),
        ("/t/s", "../a/./x.wav", "/t/a/x.wav"),
        ("/t", "/abs/x.wav", "/abs/x.wav"),
        ("/t", "s3://b/x.wav", "s3://b/x.wav"),
        ("s3://b/t", "a #1.wav", "s3://b/t/a #1.wav"),
        ("s3://b/t", "../a/x.wav", "s3://b/a/x.wav"),
        ("s3://b", "x.wav", "s3://b/x.wav"),
        ("s3://b/t", "/abs/x.wav", "/abs/x.wav"),
    ],
)
def test_resolve(folder: str, file: str, expected: str) -> None:
    assert objects.resolve(folder, file) == expected


@pytest.mark.parametrize(
    ("file", "tar"),
    [
        ("/a/b.tar#x.wav", "/a/b.tar"),
        ("s3://b/#1/S.TAR#c.tar#d.wav", "s3://b/#1/S.TAR"),
        ("/a/plain#1.wav", "/a/plain#1.wav"),
    ],
)
def test_tar_uri_of(file: str, tar: str) -> None:
    assert objects.tar_uri_of(file) == tar


@pytest.mark.parametrize("module", [objects, shards])
def test_examples_in_docstrings(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0

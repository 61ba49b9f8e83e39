"""Identities: one for every clip, the same wherever its corpus lies."""

from __future__ import annotations

import pyarrow as pa
import pytest

from raysers.data.splits import identities

SPANS = [(0, None), (0, 5), (5, None)]


def table(*files: str, corpora: list[str | None] | None = None) -> pa.Table:
    """Three spans of every file."""
    rows = [(file, *span) for file in files for span in SPANS]
    columns = {
        "file": pa.array([row[0] for row in rows], pa.string()),
        "start": pa.array([row[1] for row in rows], pa.duration("ns")),
        "end": pa.array([row[2] for row in rows], pa.duration("ns")),
    }
    if corpora is not None:
        columns["corpus"] = pa.array([c for c in corpora for _ in SPANS], pa.string())
    return pa.table(columns)


@pytest.mark.parametrize("root", ["/b", "/a/deeper", "s3://bucket/x", "/b.tar#inside"])
def test_moving_a_corpus_changes_none(root):
    names = ("one/1.wav", "one/2.wav", "two/1.wav")
    before = identities(table(*(f"/data/{name}" for name in names)))
    assert identities(table(*(f"{root}/{name}" for name in names))) == before
    assert len(set(before)) == 9


def test_a_flat_corpus_in_a_tar_is_the_same_corpus():
    before = identities(table("/data/1.wav", "/data/2.wav"))
    assert identities(table("/z/b.tar#1.wav", "/z/b.tar#2.wav")) == before


def test_names_that_begin_alike_are_not_taken_for_folders():
    before = identities(table("/a/ab1.wav", "/a/ab2.wav"))
    assert identities(table("/c/ab1.wav", "/c/ab2.wav")) == before
    assert identities(table("/a/ab1.wav")) == before[:3]


def test_each_corpus_has_its_own_folder():
    files = ("/a/x/1.wav", "/a/x/2.wav", "/b/1.wav", "/b/2.wav")
    corpora = ["one", "one", None, None]
    both = identities(table(*files, corpora=corpora))
    assert len(set(both)) == 12
    moved = ("/z/1.wav", "/z/2.wav", *files[2:])
    assert identities(table(*moved, corpora=corpora)) == both
    assert identities(table(*files[:2], corpora=corpora[:2])) == both[:6]


def test_no_clips_have_no_identities():
    assert identities(table()) == []

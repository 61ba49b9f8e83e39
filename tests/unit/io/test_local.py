"""Storage on a local disk: links, hidden files, odd names, atomic writes, what goes wrong."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raysers.audio.decode import decode
from raysers.data.sources import list_inputs
from raysers.errors import (
    ClipError,
    ConfigError,
    ObjectChanged,
    ObjectForbidden,
    ObjectMissing,
    ObjectUnreadable,
    TransientStorageError,
    WriteError,
)
from raysers.io import local, storage

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def names(folder: Path, **options: object) -> list[str]:
    found = storage.list_objects(str(folder), **options)  # type: ignore[arg-type]
    return sorted(info.uri.removeprefix(f"{folder}/") for info in found)


def make(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_listing_skips_hidden_and_keeps_odd_names(tmp_path: Path) -> None:
    odd = ["a b.wav", "h#1.WAV", "100%.wav", 'it\'s "q".wav', "ünï – 日本.wav", "new\nline.wav"]
    for name in [*odd, "sub/deep/x.wav", "x.txt", "noSuffix"]:
        make(tmp_path / name)
    for name in ("._a.wav", ".git/x.wav", "__MACOSX/y.wav", "sub/.hidden.wav"):
        make(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert names(tmp_path, suffixes=[".wav"]) == sorted([*odd, "sub/deep/x.wav"])
    assert {"x.txt", "noSuffix"} <= set(names(tmp_path))


def test_a_file_whose_path_is_too_long_is_a_row(tmp_path: Path) -> None:
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        while len(os.getcwd()) < 4095 - 250:
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        Path("x" * 250 + ".wav").touch()
        Path("y.wav").touch()
    finally:
        os.chdir(here)
    found = {info.uri[-5:]: info for info in storage.list_objects(str(tmp_path))}
    assert set(found) == {"y.wav", "x.wav"}
    with pytest.raises(ClipError, match="too long") as raised:
        decode(found["x.wav"].uri, name="x.wav")
    assert raised.value.status == "unreadable"


def test_a_disk_that_always_fails_is_transient_and_bounded() -> None:
    """The kernel answers EIO for ever for this one."""
    with pytest.raises(TransientStorageError, match="/proc/self/mem: Input/output error"):
        decode("/proc/self/mem", name="x.wav")


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = make(tmp_path / "x.bin", os.urandom(300_000))
    listed = storage.stat(str(path))
    source = storage.open_file(str(path), whole_bytes=1000, block_bytes=100_000)
    assert len(source.read(10)) == 10
    os.truncate(path, 200_000)
    source.seek(250_000)
    with pytest.raises(ObjectChanged, match="changed since it was listed"):
        source.read(10)
    with pytest.raises(TransientStorageError, match="200000 bytes instead of the 300000 listed"):
        local.fetch(str(path), 0, 10, total_bytes=listed.num_bytes)


def test_missing(tmp_path: Path) -> None:
    file = make(tmp_path / "file.wav")
    for path in (tmp_path / "no", file / "below", tmp_path / ("n" * 300), tmp_path / "a\0b"):
        for call in (storage.read_bytes, storage.stat, storage.list_objects):
            with pytest.raises(ObjectMissing):
                call(str(path))
    with pytest.raises(ObjectMissing):
        storage.read_bytes(str(tmp_path))
    assert storage.list_parts(str(tmp_path / "no")) == []


@needs_root
def test_forbidden(tmp_path: Path) -> None:
    """In a child process that gives up root, as root may read everything."""
    make(tmp_path / "shut" / "x.wav").chmod(0o000)
    make(tmp_path / "closed" / "y.wav")
    make(tmp_path / "open" / "z.wav")
    (tmp_path / "closed").chmod(0o000)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    script = f"""
import os
from raysers.io import storage
from raysers.io.marks import Claim
from raysers.errors import *
os.setuid({NOBODY})
def fate(call):
    try:
        call()
    except RaysersError as error:
        return type(error).__name__
root = {str(tmp_path)!r}
print(fate(lambda: storage.read_bytes(root + "/shut/x.wav")))
print(fate(lambda: storage.stat(root + "/closed/y.wav")))
print(fate(lambda: list(storage.list_objects(root))))
print(fate(lambda: storage.write_atomic(root + "/new.bin", b"x")))
print(fate(lambda: storage.delete(root + "/open/z.wav")))
print(fate(lambda: Claim.take(root + "/out", "annotate")))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    forbidden = ObjectForbidden.__name__
    assert ran.stdout.split() == [
        *[forbidden] * 3,
        WriteError.__name__,
        WriteError.__name__,
        ConfigError.__name__,
    ], ran.stderr


def test_passing_disk_trouble_is_retried_and_lasting_trouble_is_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale network handle cannot be made here, so `os.stat` plays it."""
    path = str(make(tmp_path / "x.wav"))
    real, failures = os.stat, [errno.ESTALE]

    def flaky(target: object, **options: object) -> os.stat_result:
        if target == path and failures:
            raise OSError(failures.pop(), "trouble")
        return real(target, **options)  # type: ignore[arg-type,call-overload]

    monkeypatch.setattr(local.os, "stat", flaky)
    assert storage.stat(path).num_bytes == 1
    failures[:] = [errno.EIO]
    assert names(tmp_path) == ["x.wav"], "a listing waits as well"
    failures[:] = [errno.EIO] * 10
    with pytest.raises(TransientStorageError, match=r"x\.wav"):
        storage.stat(path)


def test_write_atomic_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / ("n" * 255)
    storage.write_atomic(str(target), b"one")
    storage.write_atomic(str(target), b"two")
    assert target.read_bytes() == b"two"
    assert os.listdir(target.parent) == [target.name]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask
    for _ in range(2):
        storage.delete(str(target))
        assert os.listdir(target.parent) == []


def test_ranges_and_tar_windows_of_a_local_file(tmp_path: Path) -> None:
    data = os.urandom(5000)
    file = str(make(tmp_path / "a.tar", data))
    assert storage.read_range(file, 4990, 100) == data[4990:]
    assert storage.read_range(file, 9999, 1) == b""
    source = storage.open_source(f"{file}#m.wav", byte_offset=512, byte_size=1000)
    assert not isinstance(source, str)
    assert source.read() == data[512:1512]
    assert storage.open_source(file) == file


def test_a_wide_tree_with_links_is_listed_as_find_does_and_what_is_left_out_is_counted(
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    for i in range(300):
        make(root / f"d{i % 7}" / f"e{i % 5}" / f"{i}.wav", b"x" * (i % 7))
    make(tmp_path / "outside" / "y.wav")
    (root / "d0" / "loop").symlink_to(root)
    (root / "once").symlink_to(root / "d1")
    (root / "d1" / "twice").symlink_to(tmp_path / "outside")
    (root / "file.wav").symlink_to(tmp_path / "outside" / "y.wav")
    find = ["find", "-L", ".", "-name", "*.wav", "-not", "-path", "./once/twice/*"]
    shell = subprocess.run(
        [*find, "-printf", "%P %s\n"], cwd=root, capture_output=True, text=True, check=False
    )
    here = os.getcwd()
    os.chdir(root)
    try:  # deeper than any path can name
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        Path("x.wav").touch()
    finally:
        os.chdir(here)
    left_out: list[tuple[str, str]] = []
    listed = storage.list_objects(str(root), skipped=lambda *one: left_out.append(one))
    ours = [f"{info.uri.removeprefix(f'{root}/')} {info.num_bytes}" for info in listed]
    assert sorted(ours) == sorted(shell.stdout.splitlines())
    assert sorted(reason for reason, _ in left_out) == [
        "a link back to a folder above it",
        "a linked folder inside a linked folder",
        "the path is too long to be opened",
    ]
    (batch,) = list_inputs([str(root)], notes=(notes := []))
    assert batch.num_rows == len(ours)
    assert sum("1 left out" in text for text in notes) == 3


def test_unwritable_disk_is_a_write_error_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local.os, "fsync", fail)
    with pytest.raises(WriteError, match=r"out.bin.*No space"):
        storage.write_atomic(str(tmp_path / "out.bin"), b"x")
    assert os.listdir(tmp_path) == []
    with pytest.raises(WriteError, match="/proc/x"):  # a folder that takes no files at all
        storage.write_atomic("/proc/x", b"x")


def test_what_is_no_file_is_listed_so_that_it_becomes_a_row(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.wav"))
    (tmp_path / "device.wav").symlink_to("/dev/zero")
    (tmp_path / "annexed.wav").symlink_to(tmp_path / "not" / "fetched.wav")
    (tmp_path / "folder.wav").mkdir()
    listed = {Path(info.uri).name: info for info in storage.list_objects(str(tmp_path))}
    assert set(listed) == {"annexed.wav", "device.wav", "pipe.wav", "socket.wav"}
    assert {(info.num_bytes, info.etag) for info in listed.values()} == {(0, "")}
    with pytest.raises(ObjectMissing):
        storage.stat(listed.pop("annexed.wav").uri)
    for name in [*listed, "folder.wav"]:
        for call in (storage.stat, storage.read_bytes, storage.read_versioned):
            with pytest.raises(ObjectUnreadable, match="not a regular file"):
                call(str(tmp_path / name))
        with pytest.raises(ClipError, match="not a regular file") as raised:
            decode(str(tmp_path / name), name="x.wav")
        assert raised.value.status == "unreadable"


def test_a_killed_writer_leaves_the_old_file_and_no_visible_part(tmp_path: Path) -> None:
    target = make(tmp_path / "part-000001.parquet", b"old")
    script = f"""
import os
from raysers.io import local, storage
local.os.replace = lambda *a: os._exit(9)
storage.write_atomic({str(target)!r}, b"new" * 1000)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert target.read_bytes() == b"old"
    assert [i.uri for i in storage.list_parts(str(tmp_path))] == [str(target)]
    assert len(os.listdir(tmp_path)) == 2
    make(tmp_path / "below" / ".part-0")
    storage.sweep(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["below", target.name]
    assert os.listdir(tmp_path / "below") == [".part-0"]
    storage.sweep(str(tmp_path / "nowhere"))

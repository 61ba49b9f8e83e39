"""Tars: members in place, unsafe names, links and damage, as the standard library writes them."""

from __future__ import annotations

import gc
import io
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from raysers.data import contents
from raysers.data.contents import TarMember, index_tar
from raysers.errors import ConfigError, TransientStorageError
from raysers.io import storage
from raysers.types import Status
from tests.s3 import Bucket, Faults

WAV = [".wav"]
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def build(members: list[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tar_format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def index(path: Path | str, data: bytes | None = None) -> list[TarMember]:
    if data is not None:
        Path(path).write_bytes(data)
    return list(index_tar(storage.stat(str(path)), suffixes=WAV))


def content(member: TarMember) -> bytes:
    source = storage.open_source(
        member.file, byte_offset=member.byte_offset, byte_size=member.byte_size
    )
    assert not isinstance(source, str)
    return source.read()


@pytest.mark.parametrize("tar_format", FORMATS)
def test_members_are_found_and_read_in_place(tmp_path: Path, tar_format: int) -> None:
    files = {f"dir {i}/clip #{i} 100%.wav": os.urandom(i * 37_000) for i in range(12)}
    if tar_format != tarfile.USTAR_FORMAT:
        files["d/" * 70 + "ü" * 90 + ".wav"] = b"long name"
    others = [("a.json", b"{}"), ("._a.wav", b"mac"), ("d/.x.wav", b"hidden")]
    data = build([*files.items(), *others], tar_format)
    found = index(tmp_path / "x.tar", data)
    assert [m.status for m in found] == [Status.OK] * len(files)
    names = [m.file.removeprefix(f"{tmp_path}/x.tar#") for m in found]
    assert dict(zip(names, map(content, found), strict=True)) == files


def test_members_on_s3_need_few_bytes(s3: Bucket, s3_faults: Faults) -> None:
    big = {f"{i}.wav": os.urandom(1_500_000) for i in range(5)}
    small = {f"s{i}.wav": os.urandom(2_000) for i in range(200)}
    uri = s3.put("a b#.tar", build([*big.items(), *small.items()]))
    found = index(uri)
    assert len(found) == 205
    ranges = [(int(a), int(b)) for a, b in (s[6:].split("-") for _, _, s in s3_faults.seen if s)]
    asked = sum(b - a + 1 for a, b in ranges)
    assert asked < 0.35 * 8_000_000, "data of large members is jumped over"
    assert len(ranges) < 20, "headers of small members share requests"
    assert content(found[3]) == big["3.wav"]
    assert content(found[-1]) == small["s199.wav"]
    assert found[0].etag == storage.stat(uri).etag


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/x.wav", "absolute"),
        ("../x.wav", "leaves"),
        ("a/../../x.wav", "leaves"),
        ("C:/x.wav", "drive"),
        ("a\\..\\x.wav", "backslash"),
        ("nul\0l.wav", "null"),
    ],
)
def test_unsafe_names_become_unsupported_rows(tmp_path: Path, name: str, reason: str) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("placeholder.wav")
        info.pax_headers = {"path": name}
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
        good = tarfile.TarInfo("good.wav")
        archive.addfile(good, io.BytesIO())
    bad, good_row = index(tmp_path / "x.tar", sink.getvalue())
    assert (bad.status, good_row.status) == (Status.UNSUPPORTED, Status.OK)
    assert reason in bad.error
    assert "\0" not in bad.file


def test_sparse_member_is_refused(tmp_path: Path) -> None:
    import subprocess

    sparse = tmp_path / "hole.wav"
    with sparse.open("wb") as file:
        file.write(b"head")
        file.seek(1_000_000)
        file.write(b"tail")
    (tmp_path / "plain.wav").write_bytes(b"plain")
    for tar_format in ("gnu", "pax"):
        command = ["tar", "-S", f"--format={tar_format}", "-cf", "x.tar", "hole.wav", "plain.wav"]
        subprocess.run(command, cwd=tmp_path, check=True)
        hole, plain = index(tmp_path / "x.tar")
        assert (hole.status, plain.status) == (Status.UNSUPPORTED, Status.OK)
        assert content(plain) == b"plain"


@pytest.mark.parametrize(
    ("names", "cut_at", "status"),
    [
        (["a.wav", "b.wav", "c.wav"], 1024 + 700, "truncated"),  # inside a plain member
        (["a.wav", "../b.wav", "c.wav"], 1024 + 700, "truncated"),  # inside an unsafe one
        (["a.wav", "a.wav", "c.wav"], 1024 + 700, "truncated"),  # inside a repeated one
        (["a.wav", "b.txt", "c.wav"], 1024 + 700, "truncated"),
        (["a.wav", "._b.wav", "c.wav"], 1024 + 700, "truncated"),
        (["a.wav", "b.wav", "c.wav"], 2048, "truncated"),  # between members
        (["a.wav", "b.wav", "c.wav"], 2048 + 100, "truncated"),  # inside a header
        (["a.wav"], 1024, "truncated"),  # before the end mark
        (["a.wav"], 1000, "truncated"),  # inside the padding of the last member
        (["a.wav"], None, None),
        ([], None, "empty"),
        ([], 0, "empty"),
        ([], 512, "empty"),
    ],
)
def test_an_empty_or_cut_tar_is_a_row_whatever_is_said_of_its_members(
    tmp_path: Path, names: list[str], cut_at: int | None, status: str | None
) -> None:
    data = build([(name, b"a" * 500) for name in names], tarfile.USTAR_FORMAT)[:cut_at]
    found = index(tmp_path / "x.tar", data)
    of_tar = [member for member in found if member.file == f"{tmp_path}/x.tar"]
    assert [str(member.status) for member in of_tar] == ([status] if status else [])
    whole = [name for i, name in enumerate(names) if cut_at is None or (i + 1) * 1024 <= cut_at]
    good = sum(name.startswith(("a", "b.w", "c")) for name in dict.fromkeys(whole))
    assert sum(member.status == Status.OK for member in found) == good


def test_compressed_and_foreign_files_are_refused(tmp_path: Path) -> None:
    import gzip

    data = build([("a.wav", b"a")])
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(data))
    for path, bytes_of in (("x.tar.gz", None), ("renamed.tar", gzip.compress(data))):
        with pytest.raises(ConfigError, match="decompress"):
            index(tmp_path / path, bytes_of)
    with pytest.raises(ConfigError, match="not a tar"):
        index(tmp_path / "text.tar", b"hello " * 1000)
    with pytest.raises(ConfigError, match="rename"):
        contents.check_tar_name("s3://b/a.tar#1/b.tar")


def test_storage_trouble_is_not_damage(s3: Bucket, s3_faults: Faults) -> None:
    uri = s3.put("x.tar", build([("a.wav", b"a" * 300_000), ("b.wav", b"b")]))
    s3_faults.add("/x.tar", "reset", times=2, method="GET")
    assert len(index(uri)) == 2
    s3_faults.add("/x.tar", 503, method="GET")
    with pytest.raises(TransientStorageError):
        list(index_tar(storage.ObjectInfo(uri, 302_000, "e"), suffixes=WAV))


def entry(name: str, data: bytes = b"", size: int | None = None, **about: Any) -> bytes:
    """One header with its data, padded."""
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    for key, value in about.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT, "latin-1") + data + bytes(-len(data) % 512)


END = bytes(1024)
A, B = entry("a.wav", b"one"), entry("b.wav", b"two")
BAD_HEADER = b"\xff" * 6 + B[6:]
#: A name that claims 5 GB, and names of names without end.
GIANT = entry("././@LongLink", b"n" * 4096, 5 * 10**9, type=tarfile.GNUTYPE_LONGNAME)
CHAIN = entry("././@LongLink", b"n", 512, type=tarfile.GNUTYPE_LONGNAME) * 2000
LINKS = b"".join(
    entry(f"{kind.decode()}.wav", type=kind, linkname="/etc/passwd")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
)


@pytest.mark.parametrize(
    ("data", "good", "bad"),
    [
        pytest.param(A + END + B + END, ["one", "two"], [], id="glued"),
        pytest.param(A + bytes(2**20) + B + END, ["one", "two"], [], id="zeros between"),
        pytest.param(A + bytes(2**24 + 2**20) + B + END, ["one"], ["nothing but zeros"], id="far"),
        pytest.param(A + BAD_HEADER + B + END, ["one"], ["at byte 1024"], id="damaged header"),
        pytest.param(A + GIANT, ["one"], ["lost"], id="giant name"),
        pytest.param(A + CHAIN, ["one"], ["lost"], id="names of names"),
        pytest.param(A + A + END, ["one"], ["earlier member of this name"], id="repeated"),
        pytest.param(LINKS + END, [], ["a link"] * 2 + ["no regular file"] * 2, id="links"),
        pytest.param(entry("a.wav", size=-512) + END, [], ["negative", "lost"], id="negative"),
        pytest.param(entry("gr\xfc\xdfe.wav", b"one") + END, ["one"], [], id="latin-1"),
        pytest.param(entry("inner.tar", A + END) + END, [], [], id="a tar inside"),
        pytest.param(build([("n" * 9000 + ".wav", b"")]), [], ["9004 characters"], id="long name"),
    ],
)
def test_odd_tars(tmp_path: Path, data: bytes, good: list[str], bad: list[str]) -> None:
    found = index(tmp_path / "x.tar", data)
    assert len({member.file for member in found}) == len(found)
    assert max((len(member.file.encode("utf-8")) for member in found), default=0) < 400
    assert [content(m).decode() for m in found if m.status == Status.OK] == good
    errors = [member.error for member in found if member.status != Status.OK]
    assert [words in error for words, error in zip(bad, errors, strict=True)] == [True] * len(bad)


def test_memory_does_not_grow_with_members_and_global_headers(tmp_path: Path) -> None:
    """Every global header would be merged with all before it, and copied for every member."""
    blocks = []
    for number in range(800):
        fields = {f"word{number}.{i}": "x" for i in range(10)}
        blocks.append(tarfile.TarInfo.create_pax_global_header(fields))
        blocks.append(build([(f"{number}.wav", b"x")], tarfile.USTAR_FORMAT)[:1024])
    (tmp_path / "x.tar").write_bytes(b"".join(blocks) + END)
    tracemalloc.start()
    members = index_tar(storage.stat(str(tmp_path / "x.tar")), suffixes=WAV)
    assert len([next(members) for _ in range(799)]) == 799
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    alive = sum(isinstance(thing, tarfile.TarInfo) for thing in gc.get_objects())
    assert alive < 10
    assert peak < 5 * 2**20

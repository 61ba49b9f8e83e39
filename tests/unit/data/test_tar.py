"""Tars: members in place, unsafe names, links and damage, as the standard library writes them."""

from __future__ import annotations

import gc
import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from raysers.data import tar
from raysers.data.tar import TarMember, index_tar
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


def test_links_and_devices_become_unsupported_rows(tmp_path: Path) -> None:
    sink = io.BytesIO()
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number, kind in enumerate(kinds):
            info = tarfile.TarInfo(f"{number}.wav")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    found = index(tmp_path / "x.tar", sink.getvalue())
    assert [m.status for m in found] == [Status.UNSUPPORTED] * 4
    assert ["link" in m.error for m in found] == [True, True, False, False]


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


def test_latin1_names_are_kept_and_readable(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(
        fileobj=sink, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as archive:
        info = tarfile.TarInfo("grüße.wav")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"data"))
    (member,) = index(tmp_path / "x.tar", sink.getvalue())
    assert member.status == Status.OK
    member.file.encode("utf-8")
    assert content(member) == b"data"


def test_a_repeated_name_is_two_rows_and_never_two_equal_ones(tmp_path: Path) -> None:
    found = index(tmp_path / "x.tar", build([("a.wav", b"one"), ("a.wav", b"two")]))
    assert [m.status for m in found] == [Status.OK, Status.UNSUPPORTED]
    assert content(found[0]) == b"one"
    assert found[0].file != found[1].file


@pytest.mark.parametrize("cut_at", [512 + 100, 512 + 1536 + 300, 512 + 1024 + 512 + 700])
def test_truncated_tar_keeps_whole_members_and_reports_the_rest(
    tmp_path: Path, cut_at: int
) -> None:
    data = build([("a.wav", b"a" * 1000), ("b.wav", b"b" * 1000)], tarfile.USTAR_FORMAT)
    found = index(tmp_path / "x.tar", data[:cut_at])
    assert found[-1].status == Status.TRUNCATED
    assert found[-1].file == f"{tmp_path}/x.tar"
    for member in found[:-1]:
        lost = cut_at < member.byte_offset + member.byte_size
        assert member.status == (Status.TRUNCATED if lost else Status.OK)
        assert lost or content(member) == b"a" * 1000


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


def test_zeros_within_a_tar_are_skipped_or_said(tmp_path: Path) -> None:
    first, second = build([("a.wav", b"a")]), build([("b.wav", b"b")])
    near = index(tmp_path / "x.tar", first + b"\0" * 2**20 + second)
    assert [m.file.rpartition("#")[2] for m in near] == ["a.wav", "b.wav"]
    far = index(tmp_path / "y.tar", first + b"\0" * (2**24 + 2**20) + second)
    assert [m.status for m in far] == [Status.OK, Status.TRUNCATED]
    assert "nothing but zeros" in far[1].error


def test_cut_inside_a_member_that_is_no_audio_is_reported(tmp_path: Path) -> None:
    data = build([("a.wav", b"a"), ("b.json", b"b" * 5000), ("c.wav", b"c")])
    good, rest = index(tmp_path / "x.tar", data[:4000])
    assert (good.status, rest.status) == (Status.OK, Status.TRUNCATED)
    assert rest.file == f"{tmp_path}/x.tar"


def test_damaged_header_in_the_middle_is_reported(tmp_path: Path) -> None:
    data = bytearray(build([("a.wav", b"a"), ("b.wav", b"b"), ("c.wav", b"c")]))
    data[1024:1030] = b"\xff" * 6
    found = index(tmp_path / "x.tar", bytes(data))
    assert [m.status for m in found] == [Status.OK, Status.TRUNCATED]
    assert "1024" in found[1].error


def test_header_that_claims_a_giant_name_is_not_read_into_memory(tmp_path: Path) -> None:
    sink = io.BytesIO(build([("a.wav", b"a")], tarfile.GNU_FORMAT))
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5_000_000_000
    data = sink.getvalue()[:1024] + info.tobuf(tarfile.GNU_FORMAT) + b"n" * 4096
    good, rest = index(tmp_path / "x.tar", data)
    assert (good.status, rest.status) == (Status.OK, Status.TRUNCATED)


def test_tars_glued_together_are_read_on(tmp_path: Path) -> None:
    both = build([("a.wav", b"one")]) + build([("b.wav", b"two")])
    assert [content(m) for m in index(tmp_path / "x.tar", both)] == [b"one", b"two"]


def test_a_tar_inside_a_tar_is_not_opened(tmp_path: Path) -> None:
    inner = build([("inner.wav", b"x")])
    assert index(tmp_path / "x.tar", build([("inner.tar", inner)])) == []


def test_compressed_and_foreign_files_are_refused(tmp_path: Path) -> None:
    import gzip

    data = build([("a.wav", b"a")])
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(data))
    for path, bytes_of in (("x.tar.gz", None), ("renamed.tar", gzip.compress(data))):
        with pytest.raises(ConfigError, match="decompress"):
            index(tmp_path / path, bytes_of)
    with pytest.raises(ConfigError, match="not a tar"):
        index(tmp_path / "text.tar", b"hello " * 1000)


def test_tar_path_that_clashes_with_member_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="rename"):
        tar.check_tar_name("s3://b/a.tar#1/b.tar")


def test_storage_trouble_is_not_damage(s3: Bucket, s3_faults: Faults) -> None:
    uri = s3.put("x.tar", build([("a.wav", b"a" * 300_000), ("b.wav", b"b")]))
    s3_faults.add("/x.tar", "reset", times=2, method="GET")
    assert len(index(uri)) == 2
    s3_faults.add("/x.tar", 503, method="GET")
    with pytest.raises(TransientStorageError):
        list(index_tar(storage.ObjectInfo(uri, 302_000, "e"), suffixes=WAV))


def test_headers_are_not_kept_in_memory(tmp_path: Path) -> None:
    data = build([(f"{i:06d}.wav", b"x") for i in range(500)], tarfile.USTAR_FORMAT)
    (tmp_path / "x.tar").write_bytes(data)
    members = index_tar(storage.stat(str(tmp_path / "x.tar")), suffixes=WAV)
    for _ in range(499):
        next(members)
    alive = sum(isinstance(thing, tarfile.TarInfo) for thing in gc.get_objects())
    assert alive < 10


def test_headers_about_headers_without_end_are_damage(tmp_path: Path) -> None:
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 512
    chain = (name.tobuf(tarfile.GNU_FORMAT) + b"n".ljust(512, b"\0")) * 2000
    good = build([("a.wav", b"one")])[:1024]
    first, lost = index(tmp_path / "x.tar", good + chain)
    assert (content(first), lost.status) == (b"one", Status.TRUNCATED)


def test_member_of_negative_size_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.wav")
    member.size = -512
    bad, lost = index(tmp_path / "x.tar", member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert (bad.status, bad.byte_size) == (Status.UNSUPPORTED, 0)
    assert "negative" in bad.error
    assert lost.status == Status.TRUNCATED


def test_words_for_all_members_are_not_copied_for_each(tmp_path: Path) -> None:
    """Every global header would be merged with all before it, and copied for every member."""
    blocks = []
    for number in range(3000):
        words = {f"word{number}.{i}": "x" for i in range(10)}
        blocks.append(tarfile.TarInfo.create_pax_global_header(words))
        blocks.append(build([(f"{number}.wav", b"x")], tarfile.USTAR_FORMAT)[:1024])
    (tmp_path / "x.tar").write_bytes(b"".join(blocks) + bytes(1024))
    tracemalloc.start()
    assert len(index(tmp_path / "x.tar")) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 2**20


def test_endless_names_are_shortened_and_refused(tmp_path: Path) -> None:
    names = ["n" * 9000 + f"{i}.wav" for i in range(2)]
    rows = index(tmp_path / "x.tar", build([(name, b"x") for name in names]))
    assert [row.status for row in rows] == [Status.UNSUPPORTED] * 2
    assert len({row.file for row in rows}) == 2
    assert max(len(row.file) for row in rows) < 300
    assert "9005 characters" in rows[0].error

"""Storage on a real S3 server: odd keys, listings of every shape, faults and their fates."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from raysers.errors import (
    ConfigError,
    CredentialsError,
    ObjectForbidden,
    ObjectMissing,
    StorageError,
    TransientStorageError,
    WriteError,
    status_of,
)
from raysers.io import s3 as s3_module
from raysers.io import storage
from raysers.io.objects import RangedFile
from tests.s3 import Bucket, Faults

MIB = 1 << 20
ODD_KEYS = [
    "a b/clip one.wav",
    "hash#1/x#y.wav",
    "per%20cent/100%.wav",
    'quotes/"it\'s".wav',
    "ünïcode näme – 日本.wav",
    "plus+and&amp=?.wav",
    "double//slash.wav",
]


def test_odd_keys_are_written_listed_and_read_verbatim(s3: Bucket) -> None:
    for number, key in enumerate(ODD_KEYS):
        storage.write_atomic(f"{s3.uri}/odd/{key}", b"data %d" % number)
    # an independent client sees the same names
    assert sorted(s3.keys()) == sorted(f"odd/{key}" for key in ODD_KEYS)
    listed = {info.uri: info for info in storage.list_objects(f"{s3.uri}/odd")}
    assert set(listed) == {f"{s3.uri}/odd/{key}" for key in ODD_KEYS}
    for number, key in enumerate(ODD_KEYS):
        uri = f"{s3.uri}/odd/{key}"
        assert storage.read_bytes(uri) == b"data %d" % number
        assert storage.stat(uri) == listed[uri]
        storage.delete(uri)
    assert s3.keys() == []


def test_reads_are_signed_by_the_published_steps(s3: Bucket, s3_faults: Faults) -> None:
    """AWS Signature Version 4, worked by hand for what arrived at the store."""
    for key in ODD_KEYS:
        uri = s3.put(key, b"data")
        s3_faults.clear()
        assert storage.read_bytes(uri) == b"data"
        ((_, target, _),), (headers,) = s3_faults.seen, s3_faults.headers
        algorithm, given = headers["authorization"].split(" ", 1)
        credential, signed, signature = (part.split("=", 1)[1] for part in re.split(r",\s*", given))
        assert {"host", "range", "x-amz-date"} <= set(signed.split(";"))
        lines = [f"{name}:{headers[name]}" for name in signed.split(";")]
        path, payload = quote(target, safe="/-._~"), hashlib.sha256(b"").hexdigest()
        asked = "\n".join(["GET", path, "", *lines, "", signed, payload])
        access, scope = credential.split("/", 1)
        digest = hashlib.sha256(asked.encode()).hexdigest()
        text = "\n".join([algorithm, headers["x-amz-date"], scope, digest])
        secret = ("AWS4" + os.environ["AWS_SECRET_ACCESS_KEY"]).encode()
        for part in (*scope.split("/"), text):
            secret = hmac.digest(secret, part.encode(), "sha256")
        assert (access, signature) == (os.environ["AWS_ACCESS_KEY_ID"], secret.hex()), key


@pytest.mark.parametrize(
    ("kind", "code"),
    [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed"), ("reset", "")],
)
def test_a_bucket_that_one_client_does_not_reach_is_read_by_the_other_without_detours(
    s3: Bucket, s3_faults: Faults, kind: int | str, code: str
) -> None:
    s3_faults.add("/x.wav", kind, code=code, times=1)
    for _ in range(2):
        assert storage.read_bytes(s3.put("x.wav", b"data")) == b"data"
    assert s3_faults.count("/x.wav") == 3, "one detour for the bucket, not one for each object"


def test_ranges(s3: Bucket) -> None:
    data = os.urandom(1000)
    uri = s3.put("blob", data)
    assert storage.read_range(uri, 10, 20) == data[10:30]
    assert storage.read_range(uri, 990, 100) == data[990:]
    assert storage.read_range(uri, 1000, 5) == b""
    assert storage.read_range(uri, 5000, 5) == b""
    assert storage.read_bytes(uri, max_bytes=1000) == data
    with pytest.raises(StorageError, match="1000 bytes, more than the 999"):
        storage.read_bytes(uri, max_bytes=999)
    empty = s3.put("empty", b"")
    assert storage.read_bytes(empty) == b""
    assert storage.stat(empty).num_bytes == 0


def test_large_object_is_read_in_blocks_within_bounded_memory(
    s3: Bucket, s3_faults: Faults
) -> None:
    data = os.urandom(96 * MIB + 12345)
    uri = s3.put("large.wav", data)
    storage.read_bytes(s3.put("first"))  # makes the client
    source = storage.open_source(uri, num_bytes=len(data))
    assert isinstance(source, RangedFile)
    tracemalloc.start()
    at = 0
    while piece := source.read(100_000):
        assert piece == data[at : at + len(piece)]
        at += len(piece)
    assert at == len(data)
    # at most the blocks, an answer that is being cut into them, and one still to be collected
    assert tracemalloc.get_traced_memory()[1] < len(data) / 2
    tracemalloc.stop()
    # read-ahead grows: far fewer requests than the 97 blocks
    assert s3_faults.count("large.wav") <= 20
    s3_faults.clear()
    source.seek(5 * MIB - 10)
    assert source.read(20) == data[5 * MIB - 10 : 5 * MIB + 10]
    source.seek(3)
    assert source.read(5) == data[3:8]
    spans = [int(b) - int(a) for a, b in (s[6:].split("-") for _, _, s in s3_faults.seen)]
    assert max(spans) < 2 * MIB, "a jump must not fetch a whole read-ahead"


def test_listing_stops_its_threads_when_abandoned(s3: Bucket) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(s3.put, [f"root/{i % 20}/{i}.wav" for i in range(100)]))
    before = threading.active_count()
    listing = storage.list_objects(f"{s3.uri}/root")
    next(listing)
    listing.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (404, "NoSuchKey", ObjectMissing),
        (403, "AccessDenied", ObjectForbidden),
        (403, "InvalidObjectState", ObjectForbidden),
        (403, "InvalidAccessKeyId", CredentialsError),
        (403, "SignatureDoesNotMatch", CredentialsError),
        (403, "RequestTimeTooSkewed", CredentialsError),
        (400, "ExpiredToken", CredentialsError),
        (400, "InvalidToken", CredentialsError),
        (503, "SlowDown", TransientStorageError),
        (500, "InternalError", TransientStorageError),
        (502, "", TransientStorageError),
        (429, "TooManyRequests", TransientStorageError),
        (400, "InvalidArgument", StorageError),
        (501, "NotImplemented", StorageError),
    ],
)
def test_each_refusal_has_its_fate_for_reading_and_for_stat(
    s3: Bucket, s3_faults: Faults, status: int, code: str, error: type[StorageError]
) -> None:
    uri = s3.put("x.wav", b"data")
    s3_faults.add("/x.wav", status, code=code)
    source = storage.open_source(uri)
    assert not isinstance(source, str)
    for call in (lambda: storage.read_bytes(uri), lambda: storage.stat(uri), source.read):
        with pytest.raises(error) as raised:
            call()
        assert type(raised.value) is error
        assert uri in str(raised.value)
    tries = 4 if error is TransientStorageError else 1
    assert s3_faults.count("/x.wav") == 3 * tries, "only what may pass is tried again"
    with pytest.raises(error):
        list(storage.list_objects(f"{s3.uri}/x.wav")) if status == 404 else source.read(1)


@pytest.mark.parametrize("known", ["total", "nothing"])
def test_an_answer_is_checked_against_its_own_claim(
    s3: Bucket, s3_faults: Faults, known: str
) -> None:
    """Every way to hold back bytes and agree with oneself, except about one number."""
    data = os.urandom(1000)
    uri = s3.put("x.wav", data)
    total = {"total_bytes": 1000} if known == "total" else {}
    claims = ["bytes 0-999/1000", "bytes 0-992/1000", "bytes 0-992/*"]
    for claim in [*claims, *(["bytes 0-992/993", ""] if known == "total" else [])]:
        s3_faults.clear()
        fault = s3_faults.add("/x.wav", "less", times=2, method="GET")
        fault.headers["content-range"] = claim
        assert storage.open_file(uri, **total).read() == data, claim
        assert fault.hits == 2
    s3_faults.clear()
    s3_faults.add("/x.wav", "less", method="GET")
    with pytest.raises(TransientStorageError, match="993 bytes arrived of 1000"):
        storage.open_file(uri, **total).read()


@pytest.mark.parametrize(
    ("variables", "config"),
    [
        ({"AWS_ENDPOINT_URL": "HERE"}, ""),
        ({"AWS_ENDPOINT_URL_S3": "HERE"}, ""),
        ({}, "[default]\nendpoint_url = HERE\n"),
        ({}, "[default]\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = HERE\n"),
        ({"AWS_PROFILE": "minio"}, "[profile minio]\nendpoint_url = HERE\n"),
    ],
)
def test_a_vendors_endpoint_is_seen_wherever_it_is_configured(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict, config: str
) -> None:
    """Path style and no newer checksums; without an endpoint it is Amazon's."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert s3_module.client().meta.config.s3 != {"addressing_style": "path"}
    (tmp_path / "config").write_text(config.replace("HERE", endpoint))
    for name, value in {"AWS_CONFIG_FILE": str(tmp_path / "config"), **variables}.items():
        monkeypatch.setenv(name, value.replace("HERE", endpoint))
    storage.write_atomic(f"{s3.uri}/x", b"data")
    assert s3.get("x") == b"data"
    made = s3_module.client().meta.config
    assert made.s3 == {"addressing_style": "path"}
    assert made.request_checksum_calculation == "when_required"
    assert made.response_checksum_validation == "when_required"


def test_requester_pays_is_said_with_every_request(
    s3: Bucket, s3_faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, said in (("1", {"requester"}), ("0", {None})):
        monkeypatch.setenv(storage.REQUESTER_PAYS, value)
        s3_faults.clear()
        storage.write_atomic(f"{s3.uri}/x", b"data")
        assert storage.read_bytes(f"{s3.uri}/x") == b"data"
        assert storage.stat(s3.put("empty", b"")).num_bytes == 0
        assert len(list(storage.list_objects(s3.uri))) == 2
        assert {method for method, _, _ in s3_faults.seen} == {"GET", "HEAD", "PUT"}
        assert {headers.get("x-amz-request-payer") for headers in s3_faults.headers} == said


@pytest.mark.parametrize(
    ("variable", "value", "error", "words"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", TransientStorageError, r"127\.0\.0\.1:9"),
        ("AWS_ENDPOINT_URL", "nonsense", ConfigError, "AWS_ENDPOINT_URL"),
        ("AWS_ENDPOINT_URL", "ftp://x", StorageError, "ftp"),
        ("AWS_ENDPOINT_URL", "http://bad host:1", ConfigError, "AWS_ENDPOINT_URL"),
        ("AWS_PROFILE", "nobody", CredentialsError, "nobody"),
        ("RAYSERS_S3_MAX_ATTEMPTS", "many", ConfigError, "RAYSERS_S3_MAX_ATTEMPTS='many'"),
    ],
)
def test_settings_that_cannot_work(
    s3: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(error, match=words):
        storage.read_bytes(f"{s3.uri}/x")


def test_client_is_shared_by_threads_and_made_anew_after_a_fork(s3: Bucket) -> None:
    with ThreadPoolExecutor(16) as pool:
        clients = set(map(id, pool.map(lambda _: s3_module.client(), range(100))))
    assert len(clients) == 1
    uri = s3.put("x.wav", b"data")
    assert storage.read_bytes(uri) == b"data"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            own = id(s3_module.client()) not in clients
            os.write(writer, b"%d %s" % (own, storage.read_bytes(uri)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"1 data"


@pytest.mark.parametrize("page_keys", [2, 5, 20, 1000])
def test_listing_finds_every_key_once_whatever_the_shape(s3: Bucket, page_keys: int) -> None:
    """Few and many sub-folders, deep and flat, files beside folders, names around the slash."""
    keys = [f"root/f{i}.wav" for i in range(7)]
    keys += [f"root/s{i:02d}/{j}.wav" for i in range(18) for j in range(3)]
    keys += ["root/s03.wav", "root/s03-x/1.wav", "root/s03!/1.wav", "root/s030/1.wav"]
    keys += ["root/deep/a/b/c/d/e/f.wav", "root/deep/a/b.wav", "root/zz/~.wav"]
    keys += [f"root/ü/{name}.wav" for name in ("1", "é", "日本", "日本1", "\U0001f600", "~")]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(s3.put, [*keys, "root/.hidden/x.wav", "root/a/.x.wav", "root/a/folder/"]))
    found = s3_module.list_objects(
        f"{s3.uri}/root", frozenset({".wav"}), print, page_keys=page_keys
    )
    assert sorted(i.uri.removeprefix(s3.uri + "/") for i in found) == sorted(keys)


@pytest.mark.parametrize("name", ["speaker{:04d}/x.wav", "{:x}.wav"])
def test_a_long_prefix_is_listed_in_parallel_with_few_requests(
    s3: Bucket, s3_faults: Faults, name: str
) -> None:
    names = [name.format(i * 2654435761 % 2**32 if "x}" in name else i) for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(s3.put, [f"root/{one}" for one in names]))
    s3_faults.add("list-type=2", "delay", delay_s=0.1)
    found = list(s3_module.list_objects(f"{s3.uri}/root", None, print, page_keys=5))
    assert sorted(info.uri.rpartition("root/")[2] for info in found) == sorted(names)
    assert s3_faults.count("list-type=2") <= 100  # 40 pages, which were 40 in sequence
    assert s3_faults.in_sequence() <= 25


def test_missing_bucket_prefix_and_object(s3: Bucket) -> None:
    s3.put("there/x.wav")
    nowhere = [f"{s3.uri}/nothing", "s3://no-such-bucket-here", "s3://not a bucket/x"]
    for uri in nowhere:
        with pytest.raises(ObjectMissing):
            list(storage.list_objects(uri))
        assert not storage.is_folder(uri)
        assert storage.list_parts(uri) == []
    for uri in (*nowhere, f"{s3.uri}/there"):
        for call in (storage.stat, storage.read_bytes):
            with pytest.raises(ObjectMissing):
                call(uri)
    assert storage.stat(f"{s3.uri}/there/x.wav").num_bytes == 1
    assert storage.is_folder(f"{s3.uri}/there")


@pytest.mark.parametrize("kind", ["503", "500", "reset", "short", "less"])
def test_passing_trouble_is_survived_and_lasting_trouble_is_transient(
    s3: Bucket, s3_faults: Faults, kind: str
) -> None:
    data = os.urandom(200_000)
    uri = s3.put("x.wav", data)
    fault = s3_faults.add("/x.wav", kind, times=3, method="GET")
    assert storage.read_bytes(uri) == data
    assert fault.hits == 3
    s3_faults.clear()
    s3_faults.add("/x.wav", kind)
    source = storage.open_source(uri)
    assert isinstance(source, RangedFile)
    with pytest.raises(TransientStorageError):
        source.read(10)
    # a connection that breaks is tried again at once
    assert 4 <= s3_faults.count("/x.wav") <= 8
    if kind == "503":
        s3_faults.add("list-type=2", kind, code="SlowDown", times=2)
        assert len(list(storage.list_objects(s3.uri))) == 1


def test_large_upload_goes_in_parts(
    s3: Bucket, s3_faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "MULTIPART_BYTES", 6 * MIB)
    data = os.urandom(9 * MIB)
    fault = s3_faults.add("big.*partNumber=2", 503, times=1, method="PUT")
    storage.write_atomic(f"{s3.uri}/big", data)
    assert s3.get("big") == data
    assert fault.hits == 1
    s3_faults.add("/bad", 403, code="AccessDenied")
    with pytest.raises(WriteError, match="AccessDenied"):
        storage.write_atomic(f"{s3.uri}/bad", data)


def test_a_small_object_is_read_with_one_request_and_a_member_is_a_window(
    s3: Bucket, s3_faults: Faults
) -> None:
    data = os.urandom(300_000)
    uri = s3.put("small.tar", data)
    for known in (None, len(data)):
        s3_faults.clear()
        source = storage.open_source(uri, num_bytes=known)
        assert isinstance(source, RangedFile)
        source.seek(-100, os.SEEK_END)
        assert source.read() == data[-100:]
        source.seek(0)
        assert source.read() == data
        assert s3_faults.count("small.tar") == 1
    member = storage.open_source(f"{uri}#m.wav", byte_offset=600, byte_size=6)
    assert not isinstance(member, str)
    assert (member.read(100), member.read()) == (data[600:606], b"")
    assert member.seek(0, os.SEEK_END) == 6


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("member", [(2000, 10), (995, 10), (2**63 - 1, 10), (1000, 1), (-5, 10)])
def test_byte_ranges_that_are_not_in_the_object(
    s3: Bucket, tmp_path: Path, remote: bool, member: tuple[int, int]
) -> None:
    (tmp_path / "x.tar").write_bytes(bytes(1000))
    uri = s3.put("x.tar", bytes(1000)) if remote else str(tmp_path / "x.tar")
    with pytest.raises(StorageError, match=r"x\.tar") as raised:
        storage.open_source(uri, byte_offset=member[0], byte_size=member[1]).read()
    failure = status_of(raised.value)
    assert failure is not None
    assert failure.status == "unreadable"


def test_listing_skips_hidden_markers_and_neighbours(s3: Bucket) -> None:
    shown = ["a.wav", "b.FLAC", "sub/c.wav", "part-2.parquet", "part-1.parquet"]
    hidden = ["._a.wav", ".git/x.wav", "sub/", "__MACOSX/d.wav", "readme.txt", "part-0.csv"]
    for key in (*shown, *hidden, "sub/part-3.parquet"):
        s3.put(f"in/{key}")
    for key in ("in2/e.wav", "in.wav"):
        s3.put(key)
    found = storage.list_objects(f"{s3.uri}/in/", suffixes=[".wav", ".flac"])
    assert {info.uri for info in found} == {f"{s3.uri}/in/{name}" for name in shown[:3]}
    parts = [info.uri.rpartition("/")[2] for info in storage.list_parts(f"{s3.uri}/in")]
    assert parts == ["part-1.parquet", "part-2.parquet"]


def test_patience_is_bounded_in_time_and_each_answer_too(
    s3: Bucket, s3_faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.put("x.wav", b"data")
    storage.read_bytes(uri)  # makes the client, whose time is not the store's
    s3_faults.clear()
    monkeypatch.setenv("RAYSERS_S3_READ_TIMEOUT_S", "0.3")
    s3_faults.add("/x.wav", "delay", delay_s=1.0, times=1)
    assert storage.read_bytes(uri) == b"data"
    assert s3_faults.count("/x.wav") == 2
    monkeypatch.setenv("RAYSERS_S3_MAX_ATTEMPTS", "1000")
    monkeypatch.setenv("RAYSERS_S3_MAX_RETRY_S", "0.3")
    storage.read_bytes(uri)  # with a client of these settings
    s3_faults.clear()
    s3_faults.add("/x.wav", 500)
    with pytest.raises(TransientStorageError):
        storage.read_bytes(uri)
    assert 2 <= s3_faults.count("/x.wav") < 100


def test_public_buckets_need_no_credentials(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3.put("x.wav", b"public")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(CredentialsError, match="AWS_ACCESS_KEY_ID"):
        storage.read_bytes(uri)
    s3.client.put_object_acl(Bucket=s3.name, Key="x.wav", ACL="public-read")
    monkeypatch.setenv("RAYSERS_S3_ANONYMOUS", "1")
    assert storage.read_bytes(uri) == b"public"


@pytest.mark.parametrize(
    ("status", "code", "error", "tries"),
    [
        (403, "AccessDenied", WriteError, 1),
        (507, "XMinioStorageFull", WriteError, 1),
        (503, "SlowDown", TransientStorageError, 4),
    ],
)
def test_writing(
    s3: Bucket, s3_faults: Faults, status: int, code: str, error: type[Exception], tries: int
) -> None:
    uri = f"{s3.uri}/out"
    s3_faults.add("/out", status, code=code, method="PUT")
    with pytest.raises(error, match=f"out.*{code}"):
        storage.write_atomic(uri, b"two")
    assert s3_faults.count("/out") == tries
    s3_faults.clear()
    fault = s3_faults.add("/out", 503, code="SlowDown", times=2, method="PUT")
    storage.write_atomic(uri, b"one")
    assert (fault.hits, s3.get("out")) == (2, b"one")
    with pytest.raises(WriteError, match="NoSuchBucket"):
        storage.write_atomic("s3://no-such-bucket-here/x", b"five")

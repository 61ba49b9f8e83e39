"""Reading through fsspec: a real HTTP server on this machine, and fsspec's memory."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import soundfile

from raysers.audio.decode import AudioReader
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sources import list_inputs
from raysers.errors import (
    ConfigError,
    ObjectChanged,
    ObjectForbidden,
    ObjectMissing,
    TransientStorageError,
)
from raysers.io import storage

MIB = 2**20


class Site(ThreadingHTTPServer):
    """Files by path; of `broken` so many answers, or all after -1, have that status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.broken: dict[str, tuple[int, int]] = {}
        self.ranges = True
        self.asked: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _answer(self, *, body: bool) -> None:
        site, path = self.server, self.path
        site.asked[path] += 1
        status, left = site.broken.get(path, (0, 0))
        if left:
            site.broken[path] = status, left - 1
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        kind = "application/octet-stream"
        if path.endswith("/") or path.strip("/") in {n.partition("/")[0] for n in site.files}:
            names = {n.removeprefix(path.strip("/") + "/").partition("/") for n in site.files}
            links = (f'<a href="{name}{slash}">{name}</a>' for name, slash, _ in names)
            data, kind = "".join(links).encode(), "text/html"
        elif path.strip("/") in site.files:
            data = site.files[path.strip("/")]
        else:
            self.send_error(404)
            return
        etag = f'"{hash(data):x}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and site.ranges:
            part = data[int(wanted[1]) : int(wanted[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {wanted[1]}-{wanted[2]}/{len(data)}")
            data = part
        else:
            self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _wav(path: Path, seconds: float = 1.0) -> bytes:
    samples = np.random.default_rng(0).normal(0, 0.1, int(16_000 * seconds))
    soundfile.write(path, samples, 16_000, subtype="PCM_16")
    return path.read_bytes()


def test_clips_of_a_web_server_are_those_of_the_same_files_on_a_disk(
    site: Site, tmp_path: Path
) -> None:
    data = _wav(tmp_path / "a.wav")
    site.files = {"corpus/a.wav": data, "corpus/b.txt": b"x", "corpus/._a.wav": data}
    (batch,) = list_inputs([f"{site.url}/corpus/"])
    assert batch["file"].to_pylist() == [f"{site.url}/corpus/a.wav"]
    assert batch["num_bytes"].to_pylist() == [len(data)]
    (listed,) = list_inputs([f"{site.url}/corpus/a.wav"])  # one file
    clips = probe_batch(pa.Table.from_batches([listed]), Segmenting())
    assert clips["duration_s"].to_pylist() == [1.0]
    assert clips["status"].to_pylist() == ["ok"]
    row = clips.to_pylist()[0]
    source = storage.open_source(row["file"], num_bytes=row["num_bytes"], etag=row["etag"])
    with (
        AudioReader(source, name="remote") as remote,
        AudioReader(str(tmp_path / "a.wav"), name="h") as here,
    ):
        assert np.array_equal(remote.read(0, None, max_s=9), here.read(0, None, max_s=9))


@pytest.mark.parametrize("ranges", [True, False])
def test_large_files_are_read_in_ranges_that_fit_together(site: Site, ranges: bool) -> None:
    data = bytes(np.random.default_rng(1).integers(0, 256, 9 * MIB, np.uint8))
    site.files, site.ranges = {"c/large.bin": data}, ranges
    with storage.open_file(f"{site.url}/c/large.bin") as file:
        file.seek(5 * MIB + 7)
        assert file.read(100) == data[5 * MIB + 7 : 5 * MIB + 107]
        assert file.read() == data[5 * MIB + 107 :]


def test_faults_of_a_server(site: Site) -> None:
    site.files = {"c/a.bin": b"abc"}
    place = f"{site.url}/c/a.bin"
    site.broken["/c/a.bin"] = 503, 2
    assert storage.read_bytes(place) == b"abc"  # passing faults are retried
    faults = {"late": (503, -1), "closed": (403, -1), "lost": (404, -1)}
    expected = {"late": TransientStorageError, "closed": ObjectForbidden, "lost": ObjectMissing}
    for name, broken in faults.items():
        site.broken[f"/c/{name}"] = broken
        with pytest.raises(expected[name], match=name):
            storage.read_bytes(f"{site.url}/c/{name}")
    assert site.asked["/c/closed"] <= 3  # permanent ones are not retried


def test_a_replaced_file_is_noticed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files = {"c/a.wav": b"first"}
    place = f"{site.url}/c/a.wav"
    listed = storage.stat(place)
    site.files["c/a.wav"] = b"other"
    later_s = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    file = storage.open_file(place)
    file.etag = listed.etag
    with pytest.raises(ObjectChanged):
        file.read()


def test_other_file_systems_by_their_scheme(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/archive/sub/a.wav", _wav(tmp_path / "a.wav"))
    (batch,) = list_inputs(["memory://archive"])
    assert batch["file"].to_pylist() == ["memory://archive/sub/a.wav"]
    assert storage.is_folder("memory://archive")
    assert not storage.is_folder("memory://archive/none")
    with pytest.raises(ConfigError, match="nothing there"):
        list_inputs(["memory://nowhere"])
    with pytest.raises(ConfigError, match="only read"):
        storage.write_atomic("memory://archive/b.txt", b"")
    with pytest.raises(ConfigError, match=r"raysers\[fsspec\]"):
        storage.is_folder("dropbox://folder")
    memory.rm("/archive", recursive=True)

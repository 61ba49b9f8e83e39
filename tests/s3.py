"""A real S3 server on loopback, one a session, and a proxy in front of it that misbehaves.

Fixtures `s3_server`, `s3` and `s3_faults` serve every test.
"""

from __future__ import annotations

import atexit
import http.client
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import boto3
import pytest
from botocore.config import Config

ALWAYS = 10**9
_START_S = 60

#: Environment of a job that must not see the developer's own AWS account, and that fails fast.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    "RAYSERS_S3_BACKOFF_S": "0.01",
    "RAYSERS_S3_MAX_BACKOFF_S": "0.05",
    "RAYSERS_S3_MAX_ATTEMPTS": "4",
    "RAYSERS_S3_READ_TIMEOUT_S": "2",
    "RAYSERS_S3_CONNECT_TIMEOUT_S": "2",
}
_UNSET = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL_S3")


@dataclass(kw_only=True)
class Fault:
    """One way to misbehave, for requests whose unquoted `/bucket/key?query` matches `pattern`.

    `kind`: an HTTP status ("503", with the S3 error `code`), `delay`, `reset` (in the middle of the
    body), `short` (a polite end after half of it), `less` (leaves out the last 7 bytes and says so
    in Content-Length), `headers` (sends `headers` in place of the server's own, none where they are
    empty). `times` requests suffer, the next ones pass.
    """

    pattern: str
    kind: str
    code: str = ""
    times: int = ALWAYS
    method: str = ""
    delay_s: float = 0.0
    #: Only requests that write on a condition.
    conditional: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    hits: int = 0

    def takes(self, method: str, target: str, headers: dict[str, str]) -> bool:
        return (
            self.hits < self.times
            and self.method in ("", method)
            and (not self.conditional or {"if-match", "if-none-match"} & set(headers))
            and re.search(self.pattern, target) is not None
        )


@dataclass(kw_only=True)
class Faults:
    """The proxy's address, its faults, and every request it has seen as (method, target, range).

    `headers` are those of the same requests, by lower-case name.
    """

    endpoint: str
    rules: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    #: Beside the rules, one answer in `bad_one_in` is bad, drawn from `kinds` with `draws`.
    bad_one_in: int = 0
    kinds: tuple[str, ...] = ("503", "500", "reset", "short", "less", "stall")
    draws: random.Random = field(default_factory=random.Random)
    #: The server behind decides and writes in two steps; real stores do both in one.
    one_at_a_time: bool = False
    turn: threading.Lock = field(default_factory=threading.Lock)
    #: When each request but for deletes came and was answered, on the monotonic clock.
    spans_s: list[tuple[float, float]] = field(default_factory=list)

    def add(self, pattern: str, kind: str | int, **options: Any) -> Fault:
        fault = Fault(pattern=pattern, kind=str(kind), **options)
        with self.lock:
            self.rules.append(fault)
        return fault

    def count(self, pattern: str, method: str = "") -> int:
        with self.lock:
            return sum(
                re.search(pattern, t) is not None and method in ("", m) for m, t, _ in self.seen
            )

    def clear(self) -> None:
        with self.lock:
            self.rules.clear()
            self.seen.clear()
            self.headers.clear()
            self.spans_s.clear()
            self.one_at_a_time = False
            self.bad_one_in = 0

    def in_sequence(self) -> int:
        """The most requests, deletes left out, that each came when the one before was answered."""
        count, free_s = 0, 0.0
        for came_s, answered_s in sorted(self.spans_s, key=lambda span: span[1]):
            if came_s >= free_s:
                count, free_s = count + 1, answered_s
        return count

    def take(self, method: str, target: str, headers: dict[str, str]) -> Fault | None:
        with self.lock:
            self.seen.append((method, target, headers.get("range", "")))
            self.headers.append(headers)
            fault = next((r for r in self.rules if r.takes(method, target, headers)), None)
            if fault is not None:
                fault.hits += 1
            elif self.bad_one_in and self.draws.randrange(self.bad_one_in) == 0:
                kind = self.draws.choice(self.kinds)
                stall = kind == "stall"
                fault = Fault(pattern="", kind="reset" if stall else kind, delay_s=3.0 * stall)
            return fault


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@cache
def start_server() -> str:
    """Endpoint of a moto server process that lives until this process ends."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT},
    )
    atexit.register(process.kill)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return f"http://127.0.0.1:{port}"
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError("the S3 test server did not start")


def start_proxy(server: str) -> Faults:
    """A proxy in front of `server` in daemon threads of this process."""
    faults = Faults(endpoint="")

    class Handler(_Handler):
        upstream = urlsplit(server).netloc
        rules = faults

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    faults.endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"
    return faults


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream = ""
    rules: Faults

    def handle_any(self) -> None:
        came_s = time.monotonic()
        self.handle_one()
        if self.command != "DELETE":  # nothing waits for these
            self.rules.spans_s.append((came_s, time.monotonic()))

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self.rules.take(self.command, unquote(self.path), headers)
        if fault is not None and fault.delay_s:
            time.sleep(fault.delay_s)
        if fault is not None and fault.kind.isdigit():
            self.refuse(int(fault.kind), fault.code)
            return
        upstream = http.client.HTTPConnection(self.upstream, timeout=60)
        headers.pop("expect", None)
        try:
            with self.rules.turn if self.rules.one_at_a_time else nullcontext():
                upstream.request(self.command, self.path, body=body, headers=headers)
                answer = upstream.getresponse()
            self.relay(answer, answer.read(), fault)
        except OSError:  # the client has given up waiting, or the server has ended
            self.close_connection = True
        upstream.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

    def refuse(self, status: int, code: str) -> None:
        xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
        # as the real thing: a HEAD answer has no body and so no code
        body = b"" if self.command == "HEAD" or not code else xml.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def relay(self, answer: http.client.HTTPResponse, body: bytes, fault: Fault | None) -> None:
        self.send_response(answer.status)
        if fault is not None and fault.kind == "less":
            body = body[:-7]
        changed = fault.headers if fault else {}
        for name, own in answer.getheaders():
            value = changed.get(name.lower(), own)
            ours = ("transfer-encoding", "connection", "content-length", "date")
            if value and name.lower() not in ours:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if fault is None or fault.kind in ("delay", "headers", "less"):
            self.wfile.write(b"" if self.command == "HEAD" else body)
            return
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        if fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@cache
def _proxy() -> Faults:
    return start_proxy(start_server())


def workers_environment() -> dict[str, str]:
    """For a cluster that outlives a test: its workers reach the server through the proxy."""
    return {**ENVIRONMENT, "AWS_ENDPOINT_URL": _proxy().endpoint}


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A fresh bucket: its URI and a client that talks to the server itself, past the proxy."""

    name: str
    client: Any

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, data: bytes = b"x") -> str:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)
        return f"{self.uri}/{key}"

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def keys(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


@pytest.fixture(scope="session")
def s3_server() -> str:
    """Endpoint of the real server."""
    return start_server()


def _environment(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    for name in _UNSET:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)


@cache
def _client(endpoint: str) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A fresh bucket, with the environment pointing at the server."""
    _environment(monkeypatch, s3_server)
    client = _client(s3_server)
    name = f"test-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return Bucket(name=name, client=client)


@pytest.fixture
def s3_faults(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """As `s3`, but the environment points at the proxy, whose faults the test adds."""
    faults = _proxy()
    faults.clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.endpoint)
    yield faults
    faults.clear()

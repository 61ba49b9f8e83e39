"""A real browser for tests of pages: Chromium over a pipe, without a driver or a port."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), "")

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not on this machine")

#: Chromium's own complaints come on the same channels as the page's.
_TROUBLE = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


#: Chromium reads the protocol from descriptor 3 and writes it to 4.
_AT_3_AND_4 = """
import os, sys
ends = [os.dup(int(end)) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place + 100)
for place in (3, 4):
    os.dup2(place + 100, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-pipe",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)


class Browser:
    """One tab of a headless Chromium; `troubles` is all that its console said."""

    def __init__(self, profile: Path) -> None:
        self.troubles: list[str] = []
        self._count = 0
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        start = [sys.executable, "-c", _AT_3_AND_4, str(theirs_in), str(theirs_out)]
        self._process = subprocess.Popen(
            [*start, CHROMIUM, *_ARGUMENTS, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest = b""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol in the tab."""
        return self._call(method, session=self._session, **parameters)

    def open(self, url: str) -> None:
        """Load a page and wait until it is there."""
        self.do("Page.navigate", url=url)
        self._until("Page.loadEventFired")

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Set the window's size in CSS pixels."""
        how = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.do("Emulation.setDeviceMetricsOverride", **how)

    def prefer(self, theme: str, media: str = "screen") -> None:
        """What the system asks for: `light` or `dark`, `screen` or `print`."""
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.do("Emulation.setEmulatedMedia", media=media, features=features)

    def says(self, expression: str) -> Any:
        """The value of a JavaScript expression, evaluated as after a click."""
        how = {"returnByValue": True, "userGesture": True}
        found = self.do("Runtime.evaluate", expression=expression, **how)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def waits_for(self, expression: str, timeout_s: float = 10.0) -> bool:
        """Whether the expression becomes true in time."""
        end = time.monotonic() + timeout_s
        while not (found := bool(self.says(expression))) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def picture(self, path: Path) -> None:
        """A screenshot of what is visible, to look at by hand."""
        found = self.do("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """End the browser."""
        self._call("Browser.close")
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)

    def _call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _until(self, event: str) -> None:
        while self._next().get("method") != event:
            pass

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._in, 2**20)
            assert chunk, "the browser went away"
            self._rest += chunk
        one, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(one)
        if message.get("method") in _TROUBLE:
            self.troubles.append(_words(message["params"]))
        return message


def _words(parameters: Mapping[str, Any]) -> str:
    entry = parameters.get("entry") or parameters.get("exceptionDetails") or parameters
    return str(entry.get("text") or entry)

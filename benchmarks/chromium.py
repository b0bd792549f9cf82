"""Open pages in Chromium without a window: what they request, what they complain of, how they look.

Chromium is driven by its DevTools protocol over two pipes, so that no port is open and no further
package is needed.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
# no window, no sandbox (containers have none), no requests of the browser's own
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
TO_BROWSER, FROM_BROWSER = 3, 4  # the file descriptors that the protocol uses
STARTER = f"""
import fcntl, os, sys
reader, writer = map(int, sys.argv[1:3])
# out of the way first: one of them may have the other's number
reader, writer = (fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (reader, writer))
os.dup2(reader, {TO_BROWSER})
os.dup2(writer, {FROM_BROWSER})
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Gives the pipes the numbers that the protocol uses, and becomes the browser."""
DESKTOP = (1280, 900)
PHONE = (390, 844)


@dataclass(slots=True)
class Seen:
    """What a page did: addresses it requested beside its own, and lines of its console."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def find_chromium() -> str | None:
    """Find a Chromium to start; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """A tab of a browser that is driven by messages."""

    def __init__(self, writer: int, reader: int) -> None:
        self._writer, self._reader = writer, reader
        self._pending = b""
        self._count = 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self.seen = Seen()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events in between are kept.

        Raises: RuntimeError for what the browser refuses.
        """
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": arguments}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            part = os.read(self._reader, 1 << 20)
            if not part:
                raise RuntimeError("the browser ended")
            self._pending += part
        message, _, self._pending = self._pending.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        method, found = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.seen.requests.append(found["request"]["url"])
        elif method == "Log.entryAdded":
            self.seen.complaints.append(found["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            words = [str(each.get("value", each.get("description"))) for each in found["args"]]
            self.seen.complaints.append(" ".join(words))
        elif method == "Runtime.exceptionThrown":
            details = found["exceptionDetails"]
            what = details.get("exception", {}).get("description", details["text"])
            self.seen.complaints.append(what)

    def open(
        self,
        path: Path,
        *,
        size: tuple[int, int] = DESKTOP,
        dark: bool = False,
        touch: bool = False,
    ) -> Seen:
        """Open a file in a window of some size, wait until it is drawn, and say what it did."""
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.send("Emulation.setDeviceMetricsOverride", **screen)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])
        self.seen, self._events = Seen(), []
        address = path.resolve().as_uri()
        self.send("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._note(self._read())
        self.settle()
        self.seen.requests = [url for url in self.seen.requests if url != address]
        return self.seen

    def settle(self) -> None:
        """Wait until what is due is drawn, and until events of what is done have come."""
        frames = "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        self.evaluate(frames)

    def evaluate(self, expression: str) -> Any:
        """Compute an expression in the page.

        Raises: RuntimeError with the error of the page.
        """
        answer = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def picture(self, *, whole: bool = False, clip: Mapping[str, float] | None = None) -> bytes:
        """Take a picture as PNG: of the window, of the whole page, or of a part of it."""
        part = {} if clip is None else {"clip": {**clip, "scale": 1}}
        answer = self.send(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole, **part
        )
        return base64.b64decode(answer["data"])


@contextmanager
def browser(program: str) -> Iterator[Page]:
    """Start a browser with one tab, and end it behind the context."""
    start, command = [sys.executable, "-I", "-c", STARTER], [program, *FLAGS]
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [*start, str(to_read), str(from_write), *command, f"--user-data-dir={folder}"],
            pass_fds=(to_read, from_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        try:
            yield Page(to_write, from_read)
        finally:
            os.close(to_write)  # which ends the browser
            os.close(from_read)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

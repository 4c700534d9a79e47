"""A Chromium without a window, led over two pipes by the Chrome DevTools Protocol.

The protocol over pipes is JSON texts that end with a zero byte, so it needs no library.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from vesalius.core.errors import VesaliusError

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    # No name of any other machine is ever resolved, so a page that asks for one shows itself.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# The browser reads from file 3 and writes to file 4; whoever starts it has those numbers in use.
_LAUNCH = (
    "import fcntl, os, sys\n"
    "ends = [fcntl.fcntl(int(text), fcntl.F_DUPFD, 10) for text in sys.argv[1:3]]\n"
    "for place, end in enumerate(ends, 3):\n"
    "    os.dup2(end, place)\n"
    "    os.close(end)\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)


class BrowserError(VesaliusError):
    """The browser did not start, ended, gave no answer in time, or refused a command."""


def find_browser() -> str | None:
    """The first of `PROGRAMS` on this machine; None on Windows, where pipes are handed over otherwise."""
    if os.name == "nt":
        return None
    return next((found for found in map(shutil.which, PROGRAMS) if found), None)


class Browser:
    """A running browser; a context manager that ends it.

    Parameters
    ----------
    program
        Of `find_browser`.
    profile
        An empty folder for its files.

    Raises
    ------
    BrowserError
        If it does not start.
    """

    def __init__(self, program: str, profile: Path, *, seconds: float = 60) -> None:
        asked, self._ask = os.pipe()
        self._told, told = os.pipe()
        self._buffer, self._number = b"", 0
        self.events: list[dict[str, Any]] = []
        flags = [*FLAGS, f"--user-data-dir={profile}"]
        if os.geteuid() == 0:  # its sandbox refuses to run as root
            flags.append("--no-sandbox")
        command = [sys.executable, "-c", _LAUNCH, str(asked), str(told), program, *flags, "about:blank"]
        log = profile / "log.txt"
        try:
            with log.open("wb") as errors:
                self._process = subprocess.Popen(  # noqa: S603 - a browser from the PATH, constant options
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=(asked, told),
                    start_new_session=True,  # so that it ends with the processes that it started
                )
        finally:
            os.close(asked)
            os.close(told)
        try:
            self.version = str(self.call("Browser.getVersion", seconds=seconds)["product"])
        except BrowserError as error:
            self.close()
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise BrowserError(f"{program} does not start: {lines[-1][:200] if lines else error}") from None

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End it, and whatever it started."""
        with suppress(BrowserError):
            self.call("Browser.close", seconds=10)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for end in (self._ask, self._told):
            with suppress(OSError):
                os.close(end)

    def call(
        self, method: str, session: str | None = None, *, seconds: float = 120, **parameters: Any
    ) -> dict[str, Any]:
        """One command of the protocol and its result; events on the way are kept in `events`.

        Raises
        ------
        BrowserError
            If the browser refuses it, ends, or does not answer within `seconds`.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        try:
            while data:
                data = data[os.write(self._ask, data) :]
        except OSError as error:
            raise BrowserError("the browser has ended") from error
        deadline = time.monotonic() + seconds
        while True:
            found = self._message(deadline)
            if found.get("id") == self._number:
                break
            if "method" in found:
                self.events.append(found)
        if "error" in found:
            raise BrowserError(f"{method}: {found['error'].get('message', found['error'])}")
        return dict(found.get("result", {}))

    def wait(self, event: str, session: str, *, seconds: float = 120) -> dict[str, Any]:
        """The first event of this name in a session, also one that has come already."""
        deadline, seen = time.monotonic() + seconds, 0
        while True:
            for found in self.events[seen:]:
                if found["method"] == event and found.get("sessionId") == session:
                    return dict(found["params"])
            seen = len(self.events)
            found = self._message(deadline)
            if "method" in found:
                self.events.append(found)

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._told], [], [], left)[0]:
                raise BrowserError("the browser did not answer in time")
            piece = os.read(self._told, 1 << 20)
            if not piece:
                raise BrowserError("the browser has ended")
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found


class Tab:
    """One page of a browser."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = str(browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "DOM", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, seconds: float = 120, **parameters: Any) -> dict[str, Any]:
        """`Browser.call` to this page."""
        return self.browser.call(method, self._session, seconds=seconds, **parameters)

    def open(self, url: str) -> None:
        """Go to an address and wait until its scripts have run.

        Raises
        ------
        BrowserError
            If there is nothing.
        """
        wrong = self.call("Page.navigate", url=url).get("errorText")
        if wrong:
            raise BrowserError(f"{url}: {wrong}")
        self.browser.wait("Page.loadEventFired", self._session)

    def evaluate(self, expression: str, *, seconds: float = 300) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise.

        Raises
        ------
        BrowserError
            If it throws.
        """
        done = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, seconds=seconds
        )
        if "exceptionDetails" in done:
            told = done["exceptionDetails"]
            raise BrowserError(str(told.get("exception", {}).get("description", told.get("text"))).splitlines()[0])
        return done["result"].get("value")

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file in a file input, as a person does in its dialogue."""
        node = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=[str(path.resolve())], objectId=node["result"]["objectId"])

    def requests(self) -> list[str]:
        """Addresses that the page has asked for so far."""
        self.call("Runtime.evaluate", expression="0")  # what has been asked for before has then been told
        return [
            str(event["params"]["request"]["url"])
            for event in self.browser.events
            if event["method"] == "Network.requestWillBeSent" and event.get("sessionId") == self._session
        ]

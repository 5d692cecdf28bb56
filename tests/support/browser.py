"""A real browser without a window, which a test drives over its DevTools protocol."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.components import require
from tests.support.processes import wait_until

_OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1280,1000",
)
_START = 'exec "$@" 3<&0 4>&1 </dev/null >chromium.log 2>&1'  # it reads from 3 and writes to 4
# With every address that comes or goes on this machine, as with machines of other tests, it would drop its connections;
# it hears of them through netlink, and does without: a filter of system calls says that there is no such thing.
_WITHOUT_NETLINK = """
import ctypes, os, platform, struct, sys
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]  # of `socket`
refuse, allow = (6, 0, 0, 0x50061), (6, 0, 0, 0x7FFF0000)
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 16), refuse, allow]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    sys.exit(f"no filter of system calls: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
"""
_SHIFT = 8  # as the protocol has it


class Browser:
    """`with Browser() as browser: page = browser.open(url)`."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self.events: list[dict[str, Any]] = []
        self._ids = itertools.count(1)
        self._heard = b""

    def __enter__(self) -> Browser:
        require("chromium", "a page is opened by a real browser")
        self._folder = tempfile.TemporaryDirectory(dir="/tmp")  # sockets in it need a short path
        options = [*_OPTIONS, f"--user-data-dir={self._folder.name}", *self._options]
        self._process = subprocess.Popen(
            ["sh", "-c", _START, "sh", sys.executable, "-c", _WITHOUT_NETLINK, "chromium", *options, "about:blank"],
            cwd=self._folder.name,
            env={**os.environ, "TMPDIR": self._folder.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate(timeout=30)  # it ends with its pipes
        self._folder.cleanup()

    def open(self, url: str) -> Page:
        """A page of its own, which is loading."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        page.ask("Log.enable")
        page.ask("Emulation.setFocusEmulationEnabled", enabled=True)
        page.ask("Page.navigate", url=url)
        return page

    def ask(self, method: str, session: str = "", **params: Any) -> Any:
        """What a method of the protocol answers."""
        number = next(self._ids)
        asked = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asked).encode() + b"\0")
        self._process.stdin.flush()
        while (told := self._next()).get("id") != number:
            self.events.append(told)
        assert "error" not in told, f"{method}: {told['error']}"
        return told["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._heard:
            part = self._process.stdout.read1()  # type: ignore[union-attr]
            assert part, f"the browser ended: {Path(self._folder.name, 'chromium.log').read_text()}"
            self._heard += part
        one, _, self._heard = self._heard.partition(b"\0")
        return dict(json.loads(one))


class Page:
    """One page of a browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def ask(self, method: str, **params: Any) -> Any:
        return self._browser.ask(method, self._session, **params)

    def get(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        told = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait_for(self, expression: str, *, seconds: float = 100) -> None:
        """Until a JavaScript expression is true."""
        is_true = wait_until(lambda: bool(self.get(f"!!({expression})")), seconds=seconds, every=0.05)
        assert is_true, f"{expression} in\n{self.get('document.body.innerText')}\n{self.complaints}"

    def click(self, selector: str) -> None:
        """In the middle of the first such element, once there is one."""
        box = f"document.querySelector({json.dumps(selector)})?.getBoundingClientRect()"
        self.wait_for(f"{box}?.width")
        x, y = self.get(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """As from a keyboard, into what has the focus."""
        self.ask("Input.insertText", text=text)

    def shift_enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            self.ask("Input.dispatchKeyEvent", type=kind, modifiers=_SHIFT, **key)

    @property
    def complaints(self) -> list[str]:
        """What the browser wrote to the console of any page."""
        logged = [one["params"]["entry"] for one in self._browser.events if one.get("method") == "Log.entryAdded"]
        return [one["text"] for one in logged]

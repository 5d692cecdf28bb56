"""Waiting for descriptors and points in time, each with what to do then. Standard library, Python 3.8 and up."""

from __future__ import annotations

import os
import selectors
import signal
import time
from typing import Any, Callable, Iterable

MOST_SECONDS = 86400.0  # of one wait: the kernel takes no more than 24 days


class Loop:
    """What is waited for: descriptors and points in time, each with what to do then."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.times: dict[str, tuple[float, Callable[[], Any]]] = {}

    def on(self, source: Any, act: Callable[[], Any], event: int = selectors.EVENT_READ) -> None:
        """Do `act` each time that `source` has something to read, or whatever `event` says."""
        self.selector.register(source, event, act)

    def off(self, source: Any) -> None:
        """No longer wait for `source`."""
        self.selector.unregister(source)

    def on_signals(self, numbers: Iterable[int], hear: Callable[[bytes], Any]) -> None:
        """Do `hear` with the numbers of the signals that came: they become bytes in a pipe, and interrupt nothing."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        self.on(read, lambda: hear(os.read(read, 65536)))

    def after(self, seconds: float, name: str, act: Callable[[], Any]) -> None:
        """Do `act` once, that much later, unless `name` is set anew or taken out of `times` before."""
        self.times[name] = (time.monotonic() + seconds, act)

    def step(self, most: float | None = None) -> None:
        """Wait for the next thing, at most `most` seconds, and do what is to be done."""
        waits = [when - time.monotonic() for when, _ in self.times.values()] + ([] if most is None else [most])
        for key, _ in self.selector.select(max(0, min(*waits, MOST_SECONDS)) if waits else None):
            if self.selector.get_map().get(key.fd) == key:  # not taken out by what was done before it
                key.data()
        now = time.monotonic()
        for name, (when, act) in list(self.times.items()):
            if when <= now and self.times.get(name) == (when, act):
                del self.times[name]
                act()

"""A cable that delays frames and loses some: between two taps, for kernels whose `tc` has no netem.

`python slow_link.py TAP TAP SECONDS LOSS` says `ready` once both taps are there, and ends when its stdin does.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA  # from linux/if_tun.h, like the flags
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


def relay(one: str, other: str, *, seconds: float, loss: float) -> None:
    """Every frame of either goes out at the other so much later, or, with the probability `loss`, not at all."""
    end, taps = sys.stdin.fileno(), (_open_tap(one), _open_tap(other))
    to_other = {taps[0]: taps[1], taps[1]: taps[0]}
    waiting: deque[tuple[float, int, bytes]] = deque()
    chance = random.Random(one)
    print("ready", flush=True)
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([end, *taps], [], [], patience)
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, tap, frame = waiting.popleft()
            os.write(tap, frame)
        for tap in readable:
            if tap == end:
                return
            frame = os.read(tap, 65536)
            if chance.random() >= loss:
                waiting.append((now + seconds, to_other[tap], frame))


def _open_tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


if __name__ == "__main__":
    relay(sys.argv[1], sys.argv[2], seconds=float(sys.argv[3]), loss=float(sys.argv[4]))

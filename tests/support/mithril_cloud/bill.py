"""What a bid costs: by the second, at the price of that second."""

from __future__ import annotations


class Bill:
    """`rate` is in cents an hour for all of a bid's instances; 0 while nothing is to be paid."""

    def __init__(self) -> None:
        self.rate = 0.0
        self.times: list[tuple[float, float]] = []  # each began at the first, at the rate of the second

    def charge(self, now: float, rate: float) -> None:
        """From now on, until told otherwise."""
        if rate != self.rate:
            self.times.append((now, rate))
            self.rate = rate

    def cents(self, now: float) -> float:
        """All that is due until now."""
        ends = [begin for begin, _ in self.times[1:]] + [now]
        return sum((end - begin) * rate / 3600 for (begin, rate), end in zip(self.times, ends, strict=False))

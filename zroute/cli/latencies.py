"""Latencies as ``zroute bench`` counts them: pure, in bounded memory, at a fifth of a microsecond each."""

from __future__ import annotations

import math
from itertools import accumulate

__all__ = ["Latencies"]

_STEPS = 64
"""Steps in which a doubling is counted, so that a percentile is exact to 1.1 %."""


class Latencies:
    """How many messages took how many nanoseconds, in steps of 1.1 %; ``longest`` is exact.

    ``early`` were not above 0: they arrived before they were sent, as the clocks have it.
    """

    def __init__(self) -> None:
        self.early = 0
        self.longest = 0
        self._counts = [0] * (64 * _STEPS)

    def add(self, latency: int) -> None:
        """One more."""
        if latency > self.longest:
            self.longest = latency
        if latency > 0:
            self._counts[int(math.log2(latency) * _STEPS)] += 1
        else:
            self.early += 1

    def __len__(self) -> int:
        return self.early + sum(self._counts)

    def at(self, part: float) -> float:
        """The latency that ``part`` of them (0 to 1) do not exceed, within 1.1 %; 0 without any."""
        rank = max(math.ceil(part * len(self)), 1)
        for step, number in enumerate(accumulate(self._counts, initial=self.early)):
            if number >= rank:
                return min(2.0 ** (step / _STEPS), self.longest) if step else 0.0
        return 0.0

    def told(self) -> dict[str, float]:
        """The usual ones, in microseconds."""
        parts = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
        found = {name: self.at(part) for name, part in parts.items()} | {"max": self.longest}
        return {name: round(latency / 1000, 1) for name, latency in found.items()}

"""The admitted connections of keys whose connection is not known.

ZAP asks whether a key may connect, but does not tell which connection has the key. Until a connection tells its key,
with its first frame, the limit of connections per key counts the admission instead:

- Each admitted key adds an admission, and each connection whose key becomes known takes one away.
- A connection may end before its key is known. Nothing tells whose it was. But there are never more admissions than
  connections with an unknown key, so the oldest admissions above that number are forgotten. A key may therefore have
  more connections than its limit, by at most the number of other admissions that were forgotten in its place.
- An admission is younger than the end of its handshake. So while it is young, a connection in its handshake may be the
  one that it belongs to. Later, only connections that have finished their handshake count.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from itertools import count

import attrs

__all__ = ["Admissions", "UnknownKeys"]


@attrs.frozen
class UnknownKeys:
    """The accepted connections of a socket whose key is unknown.

    Attributes:
        settled: The number of those that have finished their handshake.
        greeting: The number of connections in their handshake.
        handshake: The longest time of a handshake, in seconds.
    """

    settled: int
    greeting: int
    handshake: float


class Admissions:
    """The admissions of one app. Times are in seconds of one clock."""

    def __init__(self) -> None:
        self._numbers = count()
        # By number, and so in the order of time: the key, and until when its handshake may last.
        self._young: OrderedDict[int, tuple[str, float]] = OrderedDict()
        self._old: OrderedDict[int, str] = OrderedDict()
        self._of: defaultdict[str, OrderedDict[int, None]] = defaultdict(OrderedDict)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def of(self, name: str) -> int:
        """Return the number of admissions of a key."""
        return len(self._of[name]) if name in self._of else 0

    def add(self, name: str, until: float) -> None:
        """Add an admission of a key, whose handshake lasts until a time at most."""
        number = next(self._numbers)
        self._young[number] = name, until
        self._of[name][number] = None

    def known(self, name: str) -> None:
        """Forget the oldest admission of a key: one of its connections is known now."""
        if name in self._of:
            self._forget(next(iter(self._of[name])), name)

    def trim(self, settled: int, greeting: int, now: float) -> None:
        """Forget the oldest admissions whose connections must have ended.

        Args:
            settled: The number of connections with an unknown key that have finished their handshake.
            greeting: The number of connections in their handshake.
            now: The time.
        """
        while self._young and next(iter(self._young.values()))[1] < now:
            number, (name, _until) = self._young.popitem(last=False)
            self._old[number] = name
        most = max(settled, 0) + min(greeting, len(self._young))
        while len(self) > most:
            if self._old:
                number, name = next(iter(self._old.items()))
            else:
                number, (name, _until) = next(iter(self._young.items()))
            self._forget(number, name)

    def _forget(self, number: int, name: str) -> None:
        self._old.pop(number, None)
        self._young.pop(number, None)
        of = self._of[name]
        del of[number]
        if not of:
            del self._of[name]

"""The bytes of subscriptions that each connection of a publisher holds.

Pure bookkeeping, as in `zroute.sockets.links`. libzmq reports a prefix when the first peer subscribes to it, and when
the last peer has withdrawn it. The prefix uses memory for all that time. It is charged to the connection that
subscribed first, until no peer subscribes to it.
"""

from __future__ import annotations

from collections.abc import KeysView, Set

from zroute.options import SUBSCRIPTION_COST

__all__ = ["Budgets"]


class Budgets:
    """The live subscriptions of one publisher, charged to connections by id."""

    def __init__(self) -> None:
        self._owners: dict[bytes, int | None] = {}
        self._spent: dict[int, int] = {}

    @property
    def prefixes(self) -> KeysView[bytes]:
        """The prefixes of the live subscriptions."""
        return self._owners.keys()

    def add(self, prefix: bytes, link: int | None) -> int:
        """Charge a live prefix to a connection; return the connection's bytes.

        The prefix is charged to no connection if ``link`` is None; the result is 0 then.
        """
        if prefix in self._owners:
            self.remove(prefix)
        self._owners[prefix] = link
        if link is None:
            return 0
        spent = self._spent[link] = self._spent.get(link, 0) + _cost(prefix)
        return spent

    def remove(self, prefix: bytes) -> bool:
        """Remove a prefix. Return True if it was live."""
        if prefix not in self._owners:
            return False
        link = self._owners.pop(prefix)
        if link is not None and link in self._spent:
            self._spent[link] -= _cost(prefix)
        return True

    @property
    def links(self) -> KeysView[int]:
        """The ids of the connections that have been charged."""
        return self._spent.keys()

    def close(self, links: Set[int]) -> None:
        """Close the accounts of connections that have ended.

        Their prefixes stay live until libzmq reports the withdrawal: other peers may have them too.
        """
        for link in links:
            self._spent.pop(link, None)


def _cost(prefix: bytes) -> int:
    """Return the bytes that a subscription is charged, at least the minimum."""
    return max(len(prefix), SUBSCRIPTION_COST)

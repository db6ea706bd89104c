"""The sizes of subscriptions, charged to the connections of a publisher.

This module does no I/O. libzmq reports a prefix when the first peer subscribes to the prefix, and when the last peer
withdraws the prefix. Between these reports, the prefix uses memory. This memory is charged to the connection that
subscribed first, until no peer subscribes to the prefix any more.
"""

from __future__ import annotations

from collections.abc import KeysView, Set

from zroute.options import SUBSCRIPTION_COST

__all__ = ["Budgets"]


class Budgets:
    """The active subscriptions of one publisher, charged to connections by id."""

    def __init__(self) -> None:
        self._owners: dict[bytes, int | None] = {}
        self._spent: dict[int, int] = {}

    @property
    def prefixes(self) -> KeysView[bytes]:
        """The prefixes of the active subscriptions."""
        return self._owners.keys()

    def add(self, prefix: bytes, link: int | None) -> int:
        """Charge an active prefix to a connection; return the total of the connection.

        If ``link`` is None, the prefix is not charged to a connection, and the result is 0. Totals are in bytes.
        """
        if prefix in self._owners:
            self.remove(prefix)
        self._owners[prefix] = link
        if link is None:
            return 0
        spent = self._spent[link] = self._spent.get(link, 0) + _cost(prefix)
        return spent

    def remove(self, prefix: bytes) -> bool:
        """Remove a prefix. Return True if it was active."""
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

        Their prefixes stay active until libzmq reports the withdrawal, because other peers may subscribe to the same
        prefixes.
        """
        for link in links:
            self._spent.pop(link, None)


def _cost(prefix: bytes) -> int:
    """Return the size in bytes that is charged for a subscription."""
    return max(len(prefix), SUBSCRIPTION_COST)

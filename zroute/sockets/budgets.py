"""Budgets: how many bytes of subscriptions each connection of a publisher has. Plain bookkeeping, as `Links`.

libzmq tells of a prefix when the first peer subscribes to it, and when the last one has withdrawn it. So a prefix is
on the account of the connection that asked for it first until no peer has it: it costs memory for as long.
"""

from __future__ import annotations

from collections.abc import KeysView, Set

from zroute.options import SUBSCRIPTION_COST

__all__ = ["Budgets"]


class Budgets:
    """The live subscriptions of one publisher, each on the account of a connection, by the connection's id."""

    def __init__(self) -> None:
        self._owners: dict[bytes, int | None] = {}
        self._spent: dict[int, int] = {}

    @property
    def prefixes(self) -> KeysView[bytes]:
        """The live subscriptions."""
        return self._owners.keys()

    def add(self, prefix: bytes, link: int | None) -> int:
        """Note that a prefix is live; return how many bytes its connection has now. None is on no account."""
        if prefix in self._owners:
            self.remove(prefix)
        self._owners[prefix] = link
        if link is None:
            return 0
        spent = self._spent[link] = self._spent.get(link, 0) + _cost(prefix)
        return spent

    def remove(self, prefix: bytes) -> bool:
        """Note that a prefix is not live any more; return True if it was."""
        if prefix not in self._owners:
            return False
        link = self._owners.pop(prefix)
        if link is not None and link in self._spent:
            self._spent[link] -= _cost(prefix)
        return True

    @property
    def links(self) -> KeysView[int]:
        """The connections that have an account."""
        return self._spent.keys()

    def close(self, links: Set[int]) -> None:
        """Forget the accounts of connections that have ended: their prefixes are withdrawn, or are others' too."""
        for link in links:
            self._spent.pop(link, None)


def _cost(prefix: bytes) -> int:
    return max(len(prefix), SUBSCRIPTION_COST)

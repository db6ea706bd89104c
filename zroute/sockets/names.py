"""Find host names that have only IPv6 addresses.

While ZMQ_IPV6 is 0, libzmq resolves names to IPv4 addresses only, and can't find such a host. With ZMQ_IPV6=1 it
prefers IPv6 addresses: ``localhost`` would become ``::1``, and a publisher at 127.0.0.1 would be unreachable. So the
option must be set only for names without an IPv4 address. To find these, each name is looked up in a thread: a name
server that does not answer would block the reactor.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

__all__ = ["AGAIN", "Lookups", "host_name", "only_ipv6"]

AGAIN = 5.0
"""Seconds between two look-ups of a name that can't be resolved yet."""


def host_name(address: str) -> str | None:
    """Return the host name in the address of an endpoint, or None.

    None for other transports, and for an IP address in place of a name.
    """
    transport, _, rest = address.partition("://")
    host = rest.rpartition(";")[2].rpartition(":")[0]
    if transport != "tcp" or not host or host.startswith("["):
        return None
    try:
        ip_address(host)
    except ValueError:
        return host
    return None


def only_ipv6(host: str, getaddrinfo: Callable[..., Any] = socket.getaddrinfo) -> bool | None:
    """Return True if ``host`` has IPv6 addresses and no IPv4 address.

    None if it can't be resolved. This call blocks.
    """
    try:
        families = {found[0] for found in getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):  # a label of more than 63 characters is a UnicodeError
        return None
    return socket.AF_INET6 in families and socket.AF_INET not in families


class Lookups:
    """Looks up the names in dialled endpoints.

    Calls ``found(address)`` on the reactor's thread for each endpoint whose name has only IPv6 addresses.
    """

    def __init__(self, reactor: Any, found: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._found = found
        self._last: dict[str, float] = {}  # time of the last look-up, by endpoint whose name is not resolved yet
        self._under_way: set[str] = set()

    def begin(self, address: str) -> None:
        """Look up the name in this endpoint, if it has one."""
        host = host_name(address)
        if host is None or address in self._under_way:
            return
        self._last[address] = self._reactor.seconds()
        self._under_way.add(address)
        threading.Thread(target=self._look_up, args=(address, host), name="zroute-lookup", daemon=True).start()

    def again(self, address: str) -> None:
        """Look up the name again if it is unresolved and the last look-up is old.

        That is `AGAIN` seconds.
        """
        last = self._last.get(address)
        if last is not None and self._reactor.seconds() - last >= AGAIN:
            self.begin(address)

    def forget(self, address: str) -> None:
        """Stop looking up the name of an endpoint that was disconnected."""
        self._last.pop(address, None)

    def _look_up(self, address: str, host: str) -> None:
        answer = only_ipv6(host)
        with suppress(RuntimeError):  # the reactor's loop is closed
            self._reactor.callFromThread(self._answered, address, answer)

    def _answered(self, address: str, answer: bool | None) -> None:
        self._under_way.discard(address)
        if answer is None or address not in self._last:
            return
        del self._last[address]
        if answer:
            self._found(address)

"""Host names: connect to all addresses of a name, and find IPv6-only names.

**All addresses.** libzmq connects to the first address of a name, and never tries the second. A name may refer to
several publishers, as in a headless service of Kubernetes. `Names` therefore looks up a name, connects to each of its
addresses, and repeats the look-up every `EVERY` seconds. `Names` does not look up ``localhost``, because this name
always refers to this machine.

The system's resolver (getaddrinfo(3)) looks names up, in a thread. Like libzmq, the system's resolver uses
``/etc/hosts``, the search domains in ``/etc/resolv.conf`` and all other sources in nsswitch.conf(5). A resolver in
Python, such as twisted.names, uses neither search domains nor other sources. Such a resolver would not find some names
to which libzmq can connect: the short name of a service, or a name in the local network.

**Keys.** All addresses of a name have the key of the name's peer. An address has one connection, and the program there
has one key. If two names with different peers have the same address, the socket connects with the key of the name that
was resolved first. For the other name, `Names` logs the conflict, and connects when the first name no longer has the
address.

**IPv6 only.** While ZMQ_IPV6 is 0, libzmq resolves names to IPv4 addresses only, and can't connect to a host without an
IPv4 address. With ZMQ_IPV6=1, libzmq prefers IPv6 addresses: ``localhost`` would become ``::1``, and a publisher at
127.0.0.1 would be unreachable. The option must therefore be set only for names without an IPv4 address. `Lookups` finds
these names, for endpoints that `Names` does not follow. `Lookups` also uses a thread for each name, because a name
server that does not answer would block the reactor.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import attrs
import zmq

from zroute.endpoints import Endpoint
from zroute.errors import EndpointError

__all__ = ["AGAIN", "EVERY", "Lookups", "Names", "addresses_of", "has_addresses", "host_name", "only_ipv6"]

_log = logging.getLogger("zroute.sockets")

EVERY = 10.0
"""The time in seconds between two look-ups of a name that has addresses."""

SOON = 1.0
"""The time in seconds between two look-ups of a name that has no address yet."""

AGAIN = 5.0
"""The time in seconds between two look-ups of a name that can't be resolved yet."""


def host_name(address: str) -> str | None:
    """Return the host name in the address of an endpoint, or None.

    The result is None for other transports, and for an IP address instead of a name.
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


def has_addresses(endpoint: Endpoint) -> bool:
    """Return True if an endpoint connects to a host name that `Names` follows."""
    return not endpoint.bind and host_name(endpoint.address) not in (None, "localhost")


def addresses_of(host: str, prefer_ipv6: bool) -> list[str]:
    """Return either the IPv4 or the IPv6 addresses of a host.

    The result contains the IPv4 addresses if the host has any, and otherwise the IPv6 addresses. With ``prefer_ipv6``,
    the preference is reversed. With both kinds of addresses, the socket would connect to the host twice. This call
    blocks.

    Raises:
        OSError: The name can't be resolved.
        UnicodeError: The name is invalid: a label has more than 63 characters.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    first, second = (socket.AF_INET6, socket.AF_INET) if prefer_ipv6 else (socket.AF_INET, socket.AF_INET6)
    kinds = {kind: dict.fromkeys(str(each[4][0]) for each in found if each[0] == kind) for kind in (first, second)}
    return list(kinds[first] or kinds[second])


@attrs.define(eq=False)
class _Followed:
    """A followed name, its connected addresses, and the timer of a look-up.

    ``peer`` is the name of the key at all addresses, or None.

    ``failed`` is True if the last look-up has failed. ``refused`` is True if the last attempt to connect to new
    addresses has failed for at least one address.
    """

    endpoint: str
    host: str
    peer: str | None = None
    addresses: list[str] = attrs.field(factory=list)
    failed: bool = False
    refused: bool = False
    timer: Any = None


class Names:
    """Connects a socket to each address of the host names in its endpoints.

    If a look-up fails, `Names` keeps all connections, and logs the failure once. The socket may be unable to connect to
    an address, for example because no descriptor is free. `Names` then logs the error once, and retries after the next
    look-up. All methods must be called in the reactor's thread.

    Args:
        reactor: The Twisted reactor, for timers.
        subject: The first word of log lines.
        connect: Called with ``tcp://address:port`` for each new address of a name.
        disconnect: Called with each address that the name no longer has. If messages from this connection may be
            unread, the owner reads them before it disconnects.
        prefer_ipv6: True to use IPv6 addresses if a name has any.
    """

    def __init__(
        self,
        reactor: Any,
        subject: str,
        connect: Callable[[str], object],
        disconnect: Callable[[str], object],
        *,
        prefer_ipv6: bool = False,
    ) -> None:
        self._reactor = reactor
        self._subject = subject
        self._connect = connect
        self._disconnect = disconnect
        self._prefer_ipv6 = prefer_ipv6
        self._followed: dict[str, _Followed] = {}
        self._kept: dict[str, str | None] = {}  # addresses that are also endpoints, and the names of their peers

    def keep(self, address: str, peer: str | None = None) -> None:
        """Never connect to or disconnect from an address that is also an endpoint.

        The address stays connected even if a host name no longer has it. ``peer`` is the name of the key there.
        """
        self._kept[address] = peer

    def release(self, address: str) -> None:
        """Undo `keep` for an address whose endpoint was closed."""
        self._kept.pop(address, None)
        for followed in self._followed.values():
            if address in followed.addresses:
                followed.addresses.remove(address)  # connected again after the next look-up

    def follow(self, endpoint: str, peer: str | None = None) -> None:
        """Connect to the addresses of the name in this endpoint from now on.

        The socket connects to the first addresses when the first look-up has ended.

        Args:
            endpoint: An address with a host name, such as ``tcp://feeds:5555``; see `has_addresses`.
            peer: The name of the key that the programs at all these addresses share. None: no keys.

        Raises:
            EndpointError: The name contains characters that are not valid in a host name.
        """
        host = host_name(endpoint)
        if host is None or not _HOST.fullmatch(host):
            raise EndpointError(
                f"can't connect {endpoint}: {host!r} is not a host name: write tcp://host:port",
                endpoint=f"connect:{endpoint}",
            )
        followed = self._followed[endpoint] = _Followed(endpoint, host, peer)
        self._look(followed)

    def endpoint_at(self, address: str) -> Endpoint:
        """Return the endpoint for an address of a name that is followed."""
        peers = (each.peer for each in self._followed.values() if address in each.addresses)
        return Endpoint(address, bind=False, peer=next(peers, None))

    def of(self, endpoint: str) -> tuple[str, ...]:
        """Return the connected addresses of the name in this endpoint."""
        followed = self._followed.get(endpoint)
        return () if followed is None else tuple(followed.addresses)

    def forget(self, endpoint: str) -> tuple[str, ...]:
        """Stop following an endpoint; return the addresses for the caller to disconnect.

        The result omits addresses that another followed name also has.
        """
        followed = self._followed.pop(endpoint, None)
        if followed is None:
            return ()
        if followed.timer is not None:
            followed.timer.cancel()
        return tuple(each for each in followed.addresses if not self._elsewhere(each, followed))

    def close(self) -> None:
        """Stop following all endpoints. The caller closes the socket."""
        for endpoint in tuple(self._followed):
            self.forget(endpoint)

    def _look(self, followed: _Followed) -> None:
        followed.timer = None
        threading.Thread(target=self._look_up, args=(followed,), name="zroute-lookup", daemon=True).start()

    def _look_up(self, followed: _Followed) -> None:
        """Look up a name, in a thread."""
        try:
            answer: list[str] | Exception = addresses_of(followed.host, self._prefer_ipv6)
        except (OSError, UnicodeError) as error:
            answer = error
        with suppress(RuntimeError):  # the reactor's loop is closed
            self._reactor.callFromThread(self._answered, followed, answer)

    def _answered(self, followed: _Followed, answer: list[str] | Exception) -> None:
        if self._followed.get(followed.endpoint) is not followed:  # forgotten during the look-up
            return
        try:
            if isinstance(answer, Exception):
                self._fail(followed, answer)
            else:
                self._change(followed, [_with_host(followed.endpoint, each) for each in answer])
        finally:
            if self._followed.get(followed.endpoint) is followed:
                pause = EVERY if followed.addresses else SOON
                followed.timer = self._reactor.callLater(pause, self._look, followed)

    def _fail(self, followed: _Followed, error: Exception) -> None:
        if followed.failed:
            return
        followed.failed = True
        number = len(followed.addresses)
        kept = f"; the connections to its {number} addresses remain open" if number else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        text = "%s: the host name in %s can't be resolved: %s%s; trying again"
        _log.warning(text, self._subject, followed.endpoint, reason, kept)

    def _change(self, followed: _Followed, addresses: list[str]) -> None:
        """Connect to new addresses, and disconnect from addresses that have vanished."""
        # Set before `_connect`, which asks `endpoint_at` for the key of a new address.
        before, followed.addresses = followed.addresses, addresses
        failed, followed.failed = followed.failed, False
        new = [each for each in addresses if each not in before and not self._elsewhere(each, followed)]
        gone = [each for each in before if each not in addresses and not self._elsewhere(each, followed)]
        for address in gone:
            self._disconnect(address)
        new = self._connected(followed, new)
        if new or gone or failed:
            facts = f"{len(addresses)} address{'es' * (len(addresses) > 1)}"
            if new:
                facts += f": connecting to {', '.join(new)}"
            if gone:
                facts += f"; disconnecting from {', '.join(gone)}"
            _log.info("%s: the host name in %s has %s", self._subject, followed.endpoint, facts)

    def _connected(self, followed: _Followed, addresses: list[str]) -> list[str]:
        """Connect to addresses; return the addresses for which this has succeeded.

        The next look-up treats the other addresses as new.
        """
        errors: dict[str, Exception] = {}
        for address in addresses:
            try:
                self.check_peer(address, followed.peer)
                self._connect(address)
            except (EndpointError, zmq.ZMQError, OSError) as error:
                errors[address] = error
        followed.addresses = [each for each in followed.addresses if each not in errors]
        if errors and not followed.refused:
            address, reason = next(iter(errors.items()))
            text = "%s: can't connect to %s, an address of the host name in %s: %s; trying again"
            _log.warning(text, self._subject, address, followed.endpoint, reason)
        followed.refused = bool(errors)
        return [each for each in addresses if each not in errors]

    def check_peer(self, address: str, peer: str | None) -> None:
        """Raise EndpointError if an address is connected with the key of another peer."""
        holders = [(each.endpoint, each.peer) for each in self._followed.values() if address in each.addresses]
        if address in self._kept:
            holders.append((address, self._kept[address]))
        for endpoint, other in holders:
            if other != peer:
                raise EndpointError(
                    f"{endpoint} has this address with the peer {other!r} instead of {peer!r}, but the program at an "
                    "address has one key: correct the name of the peer, or remove one of the endpoints",
                    endpoint=f"connect:{peer}@{address}",
                )

    def _elsewhere(self, address: str, followed: _Followed) -> bool:
        """Return True if another name or endpoint with the same peer has this address."""
        if address in self._kept:
            return self._kept[address] == followed.peer
        others = (each for each in self._followed.values() if each is not followed and each.peer == followed.peer)
        return any(address in each.addresses for each in others)


_HOST = re.compile(r"[A-Za-z0-9._-]+")


def _with_host(endpoint: str, ip: str) -> str:
    """Return ``endpoint`` with an IP address in place of its host name."""
    source, separator, rest = endpoint.removeprefix("tcp://").rpartition(";")
    host = f"[{ip}]" if ":" in ip else ip
    return f"tcp://{source}{separator}{host}:{rest.rpartition(':')[2]}"


def only_ipv6(host: str, getaddrinfo: Callable[..., Any] = socket.getaddrinfo) -> bool | None:
    """Return True if ``host`` has IPv6 addresses and no IPv4 address.

    The result is None if the name can't be resolved. This call blocks.
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
        self._last: dict[str, float] = {}  # the last look-up of each unresolved name, by endpoint
        self._under_way: set[str] = set()

    def begin(self, address: str) -> None:
        """Look up the host name in this endpoint, if the endpoint contains one."""
        host = host_name(address)
        if host is None or address in self._under_way:
            return
        self._last[address] = self._reactor.seconds()
        self._under_way.add(address)
        threading.Thread(target=self._look_up, args=(address, host), name="zroute-lookup", daemon=True).start()

    def again(self, address: str) -> None:
        """Look up the name again if it is unresolved and the last look-up is old.

        A look-up is old after `AGAIN` seconds.
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

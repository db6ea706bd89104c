"""The limit of accepted connections, shared by all sockets of the process.

A process has a limited number of descriptors (RLIMIT_NOFILE, ``ulimit -n``), and each connection takes one. When none
is left, libzmq (4.3.5) tries to accept the next connection in a busy loop, and the rest of the process can't open files
either. Peers could cause that with connections that send nothing. Therefore:

- The first socket that listens raises the soft limit, up to `_RAISED` or the hard limit. It does not do so with a
  reactor that uses ``select``, which can't watch descriptors above 1023.
- At most three quarters of the descriptors are used for accepted connections (`_SHARE`).
- At most `_HALF_OPEN` connections, and at most a quarter of the limit, may be in their handshake. libzmq closes a
  connection whose handshake takes longer than HANDSHAKE_IVL.
- Some descriptors are held in reserve. If they can't all be held, other parts of the process have used the rest, and a
  connection is closed for each new one. If libzmq lacks a descriptor to accept a connection, one of the reserve is
  given up, so that libzmq accepts the connection, which is then closed. This ends the busy loop.

**Which connection is closed.** Beyond a limit, the oldest connection in its handshake is closed. The handshake of an
honest peer takes milliseconds, so a flood of half-open connections hits itself. If no connection is in its handshake,
the new connection is closed. A connection that has finished its handshake is never closed for a newer one.

**What is known about a handshake.** libzmq reports the end of a handshake without a descriptor, and does not report
some failed handshakes at all. Its events tell the number of unfinished handshakes, but not which ones. So this module
asks the system for the bytes of a connection, but only when it looks for a connection to close: with keys, whether the
peer has acknowledged more than our part of the handshake, which ends with the acceptance of its key; without keys,
whether it has sent more than a greeting. Over ipc, and on systems that do not tell, a connection may be half-open until
its time is over, or until it has sent a message.
"""

from __future__ import annotations

import errno
import math
import os
import resource
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from typing import Any, Protocol

import attrs
from twisted.internet.selectreactor import SelectReactor

from zroute.sockets.descriptors import Identity, bytes_passed, is_open

__all__ = ["ACCEPTED", "LACK", "Accepted", "AcceptedConnections", "Listening"]

_RAISED = 65_536
"""The soft limit that is asked for. More connections than that need a deliberate ``ulimit -n``."""

_SHARE = 0.75
"""The part of the descriptors for accepted connections. The rest is for files, clients and the sockets themselves."""

_HALF_OPEN = 1_000
"""The maximum number of connections in their handshake. With CURVE, about 400 handshakes a second are possible."""

PER_KEY = 1_000
"""The maximum number of connections of one key at one app. A larger group of programs can use several keys."""

_SPARE = 4
"""The number of descriptors in reserve. One is enough, unless other threads take a freed descriptor first."""

_HOSTS = 10_000
"""The maximum number of hosts for which the end of an unknown connection is noted."""

_AGAIN = 0.1
"""The time in seconds for which further reports of the same lack of descriptors are ignored.

libzmq sends thousands of them until the connection is closed that was chosen.
"""

_GREETING = 64
"""The bytes that a ZMTP peer can send before the handshake (RFC 23)."""

_WELCOME = 170
"""The size of the first command of a CURVE server (RFC 26). Its next one accepts or refuses the key of the client."""

LACK = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""The errors of ``accept`` that leave the connection in the queue of the system (accept(2))."""


class Listening(Protocol):
    """A socket that accepts connections."""

    cost: int
    """The number of descriptors of each connection."""

    def refuse(self, id: int, reason: str, remedy: str) -> None:
        """Close the connection with this id, and log the reason."""

    @property
    def encrypts(self) -> bool:
        """True if a handshake needs a key."""

    @property
    def greeting(self) -> int:
        """The number of handshakes that have not ended, according to libzmq's events."""

    @property
    def alive(self) -> Set[int]:
        """The ids of the connections, according to libzmq's events."""


@attrs.frozen(eq=False)
class Accepted:
    """An accepted connection.

    Attributes:
        socket: The socket that accepted the connection.
        id: The id of the connection in this socket.
        fd: The descriptor.
        identity: The identity of the descriptor.
        until: The time at which libzmq has ended an unfinished handshake.
    """

    socket: Listening
    id: int
    fd: int
    identity: Identity
    until: float

    @property
    def shook_hands(self) -> bool:
        """True if the connection has surely finished its handshake.

        Without keys, it has sent more than a greeting.
        """
        passed = bytes_passed(self.fd, self.identity)
        if passed is None:
            return False
        if self.socket.encrypts:
            return passed.acknowledged > _GREETING + _WELCOME
        return passed.received > _GREETING

    @property
    def is_open(self) -> bool:
        """False if the connection has ended, even without an event of libzmq."""
        return is_open(self.fd, self.identity)


class AcceptedConnections:
    """The accepted connections of a process.

    Times are in seconds of one clock.
    """

    def __init__(self) -> None:
        self._all: dict[Listening, dict[int, Accepted]] = {}
        self._used = 0
        # Both are in the order of their beginning: connections whose time for a handshake is not over, and those of
        # them that have not shown yet that they have finished their handshake.
        self._young: dict[Accepted, None] = {}
        self._half_open: dict[Accepted, None] = {}
        # Until when a key can't be assigned at its handshake, by socket and host.
        self._unclear: dict[tuple[Listening, str], float] = {}
        self._all_unclear = -math.inf
        self._spare: list[int] = []
        self._began = False
        self._acted = self._compared = -_AGAIN
        self._freed = True

    @property
    def most(self) -> int:
        """The maximum number of descriptors for accepted connections."""
        return int(_descriptors() * _SHARE)

    @property
    def most_per_key(self) -> int:
        """The maximum number of connections of one key at one app."""
        return min(PER_KEY, self.most // 2)

    def begin(self, reactor: Any) -> None:
        """Prepare for the first connection. Call this before a socket listens."""
        if not self._began and not isinstance(reactor, SelectReactor):
            _raise_limit()
        self._began = True
        self._refill()

    def admit(self, socket: Listening, id: int, fd: int, identity: Identity, now: float, handshake: float) -> None:
        """Record a new connection. If a limit is exceeded, close one.

        ``handshake`` is the longest time of a handshake.
        """
        new = Accepted(socket, id, fd, identity, now + handshake)
        self._all.setdefault(socket, {})[id] = new
        self._used += socket.cost
        self._young[new] = self._half_open[new] = None
        self._expire(now)
        most = self.most
        half_open = min(_HALF_OPEN, most // 4)
        # `_oldest` forgets connections that have ended, so the second comparison may have another result.
        if self._greeting > half_open and (oldest := self._oldest(now)) and self._greeting > half_open:
            reason = f"more than {half_open} connections are in their handshake"
            self._close(oldest, reason, "find the peer that connects and sends nothing")
        if not self._refill():
            self._close(self._oldest(now) or new, *_NO_DESCRIPTOR)
        elif self._used > most:
            self._compare(now)
            victim = self._oldest(now) or new
            if self._used > most:
                reason = f"connections use {most} descriptors, which is three quarters of the limit"
                self._close(victim, reason, "increase ulimit -n")

    def ended(self, socket: Listening, ids: Iterable[int]) -> None:
        """Forget connections that have ended."""
        for id in ids:
            one = self._all.get(socket, {}).get(id)
            if one is not None:
                self._forget(one)
        self._freed = True
        self._refill()

    def keep(self, socket: Listening, ids: Set[int]) -> None:
        """Forget all connections of a socket except those with these ids."""
        self.ended(socket, self._all.get(socket, {}).keys() - ids)

    def left(self, socket: Listening) -> None:
        """Forget all connections of a socket that was closed."""
        self.keep(socket, frozenset())
        self._all.pop(socket, None)
        for key in [key for key in self._unclear if key[0] is socket]:
            del self._unclear[key]

    def forked(self) -> None:
        """Forget all connections, because they belong to the parent process."""
        self._all.clear()
        self._young.clear()
        self._half_open.clear()
        self._used = 0

    def proved(self, socket: Listening, id: int) -> None:
        """Record that a connection has sent a message."""
        one = self._all.get(socket, {}).get(id)
        if one is not None:
            self._half_open.pop(one, None)

    def exhausted(self, now: float) -> None:
        """Close a connection, because libzmq lacks a descriptor for another one."""
        if not self._freed and now - self._acted < _AGAIN:
            return
        self._acted, self._freed = now, False
        victim = self._oldest(now)
        if victim is not None:
            self._close(victim, *_NO_DESCRIPTOR)
        elif self._spare:
            os.close(self._spare.pop())

    def number_of(self, socket: Listening) -> int:
        """Return the number of connections that a socket has accepted."""
        return len(self._all.get(socket, ()))

    def in_handshake(self, socket: Listening, host: str) -> Iterator[int]:
        """Yield the ids of connections from ``host`` that may be in their handshake."""
        for one in self._young:
            if one.socket is socket and one.identity.host == host:
                yield one.id

    def note_unknown(self, socket: Listening, host: str, now: float, handshake: float) -> None:
        """Record that a connection from a host has ended whose key was unknown.

        A request about its key may still wait for an answer, so a key from this host can't be assigned to another
        connection before the time for a handshake is over.
        """
        if len(self._unclear) >= _HOSTS:
            self._unclear.clear()
            self._all_unclear = now + handshake
        self._unclear[socket, host] = now + handshake

    def is_clear(self, socket: Listening, host: str, now: float) -> bool:
        """Return True if no request of an ended connection can wait for an answer."""
        if self._unclear.get((socket, host), -math.inf) <= now:
            self._unclear.pop((socket, host), None)
            return now >= self._all_unclear
        return False

    @property
    def _greeting(self) -> int:
        """The number of unfinished handshakes."""
        return min(len(self._half_open), sum(socket.greeting for socket in self._all))

    def _oldest(self, now: float) -> Accepted | None:
        """Return the oldest connection in its handshake."""
        for one in tuple(self._half_open):
            if not one.is_open:
                self._forget(one, now)
            elif one.shook_hands:
                del self._half_open[one]
            else:
                return one
        return None

    def _expire(self, now: float) -> None:
        while self._young and (oldest := next(iter(self._young))).until < now:
            del self._young[oldest]
            self._half_open.pop(oldest, None)
            if not oldest.is_open:
                self._forget(oldest, now)

    def _compare(self, now: float) -> None:
        """Forget connections that have ended without an event; at most once a second."""
        if now - self._compared >= 1.0:
            self._compared = now
            for socket in tuple(self._all):
                self.keep(socket, socket.alive)

    def _forget(self, one: Accepted, now: float | None = None) -> None:
        """Forget a connection. With ``now``, it has ended without an event."""
        if self._all.get(one.socket, {}).pop(one.id, None) is not None:
            self._used -= one.socket.cost
            if now is not None and one.identity.host is not None:
                self.note_unknown(one.socket, one.identity.host, now, max(one.until - now, 0.0))
        self._young.pop(one, None)
        self._half_open.pop(one, None)

    def _close(self, one: Accepted, reason: str, remedy: str) -> None:
        self._half_open.pop(one, None)
        one.socket.refuse(one.id, reason, remedy)

    def _refill(self) -> bool:
        """Hold all descriptors of the reserve; return False if the process has too few."""
        with suppress(OSError):
            while len(self._spare) < _SPARE:
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        return len(self._spare) >= _SPARE


_NO_DESCRIPTOR = ("the process has no free descriptor", "increase ulimit -n, or find what keeps files open")


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _RAISED if soft == resource.RLIM_INFINITY else soft


def _raise_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _RAISED if hard == resource.RLIM_INFINITY else min(_RAISED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a system with a limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


ACCEPTED = AcceptedConnections()
"""The accepted connections of this process, because descriptors belong to the process."""

os.register_at_fork(after_in_child=ACCEPTED.forked)

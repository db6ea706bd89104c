"""The limit of accepted connections, shared by all sockets of the process.

A process has a limited number of descriptors (RLIMIT_NOFILE, ``ulimit -n``), and each connection takes one. When none
is left, libzmq (4.3.5) tries to accept the next connection in a busy loop, and the rest of the process can't open files
either. Peers could cause that with connections that send nothing. Therefore:

- The first socket that listens raises the soft limit, up to `_RAISED` or the hard limit. It does not do so with a
  reactor that uses ``select``, which can't watch descriptors above 1023.
- At most three quarters of the descriptors are used for accepted connections (`_SHARE`).
- At most `_HALF_OPEN` connections, and at most a quarter of the limit, may be in their handshake. libzmq closes a
  connection whose handshake takes longer than HANDSHAKE_IVL.
- If other parts of the process have used the remaining descriptors, a connection is closed for each new one. If there
  is none to close, this module gives up a spare descriptor, so that libzmq can accept the new connection, and closes
  that connection. This ends the busy loop.

**Which connection is closed.** Beyond a limit, the oldest connection in its handshake is closed. The handshake of an
honest peer takes milliseconds, so a flood of half-open connections hits itself. If no connection is in its handshake,
the newest connection is closed. Connections that exchange messages are never closed for a newer one.

**What is known about a handshake.** libzmq reports the end of a handshake without a descriptor, and does not report
some failed handshakes at all. So this module asks the system how many bytes a connection has received, but only when it
looks for a connection to close. Over ipc, and on systems that do not tell, a connection counts as half-open for
`_HANDSHAKE` seconds.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from typing import Any, Protocol

import attrs
from twisted.internet.selectreactor import SelectReactor

from zroute.sockets.descriptors import Identity, bytes_received, is_open

__all__ = ["ACCEPTED", "LACK", "Accepted", "AcceptedConnections", "Listening"]

_RAISED = 65_536
"""The soft limit that is asked for. More connections than that need a deliberate ``ulimit -n``."""

_SHARE = 0.75
"""The part of the descriptors for accepted connections. The rest is for files, clients and the sockets themselves."""

_HALF_OPEN = 1_000
"""The maximum number of connections in their handshake. With CURVE, about 400 handshakes a second are possible."""

PER_KEY = 1_000
"""The maximum number of connections of one key at one app. A larger group of programs can use several keys."""

_HANDSHAKE = 6.0
"""The time in seconds after which a connection is no longer in its handshake: HANDSHAKE_IVL and a second more."""

_SPARE = 4
"""The number of spare descriptors. One is enough, unless other threads take a freed descriptor first."""

_AGAIN = 0.1
"""The time in seconds for which further reports of the same lack of descriptors are ignored.

libzmq sends thousands of them until the connection is closed that was chosen.
"""

_GREETING = 64
"""The bytes that a ZMTP peer can send before the handshake (RFC 23)."""

_HELLO = 202
"""The size of the first command of a CURVE client (RFC 26). Only an answer to our reply follows it."""

LACK = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""The errors of ``accept`` that leave the connection in the queue of the system (accept(2))."""


class Listening(Protocol):
    """A socket that accepts connections."""

    def refuse(self, id: int, reason: str, remedy: str) -> None:
        """Close the connection with this id, and log the reason."""

    @property
    def encrypts(self) -> bool:
        """True if a handshake needs a key."""


@attrs.frozen(eq=False)
class Accepted:
    """An accepted connection.

    Attributes:
        socket: The socket that accepted the connection.
        id: The id of the connection in this socket.
        fd: The descriptor.
        identity: The identity of the descriptor; None if it is unknown.
        since: The time at which the connection began.
    """

    socket: Listening
    id: int
    fd: int
    identity: Identity | None
    since: float

    @property
    def host(self) -> str | None:
        """The host of the peer, as ZAP reports it; None over ipc."""
        return None if self.identity is None else self.identity.host

    @property
    def shook_hands(self) -> bool:
        """True if the peer has sent more than an unfinished handshake."""
        received = None if self.identity is None else bytes_received(self.fd, self.identity)
        return received is not None and received > _GREETING + _HELLO * self.socket.encrypts

    @property
    def is_open(self) -> bool:
        """False if the connection has ended, even without an event of libzmq."""
        return self.identity is None or is_open(self.fd, self.identity)


class AcceptedConnections:
    """The accepted connections of a process.

    Times are in seconds of one clock.
    """

    def __init__(self) -> None:
        self._all: dict[Listening, dict[int, Accepted]] = {}
        self._number = 0
        # Both are in the order of their beginning: connections of the last `_HANDSHAKE` seconds, and those of them that
        # have not shown yet that they have finished their handshake.
        self._young: dict[Accepted, None] = {}
        self._half_open: dict[Accepted, None] = {}
        self._spare: list[int] = []
        self._began = False
        self._reject = 0
        self._acted = -_AGAIN
        self._freed = True

    @property
    def most(self) -> int:
        """The maximum number of accepted connections."""
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

    def admit(self, socket: Listening, id: int, fd: int, identity: Identity | None, now: float) -> None:
        """Record a new connection. If a limit is exceeded, close one."""
        new = Accepted(socket, id, fd, identity, now)
        self._all.setdefault(socket, {})[id] = new
        self._number += 1
        self._young[new] = self._half_open[new] = None
        self._expire(now)
        if self._reject:
            self._reject -= 1
            self._close(new, *_NO_DESCRIPTOR)
        most = self.most
        half_open = min(_HALF_OPEN, most // 4)
        # `_oldest` forgets connections that have ended, so the second comparison may have another result.
        if len(self._half_open) > half_open and (oldest := self._oldest()) and len(self._half_open) > half_open:
            reason = f"more than {half_open} connections are in their handshake"
            self._close(oldest, reason, "find the peer that connects and sends nothing")
        if not self._has_free():
            self._close(self._oldest() or new, *_NO_DESCRIPTOR)
        elif self._number > most:
            victim = self._oldest() or new
            if self._number > most:
                reason = f"{most} connections are open, which is three quarters of the limit of descriptors"
                self._close(victim, reason, "increase ulimit -n")

    def ended(self, socket: Listening, ids: Iterable[int]) -> None:
        """Forget connections that have ended."""
        of = self._all.get(socket, {})
        for id in ids:
            one = of.pop(id, None)
            if one is not None:
                self._drop(one)
        self._freed = True
        self._refill()

    def keep(self, socket: Listening, ids: Set[int]) -> None:
        """Forget all connections of a socket except those with these ids."""
        self.ended(socket, self._all.get(socket, {}).keys() - ids)

    def left(self, socket: Listening) -> None:
        """Forget all connections of a socket that was closed."""
        self.keep(socket, frozenset())
        self._all.pop(socket, None)

    def forked(self) -> None:
        """Forget all connections, because they belong to the parent process."""
        self._all.clear()
        self._young.clear()
        self._half_open.clear()
        self._number = 0

    def exhausted(self, now: float) -> None:
        """Close a connection, because libzmq lacks a descriptor for another one."""
        if not self._freed and now - self._acted < _AGAIN:
            return
        self._acted, self._freed = now, False
        victim = self._oldest()
        if victim is not None:
            self._close(victim, *_NO_DESCRIPTOR)
        elif self._spare:
            os.close(self._spare.pop())
            self._reject += 1
        elif self._number:
            newest = max((one for of in self._all.values() for one in of.values()), key=lambda one: one.since)
            self._close(newest, *_NO_DESCRIPTOR)

    def in_handshake(self, socket: Listening, host: str) -> Iterator[Accepted]:
        """Yield the connections of ``socket`` that may be in their handshake.

        The result contains the connections from ``host``, and those whose host is unknown.
        """
        for one in tuple(self._young):
            if one.socket is socket and (one.identity is None or one.host == host):
                yield one

    def _oldest(self) -> Accepted | None:
        """Return the oldest connection in its handshake."""
        for one in tuple(self._half_open):
            if not one.is_open:
                self._forget(one)
            elif one.shook_hands:
                del self._half_open[one]
            else:
                return one
        return None

    def _expire(self, now: float) -> None:
        while self._young and now - (oldest := next(iter(self._young))).since > _HANDSHAKE:
            del self._young[oldest]
            self._half_open.pop(oldest, None)
            if not oldest.is_open:
                self._forget(oldest)

    def _forget(self, one: Accepted) -> None:
        if self._all.get(one.socket, {}).pop(one.id, None) is not None:
            self._drop(one)

    def _drop(self, one: Accepted) -> None:
        self._number -= 1
        self._young.pop(one, None)
        self._half_open.pop(one, None)

    def _close(self, one: Accepted, reason: str, remedy: str) -> None:
        self._half_open.pop(one, None)
        one.socket.refuse(one.id, reason, remedy)

    def _has_free(self) -> bool:
        """Return True if the process has a free descriptor."""
        try:
            os.close(os.dup(self._spare[0] if self._spare else 0))
        except OSError as error:
            return error.errno not in LACK
        return True

    def _refill(self) -> None:
        """Open the spare descriptors, as many as possible."""
        with suppress(OSError):
            while len(self._spare) + self._reject < _SPARE:
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


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

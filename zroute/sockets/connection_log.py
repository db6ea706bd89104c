"""Log lines about the endpoints that a socket connects to: connected, no answer, connected again, refused.

Plain bookkeeping: it knows no ZeroMQ. libzmq tells of each attempt to connect, several a second, and never why one
failed (zmq_socket_monitor(3)). So an absence is one line, with what the order of the events says about its reason, and
the return is another. An absence of which another line tells already is not logged: see `ConnectionLog.told`.
"""

from __future__ import annotations

import errno
import logging
from math import inf
from typing import Any

import attrs

from zroute.clock import Clock
from zroute.sockets.events import SocketEvent
from zroute.sockets.names import host_name
from zroute.throttle import ThrottledLog

__all__ = ["NO_ANSWER", "ConnectionLog"]

NO_ANSWER = 3.0
"""Seconds without a connection until that is logged: longer than a restart takes."""

_ENDED = 10.0
"""Seconds after a goodbye within which the publisher's connection ends, if it is the publisher's own."""

_MINUTE = 60.0

_NO_ATTEMPT = ("no attempt yet", "no attempt yet, since its name is still being looked up")
"""The reason while libzmq has told nothing: it looks a name up first, and tells of that when it has an answer."""


@attrs.define(eq=False)
class _Dial:
    """What is known about one endpoint.

    ``timer`` runs while an absence may still have to be logged. ``known`` is True if another line tells of the absence
    and of the return, ``attempted`` if libzmq has told of the attempt to connect that is under way.
    """

    reason: str
    timer: Any = None
    connected_before: bool = False
    known: bool = False
    attempted: bool = False
    ended_at: float = -inf


class ConnectionLog:
    """Logs what happens to the endpoints that were dialled; ``name`` begins each line.

    Repeated lines about one endpoint are summed up each minute.
    """

    def __init__(self, clock: Clock, log: logging.Logger, name: str) -> None:
        self.name = name
        self._clock = clock
        self._connections = ThrottledLog(log, clock, window=_MINUTE)
        self._refusals = ThrottledLog(log, clock, burst=1, window=_MINUTE)
        self._dials: dict[str, _Dial] = {}

    # -- what the socket's owner tells ----------------------------------------------------------------------

    def dial(self, endpoint: str) -> None:
        """From now on the socket connects to ``endpoint``. Of ``inproc`` libzmq tells nothing, and so does this."""
        if not endpoint.startswith("inproc://"):
            self.forget(endpoint)
            self._dials[endpoint] = dial = _Dial(reason=_NO_ATTEMPT[host_name(endpoint) is not None])
            self._miss(endpoint, dial)

    def forget(self, endpoint: str) -> None:
        """The endpoint is taken back."""
        dial = self._dials.pop(endpoint, None)
        if dial is not None:
            _stop(dial)

    def told(self, endpoint: str) -> None:
        """Another line tells that the connection to ``endpoint`` ends, and will tell of the return."""
        dial = self._dials.get(endpoint)
        if dial is not None:
            dial.known = True
            _stop(dial)

    def rests(self, endpoint: str) -> None:
        """The socket leaves ``endpoint`` alone for a while, which is logged: its absence is no news, its return is."""
        dial = self._dials.get(endpoint)
        if dial is not None:
            dial.known = False
            _stop(dial)

    def redialled(self, endpoint: str) -> None:
        """The socket has begun to connect to ``endpoint`` again: its absence is logged if that takes too long."""
        dial = self._dials.get(endpoint)
        if dial is not None and dial.timer is None:
            self._miss(endpoint, dial)

    def ended(self, endpoint: str) -> None:
        """A publisher there has said goodbye, which is logged: that its connection ends is no news, its return is."""
        dial = self._dials.get(endpoint)
        if dial is not None:
            dial.ended_at = self._clock.seconds()
            _stop(dial)

    def close(self) -> None:
        """Log what is summed up still, and leave no timer behind."""
        for endpoint in tuple(self._dials):
            self.forget(endpoint)
        self._connections.close()
        self._refusals.close()

    # -- what happens ---------------------------------------------------------------------------------------

    def attempted(self, endpoint: str, event: SocketEvent) -> None:
        """Note an event of an attempt to connect: it may be the reason of an absence."""
        dial = self._dials.get(endpoint)
        if dial is None:
            return
        if event.name != "connect_retried":
            dial.attempted, dial.reason = True, _reason(endpoint, event)
        elif dial.attempted:  # it comes behind the events that say more
            dial.attempted = False
        else:
            dial.reason = _reason(endpoint, event)

    def connected(self, endpoint: str) -> None:
        """The handshake is done."""
        dial = self._dials.get(endpoint)
        if dial is None:
            return
        _stop(dial)
        if not dial.known:
            again = " again" if dial.connected_before else ""
            self._say(endpoint, "connected", "%s: connected to %s%s", endpoint, again)
        dial.connected_before, dial.known, dial.ended_at = True, False, -inf

    def lost(self, endpoint: str) -> None:
        """A connection whose handshake was done has ended."""
        dial = self._dials.get(endpoint)
        if dial is not None and not dial.known and self._clock.seconds() - dial.ended_at > _ENDED:
            self._miss(endpoint, dial)

    def refused(self, endpoint: str, why: str, *, handshake: bool) -> None:
        """The peer at ``endpoint`` and this socket do not fit together: ``why``, with what to do about it.

        Unless the ``handshake`` itself failed, the next one will succeed as the last one did, and is not logged.
        """
        self.warn(endpoint, why, why)
        dial = self._dials.get(endpoint)
        if dial is not None:
            dial.known = not handshake
            _stop(dial)

    def warn(self, endpoint: str, kind: str, text: str) -> None:
        """Log a warning about ``endpoint``; of each ``kind`` there is one a minute, and then how many more."""
        subject = f"{self.name}: {endpoint}"
        self._refusals((endpoint, kind), subject, logging.WARNING, "%s: %s", subject, text)

    def _miss(self, endpoint: str, dial: _Dial) -> None:
        _stop(dial)
        dial.timer = self._clock.callLater(NO_ANSWER, self._missed, endpoint, dial)

    def _missed(self, endpoint: str, dial: _Dial) -> None:
        dial.timer, dial.known = None, False  # the return is logged, too
        text = "%s: no answer from %s for %g s: %s; trying again"
        self._say(endpoint, "no answer", text, endpoint, NO_ANSWER, dial.reason)

    def _say(self, endpoint: str, kind: str, text: str, *facts: object) -> None:
        subject = f"{self.name}: {endpoint}: {kind}"
        self._connections((endpoint, kind), subject, logging.INFO, text, self.name, *facts)


_ENDS = (
    "takes the connection, and ends it in the handshake, as a program without ZeroMQ does (an HTTP server), or a "
    "socket that asks for a key"
)
"""libzmq tells the same of both, unless it is the first to end the handshake: see `PersistentConnection`."""


def _stop(dial: _Dial) -> None:
    if dial.timer is not None:
        dial.timer.cancel()
        dial.timer = None


def _reason(endpoint: str, event: SocketEvent) -> str:
    """Return what an event of an attempt says about the peer, with libzmq's name of the event."""
    tcp = endpoint.startswith("tcp://")
    silent = "takes the connection, and sends no greeting of ZMTP 3"
    if event.name == "connect_retried":
        said = "its name can't be resolved" if host_name(endpoint) else "there is no route to it"
    elif event.name == "closed":
        said = "refused, nothing listens there" if tcp else "nothing listens at this path"
    elif event.name == "connected":
        said = silent
    elif event.name.startswith("handshake_failed"):
        late = event.name.endswith("no_detail") and event.value == errno.EAGAIN
        said = silent if late else f"{_ENDS} ({event.reason})"
    else:
        said = "the host does not reply: it is down, or a firewall is between"
    return f"{said} (libzmq: {event.name})"

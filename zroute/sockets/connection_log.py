"""Log lines about the connections to endpoints: connected, no answer, refused.

This module does not use ZeroMQ. libzmq reports several connection attempts per second, but never the reason of a
failure (zmq_socket_monitor(3)). zroute therefore logs one line when a peer has been absent for `NO_ANSWER` seconds, and
one line when the peer returns. The reason in the line is derived from the order of the events. An absence that another
line reports is not logged; see `ConnectionLog.told`.

A peer that refuses the connection is logged once a minute for each reason. If the reason has changed since the last
line, or the endpoint was connected, the new state is logged at once: the last line about an endpoint is then true. An
endpoint that changes often is an exception, because it would flood the log.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from math import inf
from typing import Any

import attrs

from zroute.clock import Clock
from zroute.sockets.events import SocketEvent
from zroute.sockets.names import host_name
from zroute.throttle import BURST, ThrottledLog

__all__ = ["NO_ANSWER", "ConnectionLog"]

NO_ANSWER = 3.0
"""The time in seconds without a connection after which the absence is logged. A restart usually takes less time."""

_ENDED = 10.0
"""The time in seconds within which a publisher disconnects after a goodbye.

If the connection ends later, the peer was not the publisher itself, but for example a proxy.
"""

_MINUTE = 60.0  # the time in seconds in which repeated lines are summarized

_NO_ATTEMPT = ("no attempt yet", "no attempt yet, because the host name is still being looked up")
"""The reason before libzmq has reported an attempt.

libzmq resolves a name first, and does not report an event until the name server has answered.
"""


@attrs.define(eq=False)
class _Dial:
    """The state of one endpoint.

    ``timer`` runs while an absence may become long enough to be logged. ``known`` is True if another line reports the
    absence and the return. ``attempted`` is True if libzmq has reported the current attempt to connect. ``refusal`` is
    the reason of the last refusal, or None after a connection. ``changes`` contains the times of its last changes.
    """

    reason: str
    timer: Any = None
    connected_before: bool = False
    known: bool = False
    attempted: bool = False
    ended_at: float = -inf
    refusal: str | None = None
    changes: list[float] = attrs.field(factory=list)


class ConnectionLog:
    """Logs the connections of endpoints; each line begins with ``name``.

    Repeated lines about one endpoint are summarized each minute.
    """

    def __init__(self, clock: Clock, log: logging.Logger, name: str) -> None:
        self.name = name
        self._clock = clock
        self._connections = ThrottledLog(log, clock, window=_MINUTE)
        self._refusals = ThrottledLog(log, clock, burst=1, window=_MINUTE)
        self._dials: dict[str, _Dial] = {}

    # -- calls of the socket's owner ------------------------------------------------------------------------

    def dial(self, endpoint: str) -> None:
        """Record that the socket connects to ``endpoint``.

        ``inproc`` endpoints are not logged, because libzmq sends no events about them.
        """
        if not endpoint.startswith("inproc://"):
            self.forget(endpoint)
            self._dials[endpoint] = dial = _Dial(reason=_NO_ATTEMPT[host_name(endpoint) is not None])
            self._miss(endpoint, dial)

    def connected_before(self, endpoint: str) -> None:
        """Record that an earlier socket of the same owner was connected to ``endpoint``."""
        dial = self._dials.get(endpoint)
        if dial is not None:
            dial.connected_before = True

    def forget(self, endpoint: str) -> None:
        """Record that the endpoint was disconnected."""
        dial = self._dials.pop(endpoint, None)
        if dial is not None:
            _stop(dial)

    def told(self, endpoint: str) -> None:
        """Record that another log line reports the lost connection and the reconnection."""
        dial = self._dials.get(endpoint)
        if dial is not None:
            dial.known = True
            _stop(dial)

    def rests(self, endpoint: str) -> None:
        """Record that the socket pauses ``endpoint``, which is logged elsewhere.

        `ConnectionLog` does not log the absence, but logs the return of the peer.
        """
        dial = self._dials.get(endpoint)
        if dial is not None:
            dial.known = False
            _stop(dial)

    def redialled(self, endpoint: str) -> None:
        """Record that the socket connects to ``endpoint`` again.

        A long absence is logged from now on.
        """
        dial = self._dials.get(endpoint)
        if dial is not None and dial.timer is None:
            self._miss(endpoint, dial)

    def ended(self, endpoint: str) -> None:
        """Record that a publisher at ``endpoint`` is stopping, which is logged elsewhere.

        `ConnectionLog` does not log the end of the connection, but logs the return of the publisher.
        """
        dial = self._dials.get(endpoint)
        if dial is not None:
            dial.ended_at = self._clock.seconds()
            _stop(dial)

    def reason(self, endpoint: str) -> str | None:
        """Return why the socket is not connected to ``endpoint``, if that is known."""
        dial = self._dials.get(endpoint)
        return None if dial is None else dial.reason

    def close(self) -> None:
        """Log the remaining summaries, and stop all timers."""
        for endpoint in tuple(self._dials):
            self.forget(endpoint)
        self._connections.close()
        self._refusals.close()

    # -- events ---------------------------------------------------------------------------------------------

    def attempted(self, endpoint: str, event: SocketEvent) -> None:
        """Record an event of a connection attempt as the possible reason for an absence."""
        dial = self._dials.get(endpoint)
        if dial is None:
            return
        if event.name != "connect_retried":
            dial.attempted, dial.reason = True, _reason(endpoint, event)
        elif dial.attempted:  # an earlier event of this attempt has a better reason
            dial.attempted = False
        else:
            dial.reason = _reason(endpoint, event)

    def connected(self, endpoint: str) -> None:
        """Record that a handshake has succeeded."""
        dial = self._dials.get(endpoint)
        if dial is None:
            return
        _stop(dial)
        if not dial.known:
            dial.refusal = None
            again = " again" if dial.connected_before else ""
            self._say(endpoint, "connected", "%s: connected to %s%s", endpoint, again)
        dial.connected_before, dial.known, dial.ended_at = True, False, -inf

    def lost(self, endpoint: str) -> None:
        """Record that a connection has ended after its handshake."""
        dial = self._dials.get(endpoint)
        if dial is not None and not dial.known and self._clock.seconds() - dial.ended_at > _ENDED:
            self._miss(endpoint, dial)

    def refused(self, endpoint: str, why: str, *, handshake: bool) -> None:
        """Log that the peer at ``endpoint`` and this socket are incompatible.

        ``why`` is the reason and the remedy. ``handshake`` is True if the handshake itself failed. Otherwise the next
        handshake will succeed as well, and its success is not logged.
        """
        dial = self._dials.get(endpoint)
        if dial is not None:
            if self._is_news(dial, why):
                self._refusals.end((endpoint, why))  # otherwise the same reason, shortly before, would hide this line
            dial.known = not handshake
            _stop(dial)
        self.warn(endpoint, why, why)

    def _is_news(self, dial: _Dial, why: str) -> bool:
        """Record the reason of a refusal.

        Return True if it is not the last one, unless the reason has changed too often in the last minute.
        """
        if why == dial.refusal:
            return False
        now = self._clock.seconds()
        dial.refusal, dial.changes = why, [*(each for each in dial.changes if now - each < _MINUTE), now][-BURST - 1 :]
        return len(dial.changes) <= BURST

    def warn(self, endpoint: str, kind: str, text: str) -> None:
        """Log a warning about ``endpoint``, at most one per minute of each ``kind``.

        Further warnings are counted, and their number is logged.
        """
        subject = f"{self.name}: {endpoint}"
        self._refusals((endpoint, kind), subject, logging.WARNING, "%s: %s", subject, text)

    def _miss(self, endpoint: str, dial: _Dial) -> None:
        _stop(dial)
        dial.timer = self._clock.callLater(NO_ANSWER, self._missed, endpoint, dial)

    def _missed(self, endpoint: str, dial: _Dial) -> None:
        dial.timer, dial.known = None, False  # the return is logged too
        text = "%s: no answer from %s for %g s: %s; trying again"
        # A missing permission does not go away by itself, unlike a program that is not running yet.
        level = logging.WARNING if dial.reason.startswith(_DENIED) else logging.INFO
        self._say(endpoint, "no answer", text, endpoint, NO_ANSWER, dial.reason, level=level)

    def _say(self, endpoint: str, kind: str, text: str, *facts: object, level: int = logging.INFO) -> None:
        subject = f"{self.name}: {endpoint}: {kind}"
        self._connections((endpoint, kind), subject, level, text, self.name, *facts)


_ENDS = (
    "the peer accepts the connection, but closes it during the handshake: not a ZeroMQ program (such as an HTTP "
    "server), or a socket that requires a key"
)
"""The reason if the peer closes the connection during the handshake.

libzmq reports these two cases in the same way, unless this side ends the handshake first; see `PersistentConnection`.
"""


def _stop(dial: _Dial) -> None:
    if dial.timer is not None:
        dial.timer.cancel()
        dial.timer = None


def _reason(endpoint: str, event: SocketEvent) -> str:
    """Return the reason for a failed attempt, and libzmq's name for the event."""
    tcp = endpoint.startswith("tcp://")
    silent = "the peer accepts the connection, but does not send a greeting of ZMTP 3"
    if event.name == "connect_retried":
        said = "the host name can't be resolved" if host_name(endpoint) else "the network has no route to the host"
    elif event.name == "closed":
        said = "connection refused, no program listens on this port" if tcp else _at_path(endpoint)
    elif event.name == "connected":
        said = silent
    elif event.name.startswith("handshake_failed"):
        late = event.name.endswith("no_detail") and event.value == errno.EAGAIN
        said = silent if late else f"{_ENDS} ({event.reason})"
    else:
        said = "the host does not reply: it is down, or a firewall blocks the connection"
    return f"{said} (libzmq: {event.name})"


_DENIED = "this user may not connect to the socket at this path"


def _at_path(endpoint: str) -> str:
    """Return why an ipc connection has failed, from the permissions of the path."""
    path = endpoint.removeprefix("ipc://")
    try:
        state = os.stat(path)
        if os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            return "no program listens at this path"
    except PermissionError:
        return (
            f"{_DENIED}: this user (uid {os.geteuid()}) may not enter the directory: give it the permission to search "
            "the directory (chmod g+x, o+x), or choose another path"
        )
    except OSError:
        return "no program listens at this path"
    return (
        f"{_DENIED}: it belongs to uid {state.st_uid}, has the mode {stat.S_IMODE(state.st_mode):04o}, and this "
        f"process runs as uid {os.geteuid()}. Run both programs as one user, or set options={{'ipc_mode': 0o660}} in "
        "the app that binds it and put both users in its group"
    )

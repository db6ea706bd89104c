"""Detect endpoints that repeatedly close our connections, and explain refusals.

A peer without keys refuses a socket with keys, and the other way round. By chance, one of the two closes the connection
first. libzmq therefore reports such a peer in two ways: as a mismatch of the security mechanisms, or only as a closed
connection, which has other causes too. `Refusals.reason` keeps the sure reason for a while, so that the log does not
alternate between the two.

This module does no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from zroute.sockets.events import SocketEvent

__all__ = ["PAUSE", "PAUSE_MAX", "Refusals"]

_SOON = 5.0
"""The time in seconds after the handshake in which a disconnection may be a refusal."""
_WINDOW = 10.0
"""The time in seconds in which two such disconnections are a refusal. A single one may be a restart."""
_DOUBTS = 3
"""The number of closed connections in a row that still have the last sure reason.

With one more, the reason has probably changed.
"""
PAUSE = 1.0
PAUSE_MAX = 30.0
"""The first and the maximum pause in seconds before reconnecting. The pause doubles each time."""


@attrs.define
class _Endpoint:
    began: float = 0.0
    ended: float | None = None
    attempts: int = 0
    pause: float = 0.0
    sure: str | None = None
    doubts: int = 0


class Refusals:
    """Decides whether a disconnection is a refusal by the peer.

    A disconnection soon after the handshake is a refusal on two conditions. First, an earlier connection has ended in
    the same way shortly before. Second, the peer has accepted the new connection on the first attempt. A restarting
    publisher is unreachable for a while, so a connection to it takes several attempts. If libzmq made no attempt to
    reconnect, libzmq itself has closed the connection, because it refused a frame.

    Times are in seconds of one clock; an endpoint is its address as it was opened.
    """

    def __init__(self) -> None:
        self._endpoints: dict[str, _Endpoint] = {}

    def attempted(self, endpoint: str) -> None:
        """Record that libzmq is about to reconnect."""
        self._of(endpoint).attempts += 1

    def began(self, endpoint: str, now: float) -> None:
        """Record that a connection has begun."""
        self._of(endpoint).began = now

    def ended(self, endpoint: str, now: float) -> float:
        """Record the end of a connection after its handshake.

        Returns the time in seconds to wait before reconnecting; 0 means no pause.
        """
        one = self._of(endpoint)
        before, one.ended = one.ended, now
        attempts, one.attempts = one.attempts, 0
        if now - one.began > _SOON:  # the connection lasted, so earlier refusals no longer count
            one.ended, one.pause = None, 0.0
        elif attempts != 1:  # the peer was unreachable in between, or libzmq itself ended the connection
            one.pause = 0.0
        elif one.pause or (before is not None and now - before <= _WINDOW):
            one.pause = min(max(2 * one.pause, PAUSE), PAUSE_MAX)
        return one.pause

    def refuse(self, endpoint: str) -> float:
        """Record that we closed the connection, or that its handshake failed.

        Returns the time in seconds to wait before reconnecting.
        """
        one = self._of(endpoint)
        one.pause = min(max(2 * one.pause, PAUSE), PAUSE_MAX)
        return one.pause

    def reason(self, endpoint: str, fault: SocketEvent, reason: str) -> str:
        """Return the reason of a failed handshake for the log.

        Args:
            endpoint: The endpoint.
            fault: The event of the failed handshake.
            reason: The reason according to this event alone.
        """
        one = self._of(endpoint)
        if fault.name == "handshake_failed_protocol":
            one.sure, one.doubts = reason, 0
        elif fault.name == "handshake_failed_no_detail" and one.doubts < _DOUBTS:
            one.doubts += 1
        else:
            one.sure = None
        return one.sure or reason

    def forget(self, endpoint: str) -> None:
        """Begin again with the first pause, because the endpoint is connected or closed."""
        self._endpoints.pop(endpoint, None)

    def _of(self, endpoint: str) -> _Endpoint:
        return self._endpoints.setdefault(endpoint, _Endpoint())

"""Detect endpoints that repeatedly end our connections, and pause them. Pure."""

from __future__ import annotations

import attrs

__all__ = ["Refusals"]

_SOON = 5.0
"""Seconds after the handshake within which an end may be a refusal."""
_WINDOW = 10.0
"""Seconds within which two such ends are a refusal; one may be a restart."""
_PAUSE = 1.0
_PAUSE_MAX = 30.0
"""Seconds without a connection: the first pause, which doubles up to the maximum."""


@attrs.define
class _Endpoint:
    began: float = 0.0
    ended: float | None = None
    attempts: int = 0
    pause: float = 0.0


class Refusals:
    """Decides whether the end of a connection is a refusal by the peer.

    An end soon after the handshake is a refusal on two conditions: the same has happened shortly before, and the peer
    has accepted the connection between the two at the first attempt. A publisher that restarts can't be connected to
    for a while, so it takes several attempts. If libzmq made no attempt, it has ended the connection itself, because of
    a frame that it refuses.

    Times are in seconds of one clock; an endpoint is its address as it was opened.
    """

    def __init__(self) -> None:
        self._endpoints: dict[str, _Endpoint] = {}

    def attempted(self, endpoint: str) -> None:
        """Note that libzmq is about to connect again."""
        self._of(endpoint).attempts += 1

    def began(self, endpoint: str, now: float) -> None:
        """Note that a connection has begun."""
        self._of(endpoint).began = now

    def ended(self, endpoint: str, now: float) -> float:
        """Note the end of a connection after its handshake.

        Returns the seconds to wait before connecting again; 0 is no pause.
        """
        one = self._of(endpoint)
        before, one.ended = one.ended, now
        attempts, one.attempts = one.attempts, 0
        if now - one.began > _SOON:  # it lasted, so earlier refusals no longer count
            one.ended, one.pause = None, 0.0
        elif attempts != 1:  # the peer was unreachable in between, or libzmq itself ended the connection
            one.pause = 0.0
        elif one.pause or (before is not None and now - before <= _WINDOW):
            one.pause = min(max(2 * one.pause, _PAUSE), _PAUSE_MAX)
        return one.pause

    def refuse(self, endpoint: str) -> float:
        """Note that we have ended the connection ourselves.

        Returns the seconds to wait before connecting again.
        """
        one = self._of(endpoint)
        one.pause = min(max(2 * one.pause, _PAUSE), _PAUSE_MAX)
        return one.pause

    def _of(self, endpoint: str) -> _Endpoint:
        return self._endpoints.setdefault(endpoint, _Endpoint())

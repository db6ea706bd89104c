"""Refusals: which endpoints end our connections again and again, and how long to leave them alone. Pure."""

from __future__ import annotations

import attrs

__all__ = ["Refusals"]

_SOON = 5.0
"""Seconds after the handshake within which a connection ends that is cut for what was asked by it."""
_WINDOW = 10.0
"""Seconds within which that has to happen twice: once may be a restart."""
_PAUSE = 1.0
_PAUSE_MAX = 30.0
"""Seconds without a connection: the pause doubles, up to the maximum."""


@attrs.define
class _Endpoint:
    began: float = 0.0
    ended: float | None = None
    attempts: int = 0
    pause: float = 0.0


class Refusals:
    """Judges the ends of connections to endpoints. Times are in seconds of one clock.

    An end soon after the handshake is a refusal if the same has happened shortly before, and if the peer has taken the
    connection between at the first attempt: a publisher that is started again can't be connected to for a while. Where
    libzmq attempted nothing it has ended the connection itself, over a frame that it refuses.
    """

    def __init__(self) -> None:
        self._endpoints: dict[str, _Endpoint] = {}

    def attempted(self, endpoint: str) -> None:
        """libzmq is going to connect again."""
        self._of(endpoint).attempts += 1

    def began(self, endpoint: str, now: float) -> None:
        """A connection has begun."""
        self._of(endpoint).began = now

    def ended(self, endpoint: str, now: float) -> float:
        """Return how many seconds not to connect again: a connection that had finished its handshake has ended."""
        one = self._of(endpoint)
        before, one.ended = one.ended, now
        attempts, one.attempts = one.attempts, 0
        if now - one.began > _SOON:
            one.ended, one.pause = None, 0.0
        elif attempts != 1:  # it could not be connected to in between, or is not what ended the connection
            one.pause = 0.0
        elif one.pause or (before is not None and now - before <= _WINDOW):
            one.pause = min(max(2 * one.pause, _PAUSE), _PAUSE_MAX)
        return one.pause

    def refuse(self, endpoint: str) -> float:
        """Return how many seconds not to connect again: we have ended the connection ourselves."""
        one = self._of(endpoint)
        one.pause = min(max(2 * one.pause, _PAUSE), _PAUSE_MAX)
        return one.pause

    def _of(self, endpoint: str) -> _Endpoint:
        return self._endpoints.setdefault(endpoint, _Endpoint())

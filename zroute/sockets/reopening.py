"""Open a socket again when its connection has ended, with increasing pauses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import zmq

from zroute.endpoints import Endpoint
from zroute.errors import EndpointError, NotRunningError

__all__ = ["Reopening"]

_log = logging.getLogger("zroute.sockets")

_PAUSE, _PAUSE_MAX = 0.1, 5.0  # the first and the longest pause in seconds; like RECONNECT_IVL


class Reopening:
    """Calls ``open`` after a pause, and retries until ``open`` succeeds.

    The pause doubles with each call of `later`, until `reset`. Temporary errors, such as a lack of descriptors, are
    logged once. If the context is terminated, the error is logged, and ``open`` is not called again.

    Args:
        reactor: The Twisted reactor, for the timer.
        endpoint: The endpoint, for log lines.
        open: Opens a new socket.
    """

    def __init__(self, reactor: Any, endpoint: Endpoint, open: Callable[[], object]) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._open = open
        self._pause = _PAUSE
        self._timer: Any = None
        self._fails = False

    def later(self) -> None:
        """Open the socket after the pause."""
        if self._timer is None:
            self._timer = self._reactor.callLater(self._pause, self._again)
            self._pause = min(self._pause * 2, _PAUSE_MAX)

    def reset(self) -> None:
        """Return to the shortest pause, because the peer has sent a message."""
        self._pause = _PAUSE

    def cancel(self) -> None:
        """Cancel the scheduled opening."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        self._timer = None
        try:
            self._open()
        except (EndpointError, NotRunningError, zmq.ZMQError, OSError) as error:
            if isinstance(error, NotRunningError) or getattr(error, "errno", None) in _FINAL:
                _log.error("%s: can't reconnect: %s", self._endpoint, error)
                return
            if not self._fails:  # for example, no descriptor is free, or the address is still in use
                _log.warning("%s: can't reconnect yet: %s; trying again", self._endpoint, error)
            self._fails = True
            self.later()
        else:
            self._fails = False


_FINAL = (zmq.ETERM, zmq.ENOTSUP, zmq.EFAULT)
"""The errors of a terminated or closed context."""

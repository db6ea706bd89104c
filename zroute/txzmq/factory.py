"""ZmqFactory: the ZeroMQ context, and the reactor its connections run on."""

from __future__ import annotations

import logging
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

import zmq

if TYPE_CHECKING:
    from zroute.txzmq.connection import ZmqConnection

__all__ = ["ZmqFactory"]

_log = logging.getLogger("zroute.txzmq")

_PATIENCE = 2.0  # seconds beyond the linger period until a context that does not end is left alone


class _GlobalReactor:
    """Twisted's global reactor, installed when it is first asked for and not when this module is imported."""

    def __get__(self, factory: object, kind: type | None = None) -> Any:
        return import_module("twisted.internet.reactor")


class ZmqFactory:
    """Makes one ZeroMQ context for the connections that are given this factory.

    Options are attributes of the class or of the instance, read when they are needed: ``reactor`` (by default
    Twisted's global one), ``ioThreads`` of the context (1), and ``lingerPeriod``, the milliseconds that a closed
    connection goes on sending (100).
    """

    reactor: Any = _GlobalReactor()
    ioThreads = 1
    lingerPeriod = 100
    trigger: Any = None

    def __init__(self) -> None:
        self.connections: set[ZmqConnection] = set()
        self.context: zmq.Context[Any] | None = zmq.Context(self.ioThreads)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def registerForShutdown(self) -> None:
        """Call `shutdown` when the reactor stops."""
        if self.trigger is None:
            self.trigger = self.reactor.addSystemEventTrigger("during", "shutdown", self._reactor_stops)

    def _reactor_stops(self) -> None:
        self.trigger = None  # it has been used up
        self.shutdown()

    def shutdown(self) -> None:
        """Close all connections and terminate the context; what was sent has ``lingerPeriod`` to leave.

        Calling it twice is nothing. It never hangs: a context in which somebody else keeps a socket open is left
        to itself 2 s after the linger period, with a warning.
        """
        if self.trigger is not None:
            self.reactor.removeSystemEventTrigger(self.trigger)
            self.trigger = None
        for connection in tuple(self.connections):
            connection.shutdown()
        context, self.context = self.context, None
        if context is None:
            return
        terminating = threading.Thread(target=context.term, name="zroute-txzmq-term", daemon=True)
        terminating.start()
        terminating.join(max(self.lingerPeriod, 0) / 1000 + _PATIENCE)
        if terminating.is_alive():
            _log.warning("the ZeroMQ context does not terminate: a socket of it is open somewhere else")

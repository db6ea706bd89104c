"""Events of a socket's connections, from libzmq's monitor.

See zmq_socket_monitor(3).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from struct import Struct

import attrs
import zmq

from zroute.logs import printable

__all__ = ["OnEvent", "SocketEvent", "parse_event"]

_EVENT = Struct("=Hi")  # the first part of a monitor's message: event and value; the second part is the address


@attrs.frozen
class SocketEvent:
    """An event of a connection: connected, disconnected, handshake failed, …

    ``name`` is libzmq's name of the event in lower case: ``listening``, ``bind_failed``, ``accepted``,
    ``connect_delayed``, ``connect_retried``, ``connected``, ``handshake_succeeded``, ``handshake_failed_protocol``
    (``_auth``, ``_no_detail``), ``disconnected`` or ``closed``. After ``handshake_succeeded``, the peer is connected.

    ``address`` is the address of the endpoint. ``value`` is the number in libzmq's event: a descriptor, an error
    number, or the time in milliseconds until the next attempt.
    """

    name: str
    address: str
    value: int

    def __str__(self) -> str:
        address = printable(self.address)
        if self.name == "connect_retried":
            return f"{address}: connect_retried, next attempt in {self.value} ms"
        return f"{address}: {self.name}" + (f" ({self.reason})" if self.reason else "")

    @property
    def reason(self) -> str:
        """The reason for a failure, from ``value``; empty for other events."""
        if self.name.endswith("_failed") or self.name == "handshake_failed_no_detail":
            return os.strerror(self.value)
        if self.name.startswith("handshake_failed"):
            return str(_REASONS.get(self.value, self.value))
        return ""


OnEvent = Callable[[SocketEvent], None]
"""A function that is called with each event, on the reactor's thread."""


def parse_event(first: bytes, second: bytes) -> SocketEvent:
    """Return the event from the two parts of a monitor's message."""
    number, value = _EVENT.unpack(first)
    return SocketEvent(_NAMES.get(number, f"event_{number}"), second.decode("utf-8", "replace"), value)


_NAMES = {event.value: str(event.name).lower() for event in zmq.Event}
_REASONS = {int(getattr(zmq, name)): name for name in dir(zmq) if name.startswith("PROTOCOL_ERROR_")}

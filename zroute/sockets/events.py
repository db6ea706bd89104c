"""What happens to a socket's connections, as libzmq's monitor tells it (zmq_socket_monitor(3))."""

from __future__ import annotations

import os
from collections.abc import Callable
from struct import Struct

import attrs
import zmq

from zroute.logs import printable

__all__ = ["OnEvent", "SocketEvent", "parse_event"]

_EVENT = Struct("=Hi")  # a monitor's first part: the event and its value; the second is the address


@attrs.frozen
class SocketEvent:
    """One event: its ``name``, the ``address`` of the endpoint, and the ``value`` that libzmq gives with it.

    Names are libzmq's, in lower case: ``listening``, ``bind_failed``, ``accepted``, ``connect_delayed``,
    ``connect_retried``, ``connected``, ``handshake_succeeded``, ``handshake_failed_protocol`` (``_auth``,
    ``_no_detail``), ``disconnected``, ``closed``. A peer is there from ``handshake_succeeded`` on.
    """

    name: str
    address: str
    value: int

    def __str__(self) -> str:
        address = printable(self.address)
        if self.name == "connect_retried":
            return f"{address}: connect_retried, the next attempt is in {self.value} ms"
        return f"{address}: {self.name}" + (f" ({self.reason})" if self.reason else "")

    @property
    def reason(self) -> str:
        """What ``value`` says, where it is the reason of a failure; else empty."""
        if self.name.endswith("_failed") or self.name == "handshake_failed_no_detail":
            return os.strerror(self.value)
        if self.name.startswith("handshake_failed"):
            return str(_REASONS.get(self.value, self.value))
        return ""


OnEvent = Callable[[SocketEvent], None]
"""Is called with each event, on the reactor's thread."""


def parse_event(first: bytes, second: bytes) -> SocketEvent:
    """The event in the two parts of a monitor's message."""
    number, value = _EVENT.unpack(first)
    return SocketEvent(_NAMES.get(number, f"event_{number}"), second.decode("utf-8", "replace"), value)


_NAMES = {event.value: str(event.name).lower() for event in zmq.Event}
_REASONS = {int(getattr(zmq, name)): name for name in dir(zmq) if name.startswith("PROTOCOL_ERROR_")}

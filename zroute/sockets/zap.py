"""The ZAP handler: it decides which keys may connect (RFC 27).

libzmq asks the handler at ``inproc://zeromq.zap.01`` of its context about each key. The handler is a ROUTER that the
reactor reads, so it needs no thread. One handler serves all apps of a context; the *domain* of a socket tells them
apart.

ZAP allows everybody to connect in three cases (measured with libzmq 4.3.5): without a handler, after a handler has been
closed, and with ZAP_ENFORCE_DOMAIN but without a domain. `zroute.sockets.access` therefore sets the domain and
ZAP_ENFORCE_DOMAIN on each socket before it is bound. If anything goes wrong in the handler, the reply is a refusal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import zmq

from zroute.errors import EndpointError
from zroute.options import LINGER_ABORT
from zroute.sockets.connection import Connection

__all__ = ["FULL", "REFUSED", "Decide", "ZapHandler"]

_log = logging.getLogger("zroute.sockets")

_ADDRESS = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_FIELDS = 8
"""The parts of a request before the credentials: identity, empty, version, request id, domain, address, identity of the
peer, mechanism.
"""

_KEY_BYTES = 32
_MAX_FIELDS = 16
"""The number of parts that are kept. libzmq itself sends the requests, so a longer one is a fault of this process."""

REFUSED = 400
"""The status for unknown keys, because libzmq passes it on to the client. libzmq does not connect again after it."""

FULL = 300
"""The status for keys with too many connections. libzmq does not pass it on, and connects again."""

_FAILED = 500
_ACCEPTED = 200

Decide = Callable[[bytes, str], str | int]
"""Called with a public key of 32 bytes and the address of the peer.

Returns the name of the key, or `REFUSED` or `FULL` to refuse the connection.
"""


class ZapHandler(Connection):
    """The handler of one context. Get it with `join`, and call `leave` at the end."""

    def __init__(self, reactor: Any, context: zmq.Context[Any]) -> None:
        socket: zmq.Socket[Any] = context.socket(zmq.ROUTER)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = 0  # libzmq has at most one request per connection
        try:
            socket.bind(_ADDRESS)
        except zmq.ZMQError as error:
            socket.close()
            raise EndpointError(
                f"can't decide who may connect: {error.strerror or error}: another ZAP handler, such as pyzmq's "
                "ThreadAuthenticator, runs in the ZeroMQ context of App(context=…): stop it, or omit context="
            ) from None
        self._domains: dict[bytes, Decide] = {}
        super().__init__(reactor, socket, self._drain)

    @classmethod
    def join(cls, reactor: Any, context: zmq.Context[Any], domain: bytes, decide: Decide) -> ZapHandler:
        """Let ``decide`` answer for a domain; return the handler of the context.

        Raises:
            EndpointError: The context has a ZAP handler of another library.
        """
        handler = _handlers.get(context)
        if handler is None or handler.closed:
            handler = _handlers[context] = cls(reactor, context)
        handler._domains[domain] = decide
        return handler

    def leave(self, domain: bytes) -> None:
        """Refuse all further connections of a domain. The last call closes the handler."""
        self._domains.pop(domain, None)
        if not self._domains:
            self.close(LINGER_ABORT)

    def close(self, linger: int = LINGER_ABORT) -> None:
        """See `Connection.close`.

        The handler is also forgotten, because its socket would keep the context in memory. libzmq closes the socket
        later, so this method unbinds the address: a new handler can bind it at once.
        """
        if not self.closed:
            with suppress(zmq.ZMQError):  # the context may be terminated
                self._socket.unbind(_ADDRESS)
        super().close(linger)
        if _handlers.get(self._socket.context) is self:
            del _handlers[self._socket.context]

    def _drain(self, recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        for _ in range(budget):
            parts = [recv(zmq.DONTWAIT)]
            # Read to the last part in any case: the next request begins behind it.
            while more():
                part = recv(zmq.DONTWAIT)
                if len(parts) < _MAX_FIELDS:
                    parts.append(part)
            if len(parts) < _FIELDS:
                _log.error("a malformed ZAP request of %d parts: expected at least %d", len(parts), _FIELDS)
                continue
            identity, empty, _version, request, *_rest = parts
            status, text, user = self._decision(parts)
            try:
                self.try_send((identity, empty, _VERSION, request, b"%d" % status, text, user, b""))
            except zmq.ZMQError as error:  # the connection that asked has ended
                if error.errno != zmq.EHOSTUNREACH:
                    raise

    def _decision(self, parts: list[bytes]) -> tuple[int, bytes, bytes]:
        """Return the status, a text, and the name of the peer, for a request."""
        _identity, _empty, version, _request, domain, address, _id, mechanism, *credentials = parts
        # An unknown domain is a KeyError, and so a refusal: its app has stopped, or belongs to another library.
        try:
            decide = self._domains[domain]
            if version != _VERSION or mechanism != b"CURVE" or [len(each) for each in credentials] != [_KEY_BYTES]:
                return REFUSED, b"expected a CURVE key", b""
            decision = decide(credentials[0], address.decode("utf-8", "replace"))
        except Exception:
            _log.exception("zroute refuses a connection from %r, because it could not check the key", address)
            return _FAILED, b"the key could not be checked", b""
        if isinstance(decision, int):
            return decision, _TEXTS[decision], b""
        return _ACCEPTED, b"", decision.encode()


_TEXTS = {REFUSED: b"unknown key", FULL: b"too many connections of this key"}
_handlers: WeakKeyDictionary[zmq.Context[Any], ZapHandler] = WeakKeyDictionary()

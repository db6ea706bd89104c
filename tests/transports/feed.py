"""A plain ZeroMQ publisher, as a program without zroute is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from tests.running import turns

__all__ = ["Feed", "feeding"]


class Feed:
    """A bound XPUB socket; ``subscriptions`` are those that it has received, in their order."""

    def __init__(self, socket: zmq.Socket[Any]) -> None:
        self._socket = socket
        self.address: str = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.subscriptions: list[bytes] = []

    async def subscribed(self, *prefixes: bytes) -> None:
        """Wait until exactly these prefixes are subscribed to."""

        def look() -> bool:
            while self._socket.poll(0):
                change = self._socket.recv()
                (self.subscriptions.append if change[:1] == b"\1" else self.subscriptions.remove)(change[1:])
            return sorted(self.subscriptions) == sorted(prefixes)

        await turns(look)

    def send(self, *parts: bytes) -> None:
        """Send a message."""
        self._socket.send_multipart(parts)


@contextmanager
def feeding(number: int = 1) -> Iterator[list[Feed]]:
    """Bind that number of publishers to free ports."""
    context = zmq.Context()
    sockets = [context.socket(zmq.XPUB) for _ in range(number)]
    try:
        for socket in sockets:
            socket.set(zmq.SNDHWM, 0)
            socket.bind("tcp://127.0.0.1:*")
        yield [Feed(socket) for socket in sockets]
    finally:
        for socket in sockets:
            socket.close(0)
        context.term()

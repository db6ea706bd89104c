"""Jobs for workers, requests with replies, and a router that addresses dealers by identity."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import LoopingCall

from tests.txzmq.programs.common import LIBRARY, endpoint, main, say

NUMBERS = 20


def pusher(reactor: Any, factory: Any) -> Any:
    """Push twenty jobs once a worker is connected."""
    connection = LIBRARY.ZmqPushConnection(factory, endpoint())
    numbers = iter(range(NUMBERS))

    def push() -> None:
        number = next(numbers, None)
        if number is None:
            loop.stop()
        else:
            connection.push([b"job", b"%d" % number])

    loop = LoopingCall(push)
    reactor.callLater(1, loop.start, 0.01)
    return connection


class Worker(LIBRARY.ZmqPullConnection):  # type: ignore[misc]
    """A worker that prints its jobs."""

    def onPull(self, message: list[bytes]) -> None:
        """Print one job."""
        say(*(part.decode() for part in message))


class Server(LIBRARY.ZmqREPConnection):  # type: ignore[misc]
    """A server that replies in capitals after a delay, and never to some requests."""

    def gotMessage(self, id: bytes, *parts: bytes) -> None:
        """Handle one request."""
        from twisted.internet import reactor

        if parts[0] != b"silence":
            reactor.callLater(0.01, self.reply, id, *(part.upper() for part in parts))  # type: ignore[attr-defined]


def client(reactor: Any, factory: Any) -> Any:
    """Send twenty requests at once, and one without a reply."""
    connection = LIBRARY.ZmqREQConnection(factory, endpoint())
    for number in range(NUMBERS):
        reply = connection.sendMsg(b"question", b"%d" % number)
        reply.addCallback(lambda parts: say("answer", *(part.decode() for part in parts)))
    silent = connection.sendMsg(b"silence", timeout=0.5)
    silent.addErrback(lambda failure: say("no answer", failure.trap(LIBRARY.ZmqRequestTimeoutError).__name__))
    return connection


class Router(LIBRARY.ZmqRouterConnection):  # type: ignore[misc]
    """A router that replies to each hello."""

    def gotMessage(self, sender: bytes, *parts: bytes) -> None:
        """Reply to the sender."""
        self.sendMultipart(sender, [b"welcome", sender, *parts])


class Dealer(LIBRARY.ZmqDealerConnection):  # type: ignore[misc]
    """A dealer that says hello and prints the reply."""

    def gotMessage(self, *parts: bytes) -> None:
        """Print the reply."""
        say(*(part.decode() for part in parts))


def dealer(reactor: Any, factory: Any) -> Any:
    """Run a dealer with an identity."""
    connection = Dealer(factory, endpoint(), identity=b"ann")
    connection.sendMsg(b"hello")
    connection.sendMultipart([b"again", b"hello"])
    return connection


if __name__ == "__main__":
    main(
        pusher=pusher,
        worker=lambda reactor, factory: Worker(factory, endpoint()),
        server=lambda reactor, factory: Server(factory, endpoint()),
        client=client,
        router=lambda reactor, factory: Router(factory, endpoint()),
        dealer=dealer,
    )

"""Jobs are pushed to workers, questions asked and answered, and a router knows its dealers by name."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import LoopingCall

from tests.txzmq.programs.common import LIBRARY, endpoint, main, say

NUMBERS = 20


def pusher(reactor: Any, factory: Any) -> Any:
    """Twenty jobs, one after the other, when a worker is there to take them."""
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
    """Says what it was given."""

    def onPull(self, message: list[bytes]) -> None:
        """One job."""
        say(*(part.decode() for part in message))


class Server(LIBRARY.ZmqREPConnection):  # type: ignore[misc]
    """Answers with the question in capitals, in its own time; some questions never."""

    def gotMessage(self, id: bytes, *parts: bytes) -> None:
        """One question."""
        from twisted.internet import reactor

        if parts[0] != b"silence":
            reactor.callLater(0.01, self.reply, id, *(part.upper() for part in parts))  # type: ignore[attr-defined]


def client(reactor: Any, factory: Any) -> Any:
    """Twenty questions at once, and one that nobody answers."""
    connection = LIBRARY.ZmqREQConnection(factory, endpoint())
    for number in range(NUMBERS):
        reply = connection.sendMsg(b"question", b"%d" % number)
        reply.addCallback(lambda parts: say("answer", *(part.decode() for part in parts)))
    silent = connection.sendMsg(b"silence", timeout=0.5)
    silent.addErrback(lambda failure: say("no answer", failure.trap(LIBRARY.ZmqRequestTimeoutError).__name__))
    return connection


class Router(LIBRARY.ZmqRouterConnection):  # type: ignore[misc]
    """Greets who says hello."""

    def gotMessage(self, sender: bytes, *parts: bytes) -> None:
        """The sender's identity, and what it says."""
        self.sendMultipart(sender, [b"welcome", sender, *parts])


class Dealer(LIBRARY.ZmqDealerConnection):  # type: ignore[misc]
    """Says hello, and what it hears."""

    def gotMessage(self, *parts: bytes) -> None:
        """The greeting."""
        say(*(part.decode() for part in parts))


def dealer(reactor: Any, factory: Any) -> Any:
    """A dealer with a name."""
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

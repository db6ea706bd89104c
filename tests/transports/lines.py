"""A transport of a different kind, over TCP.

Each message is a line of hexadecimal digits; the parts of a message share a line. Publishers bind, and subscribers
connect and filter by themselves. The module shows what the author of a transport must write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, ReconnectingClientFactory
from twisted.protocols.basic import LineReceiver

from zroute.errors import EndpointError
from zroute.messages.topics import Pattern, matches
from zroute.options import READ_BUDGET
from zroute.transport import NoAccounts, Reader, Receive, Transport, TransportRequest


class NothingLeftError(Exception):
    """The end of the lines that have arrived."""


class Peer(LineReceiver):
    """One connection.

    The line ``?`` asks for the line ``!``, which arrives after everything that was sent before.
    """

    delimiter, MAX_LENGTH = b"\n", 1 << 22

    def __init__(self, peers: list[Peer], arrived: Callable[[bytes], None]) -> None:
        self.peers, self.arrived = peers, arrived
        self.asked = deque[Deferred[None]]()

    def connectionMade(self) -> None:  # Twisted's name
        """Ask for a first answer."""
        self.peers.append(self)
        self.ask()

    def ask(self) -> Deferred[None]:
        """Return a Deferred that fires when everything sent before is read."""
        answer: Deferred[None] = Deferred()
        self.asked.append(answer)
        self.sendLine(b"?")
        return answer

    def lineReceived(self, line: bytes) -> None:  # Twisted's name
        """Handle a question, an answer or a message."""
        if line == b"?":
            self.sendLine(b"!")
        elif line == b"!":
            self.asked.popleft().callback(None)
        else:
            self.arrived(line)

    def connectionLost(self, reason: Any = None) -> None:  # Twisted's name
        """Remove this peer."""
        self.peers.remove(self)


class LineTransport(Transport):
    """See `zroute.transport.Transport`. Queues are Twisted's, and have no bound."""

    accounts, is_open, bound = NoAccounts(), False, ()

    def __init__(self, request: TransportRequest) -> None:
        self.request, self.reactor, self.context = request, request.reactor, copy_context()
        self.paused = self.listening = self.woken = False
        self.publishers, self.subscribers = list[Peer](), list[Peer]()
        self.patterns: Sequence[Pattern] = ()
        self.lines, self.parts = deque[bytes](), deque[bytes]()
        self.receive: Receive = lambda recv, more, budget: None
        self.ports, self.connectors = list[Any](), list[Any]()

    def open(self, receive: Receive) -> None:
        """Listen and connect."""
        self.receive, self.is_open = receive, True
        for endpoint in self.request.ends.pub:
            host, _, port = endpoint.address.removeprefix("tcp://").rpartition(":")
            server = Factory.forProtocol(lambda: Peer(self.subscribers, lambda line: None))
            try:
                self.ports.append(self.reactor.listenTCP(int(port), server, interface=host))
            except CannotListenError as error:
                self.close()
                raise EndpointError(f"{endpoint}: {error}", endpoint=str(endpoint)) from error
            self.bound = (*self.bound, endpoint.address)
        for endpoint in self.request.ends.sub:
            host, _, port = endpoint.address.removeprefix("tcp://").rpartition(":")
            client = ReconnectingClientFactory.forProtocol(lambda: Peer(self.publishers, self.arrived))
            client.initialDelay = client.maxDelay = 0.05
            self.connectors.append(self.reactor.connectTCP(host, int(port), client))

    def listen(self, patterns: Sequence[Pattern]) -> None:
        """Filter by these patterns from now on."""
        self.patterns, self.listening = patterns, True

    def leave(self) -> None:
        """Receive no more messages."""
        self.patterns = ()

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Return a Deferred that fires when all publishers have answered."""
        return Deferred.fromCoroutine(self._ready(publishers or len(self.request.ends.sub)))

    async def _ready(self, number: int) -> None:
        while len(self.publishers) < number or not self.listening:
            turn: Deferred[None] = Deferred()
            self.reactor.callLater(0.01, turn.callback, None)
            await turn
        for answer in [peer.ask() for peer in self.publishers]:
            await answer

    def unready(self, *, state: bool) -> str:
        """Return the number of connected publishers."""
        return f"{len(self.publishers)} publishers are connected"

    def arrived(self, line: bytes) -> None:
        """Put a message into the inbox if a pattern matches it."""
        topic = bytes.fromhex(line.split()[0].decode()).partition(b"\0")[0]
        if any(matches(pattern, topic) is not None for pattern in self.patterns):
            self.lines.append(line)
            self.wake()

    def wake(self) -> None:
        """Read in the next turn of the reactor."""
        if not self.woken and not self.paused:
            self.woken = True
            self.reactor.callLater(0, self.read)

    def read(self) -> None:
        """Deliver some messages of the inbox, unless reading is paused."""
        self.woken = False
        if self.is_open and not self.paused:
            try:
                self.context.copy().run(self.receive, self.recv, self.more, READ_BUDGET)
            except NothingLeftError:
                return
            self.wake()

    def recv(self, flags: int, copy: bool = True) -> bytes:
        """Return the next frame."""
        if not self.parts:
            if not self.lines:
                raise NothingLeftError
            self.parts.extend(bytes.fromhex(part.decode()) for part in self.lines.popleft().split())
        return self.parts.popleft()

    def more(self) -> int:
        """Return the number of frames of the current message that are left."""
        return len(self.parts)

    def use(self, receive: Receive) -> None:
        """Deliver to another ``receive`` from now on."""
        self.receive = receive
        self.wake()

    def pause(self) -> None:
        """Stop reading; TCP then slows the sender down."""
        self.paused = True
        for peer in self.publishers:
            peer.pauseProducing()

    def resume(self) -> None:
        """Continue with the messages in the inbox."""
        self.paused = False
        self.wake()
        for peer in self.publishers:
            peer.resumeProducing()

    def finish(self, reader: Reader, left: Callable[[], float]) -> Deferred[int]:
        """Read until every publisher has answered."""
        self.paused = False
        for peer in self.publishers:
            peer.resumeProducing()
        asked = DeferredList([peer.ask() for peer in self.publishers])
        asked.addTimeout(max(left(), 0.1), self.reactor, onTimeoutCancel=lambda result, seconds: None)
        return asked.addCallback(self._finished, reader)

    def _finished(self, _: object, reader: Reader) -> int:
        while reader.reads_on and (self.lines or reader.unpacked):
            with suppress(NothingLeftError):
                self.context.copy().run(self.receive, self.recv, self.more, READ_BUDGET)
        self.paused = True  # messages that arrive now were sent after the stop
        return len(self.lines)

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Return a function that sends to all connected subscribers."""
        if not self.request.ends.pub:
            return None

        def send(sent: Any) -> None:
            line = b" ".join(bytes(part).hex().encode() for part in (sent if multipart else (sent,)))
            for peer in self.subscribers:
                peer.sendLine(line)

        return send

    def close(self) -> Deferred[None]:
        """Close all connections."""
        self.is_open = False
        for connector in self.connectors:
            connector.factory.stopTrying() if hasattr(connector, "factory") else None
            connector.disconnect()
        closing = [port.stopListening() for port in self.ports]
        for peer in (*self.subscribers, *self.publishers):
            peer.transport.loseConnection()
        return (
            DeferredList([each for each in closing if each is not None]).addCallback(lambda _: None)
            if closing
            else succeed(None)
        )

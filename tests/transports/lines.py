"""A transport of a different kind, over TCP.

Each message is a line of hexadecimal digits; the parts of a message share a line. Publishers bind, and subscribers
connect and filter by themselves. The module shows what the author of a transport must write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, ReconnectingClientFactory
from twisted.protocols.basic import LineReceiver

from zroute.errors import EndpointError
from zroute.messages.topics import Pattern, matches
from zroute.options import READ_BUDGET
from zroute.planning.plan import Request
from zroute.transport import Reader, Receive


class NothingLeftError(Exception):
    """The end of the lines that have arrived."""


class NoAccounts:
    """Accounts of a transport that counts no losses."""

    moved: Callable[[], None] = staticmethod(lambda: None)

    def account(self, epoch: int, topic: bytes, subscription: bytes) -> None:
        """Return no account."""

    def admit(self, account: Any, number: int, many: int = 1) -> bool:
        """Deliver every message."""
        return True

    def kept(self, header: Any, marker: bytes, topic: bytes) -> bool:
        """Deliver no kept message: subscribers do not join here."""
        return False

    def untracked(self, topic: bytes) -> None:
        """Ignore the message."""

    def control(self, header: Any, topic: bytes, body: bytes) -> None:
        """Ignore the frame."""

    def named(self, epoch: int) -> str:
        """Return the epoch as text."""
        return f"{epoch:016x}"

    def close(self) -> None:
        """Report no losses."""


class Peer(LineReceiver):
    """One connection.

    The line ``?`` asks for the line ``!``, which arrives after everything that was sent before.
    """

    delimiter, MAX_LENGTH = b"\n", 1 << 22

    def __init__(self, peers: list[Peer], arrived: Callable[[bytes], None]) -> None:
        self.peers, self.arrived = peers, arrived
        self.read_to_here: Deferred[None] = Deferred()

    def connectionMade(self) -> None:  # Twisted's name
        """Ask for a first answer."""
        self.peers.append(self)
        self.ask()

    def ask(self) -> Deferred[None]:
        """Return a Deferred that fires when everything sent before is read."""
        self.sendLine(b"?")
        return self.read_to_here

    def lineReceived(self, line: bytes) -> None:  # Twisted's name
        """Handle a question, an answer or a message."""
        if line == b"?":
            self.sendLine(b"!")
        elif line == b"!":
            answered, self.read_to_here = self.read_to_here, Deferred()
            answered.callback(None)
        else:
            self.arrived(line)

    def connectionLost(self, reason: Any = None) -> None:  # Twisted's name
        """Remove this peer."""
        self.peers.remove(self)


class LineTransport:
    """See `zroute.transport.Transport`."""

    kept = None

    def __init__(self, request: Request) -> None:
        self.request, self.reactor, self.accounts = request, request.reactor, NoAccounts()
        self.is_open, self.paused, self.bound = False, False, list[str]()
        self.publishers, self.subscribers = list[Peer](), list[Peer]()
        self.patterns: Sequence[Pattern] = ()
        self.lines, self.parts = deque[bytes](), deque[bytes]()
        self.receive: Receive = lambda recv, more, budget: None
        self.ports, self.connectors = list[Any](), list[Any]()

    def open(self, receive: Receive) -> None:
        """Listen and connect."""
        self.receive, self.is_open = receive, True
        for endpoint in self.request.publish_to:
            host, _, port = endpoint.address.removeprefix("tcp://").rpartition(":")
            server = Factory.forProtocol(lambda: Peer(self.subscribers, lambda line: None))
            try:
                self.ports.append(self.reactor.listenTCP(int(port), server, interface=host))
            except CannotListenError as error:
                self.close()
                raise EndpointError(f"{endpoint}: {error}", endpoint=str(endpoint)) from error
            self.bound.append(endpoint.address)
        for endpoint in self.request.subscribe_to:
            host, _, port = endpoint.address.removeprefix("tcp://").rpartition(":")
            client = ReconnectingClientFactory.forProtocol(lambda: Peer(self.publishers, self.arrived))
            client.initialDelay = client.maxDelay = 0.05
            self.connectors.append(self.reactor.connectTCP(host, int(port), client))

    def summary(self) -> list[tuple[int, str]]:
        """Return no log lines."""
        return []

    def listen(self, patterns: Sequence[Pattern]) -> None:
        """Filter by these patterns from now on."""
        self.patterns = patterns

    def leave(self) -> None:
        """Receive no more messages."""
        self.patterns = ()

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Return a Deferred that fires when all publishers have answered."""
        return Deferred.fromCoroutine(self._ready(publishers or len(self.request.subscribe_to)))

    async def _ready(self, number: int) -> None:
        while len(self.publishers) < number:
            turn: Deferred[None] = Deferred()
            self.reactor.callLater(0.01, turn.callback, None)
            await turn
        await DeferredList([peer.ask() for peer in self.publishers])

    def unready(self, *, state: bool) -> str:
        """Return the number of connected publishers."""
        return f"{len(self.publishers)} publishers are connected"

    def arrived(self, line: bytes) -> None:
        """Put a message into the inbox if a pattern matches it."""
        topic = bytes.fromhex(line.split()[0].decode()).partition(b"\0")[0]
        if any(matches(pattern, topic) is not None for pattern in self.patterns):
            self.lines.append(line)
            self.read()

    def read(self) -> None:
        """Deliver the messages in the inbox, unless reading is paused."""
        try:
            while not self.paused:
                self.receive(self.recv, lambda: len(self.parts), READ_BUDGET)
        except NothingLeftError:
            pass

    def recv(self, flags: int, copy: bool = True) -> bytes:
        """Return the next frame."""
        if not self.parts:
            if not self.lines:
                raise NothingLeftError
            self.parts.extend(bytes.fromhex(part.decode()) for part in self.lines.popleft().split())
        return self.parts.popleft()

    def use(self, receive: Receive) -> None:
        """Deliver to another ``receive`` from now on."""
        self.receive = receive

    def pause(self) -> None:
        """Stop reading; TCP then slows the sender down."""
        self.paused = True
        for peer in self.publishers:
            peer.pauseProducing()

    def resume(self) -> None:
        """Continue with the messages in the inbox."""
        self.paused = False
        self.read()
        if not self.paused:
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
            self.paused = False
            self.read()
        self.paused = True  # messages that arrive now were sent after the stop
        return len(self.lines)

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Return a function that sends to all connected subscribers."""
        if not self.request.publish_to:
            return None

        def send(sent: Any) -> None:
            line = b" ".join(bytes(part).hex().encode() for part in (sent if multipart else (sent,)))
            for peer in self.subscribers:
                peer.sendLine(line)

        return send

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """Return a function that always sends."""
        send = self.sender(multipart=multipart)
        return None if send is None else lambda sent: send(sent) is None

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Return False: subscribers do not announce their subscriptions."""
        return False

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

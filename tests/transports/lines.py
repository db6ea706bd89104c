"""A transport of its own kind: each frame is a line of TCP, in hexadecimal digits; the parts of a message share a line.

It shows what the author of a transport has to write. Publishers bind, subscribers connect and filter for themselves.
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
    """All lines are read."""


class NoAccounts:
    """Nothing is counted as lost."""

    moved: Callable[[], None] = staticmethod(lambda: None)

    def account(self, epoch: int, topic: bytes, subscription: bytes) -> None:
        """None is kept."""

    def admit(self, account: Any, number: int, many: int = 1) -> bool:
        """All is delivered."""
        return True

    def kept(self, header: Any, marker: bytes, topic: bytes) -> bool:
        """Nobody joins."""
        return False

    def untracked(self, topic: bytes) -> None:
        """All the same."""

    def control(self, header: Any, topic: bytes, body: bytes) -> None:
        """Nothing of interest."""

    def named(self, epoch: int) -> str:
        """By its number."""
        return f"{epoch:016x}"

    def close(self) -> None:
        """Nothing was found."""


class Peer(LineReceiver):
    """One connection. A line ``?`` asks for a line ``!``, which comes behind all that was sent before."""

    delimiter, MAX_LENGTH = b"\n", 1 << 22

    def __init__(self, peers: list[Peer], arrived: Callable[[bytes], None]) -> None:
        self.peers, self.arrived = peers, arrived
        self.read_to_here: Deferred[None] = Deferred()

    def connectionMade(self) -> None:  # Twisted's name
        """Greeted by the first answer."""
        self.peers.append(self)
        self.ask()

    def ask(self) -> Deferred[None]:
        """Fires when all is read that was sent before."""
        self.sendLine(b"?")
        return self.read_to_here

    def lineReceived(self, line: bytes) -> None:  # Twisted's name
        """A question, an answer, or a message."""
        if line == b"?":
            self.sendLine(b"!")
        elif line == b"!":
            answered, self.read_to_here = self.read_to_here, Deferred()
            answered.callback(None)
        else:
            self.arrived(line)

    def connectionLost(self, reason: Any = None) -> None:  # Twisted's name
        """It is no peer any more."""
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
        """Nothing to say."""
        return []

    def listen(self, patterns: Sequence[Pattern]) -> None:
        """Filter from now on."""
        self.patterns = patterns

    def leave(self) -> None:
        """Take no more."""
        self.patterns = ()

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """When all have answered."""
        return Deferred.fromCoroutine(self._ready(publishers or len(self.request.subscribe_to)))

    async def _ready(self, number: int) -> None:
        while len(self.publishers) < number:
            turn: Deferred[None] = Deferred()
            self.reactor.callLater(0.01, turn.callback, None)
            await turn
        await DeferredList([peer.ask() for peer in self.publishers])

    def unready(self, *, state: bool) -> str:
        """How many are there."""
        return f"{len(self.publishers)} publishers are connected"

    def arrived(self, line: bytes) -> None:
        """A line is a message, if anybody wants it."""
        topic = bytes.fromhex(line.split()[0].decode()).partition(b"\0")[0]
        if any(matches(pattern, topic) is not None for pattern in self.patterns):
            self.lines.append(line)
            self.read()

    def read(self) -> None:
        """Give what has come to the routes, unless they have no room."""
        try:
            while not self.paused:
                self.receive(self.recv, lambda: len(self.parts), READ_BUDGET)
        except NothingLeftError:
            pass

    def recv(self, flags: int, copy: bool = True) -> bytes:
        """The next frame."""
        if not self.parts:
            if not self.lines:
                raise NothingLeftError
            self.parts.extend(bytes.fromhex(part.decode()) for part in self.lines.popleft().split())
        return self.parts.popleft()

    def use(self, receive: Receive) -> None:
        """Another one."""
        self.receive = receive

    def pause(self) -> None:
        """TCP pushes back."""
        self.paused = True
        for peer in self.publishers:
            peer.pauseProducing()

    def resume(self) -> None:
        """Go on with what has come."""
        self.paused = False
        self.read()
        if not self.paused:
            for peer in self.publishers:
                peer.resumeProducing()

    def finish(self, reader: Reader, left: Callable[[], float]) -> Deferred[int]:
        """Read to the answer of each."""
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
        self.paused = True  # what comes now is newer
        return len(self.lines)

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """To all who are connected."""
        if not self.request.publish_to:
            return None

        def send(sent: Any) -> None:
            line = b" ".join(bytes(part).hex().encode() for part in (sent if multipart else (sent,)))
            for peer in self.subscribers:
                peer.sendLine(line)

        return send

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """There is always room."""
        send = self.sender(multipart=multipart)
        return None if send is None else lambda sent: send(sent) is None

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Subscribers say nothing."""
        return False

    def close(self) -> Deferred[None]:
        """Hang up."""
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

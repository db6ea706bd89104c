"""A NATS cluster of which everything is known: the sessions of both ends, and every message on its way.

Each connection and each route between two servers keeps the order, like TCP, and loses what is on its way when it is
cut. Interest travels over the same routes as messages. A publisher that reconnects to another server can be overtaken
by its own messages on the former path. All times and faults come from one seed.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from heapq import heappop, heappush
from itertools import count, product
from random import Random
from typing import Any

from zroute.messages.topics import parse
from zroute.messages.wire import MAGIC, NUL, Kind, parse_header
from zroute.nats.asks import ASK, HELLO, Says, parse_statement, private_subject, subscriber_of
from zroute.nats.headers import frame_of, message_of
from zroute.nats.publisher import TopicPublisherSession
from zroute.nats.session import TopicAccounts
from zroute.nats.wants import Wants, wants_of
from zroute.receiving.events import Gap, LostKept, UnknownLoss
from zroute.stats import Stats

LOG = logging.getLogger("zroute.nats.network")
LOG.addHandler(logging.NullHandler())
LOG.propagate = False
LOG.setLevel(logging.CRITICAL)

Message = tuple[bytes, bytes, bytes, bytes]  # subject, headers, payload, reply subject


class _Call:
    def __init__(self, at: float, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.at, self.call, self.args = at, call, args

    def cancel(self) -> None:
        self.call, self.args = (lambda: None), ()


class Time:
    """A clock that jumps from one call to the next."""

    def __init__(self) -> None:
        self.now = 100.0
        self._calls: list[tuple[float, int, _Call]] = []
        self._order = count()

    def seconds(self) -> float:
        return self.now

    def callLater(self, delay: float, callable: Callable[..., object], *args: Any, **_: Any) -> _Call:
        call = _Call(self.now + delay, callable, args)
        heappush(self._calls, (call.at, next(self._order), call))
        return call

    def run(self, seconds: float) -> None:
        """Make all calls of the next seconds."""
        end = self.now + seconds
        while self._calls and self._calls[0][0] <= end:
            self.now, _, call = heappop(self._calls)
            call.call(*call.args)
        self.now = end


class Line:
    """One direction of a connection: it keeps the order, and loses what is on its way when it is cut."""

    def __init__(self, net: Network, take: Callable[[Any], None]) -> None:
        self._net, self._take, self._last, self.alive = net, take, 0.0, True

    def send(self, item: Any) -> None:
        if self.alive:
            self._last = max(self._last, self._net.time.now + self._net.random.choice((0.0005, 0.001, 0.004)))
            self._net.time.callLater(self._last - self._net.time.now, self._arrive, item)

    def _arrive(self, item: Any) -> None:
        if self.alive:
            self._take(item)


class Connection:
    """One connection of a client to a server, with the subscriptions that the server knows."""

    def __init__(self, net: Network, client: Client) -> None:
        self.id, self.client = next(net.ids), client
        self.down, self.up = Line(net, client.arrived), Line(net, lambda call: call())
        self.subjects: dict[bytes, Wants] = {}

    def hears(self, subject: bytes) -> bool:
        return any(subject in wants for wants in self.subjects.values())


class Server:
    """A server: it knows the interest of its clients, and that of other servers as far as it has arrived."""

    def __init__(self, net: Network) -> None:
        self.net, self.up = net, True
        self.clients: list[Connection] = []
        self.routes: dict[Server, Line] = {}
        self.remote: dict[Server, set[tuple[int, bytes]]] = defaultdict(set)

    def connect(self, other: Server) -> None:
        """Open the route to another server, and tell it about all interest here."""
        self.routes[other] = Line(self.net, lambda item: other.routed(self, item))
        for client in self.clients:
            for subject in client.subjects:
                self.routes[other].send((client.id, subject, True))

    def routed(self, other: Server, item: Any) -> None:
        if len(item) == 4:
            self.deliver(item)
        else:
            (self.remote[other].add if item[2] else self.remote[other].discard)(item[:2])

    def cut(self, other: Server) -> None:
        if other in self.routes:
            self.routes.pop(other).alive = False
        self.remote.pop(other, None)

    def subscribe(self, client: Connection, subject: bytes, there: bool) -> None:
        if client not in self.clients:
            return
        if there:
            client.subjects[subject] = self.net.subject(subject)
        else:
            client.subjects.pop(subject, None)
        for route in self.routes.values():
            route.send((client.id, subject, there))

    def gone(self, client: Connection) -> None:
        if client not in self.clients:
            return
        self.clients.remove(client)
        for subject in client.subjects:
            for route in self.routes.values():
                route.send((client.id, subject, False))

    def deliver(self, message: Message) -> bool:
        found = [each for each in self.clients if each.hears(message[0])]
        for client in found:
            client.down.send(message)
        return bool(found)

    def publish(self, client: Connection, message: Message) -> None:
        heard = self.deliver(message)
        for other, route in self.routes.items():
            if any(message[0] in self.net.subject(subject) for _, subject in self.remote[other]):
                route.send(message)
                heard = True
        if not heard and message[3]:
            refusal = (message[3], b"NATS/1.0 503\r\n\r\n", b"", b"")
            if client in self.clients and client.hears(message[3]):
                client.down.send(refusal)


class Client:
    """A connection that is opened again at some server after it was cut."""

    def __init__(self, net: Network, subjects: Iterable[bytes]) -> None:
        self.net = net
        self.subjects = list(subjects)
        self.server: Server | None = None
        self.connection = Connection(net, self)
        self.closed = False
        self.times = 0

    def connect(self) -> None:
        if self.closed or self.server is not None:
            return
        servers = [server for server in self.net.servers if server.up]
        if not servers:
            self.net.time.callLater(0.3, self.connect)
            return
        server = self.server = self.net.random.choice(servers)
        connection = self.connection = Connection(self.net, self)
        server.clients.append(connection)
        for subject in self.subjects:
            connection.up.send(partial(server.subscribe, connection, subject, True))
        self.times += 1
        self.opened()

    def subscribe(self, subject: bytes, there: bool = True) -> None:
        (self.subjects.append if there else self.subjects.remove)(subject)
        if (server := self.server) is not None:
            self.connection.up.send(partial(server.subscribe, self.connection, subject, there))

    def send(self, subject: bytes, payload: bytes, reply: bytes, headers: bytes = b"") -> bool:
        server = self.server
        if server is None:
            return False
        self.connection.up.send(partial(server.publish, self.connection, (subject, headers, payload, reply)))
        return True

    def cut(self) -> None:
        """End the connection; all that is on its way is lost."""
        server, self.server = self.server, None
        if server is not None:
            connection = self.connection
            connection.down.alive = connection.up.alive = False
            # The server notices at once, or some time later.
            self.net.time.callLater(self.net.random.choice((0.0, 0.05, 1.0)), server.gone, connection)
            self.ended()
            self.net.time.callLater(self.net.random.choice((0.01, 0.2, 3.0)), self.connect)

    def close(self) -> None:
        self.closed = True
        self.cut()

    def opened(self) -> None: ...
    def ended(self) -> None: ...
    def arrived(self, message: Message) -> None: ...


class Publisher(Client):
    """One run of a publisher. It counts a message as sent even if its connection is away."""

    def __init__(self, net: Network, name: str, declared: Iterable[str]) -> None:
        self.session = TopicPublisherSession(
            net.time,
            self.control,
            lambda: int(net.time.now * 1e9),
            "app",
            name,
            LOG,
            [parse(each) for each in declared],
        )
        self.epoch = self.session.epoch = net.random.getrandbits(63) + 1
        super().__init__(net, [ASK, private_subject(self.epoch, b"*")])
        self.name = name
        self.frame = self.session.framer(lambda: int(net.time.now * 1e9), keeps=False)
        self.sent: dict[bytes, list[int]] = defaultdict(list)
        self.buffer: list[Message] = []
        self.crashed = self.stopped = False
        self.connect()

    def control(self, subject: bytes, payload: bytes, reply: bytes) -> bool:
        if subject != HELLO and payload.startswith(MAGIC) and parse_header(payload).kind is not Kind.KEPT:
            says = parse_statement(payload[32:]).says
            if Says.LAST in says and not says & (Says.CHANGES | Says.FORGOTTEN | Says.ASK_ME):
                self.net.stated[self.epoch, subject] = {topic: len(sent) for topic, sent in self.sent.items()}
        return self.send(subject, payload, reply)

    def publish(self, topic: bytes) -> None:
        frame = self.frame(topic, 1, b"x", None)
        assert isinstance(frame, bytes)
        self.sent[topic].append(parse_header(frame.partition(NUL)[2]).sequence)
        subject, headers, payload = message_of(frame)
        if not self.send(subject, payload, b"", headers) and self.net.random.random() < 0.5:
            self.buffer.append((subject, headers, payload, b""))

    def opened(self) -> None:
        for subject, headers, payload, reply in self.buffer:
            self.send(subject, payload, reply, headers)
        self.buffer.clear()
        if self.times == 1:
            self.session.connected()
        else:
            self.session.returned()

    def arrived(self, message: Message) -> None:
        subject, headers, payload, reply = message
        if headers.startswith(b"NATS/1.0 503"):
            self.session.unheard(subject)
        else:
            self.session.asked(reply, payload)

    def crash(self) -> None:
        self.crashed = True
        self.session.stop()
        self.session.kept.close()
        self.close()

    def stop(self) -> None:
        self.stopped = True
        done = self.session.goodbye()
        done.addBoth(lambda _: self.close())
        self.net.time.callLater(3.0, done.cancel)


class Subscriber(Client):
    """A subscriber, and the record of what it has received and counted."""

    def __init__(self, net: Network, patterns: Iterable[str]) -> None:
        self.found: list[Any] = []
        self.stats = Stats()
        self.inbox: list[Message] = []
        self.paused = False
        self.session = TopicAccounts(
            net.time, self.stats, LOG, "app", self.report, self.send, b"_INBOX.x", lambda: not self.inbox
        )
        self.session.subscriber = net.random.getrandbits(48)
        self.received: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self.claimed: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self.unknown: set[int] = set()
        self.kept: list[tuple[int, bytes]] = []
        self.base: dict[tuple[int, bytes], int] = {}  # messages before the join, by publisher and topic
        self.wanted: dict[tuple[int, bytes], int] = {}  # messages before the topic was wanted
        self.claimed_early: list[Gap] = []
        self.wants = Wants(())
        self.wants_subjects: list[bytes] = []
        super().__init__(net, [HELLO, b"_INBOX.x.*"])
        self.connect()
        self.listen(patterns)

    def listen(self, patterns: Iterable[str]) -> None:
        before, former = set(self.wants_subjects), self.wants
        self.wants_subjects = [each.encode() for each in patterns]
        self.wants = wants_of(self.wants_subjects)
        for subject in set(self.wants_subjects) - before:
            self.subscribe(subject)
        for subject in before - set(self.wants_subjects):
            self.subscribe(subject, False)
        self.base = {key: at for key, at in self.base.items() if key[1] in self.wants}
        self.wanted = {key: at for key, at in self.wanted.items() if key[1] in self.wants}
        for publisher, topic in product(self.net.publishers, self.net.topics):
            if topic in self.wants and topic not in former:
                self.wanted[publisher.epoch, topic] = len(publisher.sent[topic])
        self.session.listen(self.wants.patterns, self.wants_subjects)

    def report(self, found: Any) -> None:
        self.found.append(found)
        if isinstance(found, Gap):
            assert found.count < 10_000, found
            early = self.wanted.get((found.epoch, found.subscription), 0)
            (sent,) = [each.sent for each in self.net.publishers if each.epoch == found.epoch]
            if found.first in sent[found.subscription][:early]:
                self.claimed_early.append(found)
            self.claimed[found.epoch, found.subscription] += range(found.first, found.last + 1)
        elif isinstance(found, UnknownLoss):
            self.unknown.add(found.epoch)
        else:
            assert isinstance(found, LostKept)

    def opened(self) -> None:
        self.session.connected()

    def ended(self) -> None:
        self.session.lost()

    def arrived(self, message: Message) -> None:
        self.inbox.append(message)
        if not self.paused:
            self.read()

    def read(self) -> None:
        while self.inbox and not self.paused:
            subject, headers, payload, _ = self.inbox.pop(0)
            ours = subject == HELLO or subscriber_of(subject) == self.session.subscriber
            if not ours and subject.startswith((b"_zr.", b"_INBOX.")):
                continue  # a pattern such as > also receives the control messages of others
            if headers.startswith(b"NATS/1.0 503"):
                self.session.unheard(subject)
            else:
                self.take(frame_of(subject, headers, payload, lambda: 0))

    def take(self, frame: bytes) -> None:
        """Read a frame as the routing table does."""
        topic, _, rest = frame.partition(NUL)
        header = parse_header(rest)
        if header.kind is Kind.KEPT:
            inner = rest[header.size :].partition(NUL)[0]
            if self.session.kept(header, topic, inner):
                self.kept.append((header.epoch, inner))
        elif header.kind is not Kind.DATA:
            joins = self.stats.joins
            self.session.control(header, topic, rest[header.size :])
            if self.stats.joins > joins:
                stated = self.net.stated[header.epoch, topic]
                for each in self.net.topics:
                    if each in self.wants:
                        self.base.setdefault((header.epoch, each), stated.get(each, 0))
        elif topic in self.wants:
            account, number = self.session.account(header.epoch, topic, b""), header.sequence
            if number == account.expected > 0:
                account.expected = number + 1
            elif not self.session.admit(account, number):
                return
            self.received[header.epoch, topic].append(number)


class Network:
    """Some servers, publishers and subscribers."""

    def __init__(self, seed: int, servers: int, topics: Iterable[bytes]) -> None:
        self.random, self.time, self.ids = Random(seed), Time(), count()
        self.topics = list(topics)
        self._subjects: dict[bytes, Wants] = {}
        self.stated: dict[tuple[int, bytes], dict[bytes, int]] = {}
        self.servers = [Server(self) for _ in range(servers)]
        self.publishers: list[Publisher] = []
        self.subscribers: list[Subscriber] = []
        for server in self.servers:
            self.join(server)

    def subject(self, subject: bytes) -> Wants:
        if subject not in self._subjects:
            self._subjects[subject] = wants_of([subject])
        return self._subjects[subject]

    def join(self, server: Server) -> None:
        """Connect a server to all others that run."""
        for other in self.servers:
            if other is not server and other.up and server.up and other not in server.routes:
                server.connect(other)
                other.connect(server)

    def split(self, one: Server, two: Server) -> None:
        """Cut the routes between two servers."""
        one.cut(two)
        two.cut(one)

    def kill(self, server: Server) -> None:
        server.up = False
        for other in self.servers:
            self.split(server, other)
        for connection in tuple(server.clients):
            if connection.client.connection is connection:
                connection.client.cut()
        server.clients.clear()

    def start(self, server: Server) -> None:
        server.up = True
        self.join(server)

    def faults(self, subscriber: Subscriber) -> list[str]:
        """Return what the subscriber has counted wrongly."""
        wrong = [f"{each}: counted, but sent before the topic was wanted" for each in subscriber.claimed_early]
        for publisher in self.publishers:
            for topic in self.topics:
                key = publisher.epoch, topic
                received, claimed = subscriber.received[key], subscriber.claimed[key]
                got, lost, sent = set(received), set(claimed), set(publisher.sent[topic])
                if len(got) != len(received) or received != sorted(received):
                    wrong.append(f"{key}: received twice or out of order")
                if len(lost) != len(claimed) or got & lost:
                    wrong.append(f"{key}: counted twice, or counted and received: {sorted(got & lost)}")
                if (got | lost) - sent:
                    wrong.append(f"{key}: never sent: {sorted((got | lost) - sent)}")
                if key in subscriber.base:
                    missing = set(publisher.sent[topic][subscriber.base[key] :]) - got - lost
                    if missing and publisher.epoch not in subscriber.unknown:
                        wrong.append(f"{key}: a wrong zero: {sorted(missing)}")
            dropped = publisher.session.counters.generation > 0
            if publisher.epoch in subscriber.unknown and not (publisher.crashed or publisher.stopped or dropped):
                wrong.append(f"{publisher.epoch}: an unknown loss of a publisher that knows its numbers")
        return wrong

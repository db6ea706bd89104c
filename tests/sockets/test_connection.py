"""Connections on a reactor: nothing stalls, nothing starves, nothing is left behind. Run on each reactor."""

from __future__ import annotations

import logging
import select
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from tests.running import Mailbox, reactor, turns
from tests.sockets.opened import Sockets, bound
from tests.support import PATIENCE, Way
from zroute.endpoints import parse_endpoint
from zroute.errors import EndpointError, NotRunningError
from zroute.options import READ_BUDGET, READ_SLICE, publisher_options, subscriber_options
from zroute.sockets import pubsub
from zroute.sockets.connection import Connection
from zroute.sockets.pipeline import PullConnection, PushConnection

MANY = 20_000


def connected(connection: Connection, address: str) -> None:
    """Connect to ``address``."""
    connection.open(parse_endpoint(address, bind=False))


async def told(socket: Any, *messages: bytes) -> None:
    """Wait until an XPUB socket has received these, in this order."""
    for message in messages:
        assert await deferToThread(socket.poll, PATIENCE * 1000)
        assert socket.recv() == message


def turn() -> Deferred[None]:
    """One turn of the reactor."""
    passed: Deferred[None] = Deferred()
    reactor.callLater(0, passed.callback, None)
    return passed


def numbered(many: int = MANY) -> list[bytes]:
    """So many messages."""
    return [b"n%d" % number for number in range(many)]


# -- reading ---------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_all_of_a_burst_is_delivered(sockets: Sockets) -> None:
    """20,000 messages at once arrive, in order, none twice, and without a stall."""
    box, publisher = Mailbox[bytes](), sockets.raw(zmq.XPUB)
    reader = sockets.sub(box)
    connected(reader, bound(publisher))
    reader.subscribe(b"n")
    await told(publisher, b"\1n")
    for message in numbered():
        publisher.send(message)
    assert await box.until(MANY) == numbered()


@pytest_twisted.ensureDeferred
async def test_a_stream_with_pauses_never_stalls(sockets: Sockets) -> None:
    """A thousand messages, each sent when the one before has been handled: no wake-up is missed."""
    box, publisher = Mailbox[bytes](), sockets.raw(zmq.XPUB)
    reader = sockets.sub(box)
    connected(reader, bound(publisher))
    reader.subscribe(b"")
    await told(publisher, b"\1")
    for number, message in enumerate(numbered(1000), start=1):
        publisher.send(message)
        await box.until(number)
        await turn()  # out of the doRead that delivered it
    assert box.items == numbered(1000)


async def handled_between_turns(sockets: Sockets, many: int, work: Callable[[], object]) -> list[int]:
    """Flood a reader, and count what it handles between two turns of a timer that is always due."""
    box, publisher = Mailbox[bytes](), sockets.raw(zmq.XPUB)
    between = [0]

    def drain(recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        for _ in range(budget):
            message = recv(zmq.DONTWAIT)
            work()
            between[-1] += 1
            box.put(message)

    def tick() -> None:
        if between[-1]:
            between.append(0)
        if len(box.items) < many:
            reactor.callLater(0, tick)

    reader = sockets.sub(drain)
    reader._socket.set(zmq.RCVHWM, 0)
    connected(reader, bound(publisher))
    reader.subscribe(b"n")
    await told(publisher, b"\1n")
    reader.pause()
    for message in numbered(many):
        publisher.send(message)
    reactor.callLater(0, tick)
    reader.resume()
    await box.until(many)
    assert box.items == numbered(many)
    return between


@pytest_twisted.ensureDeferred
async def test_what_is_left_of_a_message_needs_no_other_to_be_delivered(sockets: Sockets) -> None:
    """One frame that brings more than a turn takes: the next turns go on with it, though nothing else arrives."""
    box, publisher = Mailbox[int](), sockets.raw(zmq.XPUB)
    reader = sockets.sub(Mailbox[bytes]())
    rest: list[int] = []

    def drain(recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        if not rest:
            assert recv(1) == b"n"
            rest.extend(range(3 * READ_BUDGET))
        for _ in range(min(budget, len(rest))):
            box.put(rest.pop(0))

    reader.receive = drain
    connected(reader, bound(publisher))
    reader.subscribe(b"n")
    await told(publisher, b"\1n")
    publisher.send(b"n")
    assert await box.until(3 * READ_BUDGET) == list(range(3 * READ_BUDGET))


@pytest_twisted.ensureDeferred
async def test_a_flood_starves_no_timer(sockets: Sockets) -> None:
    """However much waits, what is read in one turn is bounded, and other calls get theirs in between."""
    between = await handled_between_turns(sockets, MANY, lambda: None)
    # A turn may call doRead twice: for the descriptor, and for a poke.
    assert READ_BUDGET <= max(between) <= 2 * (READ_BUDGET + 4 * READ_SLICE)


@pytest_twisted.ensureDeferred
async def test_slow_handlers_get_a_smaller_share(sockets: Sockets) -> None:
    """Where handlers take long, a turn ends after a few messages, not after the whole budget."""

    def work() -> None:
        end = reactor.seconds() + 0.001
        while reactor.seconds() < end:
            pass

    between = await handled_between_turns(sockets, 400, work)
    assert max(between) <= 2 * READ_SLICE


@pytest.mark.parametrize("how", ["send", "send_frame"])
@pytest_twisted.ensureDeferred
async def test_sending_does_not_lose_the_edge(sockets: Sockets, how: str) -> None:
    """A subscription that waits when I send is seen, each of 200 times, though sending uses its wake-up up."""
    changes = Mailbox[tuple[bytes, bool]]()
    publisher = sockets.pub(lambda prefix, there: changes.put((prefix, there)))
    peer = sockets.raw(zmq.SUB)
    peer.connect(bound(publisher))
    for number in range(200):
        peer.subscribe(b"s%d" % number)
        assert select.select([publisher.fileno()], [], [], PATIENCE)[0]  # looks, and leaves the socket alone
        while select.select([publisher.fileno()], [], [], 0)[0]:
            getattr(publisher, how)(b"x")
        await changes.until(number + 1)
        await turn()  # out of the doRead that told it
    assert changes.items == [(b"s%d" % number, True) for number in range(200)]


@pytest_twisted.ensureDeferred
async def test_a_look_that_has_time_is_brought_forward(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a publisher may have missed can wait, but not for those who need it now."""
    monkeypatch.setattr("zroute.sockets.pubsub.SUBSCRIPTIONS_SEEN", 2 * PATIENCE)
    changes = Mailbox[bytes]()
    publisher = sockets.pub(lambda prefix, there: changes.put(prefix))
    peer = sockets.raw(zmq.SUB)
    peer.connect(bound(publisher))
    await turn()
    peer.subscribe(b"s")
    assert select.select([publisher.fileno()], [], [], PATIENCE)[0]
    while select.select([publisher.fileno()], [], [], 0)[0]:
        publisher.send_frame(b"x")
    publisher.poke()
    publisher.send_frame(b"x")
    assert await changes.until(1) == [b"s"]


@pytest_twisted.ensureDeferred
async def test_sending_from_within_a_handler_loses_nothing(sockets: Sockets) -> None:
    """Two connections that answer each other's messages from their handlers go on for 2,000 rounds."""
    joined: Deferred[None] = Deferred()
    publisher = sockets.pub(lambda prefix, there: joined.callback(None))
    box = Mailbox[bytes]()

    def drain(recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        for _ in range(budget):
            message = recv(zmq.DONTWAIT)
            box.put(message)
            if len(box.items) < 2000:
                publisher.send(b"n%d" % len(box.items))

    reader = sockets.sub(drain)
    connected(reader, bound(publisher))
    reader.subscribe(b"n")
    await joined
    publisher.send(b"n0")
    assert await box.until(2000) == numbered(2000)


@pytest_twisted.ensureDeferred
async def test_what_a_drain_raises_is_logged_and_reading_goes_on(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even an error of zroute's own takes the socket out of the reactor."""
    box, publisher = Mailbox[bytes](), sockets.raw(zmq.XPUB)

    def drain(recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        message = recv(zmq.DONTWAIT)
        box.put(message)
        if message == b"bad":
            raise ValueError("of our own")

    reader = sockets.sub(drain)
    connected(reader, bound(publisher))
    reader.subscribe(b"")
    await told(publisher, b"\1")
    for message in (b"bad", b"good", b"bad", b"good"):
        publisher.send(message)
    assert await box.until(4) == [b"bad", b"good", b"bad", b"good"]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert "ValueError: of our own" in caplog.text


# -- subscriptions ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_publisher_knows_20_000_subscriptions(sockets: Sockets) -> None:
    """None of many subscriptions is dropped on the way."""
    everything: Deferred[None] = Deferred()
    publisher = sockets.pub(lambda *_: everything.callback(None) if len(publisher.subscriptions) == MANY else None)
    reader = sockets.sub(Mailbox[bytes]())
    connected(reader, bound(publisher))
    for prefix in numbered():
        reader.subscribe(prefix)
    await everything.addTimeout(PATIENCE, reactor)
    assert publisher.subscriptions == set(numbered())


@pytest_twisted.ensureDeferred
async def test_unsubscribing_ends_delivery(sockets: Sockets) -> None:
    """After unsubscribe nothing of that prefix comes any more; another prefix goes on."""
    changes, box = Mailbox[tuple[bytes, bool]](), Mailbox[bytes]()
    publisher = sockets.pub(lambda prefix, there: changes.put((prefix, there)))
    reader = sockets.sub(box)
    connected(reader, bound(publisher))
    reader.subscribe(b"a")
    reader.subscribe(b"b")
    await changes.until(2)
    for message in (b"a1", b"b1"):
        publisher.send(message)
    await box.until(2)
    reader.unsubscribe(b"a")
    await changes.until(3)
    assert publisher.subscriptions == {b"b"}
    for message in (b"a2", b"b2", b"a3", b"b3"):
        publisher.send(message)
    assert await box.until(4) == [b"a1", b"b1", b"b2", b"b3"]
    assert changes.items == [(b"a", True), (b"b", True), (b"a", False)]


@pytest_twisted.ensureDeferred
async def test_subscriptions_are_counted(sockets: Sockets) -> None:
    """Who subscribes twice unsubscribes twice."""
    changes, box = Mailbox[tuple[bytes, bool]](), Mailbox[bytes]()
    publisher = sockets.pub(lambda prefix, there: changes.put((prefix, there)))
    reader = sockets.sub(box)
    connected(reader, bound(publisher))
    reader.subscribe(b"a")
    reader.subscribe(b"a")
    reader.unsubscribe(b"a")
    reader.subscribe(b"b")
    await changes.until(2)
    publisher.send(b"a1")
    assert await box.until(1) == [b"a1"]
    reader.unsubscribe(b"a")
    await changes.until(3)
    assert changes.items == [(b"a", True), (b"b", True), (b"a", False)]


@pytest_twisted.ensureDeferred
async def test_what_a_peer_sends_beyond_subscriptions_is_ignored(sockets: Sockets) -> None:
    """XSUB peers can send anything to a publisher; only subscriptions change anything."""
    changes = Mailbox[tuple[bytes, bool]]()
    publisher = sockets.pub(lambda prefix, there: changes.put((prefix, there)))
    peer = sockets.raw(zmq.XSUB)
    peer.connect(bound(publisher))
    for message in (b"\1a", b"\2b", b"hello", b"", b"\1c", b"\0a"):
        peer.send(message)
    assert await changes.until(3) == [(b"a", True), (b"c", True), (b"a", False)]
    assert publisher.subscriptions == {b"c"}


@pytest_twisted.ensureDeferred
async def test_a_flood_of_subscriptions_is_said_once(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More live subscriptions than any sane program has are a warning, not one per subscription."""
    monkeypatch.setattr(pubsub, "MAX_SUBSCRIPTIONS", 10)
    changes = Mailbox[bytes]()
    publisher = sockets.pub(lambda prefix, there: changes.put(prefix))
    peer = sockets.raw(zmq.SUB)
    peer.connect(bound(publisher))
    for prefix in numbered(20):
        peer.subscribe(prefix)
    await changes.until(20)
    assert [record.message.partition(" at ")[0] for record in caplog.records] == [
        "XPubConnection: 11 live subscriptions"
    ]


@pytest_twisted.ensureDeferred
async def test_parts_are_sent_as_one_message(sockets: Sockets) -> None:
    """A peer receives all parts of a message, in order."""
    joined: Deferred[None] = Deferred()
    publisher = sockets.pub(lambda prefix, there: joined.callback(None))
    peer = sockets.raw(zmq.SUB)
    peer.connect(bound(publisher))
    peer.subscribe(b"t")
    await joined
    publisher.send(b"t", b"", b"body")
    assert await deferToThread(peer.recv_multipart) == [b"t", b"", b"body"]


# -- pausing ---------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_paused_reader_gets_its_subscriptions_back_from_a_restarted_publisher(sockets: Sockets) -> None:
    """The publisher may restart while I pause: it knows my subscriptions again, and resume delivers."""
    box, publisher = Mailbox[bytes](), sockets.raw(zmq.XPUB)
    address = bound(publisher)
    reader = sockets.sub(box)
    connected(reader, address)
    reader.subscribe(b"a")
    await told(publisher, b"\1a")
    reader.pause()
    publisher.close(0)
    again = sockets.raw(zmq.XPUB)
    await turns(lambda: bindable(again, address))
    await told(again, b"\1a")
    again.send(b"a1")
    await turns(reader.readable)
    for _ in range(20):
        await turn()
    assert box.items == []
    reader.resume()
    assert await box.until(1) == [b"a1"]


def bindable(socket: Any, address: str) -> bool:
    """Bind, unless the address is not yet free."""
    try:
        socket.bind(address)
    except zmq.ZMQError:
        return False
    return True


@pytest_twisted.ensureDeferred
async def test_a_paused_reader_under_a_flood_costs_nothing(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """While I pause, what arrives does not call doRead again and again."""
    box, publisher = Mailbox[bytes](), sockets.raw(zmq.XPUB)
    reader = sockets.sub(box)
    connected(reader, bound(publisher))
    reader.subscribe(b"n")
    await told(publisher, b"\1n")
    reader.pause()
    calls: list[None] = []
    do_read = reader.doRead
    monkeypatch.setattr(reader, "doRead", lambda: (calls.append(None), do_read()))
    for message in numbered():
        publisher.send(message)
    await turns(reader.readable)
    passed = len(calls)
    for _ in range(500):
        await turn()
    assert len(calls) - passed < 50
    assert box.items == []
    monkeypatch.undo()
    reader.resume()
    assert await box.until(MANY) == numbered()


@pytest_twisted.ensureDeferred
async def test_pausing_from_a_handler_ends_the_turn_and_loses_nothing(sockets: Sockets) -> None:
    """A handler that pauses gets no slice more; what waits comes after resume."""
    box, publisher = Mailbox[bytes](), sockets.raw(zmq.XPUB)

    def drain(recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        box.put(recv(zmq.DONTWAIT))
        reader.pause()

    reader = sockets.sub(drain)
    connected(reader, bound(publisher))
    reader.subscribe(b"")
    await told(publisher, b"\1")
    for message in numbered(5):
        publisher.send(message)
    for number in range(1, 6):
        await box.until(number)
        await turn()
        assert len(box.items) == number
        reader.resume()
    assert box.items == numbered(5)


# -- closing ---------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_closing_twice_is_nothing(sockets: Sockets) -> None:
    """A closed connection can be closed, paused, resumed and poked, and is out of the reactor."""
    reader = sockets.sub(Mailbox[bytes]())
    bound(reader)
    assert reader in reactor.getReaders()
    assert str(reader.endpoints) in reader.logPrefix()
    reader.close(0)
    for call in (reader.close, reader.pause, reader.resume, reader.poke, reader.doRead):
        call()
    await turn()
    assert reader not in reactor.getReaders()
    assert (reader.fileno(), reader.readable(), reader.more()) == (-1, False, 0)


@pytest_twisted.ensureDeferred
async def test_a_handler_may_close_its_connection(sockets: Sockets) -> None:
    """Closing in the middle of a drain ends reading, and nothing is raised."""
    box, publisher = Mailbox[bytes](), sockets.raw(zmq.XPUB)

    def drain(recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        for _ in range(budget):
            box.put(recv(zmq.DONTWAIT))
            reader.close(0)

    reader = sockets.sub(drain)
    connected(reader, bound(publisher))
    reader.subscribe(b"")
    await told(publisher, b"\1")
    for message in numbered(5):
        publisher.send(message)
    await box.until(1)
    for _ in range(5):
        await turn()
    assert box.items == [b"n0"]
    assert reader not in reactor.getReaders()


@pytest_twisted.ensureDeferred
async def test_a_lost_connection_is_closed(sockets: Sockets) -> None:
    """When the reactor gives the descriptor up, the socket does not stay behind."""
    reader = sockets.sub(Mailbox[bytes]())
    bound(reader)
    reader.connectionLost(Failure(OSError("gone")))
    assert reader.closed
    assert reader._socket.closed


@pytest_twisted.ensureDeferred
async def test_terminating_my_own_context_closes_the_connections_in_it(sockets: Sockets) -> None:
    """A program that terminates the context it gave us does not wait for ever."""
    context: zmq.Context[Any] = zmq.Context()
    reader = pubsub.SubConnection(reactor, list, context=context)
    writer = pubsub.XPubConnection(reactor, context=context)
    bound(writer)
    bound(reader)
    await turn()
    await deferToThread(context.term).addTimeout(PATIENCE, reactor)
    assert reader.closed
    assert writer.closed
    assert not {reader, writer} & set(reactor.getReaders())


# -- opening ---------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("in use", "another program uses it"),
        ("tcp://203.0.113.77:5555", "this machine has no such address"),
        ("tcp://nosuchcard0:5555", "this machine has no such address or interface"),
        ("ipc:///no/such/folder/s", "there is no such directory"),
    ],
)
async def test_an_address_that_cannot_be_bound_says_why(sockets: Sockets, address: str, says: str) -> None:
    """The error names the address, what is wrong with it, and what to do."""
    if address == "in use":
        address = bound(sockets.raw(zmq.XPUB))
    publisher = sockets.pub()
    with pytest.raises(EndpointError) as caught:
        publisher.open(parse_endpoint(address, bind=True))
    assert str(caught.value).startswith(f"can't bind {address}: {says}")
    assert caught.value.endpoint == f"bind:{address}"


@pytest_twisted.ensureDeferred
async def test_a_failed_bind_that_is_remembered_holds_no_socket(sockets: Sockets) -> None:
    """I can keep the exception, and the context terminates all the same."""
    address = bound(sockets.raw(zmq.XPUB))
    context: zmq.Context[Any] = zmq.Context()
    publisher = pubsub.XPubConnection(reactor, context=context)
    with pytest.raises(EndpointError) as caught:
        publisher.open(parse_endpoint(address, bind=True))
    publisher.close(0)
    del publisher
    await deferToThread(context.term).addTimeout(PATIENCE, reactor)
    assert caught.value.__context__ is None


@pytest_twisted.ensureDeferred
async def test_what_is_bound_is_named_as_it_is(sockets: Sockets, tmp_path: Any) -> None:
    """A port of the system's choice is in the address that open returns, and in endpoints."""
    publisher = sockets.pub()
    addresses = [bound(publisher, kind) for kind in ("tcp://127.0.0.1:*", f"ipc://{tmp_path}/s", "inproc://here")]
    assert not addresses[0].endswith("*")
    assert addresses[1:] == [f"ipc://{tmp_path}/s", "inproc://here"]
    assert publisher.endpoints == addresses


@pytest_twisted.ensureDeferred
async def test_brackets_make_an_address_of_version_6(sockets: Sockets) -> None:
    """tcp://[::1] binds and connects where the machine has it."""
    box, publisher = Mailbox[bytes](), sockets.pub()
    try:
        address = bound(publisher, "tcp://[::1]:*")
    except EndpointError:
        pytest.skip("this machine has no IPv6")
    joined: Deferred[None] = Deferred()
    publisher._on_change = lambda *_: joined.callback(None)
    reader = sockets.sub(box)
    connected(reader, address)
    reader.subscribe(b"")
    await joined
    publisher.send(b"six")
    assert await box.until(1) == [b"six"]


@pytest_twisted.ensureDeferred
async def test_the_safe_options_are_set(sockets: Sockets) -> None:
    """What the documentation promises of each socket is what libzmq says of it."""
    for connection, options in (
        (sockets.sub(Mailbox[bytes]()), subscriber_options()),
        (sockets.pub(), publisher_options()),
    ):
        found = {option.name: connection._socket.get(getattr(zmq.SocketOption, option.name)) for option in options}
        assert found == {option.name: option.value for option in options}


@pytest_twisted.ensureDeferred
async def test_a_publisher_that_starts_later_is_found(sockets: Sockets, way: Way) -> None:
    """Connecting before anybody has bound is fine: messages come when the publisher does."""
    box, meeting = Mailbox[bytes](), way.meeting()
    reader = sockets.sub(box)
    connected(reader, meeting.connect)
    reader.subscribe(b"a")
    joined: Deferred[None] = Deferred()
    publisher = sockets.pub(lambda *_: joined.callback(None))
    publisher.open(parse_endpoint(meeting.bind, bind=True))
    await joined
    publisher.send(b"a1")
    assert await box.until(1) == [b"a1"]


@pytest.mark.parametrize("end", ["a worker comes", "the connection is closed"])
@pytest_twisted.ensureDeferred
async def test_who_waits_to_send_may_cancel_who_waits_beside_it(end: str) -> None:
    """I give up the other one in the callback of the first: nothing fires twice, and who waits last is told."""
    push, pull = PushConnection(reactor), PullConnection(reactor, print)
    ended: list[str] = []
    try:
        push.open(f"inproc://waiting-{len(end)}")
        first, second, third = (push.when_writable() for _ in range(3))
        first.addBoth(lambda _: second.cancel())
        second.addErrback(lambda failure: ended.append(failure.type.__name__))
        third.addBoth(lambda result: ended.append(type(result).__name__))
        if end == "a worker comes":
            pull.open(f"inproc://waiting-{len(end)}")
        else:
            push.close()
        await turns(lambda: len(ended) == 2)
    finally:
        push.close()
        pull.close()
    assert ended == ["CancelledError", "NoneType" if end == "a worker comes" else "Failure"]


def test_only_an_address_that_is_open_can_be_taken_back() -> None:
    """Another name of it is an EndpointError that says what to give, and the endpoint stays open and listed."""
    pull = PullConnection(reactor, print)
    try:
        address = pull.open("bind:tcp://127.0.0.1:*")
        for take_back in (pull.unbind, pull.disconnect):
            with pytest.raises(EndpointError, match=r"it is not open: give the address that open\(\) returned"):
                take_back(address.replace("127.0.0.1", "localhost"))
        assert pull.endpoints == [address]
        pull.unbind(address)
        assert pull.endpoints == []
    finally:
        pull.close()


def test_what_is_closed_says_so() -> None:
    """To open or to watch it is zroute's own error, not one of libzmq's about something that is no socket."""
    pull = PullConnection(reactor, print)
    pull.close()
    for endpoint in ("bind:tcp://127.0.0.1:*", "connect:tcp://127.0.0.1:5999"):
        with pytest.raises(NotRunningError, match="this PullConnection is closed: open another one"):
            pull.open(endpoint)
    with pytest.raises(NotRunningError, match="this PullConnection is closed"):
        pull.watch(print)

"""Connections on a reactor: no message waits for ever, no timer starves, no resource leaks.

`tests.sockets.test_reactors` runs these tests on each reactor.
"""

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
from tests.support import PATIENCE, Way, free_endpoint, sized
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
    """Wait until an XPUB socket has received these subscriptions, in this order."""
    for message in messages:
        assert await deferToThread(socket.poll, PATIENCE * 1000)
        assert socket.recv() == message


def turn() -> Deferred[None]:
    """Wait for one turn of the reactor."""
    passed: Deferred[None] = Deferred()
    reactor.callLater(0, passed.callback, None)
    return passed


def numbered(many: int = MANY) -> list[bytes]:
    """Return a number of messages with numbers in them."""
    return [b"n%d" % number for number in range(many)]


# -- reading ---------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_all_of_a_burst_is_delivered(sockets: Sockets) -> None:
    """20,000 messages sent at once arrive in order, once each, and without a stall."""
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
    """A thousand messages, each sent after the previous one was handled: no wake-up is missed."""
    box, publisher = Mailbox[bytes](), sockets.raw(zmq.XPUB)
    reader = sockets.sub(box)
    connected(reader, bound(publisher))
    reader.subscribe(b"")
    await told(publisher, b"\1")
    for number, message in enumerate(numbered(1000), start=1):
        publisher.send(message)
        await box.until(number)
        await turn()  # leave the doRead that delivered it
    assert box.items == numbered(1000)


async def handled_between_turns(sockets: Sockets, many: int, work: Callable[[], object]) -> list[int]:
    """Flood a reader, and count the messages it handles between two turns of a timer that is always due."""
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
    """A frame with more messages than one turn can handle is handled in the next turns without new input."""
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
    """During a flood, one turn reads a bounded number of messages, and timers run in between."""
    between = await handled_between_turns(sockets, MANY, lambda: None)
    # One turn may call doRead twice: for the descriptor and for a poke.
    # On a slow machine, all turns may end because of their time, before the budget is used.
    assert 2 * READ_SLICE < max(between) <= 2 * (READ_BUDGET + 4 * READ_SLICE)


@pytest_twisted.ensureDeferred
async def test_slow_handlers_get_a_smaller_share(sockets: Sockets) -> None:
    """With slow handlers a turn ends after a few messages, not after the whole budget."""

    def work() -> None:
        end = reactor.seconds() + 0.001
        while reactor.seconds() < end:
            pass

    between = await handled_between_turns(sockets, 400, work)
    assert max(between) <= 2 * READ_SLICE


@pytest.mark.parametrize("how", ["send", "send_frame"])
@pytest_twisted.ensureDeferred
async def test_sending_does_not_lose_the_edge(sockets: Sockets, how: str) -> None:
    """A subscription that waits during a send is read, though sends consume its signal (200 times in CI)."""
    changes, times = Mailbox[tuple[bytes, bool]](), sized(200, 50)
    publisher = sockets.pub(lambda prefix, there: changes.put((prefix, there)))
    peer = sockets.raw(zmq.SUB)
    peer.connect(bound(publisher))
    for number in range(times):
        peer.subscribe(b"s%d" % number)
        assert select.select([publisher.fileno()], [], [], PATIENCE)[0]  # looks once, and then does not use the socket
        while select.select([publisher.fileno()], [], [], 0)[0]:
            getattr(publisher, how)(b"x")
        await changes.until(number + 1)
        await turn()  # leave the doRead that reported it
    assert changes.items == [(b"s%d" % number, True) for number in range(times)]


@pytest_twisted.ensureDeferred
async def test_a_look_that_has_time_is_brought_forward(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delayed look at the socket is made at once when a caller needs it."""
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
    """Two connections that answer each other's messages in their handlers complete 2,000 rounds."""
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
    """An error in zroute itself is logged, and the socket stays in the reactor."""
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
    """A publisher receives all of 20,000 subscriptions."""
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
    """After unsubscribe, no message with that prefix arrives; another prefix stays subscribed."""
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
    """A prefix that was subscribed to twice must be unsubscribed twice."""
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
    """Other messages of an XSUB peer do not change the subscriptions."""
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
    """A flood of subscriptions is one warning, not one for each subscription."""
    monkeypatch.setattr(pubsub, "MAX_SUBSCRIPTIONS", 10)
    changes = Mailbox[bytes]()
    publisher = sockets.pub(lambda prefix, there: changes.put(prefix))
    peer = sockets.raw(zmq.SUB)
    peer.connect(bound(publisher))
    for prefix in numbered(20):
        peer.subscribe(prefix)
    await changes.until(20)
    assert [record.message.partition(" at ")[0] for record in caplog.records] == [
        "XPubConnection: 11 active subscriptions"
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
    """A publisher that restarts during a pause receives the subscriptions again, and resume delivers."""
    box, publisher, address = Mailbox[bytes](), sockets.raw(zmq.XPUB), free_endpoint()
    publisher.bind(address)
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
    """Bind, and retry while the address is still in use."""
    try:
        socket.bind(address)
    except zmq.ZMQError:
        return False
    return True


@pytest_twisted.ensureDeferred
async def test_a_paused_reader_under_a_flood_costs_nothing(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that arrive during a pause do not call doRead repeatedly."""
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
    """A handler that pauses gets no further slice; the waiting messages arrive after resume."""
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
    """A closed connection can be closed, paused, resumed and poked, and is removed from the reactor."""
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
    """Closing the connection in a handler ends reading without an error."""
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
    """If the reactor drops the descriptor, the socket is closed too."""
    reader = sockets.sub(Mailbox[bytes]())
    bound(reader)
    reader.connectionLost(Failure(OSError("gone")))
    assert reader.closed
    assert reader._socket.closed


@pytest_twisted.ensureDeferred
async def test_terminating_my_own_context_closes_the_connections_in_it(sockets: Sockets) -> None:
    """Terminating a context that the program has passed to zroute does not hang."""
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
        ("in use", "this address is in use"),
        ("tcp://203.0.113.77:5555", "this machine does not have this address"),
        ("tcp://nosuchcard0:5555", "this machine does not have this address or interface"),
        ("ipc:///no/such/folder/s", "the directory does not exist"),
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
    """The context terminates even if the program keeps the exception."""
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
    """The result of open, and endpoints, contain the port that the system has chosen."""
    publisher = sockets.pub()
    addresses = [bound(publisher, kind) for kind in ("tcp://127.0.0.1:*", f"ipc://{tmp_path}/s", "inproc://here")]
    assert not addresses[0].endswith("*")
    assert addresses[1:] == [f"ipc://{tmp_path}/s", "inproc://here"]
    assert publisher.endpoints == addresses


@pytest_twisted.ensureDeferred
async def test_brackets_make_an_address_of_version_6(sockets: Sockets) -> None:
    """tcp://[::1] binds and connects if the machine has IPv6."""
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
    """libzmq reports the documented option values of each socket."""
    for connection, options in (
        (sockets.sub(Mailbox[bytes]()), subscriber_options()),
        (sockets.pub(), publisher_options()),
    ):
        found = {option.name: connection._socket.get(getattr(zmq.SocketOption, option.name)) for option in options}
        assert found == {option.name: option.value for option in options}


@pytest_twisted.ensureDeferred
async def test_a_publisher_that_starts_later_is_found(sockets: Sockets, way: Way) -> None:
    """A subscriber that connects before the publisher binds receives messages later."""
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
    """A callback of one waiting sender cancels another: no Deferred fires twice, and the last one fires."""
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
    """Another name of the address raises an EndpointError with the remedy, and the endpoint stays open."""
    pull = PullConnection(reactor, print)
    try:
        address = pull.open("bind:tcp://127.0.0.1:*")
        for take_back in (pull.unbind, pull.disconnect):
            with pytest.raises(
                EndpointError, match=r"this address is not open: pass the address that open\(\) returned"
            ):
                take_back(address.replace("127.0.0.1", "localhost"))
        assert pull.endpoints == [address]
        pull.unbind(address)
        assert pull.endpoints == []
    finally:
        pull.close()


def test_what_is_closed_says_so() -> None:
    """Opening or watching a closed connection raises an error of zroute, not of libzmq."""
    pull = PullConnection(reactor, print)
    pull.close()
    for endpoint in ("bind:tcp://127.0.0.1:*", "connect:tcp://127.0.0.1:5999"):
        with pytest.raises(NotRunningError, match="this PullConnection is closed: create a new one"):
            pull.open(endpoint)
    with pytest.raises(NotRunningError, match="this PullConnection is closed"):
        pull.watch(print)

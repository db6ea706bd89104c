"""`Envelope.peer`: handlers learn which key has sent a message, a request or a job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
import zmq

from tests.acceptance.test_keys import at
from tests.keyed import Keys
from tests.running import Mailbox, running, turns
from tests.sockets.opened import Sockets
from tests.support import free_endpoint
from zroute import App, Envelope
from zroute.endpoints import Endpoint, parse_ends
from zroute.messages.wire import NamedFrame
from zroute.sockets.events import SocketEvent
from zroute.sockets.pubsub import SubConnection
from zroute.testing import TestApp

LARGE = 20_000


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The keys of hub, and of feeds and desks that it knows."""
    made = Keys(tmp_path)
    made.introduce("hub", "north", "south")
    return made


def publishing(keys: Keys, name: str, pub: str = "tcp://127.0.0.1:*", **options: Any) -> App:
    """Return an app that publishes its name, in small and large messages."""
    app = App(pub=pub, **keys.of(name), **options)
    app.every(0.01)(app.publisher(f"small.{name}", str)(lambda: name))
    app.every(0.01)(app.publisher(f"large.{name}", str)(lambda: name * LARGE))
    return app


def naming(keys: Keys, *sub: str) -> tuple[App, Mailbox[tuple[str, str | None]]]:
    """Return an app that notes the topic and the peer of each message."""
    app, box = App(sub=list(sub), **keys.of("hub")), Mailbox[tuple[str, str | None]]()

    @app.subscribe(">")
    def note(envelope: Envelope) -> None:
        box.put((str(envelope.topic), envelope.peer))

    return app, box


async def names(box: Mailbox[tuple[str, str | None]], *topics: str) -> dict[str, set[str | None]]:
    """Wait until each topic has arrived some times; return the peers by topic."""
    await turns(lambda: all(sum(topic == each for each, _ in box.items) > 5 for topic in topics))
    return {topic: {peer for each, peer in box.items if each == topic} for topic in topics}


TOPICS = ("small.north", "large.north", "small.south", "large.south")
NAMES: dict[str, set[str | None]] = {topic: {topic.partition(".")[2]} for topic in TOPICS}


@pytest_twisted.ensureDeferred
async def test_one_endpoint_has_the_name_of_its_key(keys: Keys) -> None:
    """All messages come from one key, so reading them costs nothing more."""
    north = publishing(keys, "north")
    async with running(north):
        app, box = naming(keys, at(north.addresses.pub[0], "north"))
        async with running(app):
            assert await names(box, *TOPICS[:2]) == {topic: NAMES[topic] for topic in TOPICS[:2]}
            live: Any = app._live
            assert live.run.transport.sub._named is None


@pytest_twisted.ensureDeferred
async def test_several_endpoints_have_the_names_of_their_keys(keys: Keys) -> None:
    """Small and large messages of two publishers in one socket."""
    north, south = publishing(keys, "north"), publishing(keys, "south")
    async with running(north), running(south):
        app, box = naming(keys, at(north.addresses.pub[0], "north"), at(south.addresses.pub[0], "south"))
        async with running(app):
            assert await names(box, *TOPICS) == NAMES


@pytest_twisted.ensureDeferred
async def test_publishers_that_connect_have_the_names_of_their_keys(keys: Keys) -> None:
    """The subscriber binds, and each frame states the key."""
    app, box = naming(keys, "bind:tcp://127.0.0.1:*")
    async with running(app):
        to = f"connect:{at(app.addresses.sub[0], 'hub')}"
        async with running(publishing(keys, "north", to)), running(publishing(keys, "south", to)):
            assert await names(box, *TOPICS) == NAMES


@pytest_twisted.ensureDeferred
async def test_an_added_endpoint_has_the_name_of_its_key(keys: Keys) -> None:
    """From the addition on, the publishers must be told apart."""
    north, south = publishing(keys, "north"), publishing(keys, "south")
    async with running(north), running(south):
        app, box = naming(keys, at(north.addresses.pub[0], "north"))
        async with running(app):
            await names(box, *TOPICS[:2])
            app.add_endpoints(sub=at(south.addresses.pub[0], "south"))
            assert await names(box, *TOPICS) == NAMES


@pytest_twisted.ensureDeferred
async def test_coalesced_and_kept_messages_have_the_name_of_their_publisher(keys: Keys) -> None:
    """Messages that arrive in one frame, and messages from before the subscription."""
    north = App(pub="tcp://127.0.0.1:*", **keys.of("north"))
    together = north.publisher("together", int, coalesce=True)
    kept = north.publisher("kept", int, keep="last")
    south = publishing(keys, "south")
    async with running(north), running(south):
        kept.publish(1)
        app, box = naming(keys, at(north.addresses.pub[0], "north"), at(south.addresses.pub[0], "south"))
        async with running(app):
            await app.ready(2, state=True)
            for number in range(20):
                together.publish(number)
            found = await names(box, "together", "small.south")
            assert found == {"together": {"north"}, "small.south": {"south"}}
            assert ("kept", "north") in box.items


@pytest_twisted.ensureDeferred
async def test_a_handler_without_an_envelope_pays_nothing(keys: Keys) -> None:
    """The names are read only while a route takes an envelope."""
    north, south = publishing(keys, "north"), publishing(keys, "south")
    async with running(north), running(south):
        ends = [at(north.addresses.pub[0], "north"), at(south.addresses.pub[0], "south")]
        app, box = App(sub=ends, **keys.of("hub")), Mailbox[str]()

        @app.subscribe("small.*")
        def take(body: str) -> None:
            box.put(body)

        async with running(app):
            await box.until(5)
            live: Any = app._live
            sub = live.run.transport.sub
            assert not sub._named
            seen = Mailbox[str | None]()

            def note(envelope: Envelope) -> None:
                seen.put(envelope.peer)

            attached = app.attach("small.*", note)
            assert sub._named
            await turns(lambda: {"north", "south"} <= set(seen.items))
            attached.close()
            assert not sub._named


@pytest_twisted.ensureDeferred
async def test_requests_and_jobs_have_the_name_of_their_peer(keys: Keys) -> None:
    """A reply handler sees the key of the requester, and a worker that of the owner."""
    server, seen = App(rep="tcp://127.0.0.1:*", **keys.of("hub")), Mailbox[str | None]()

    @server.reply("who")
    def who(envelope: Envelope) -> str | None:
        return envelope.peer

    async with running(server):
        for name in ("north", "south"):
            asking = App(req=at(server.addresses.rep[0], "hub"), **keys.of(name))
            async with running(asking):
                assert await asking.request("who", None, str) == name
    owner = App(jobs="tcp://127.0.0.1:*", **keys.of("north"))
    queue = owner.job_queue("job", int)
    async with running(owner):
        worker = App(work=at(owner.addresses.jobs[0], "north"), **keys.of("hub"))

        @worker.work("job")
        def work(number: int, envelope: Envelope) -> None:
            seen.put(envelope.peer)

        async with running(worker):
            await queue.put(1)
            assert await seen.until(1) == ["north"]


@pytest_twisted.ensureDeferred
async def test_a_plain_requester_has_a_name_too(keys: Keys) -> None:
    """A REQ socket of pyzmq with a key."""
    server = App(rep="tcp://127.0.0.1:*", **keys.of("hub"))

    @server.reply("who")
    def who(envelope: Envelope) -> str | None:
        return envelope.peer

    async with running(server):
        context: zmq.Context[Any] = zmq.Context()
        caller = keys.use(context.socket(zmq.REQ), "south", "hub")
        caller.linger = 0
        caller.connect(server.addresses.rep[0])
        caller.send_multipart([b"who", b""])
        await turns(lambda: caller.poll(0))
        assert caller.recv() == b"south"
        caller.close()
        context.term()


@pytest_twisted.ensureDeferred
async def test_without_keys_and_over_inproc_there_is_no_name(keys: Keys) -> None:
    """A message without a key must never get the name of one."""
    address = free_endpoint()
    app, box = naming(keys, at(address, "north"), "bind:inproc://inside")
    here = App(pub="connect:inproc://inside", context=app.compile().addresses.context, **keys.of("south"))
    here.every(0.01)(here.publisher("inside", int)(lambda: 1))
    async with running(publishing(keys, "north", address)), running(app), running(here):
        assert await names(box, "small.north", "inside") == {"small.north": {"north"}, "inside": {None}}


@pytest_twisted.ensureDeferred
async def test_an_error_hook_and_a_middleware_see_the_name(keys: Keys) -> None:
    """Both take an envelope, and the handler does not."""
    north, south = publishing(keys, "north"), publishing(keys, "south")
    async with running(north), running(south):
        ends = [at(north.addresses.pub[0], "north"), at(south.addresses.pub[0], "south")]
        app, hooked, around = App(sub=ends, **keys.of("hub")), Mailbox[Any](), Mailbox[Any]()

        @app.subscribe("small.*")
        def fail(body: str) -> None:
            raise ValueError(body)

        @app.on_error(ValueError)
        def on_error(error: ValueError, envelope: Envelope) -> None:
            hooked.put((str(error), envelope.peer))

        @app.subscribe("large.*")
        def take(body: str) -> None:
            pass

        @app.middleware
        def noting(call: Callable[..., Any], route: Any) -> Callable[..., Any]:
            def around_it(message: Any, envelope: Envelope) -> Any:
                around.put(envelope.peer)
                return call(message)

            return around_it

        async with running(app):
            await turns(lambda: len(set(hooked.items)) == 2 and len(set(around.items)) == 2)
            assert set(hooked.items) == {("north", "north"), ("south", "south")}
            assert set(around.items) == {"north", "south"}


# -- parts that have to be certain -------------------------------------------------------------------------


class _Frame:
    """A frame of libzmq that arrived by a descriptor. Its sender may have chosen a name."""

    def __init__(self, chosen: str | None = None) -> None:
        self._chosen = chosen

    def get(self, name: Any) -> Any:
        """Return a property."""
        if name == zmq.SRCFD.value:
            return 7
        if name == "User-Id" and self._chosen is not None:
            return self._chosen
        raise zmq.ZMQError(zmq.EINVAL)


class Heard:
    """A SUB socket with three endpoints, of which two have the same peer; the test invents their connections."""

    def __init__(self, sockets: Sockets) -> None:
        self._sub = sockets.make(SubConnection, lambda parts: None)
        ends = {"tcp://a:1": "north", "tcp://b:2": "south", "tcp://c:3": "north"}
        for address, peer in ends.items():
            self._sub._as_given[address] = Endpoint(address, bind=False, peer=peer)
            self._sub.links.dial(address)

    def event(self, name: str, address: str) -> None:
        """Let a connection with the descriptor begin or end."""
        self._sub.links.seen(SocketEvent(name, address, 7))

    def read_all(self) -> None:
        """Read to the last message."""
        self._sub.links.read_all()

    def sender(self, chosen: str | None = None) -> str | None:
        """Return the name of the sender of a message."""
        frame: Any = _Frame(chosen)
        return cast("str | None", self._sub.sender_of(frame))


@pytest.fixture
def heard() -> Iterator[Heard]:
    """A `Heard`, which is closed after the test."""
    sockets = Sockets()
    yield Heard(sockets)
    sockets.close()


def test_a_descriptor_that_was_used_again_gives_no_wrong_name(heard: Heard) -> None:
    """While messages of an ended connection may be unread, a message has a name only if both have the same."""
    heard.event("connected", "tcp://a:1")
    assert heard.sender() == "north"
    heard.event("disconnected", "tcp://a:1")
    assert heard.sender() == "north", "the last messages of an ended connection"
    heard.event("connected", "tcp://b:2")
    assert heard.sender() is None
    heard.read_all()
    assert heard.sender() == "south"
    heard.event("disconnected", "tcp://b:2")
    heard.read_all()
    heard.event("connected", "tcp://a:1")
    heard.event("disconnected", "tcp://a:1")
    heard.event("connected", "tcp://c:3")
    assert heard.sender() == "north", "both connections have the same peer"


def test_a_publisher_can_not_choose_its_name(heard: Heard) -> None:
    """On a connection that this side has opened, the peer can state a User-Id of its own."""
    heard.event("connected", "tcp://a:1")
    assert heard.sender("south") == "north"
    heard.event("disconnected", "tcp://a:1")
    heard.event("accepted", "tcp://me:9")
    assert heard.sender("south") is None, "the message may be of the ended connection"
    heard.read_all()
    assert heard.sender("south") == "south", "here, only the handler of keys states the name"


@pytest_twisted.ensureDeferred
async def test_a_replaced_endpoint_leaves_no_name_behind(keys: Keys) -> None:
    """The messages of the new publisher never have the name of the old one."""
    north, south = publishing(keys, "north"), publishing(keys, "south")
    async with running(north), running(south):
        app, box = naming(keys, at(north.addresses.pub[0], "north"))
        async with running(app):
            await names(box, *TOPICS[:2])
            await app.remove_endpoints(sub=app.addresses.sub[0])
            app.add_endpoints(sub=at(south.addresses.pub[0], "south"))
            assert await names(box, *TOPICS[2:]) == {topic: NAMES[topic] for topic in TOPICS[2:]}


@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_a_slow_handler_adds_gets_no_wrong_name(keys: Keys) -> None:
    """The socket may deliver its messages in the same read; they then have no name."""
    north, south = publishing(keys, "north"), publishing(keys, "south")
    async with running(north), running(south):
        app, box = App(sub=at(north.addresses.pub[0], "north"), **keys.of("hub")), Mailbox[tuple[str, str | None]]()

        @app.subscribe(">")
        def note(envelope: Envelope) -> None:
            box.put((str(envelope.topic), envelope.peer))
            if len(box.items) == 20:
                app.add_endpoints(sub=at(south.addresses.pub[0], "south"))
                time.sleep(0.5)

        async with running(app):
            found = await names(box, *TOPICS)
            assert all(found[topic] <= NAMES[topic] | {None} for topic in TOPICS)


@pytest_twisted.ensureDeferred
async def test_a_hook_for_messages_without_a_route_sees_the_name(keys: Keys) -> None:
    """Although no route takes an envelope."""
    north, south = publishing(keys, "north"), publishing(keys, "south")
    async with running(north), running(south):
        ends = [at(north.addresses.pub[0], "north"), at(south.addresses.pub[0], "south")]
        app, box = App(sub=ends, **keys.of("hub")), Mailbox[tuple[str, str | None]]()

        @app.subscribe("*.none")
        def never(body: str) -> None:
            raise AssertionError

        @app.on_unrouted
        def note(envelope: Envelope) -> None:
            box.put((str(envelope.topic), envelope.peer))

        async with running(app):
            assert await names(box, "small.north", "small.south") == {
                "small.north": {"north"},
                "small.south": {"south"},
            }


@pytest_twisted.ensureDeferred
async def test_a_server_that_connects_knows_the_name_of_the_requester(keys: Keys) -> None:
    """The requester binds, and the endpoint of the server names its key."""
    asking = App(req="bind:tcp://127.0.0.1:*", **keys.of("north"))
    async with running(asking):
        server = App(rep=f"connect:{at(asking.addresses.req[0], 'north')}", **keys.of("hub"))

        @server.reply("who")
        def who(envelope: Envelope) -> str | None:
            return envelope.peer

        async with running(server):
            assert await asking.request("who", None, str) == "north"


@pytest.mark.parametrize(
    ("sub", "name"),
    [
        (["north@tcp://a:1"], "north"),
        (["north@tcp://a:1", "north@tcp://b:1"], "north"),
        (["north@tcp://a:1", "south@tcp://b:1"], None),
        (["north@tcp://a:1", "bind:tcp://*:5"], None),
        (["north@tcp://a:1", "inproc://a"], None),
        ([], None),
    ],
)
def test_all_publishers_have_one_name_only_if_all_endpoints_do(sub: list[str], name: str | None) -> None:
    """An endpoint that binds or is in this process has no name."""
    ends = parse_ends({"sub": sub}).replaced({"keys": "desk.key_secret"}) if sub else None
    assert (ends.publisher if ends is not None else None) == name


# -- in tests ----------------------------------------------------------------------------------------------


def test_a_test_states_the_peer() -> None:
    """Messages, requests, jobs and raw frames, one or several."""
    ends = {"sub": "tcp://127.0.0.1:5555", "rep": "tcp://127.0.0.1:5556", "work": "tcp://127.0.0.1:5557"}
    app, seen = App(name="hub", **ends), []

    @app.subscribe("news.*")
    def news(body: str, envelope: Envelope) -> None:
        seen.append(envelope.peer)

    @app.reply("who")
    def who(envelope: Envelope) -> str | None:
        return envelope.peer

    @app.work("job")
    def work(envelope: Envelope) -> None:
        seen.append(envelope.peer)

    with TestApp(app) as t:
        t.publish("news.a", "x", "y", peer="sensor-7")
        t.publish("news.a", "z")
        assert seen == ["sensor-7", "sensor-7", None]
        assert t.request("who", None, str, peer="desk") == "desk"
        assert t.request("who", None, Any) is None
        t.put("job", 1, peer="owner")
        t.put("job", 2)
        assert seen[3:] == ["owner", None]
        t.receive(b"news.a\0", peer="raw")
        t.receive(b"news.a", b'"x"', peer="raw")
        assert seen[5:] == ["raw", "raw"]


def test_a_test_without_a_peer_has_no_name() -> None:
    """Although all endpoints of the app have the same peer: the handler must refuse such a message."""
    app, seen = App(sub="north@tcp://127.0.0.1:5555", keys="no.key_secret"), []

    @app.subscribe("news.*")
    def news(body: str, envelope: Envelope) -> None:
        seen.append(envelope.peer)

    with TestApp(app) as t:
        t.publish("news.a", "x")
        assert seen == [None]


def test_a_frame_with_a_name_is_bytes() -> None:
    """All code that reads bytes reads it too."""
    frame = NamedFrame.of(b"a\0b", "north")
    assert frame == b"a\0b"
    assert frame.partition(b"\0") == (b"a", b"\0", b"b")

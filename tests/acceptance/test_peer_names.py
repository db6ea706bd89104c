"""`Envelope.peer`: handlers learn which key has sent a message, a request or a job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import zmq

from tests.acceptance.test_keys import at
from tests.keyed import Keys
from tests.running import Mailbox, running, turns
from tests.support import free_endpoint
from zroute import App, Envelope
from zroute.endpoints import parse_ends
from zroute.messages.wire import NamedFrame
from zroute.sockets.links import Links
from zroute.sockets.origins import PeerNames
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
            assert not isinstance(live.run.transport.sub._recv, type(PeerNames.recv))


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


class _Frame(bytes):
    """A frame of libzmq that arrived by a descriptor."""

    fd = 7

    @property
    def bytes(self) -> bytes:
        return bytes(self)

    def get(self, name: Any) -> Any:
        if name == zmq.SRCFD:
            return self.fd
        raise zmq.ZMQError(zmq.EINVAL)


def _link(links: Links, name: str, value: int, address: str) -> None:
    from zroute.sockets.events import SocketEvent

    links.seen(SocketEvent(name, address, value))


def test_a_descriptor_that_was_used_again_gives_no_wrong_name() -> None:
    """While messages of an ended connection may be unread, a message has a name only if both have the same."""
    links, names_of = Links(), {"tcp://a:1": "north", "tcp://b:2": "south", "tcp://c:3": "north"}
    frames: list[Any] = [_Frame(b"x")]

    def recv(flags: int, copy: bool) -> Any:
        if not frames:
            raise zmq.Again
        return frames.pop()

    peers = PeerNames(recv, links, lambda: None, names_of.get, NamedFrame.of)
    for address in names_of:
        links.dial(address)
    _link(links, "connected", 7, "tcp://a:1")
    assert peers.recv(1).peer == "north"
    _link(links, "disconnected", 7, "tcp://a:1")
    frames.append(_Frame(b"x"))
    assert peers.recv(1).peer == "north", "the last messages of an ended connection"
    _link(links, "connected", 7, "tcp://b:2")
    frames.append(_Frame(b"x"))
    assert peers.recv(1).peer is None
    with pytest.raises(zmq.Again):
        peers.recv(1)
    frames.append(_Frame(b"x"))
    assert peers.recv(1).peer == "south"
    _link(links, "disconnected", 7, "tcp://b:2")
    with pytest.raises(zmq.Again):
        peers.recv(1)
    _link(links, "connected", 7, "tcp://a:1")
    _link(links, "disconnected", 7, "tcp://a:1")
    _link(links, "connected", 7, "tcp://c:3")
    frames.append(_Frame(b"x"))
    assert peers.recv(1).peer == "north", "both connections have the same peer"


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


def test_a_frame_with_a_name_is_bytes() -> None:
    """All code that reads bytes reads it too."""
    frame = NamedFrame.of(b"a\0b", "north")
    assert frame == b"a\0b"
    assert frame.partition(b"\0") == (b"a", b"\0", b"b")

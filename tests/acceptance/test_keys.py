"""Whole apps with keys: who connects, who is refused and why, and what a revoked key ends."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from zmq.auth.thread import ThreadAuthenticator

from tests.acceptance.test_probes import probed
from tests.keyed import Caller, Keys
from tests.running import Mailbox, reactor, running, turns
from tests.support import PATIENCE, free_endpoint, free_port, free_port_of
from zroute import App, EndpointError, NoServerError, RequestLostError, RequestRefused, RequestRefusedError
from zroute.endpoints import Access
from zroute.runtime.service import AppService
from zroute.sockets import access, names, persistent, refusals
from zroute.sockets.events import SocketEvent
from zroute.sockets.zap import REFUSED
from zroute.stats import Stats
from zroute.testing import TestApp
from zroute.throttle import BURST
from zroute.txzmq import ZmqEndpoint, ZmqFactory, ZmqSubConnection

NUMBERS = "numbers.a"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The keys of feed and desk, which know each other, and of eve, which knows feed."""
    made = Keys(tmp_path)
    made.introduce("feed", "desk")
    made.authorize("eve", "feed")
    return made


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses after a failed handshake, and between two looks into the directory of peers."""
    monkeypatch.setattr(persistent, "PAUSE", 0.1)
    monkeypatch.setattr(refusals, "PAUSE", 0.1)
    monkeypatch.setattr(persistent, "PAUSE_MAX", 0.3)
    monkeypatch.setattr(refusals, "PAUSE_MAX", 0.3)
    monkeypatch.setattr(access, "_LOOK", 0.1)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, from INFO on."""
    caplog.set_level(logging.INFO)
    return caplog


def feed_app(keys: Keys, name: str = "feed", pub: str = "tcp://127.0.0.1:*", topic: str = NUMBERS) -> App:
    """Return an app that publishes numbers from 0 on, every 5 ms."""
    app = App(pub=pub, **keys.of(name))
    numbers = iter(range(10**9))
    app.every(0.005)(app.publisher(topic, int)(lambda: next(numbers)))
    return app


class Desk:
    """An app that reads numbers."""

    def __init__(self, keys: Keys, *ends: str, name: str = "desk") -> None:
        self.app = App(sub=list(ends), **keys.of(name))
        self._events: list[SocketEvent] = []
        self.box = Mailbox[int]()
        self.app.add_route(self.take, "numbers.>")

    def take(self, number: int) -> None:
        """Take a number."""
        self.box.put(number)

    @property
    def events(self) -> list[SocketEvent]:
        """The events of the SUB socket since `watch`."""
        return self._events

    def watch(self) -> None:
        """Begin to note the events of the SUB socket."""
        run: Any = self.app._live.run
        run.transport.sub.watch(self._events.append)

    async def more(self, number: int = 3) -> None:
        """Wait for further numbers."""
        await self.box.until(len(self.box.items) + number)

    def assert_whole(self) -> None:
        """Check that the numbers have no gap, and that no loss was counted."""
        items = self.box.items
        assert items == list(range(items[0], items[0] + len(items)))
        assert (self.app.stats.lost, self.app.stats.unknown_losses) == (0, 0)


def lines(logged: pytest.LogCaptureFixture, *words: str) -> list[str]:
    """Return the lines of the log that contain all words."""
    return [text for text in logged.messages if all(word in text for word in words)]


async def logs(logged: pytest.LogCaptureFixture, *words: str) -> str:
    """Wait for a line that contains all words, and return it."""
    await turns(lambda: lines(logged, *words))
    return lines(logged, *words)[0]


def at(address: str, peer: str = "feed") -> str:
    """Return the endpoint of a peer at an address."""
    return f"{peer}@{address}"


# -- connections -------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_messages_requests_and_jobs_pass_with_keys(keys: Keys) -> None:
    """Both apps have several sides, over tcp and ipc, and one key each."""
    box = Mailbox[int]()
    ipc = f"ipc://{keys.folder / 'rep'}"
    feed = App(pub="tcp://127.0.0.1:*", rep=ipc, jobs="tcp://127.0.0.1:*", **keys.of("feed"))
    feed.reply("double")(_double)
    jobs = feed.job_queue("jobs.a", int)
    async with running(feed):
        found = feed.addresses
        ends = {"sub": found.pub[0], "req": ipc, "work": found.jobs[0]}
        desk = App(**{side: at(address) for side, address in ends.items()}, **keys.of("desk"))
        desk.subscribe("numbers.a")(_into(box))
        desk.work("jobs.a")(_job(box))
        async with running(desk):
            await desk.ready(1)
            await feed.publish("numbers.a", 1)
            assert await box.until(1) == [1]
            assert await desk.request("double", 4, int) == 8
            await jobs.put(2)
            assert await box.until(2) == [1, 2]
    assert (feed.stats.refused, feed.stats.handshakes_failed) == (0, 0)


def registered(app: App, *sides: str) -> App:
    """Register a function for each of these sides, and return the app."""
    ways: dict[str, Callable[[], object]] = {
        "sub": lambda: app.subscribe("a")(lambda body: None),
        "pub": lambda: app.publisher("a", int),
        "rep": lambda: app.reply("a")(lambda: 1),
        "req": lambda: app.requester("a", None, int),
        "jobs": lambda: app.job_queue("a", int),
        "work": lambda: app.work("a")(lambda number: None),
    }
    for side in sides:
        ways[side]()
    return app


def _double(number: int) -> int:
    return 2 * number


def _job(box: Mailbox[int]) -> Callable[[int], Any]:
    async def take(number: int) -> None:  # a plain function would be called in a thread
        box.put(number)

    return take


def _into(box: Mailbox[int]) -> Callable[[int], None]:
    def take(number: int) -> None:
        box.put(number)

    return take


@pytest_twisted.ensureDeferred
async def test_an_unknown_key_is_refused_until_it_is_authorized(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """The refusal is counted and logged at both ends; when the key is authorized, the app connects by itself."""
    feed = feed_app(keys)
    async with running(feed):
        address = feed.addresses.pub[0]
        eve = Desk(keys, at(address), name="eve")
        async with running(eve.app):
            key = keys.key("eve")
            refused = await logs(logged, "feed: refused a connection from 127.0.0.1")
            expected = (
                f"its key {key.public.decode()} ({key.fingerprint}) is not in {keys.peers('feed')}. To accept it: "
            )
            assert expected in refused
            remedy = await logs(logged, f"eve: {address}: the peer refuses the key of eve ({key.fingerprint})")
            assert remedy.endswith("run there: zroute keys authorize eve.key --peers DIR")
            assert feed.stats.refused >= 1
            assert eve.box.items == []
            keys.authorize("feed", "eve")
            await eve.box.until(3)
            assert lines(logged, f"eve: connected to {address}")
            assert lines(logged, "feed: eve may connect now", key.fingerprint)
            assert len(lines(logged, "the peer refuses the key of eve")) == 1
    assert feed.stats.handshakes_failed == 0


@pytest_twisted.ensureDeferred
async def test_a_revoked_subscriber_gets_nothing_more_and_others_lose_nothing(
    keys: Keys, logged: pytest.LogCaptureFixture
) -> None:
    """While messages flow, the connection of the revoked key ends; the honest reader has all."""
    keys.authorize("feed", "eve")
    feed = feed_app(keys)
    async with running(feed):
        honest, eve = Desk(keys, at(feed.addresses.pub[0])), Desk(keys, at(feed.addresses.pub[0]), name="eve")
        async with running(honest.app), running(eve.app):
            await honest.more()
            await eve.more()
            honest.watch()
            assert access._LOOK < 1.0, "the documented time until a revoked key is seen"
            keys.revoke("feed", "eve")
            await logs(logged, "feed: the key of eve was revoked")
            await logs(logged, "the peer refuses the key of eve")
            number = len(eve.box.items)
            await honest.more(50)
            assert len(eve.box.items) == number
            assert [event.name for event in honest.events] == []
            assert feed.stats.refused >= 1
        honest.assert_whole()


@pytest_twisted.ensureDeferred
async def test_a_revoked_requester_is_cut_and_others_keep_their_requests(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """The unanswered request of the revoked key fails; that of the honest one gets its reply."""
    keys.authorize("feed", "eve")
    served, held = App(rep="tcp://127.0.0.1:*", **keys.of("feed")), dict[str, Deferred[str]]()

    @served.reply("hold")
    async def hold(name: str) -> str:
        held[name] = Deferred()
        return await held[name]

    async with running(served, drain_timeout=0.1):
        address = served.addresses.rep[0]
        honest, eve = App(req=at(address), **keys.of("desk")), App(req=at(address), **keys.of("eve"))
        async with running(honest), running(eve):
            asked = [
                Deferred.fromCoroutine(app.request("hold", name, timeout=PATIENCE))
                for app, name in ((honest, "h"), (eve, "e"))
            ]
            await turns(lambda: len(held) == 2)
            keys.revoke("feed", "eve")
            with pytest.raises(RequestLostError):
                await asked[1]
            await logs(logged, "the peer refuses the key of eve")
            held["h"].callback("yes")
            assert await asked[0] == "yes"
            assert honest.stats.requests_failed == 0


@pytest_twisted.ensureDeferred
async def test_a_revoked_worker_is_cut_and_its_job_goes_to_another(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """The honest worker does all jobs, also the one that the revoked worker had begun."""
    keys.authorize("feed", "eve")
    owner = App(jobs="tcp://127.0.0.1:*", **keys.of("feed"))
    queue = owner.job_queue("jobs.a", int)
    begun, done = Mailbox[int](), Mailbox[int]()
    async with running(owner):
        address = owner.addresses.jobs[0]
        eve, honest = App(work=at(address), **keys.of("eve")), App(work=at(address), **keys.of("desk"))

        @eve.work("jobs.a")
        async def hold(number: int) -> None:
            begun.put(number)
            await Deferred()

        honest.work("jobs.a")(_job(done))
        async with running(eve, drain_timeout=0.0):
            await turns(lambda: owner.stats.workers == 1)
            await queue.put(1)
            await begun.until(1)
            async with running(honest):
                await turns(lambda: owner.stats.workers == 2)
                keys.revoke("feed", "eve")
                assert await done.until(1) == [1]
                await logs(logged, "the peer refuses the key of eve")
                await turns(lambda: owner.stats.workers == 1)
                await queue.put(2)
                assert await done.until(2) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_a_revoked_publisher_is_not_heard_by_a_binding_subscriber(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """Only the revoked publisher is disconnected, and it does not return."""
    keys.introduce("hub", "feed", "eve")
    hub = App(sub="bind:tcp://127.0.0.1:*", **keys.of("hub"))
    heard: dict[str, int] = {"numbers.feed": 0, "numbers.eve": 0}

    @hub.subscribe("numbers.{who}")
    def take(number: int, who: str) -> None:
        heard[f"numbers.{who}"] += 1

    async with running(hub):
        ends = f"connect:{at(hub.addresses.sub[0], 'hub')}"
        feed, eve = (feed_app(keys, name, ends, f"numbers.{name}") for name in ("feed", "eve"))
        ended: list[SocketEvent] = []
        async with running(feed):
            await turns(lambda: heard["numbers.feed"] > 3)  # before the handshake of eve, so that its key is known
            live: Any = feed._live
            live.run.transport.pub.watch(lambda event: ended.append(event) if event.name == "disconnected" else None)
            async with running(eve):
                await turns(lambda: heard["numbers.eve"] > 3)
                keys.revoke("hub", "eve")
                await logs(logged, "eve: ", "the peer refuses the key of eve")
                before = dict(heard)
                await turns(lambda: heard["numbers.feed"] > before["numbers.feed"] + 20)
                assert heard["numbers.eve"] == before["numbers.eve"]
                assert not ended


@pytest_twisted.ensureDeferred
async def test_a_revoked_connection_that_has_sent_nothing_ends_too(keys: Keys, soon: None) -> None:
    """A raw client that only has shaken hands is closed when a key is revoked."""
    keys.authorize("feed", "eve")
    feed = feed_app(keys)
    context: zmq.Context[Any] = zmq.Context()
    async with running(feed):
        caller = Caller(keys.use(context.socket(zmq.SUB), "eve", "feed"), feed.addresses.pub[0])
        await turns(lambda: caller.outcome == "open")
        keys.revoke("feed", "eve")
        await turns(lambda: caller.count("handshake_failed_auth"))
        caller.close()
    context.term()


@pytest_twisted.ensureDeferred
async def test_a_revoked_publisher_is_left_by_its_subscribers(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """A subscriber leaves it, loses nothing of the other publisher, and returns when the key is there again."""
    keys.introduce("price", "desk")
    feed, price = feed_app(keys), feed_app(keys, "price", topic="prices.a")
    async with running(feed), running(price):
        desk = Desk(keys, at(feed.addresses.pub[0]), at(price.addresses.pub[0], "price"))
        prices = Mailbox[int]()
        desk.app.subscribe("prices.a")(_into(prices))
        async with running(desk.app):
            await desk.box.until(3)
            await prices.until(3)
            keys.revoke("desk", "feed")
            await logs(logged, "desk: the key of feed was revoked")
            await logs(logged, f"no key of 'feed' in {keys.peers('desk')}")
            number = len(desk.box.items)
            await prices.until(len(prices.items) + 50)
            assert len(desk.box.items) == number
            assert prices.items == list(range(prices.items[0], prices.items[-1] + 1))
            keys.authorize("desk", "feed")
            await desk.more()


@pytest_twisted.ensureDeferred
async def test_a_revoked_server_and_owner_are_left(keys: Keys, soon: None, logged: pytest.LogCaptureFixture) -> None:
    """A requester gets no reply of a server without a key, and a worker no job of such an owner."""
    feed, done = App(rep="tcp://127.0.0.1:*", jobs="tcp://127.0.0.1:*", **keys.of("feed")), Mailbox[int]()
    feed.reply("double")(_double)
    queue = feed.job_queue("jobs.a", int)
    async with running(feed):
        ends = {"req": at(feed.addresses.rep[0]), "work": at(feed.addresses.jobs[0])}
        desk = App(**ends, **keys.of("desk"))
        desk.work("jobs.a")(_job(done))
        async with running(desk):
            assert await desk.request("double", 2, int) == 4
            await turns(lambda: feed.stats.workers == 1)
            keys.revoke("desk", "feed")
            await turns(lambda: feed.stats.workers == 0)
            with pytest.raises(NoServerError):
                await desk.request("double", 2, int, timeout=0.2)
            keys.authorize("desk", "feed")
            await queue.put(1)
            assert await done.until(1) == [1]
            assert await desk.request("double", 3, int) == 6


@pytest.mark.parametrize("by", ["subscriber", "publisher", "binding subscriber", "replacement"])
@pytest_twisted.ensureDeferred
async def test_a_loss_after_a_revocation_names_the_reason(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture, by: str
) -> None:
    """The connection was closed because of a key, so the publisher is not called silent or disconnected."""
    binds = by == "binding subscriber"
    feed, desk = feed_app(keys, pub="tcp://127.0.0.1:*"), Desk(keys, "bind:tcp://127.0.0.1:*")
    async with running(desk.app if binds else feed):
        if binds:
            feed = feed_app(keys, pub=f"connect:{at(desk.app.addresses.sub[0], 'desk')}")
        else:
            desk = Desk(keys, at(feed.addresses.pub[0]))
        async with running(feed if binds else desk.app):
            await desk.more()
            await desk.app.ready(1)
            if by == "publisher":
                keys.revoke("feed", "desk")
                reason = "the peer no longer accepts the key of this app"
                await logs(logged, "desk: ", "the peer refuses the key of desk")
            else:
                word = "replaced" if by == "replacement" else "revoked"
                if by == "replacement":
                    (keys.peers("desk") / "feed.key").write_bytes(keys.public("eve").read_bytes())
                else:
                    keys.revoke("desk", "feed")
                reason = f"the key of feed was {word}"
                await logs(logged, f"desk: the key of feed was {word}")
                await turns(lambda: desk.app.stats.peers == 0)
    lost = await logs(logged, "desk: publisher feed@", "unknown losses of 'numbers.'")
    assert f" was disconnected, because {reason}: unknown losses" in lost


# -- what the log says -------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_wrong_key_of_the_server_is_named(keys: Keys, soon: None, logged: pytest.LogCaptureFixture) -> None:
    """The client names the file that it expected; the server counts a failed handshake, and refuses no key."""
    feed = feed_app(keys)
    keys.introduce("desk", "other")
    async with running(feed):
        address = feed.addresses.pub[0]
        desk = Desk(keys, at(address, "other"))
        async with running(desk.app):
            line = await logs(logged, f"desk: {address}: the peer closes the connection during the handshake")
            assert f"it does not have the key in {keys.peers('desk')}/other.key, it has no keys, its" in line
            await logs(logged, f"feed: {address}: a connection", "has failed", "expects the key of another")
        assert (feed.stats.handshakes_failed > 0, feed.stats.refused) == (True, 0)
        assert desk.box.items == []


@pytest_twisted.ensureDeferred
async def test_a_server_without_keys_is_named(keys: Keys, soon: None, logged: pytest.LogCaptureFixture) -> None:
    """The app with keys sends nothing to it, and connects when it has been replaced by one with the key."""
    endpoint = free_endpoint()
    desk = Desk(keys, at(endpoint))
    async with running(desk.app):
        async with running(App(pub=endpoint, name="open")):
            line = await logs(logged, f"desk: {endpoint}: the peer")
            assert "no keys" in line
            assert desk.app.stats.received == 0
        async with running(feed_app(keys, pub=endpoint)):
            await desk.box.until(1)


class Fresh:
    """Waits for lines that were logged after the last one that it has found."""

    def __init__(self, logged: pytest.LogCaptureFixture, begin: str) -> None:
        self._logged, self._begin, self._seen = logged, begin, 0

    async def line(self, *words: str) -> None:
        """Wait for a further line with these words."""
        await turns(lambda: any(self._has(text, words) for text in self._logged.messages[self._seen :]))
        at = next(at for at, text in enumerate(self._logged.messages) if at >= self._seen and self._has(text, words))
        self._seen = at + 1

    def _has(self, text: str, words: tuple[str, ...]) -> bool:
        return text.startswith(self._begin) and all(word in text for word in words)


@pytest_twisted.ensureDeferred
async def test_each_change_of_a_peer_is_logged(keys: Keys, soon: None, logged: pytest.LogCaptureFixture) -> None:
    """The peer restarts without keys, with keys that refuse ours, and so on; the last line is always true."""
    endpoint = free_endpoint()
    desk, fresh = Desk(keys, at(endpoint)), Fresh(logged, "desk: ")
    keys.revoke("feed", "desk")
    async with running(desk.app):
        async with running(App(pub=endpoint, name="open")):
            await fresh.line(endpoint, "no keys")
        async with running(feed_app(keys, pub=endpoint)):
            await fresh.line(endpoint, "the peer refuses the key of desk")
        async with running(App(pub=endpoint, name="open")):
            await fresh.line(endpoint, "no keys")
        keys.authorize("feed", "desk")
        async with running(feed_app(keys, pub=endpoint)):
            await fresh.line(f"connected to {endpoint}")


@pytest_twisted.ensureDeferred
async def test_each_change_of_a_peer_is_logged_by_an_app_without_keys(
    keys: Keys, logged: pytest.LogCaptureFixture
) -> None:
    """The peer restarts with keys and without; each time, the log has a new line."""
    endpoint = free_endpoint()
    desk, fresh = registered(App(sub=endpoint, name="keyless"), "sub"), Fresh(logged, "keyless: ")
    async with running(desk):
        for _ in range(2):
            async with running(feed_app(keys, pub=endpoint)):
                await fresh.line(endpoint, "requires authentication")
            async with running(App(pub=endpoint, name="open")):
                await fresh.line(f"connected to {endpoint}")


@pytest_twisted.ensureDeferred
async def test_a_client_without_keys_is_told_what_to_do(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """Its log names the options; the server counts the failed handshake, and logs it."""
    feed = feed_app(keys)
    async with running(feed):
        address = feed.addresses.pub[0]
        desk = App(sub=address, name="keyless")
        desk.add_route(lambda body: None, "numbers.a")
        async with running(desk):
            line = await logs(logged, f"keyless: {address}: the peer requires authentication")
            assert "create a key with zroute keys new NAME, set keys= (--keys)" in line
            await logs(logged, "feed: tcp://", ": a connection", "has failed", "the peer has no keys")
        assert feed.stats.handshakes_failed > 0


@pytest_twisted.ensureDeferred
async def test_the_last_line_tells_refused_requests_and_connections_apart(
    keys: Keys, logged: pytest.LogCaptureFixture
) -> None:
    """Both counters are called ``refused`` in `app.stats`, where the place tells them apart."""
    context: zmq.Context[Any] = zmq.Context()
    served = App(rep="tcp://127.0.0.1:*", **keys.of("feed"))

    @served.reply("never")
    def never() -> int:
        raise RequestRefused(409, "no")

    async with running(served):
        desk = App(req=at(served.addresses.rep[0]), **keys.of("desk"))
        async with running(desk):
            with pytest.raises(RequestRefusedError):
                await desk.request("never", None, int)
        for name, server in (("eve", "feed"), ("desk", "eve")):
            caller = Caller(keys.use(context.socket(zmq.DEALER), name, server), served.addresses.rep[0])
            assert await caller.end() == "refused"
        await turns(lambda: served.stats.handshakes_failed)
    context.term()
    (last,) = lines(logged, "feed: requests 1")
    failed = served.stats.handshakes_failed
    assert last.endswith(f", requests_refused 1, connections_refused 1, handshakes_failed {failed}")
    assert served.stats.refused == served.stats.routes["never()"].refused == 1
    assert not lines(logged, "desk: ", "_refused")


# -- pauses, and other endpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["unknown key", "wrong key of the server"])
@pytest_twisted.ensureDeferred
async def test_a_refused_app_connects_seldom(keys: Keys, logged: pytest.LogCaptureFixture, why: str) -> None:
    """In a second and a half it tries at most twice, and logs one line."""
    feed, peer = feed_app(keys), "feed"
    if why != "unknown key":
        keys.authorize("eve", "desk")
        keys.authorize("feed", "eve")
        peer = "desk"
    async with running(feed):
        eve = Desk(keys, at(feed.addresses.pub[0], peer), name="eve")
        async with running(eve.app):
            eve.watch()
            await turns(lambda: [event for event in eve.events if event.name == "connected"])
            await deferLater(reactor, 1.5)
            assert sum(event.name == "connected" for event in eve.events) <= 2
            assert len(lines(logged, "eve: tcp://")) == 1


class Closing(Protocol):
    """A peer that closes each connection, as a load balancer does whose program is away."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()
        factory: Any = self.factory
        factory.closed.append(reactor.seconds())


@pytest_twisted.ensureDeferred
async def test_a_publisher_with_queued_messages_pauses_too(keys: Keys) -> None:
    """A connecting publisher whose subscriber is away tries at most twice in 0.7 s."""
    port, own = free_port(), keys.key("desk")
    feed = feed_app(keys, pub="connect:" + at(f"tcp://127.0.0.1:{port}", "desk"))
    factory: Any = Factory.forProtocol(Closing)
    factory.closed = []
    async with running(feed):
        with zmq.Context() as context, context.socket(zmq.SUB) as desk:
            desk.curve_publickey, desk.curve_secretkey, desk.curve_server = own.public, own.secret, True
            desk.subscribe("")
            desk.bind(f"tcp://127.0.0.1:{port}")
            await turns(lambda: desk.poll(0))
        closing = reactor.listenTCP(port, factory, interface="127.0.0.1")
        try:
            await turns(lambda: factory.closed)
            await deferLater(reactor, 0.7)
            assert len(factory.closed) <= 2
        finally:
            await closing.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_logged_once_for_each_key(keys: Keys, soon: None, logged: pytest.LogCaptureFixture) -> None:
    """A program that tries again and again is one line; another program, and a key that was revoked, are new lines."""
    feed = feed_app(keys)
    keys.authorize("mallory", "feed")
    async with running(feed):
        address = feed.addresses.pub[0]
        eve, mallory = Desk(keys, at(address), name="eve"), Desk(keys, at(address), name="mallory")
        async with running(eve.app), running(mallory.app):
            await turns(lambda: feed.stats.refused >= 12)
            refused = lines(logged, "feed: refused a connection from 127.0.0.1")
            assert sorted(keys.key(name).fingerprint in text for text in refused for name in ("eve", "mallory")) == [
                False,
                False,
                True,
                True,
            ]
            keys.authorize("feed", "eve")
            await eve.more()
            keys.revoke("feed", "eve")
            await turns(lambda: len(lines(logged, "feed: refused a connection", keys.key("eve").fingerprint)) == 2)


@pytest_twisted.ensureDeferred
async def test_many_refused_keys_share_a_few_lines(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker with new keys fills neither the log nor the memory."""
    monkeypatch.setattr(access, "_SEPARATE", 2)
    guard = access.CurveGuard(reactor, Access(keys.secret("feed")), "feed", Stats())
    for number in range(50):
        assert guard._decide(bytes([number]) * 32, "10.0.0.7") == REFUSED
    assert len(lines(logged, "feed: refused a connection")) == 2 + BURST
    assert len(guard._refusals) == 2
    guard.end()


@pytest_twisted.ensureDeferred
async def test_an_app_without_keys_tells_of_a_peer_with_keys(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """Otherwise its log would say nothing about the program that can't connect."""
    app = App(pub="tcp://127.0.0.1:*", name="open")
    async with running(app):
        address = app.addresses.pub[0]
        async with running(Desk(keys, at(address)).app):
            line = await logs(logged, f"open: {address}: a connection", "has failed in its handshake (")
    assert line.endswith(
        ": the peer has keys or a password, but this app has no keys: set keys=…, or start the peer without"
    )


@pytest.mark.parametrize("why", ["unknown key", "wrong key of the server"])
@pytest_twisted.ensureDeferred
async def test_a_refused_endpoint_disturbs_no_other_endpoint(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture, why: str
) -> None:
    """One SUB socket: the messages of the accepted endpoint have no gap while another is refused again and again."""
    keys.introduce("price", "desk")
    keys.revoke("price", "desk")
    feed, price = feed_app(keys), feed_app(keys, "price", topic="numbers.price")
    async with running(feed), running(price):
        peer = "price" if why == "unknown key" else "feed"
        other = at(price.addresses.pub[0], peer)
        desk = Desk(keys, other, at(feed.addresses.pub[0]))
        async with running(desk.app):
            await desk.box.until(1)
            await turns(lambda: price.stats.refused + price.stats.handshakes_failed >= 4)
            await desk.more(20)
            desk.assert_whole()
            assert len(lines(logged, f"desk: {price.addresses.pub[0]}: ")) == 1
            assert not lines(logged, f"desk: {feed.addresses.pub[0]}: ")
        assert (feed.stats.refused, feed.stats.handshakes_failed) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_one_app_reads_two_publishers_with_different_keys(keys: Keys, soon: None) -> None:
    """Each endpoint has the key of its peer, also after a restart of one of them, in either order."""
    keys.introduce("price", "desk")
    ends = {"feed": free_endpoint(), "price": free_endpoint()}
    desk = Desk(keys, *(at(address, name) for name, address in ends.items()))
    seen: set[str] = set()
    desk.app.subscribe("from.{name}")(lambda body, name: seen.add(name))
    apps = {name: feed_app(keys, name, address, f"from.{name}") for name, address in ends.items()}
    async with running(desk.app):
        for name in ("feed", "price", "feed"):
            async with running(apps[name]):
                await turns(lambda: seen)
                assert seen == {name}
            seen.clear()
        async with running(apps["feed"]), running(apps["price"]):
            await turns(lambda: seen == {"feed", "price"})


@pytest_twisted.ensureDeferred
async def test_a_replaced_key_file_is_used_at_the_next_connection(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """The publisher restarts with a new key: it is refused until its new file is at the subscriber."""
    endpoint = free_endpoint()
    desk = Desk(keys, at(endpoint))
    async with running(desk.app):
        async with running(feed_app(keys, pub=endpoint)):
            await desk.box.until(1)
        keys.renew("feed")
        number = len(desk.box.items)
        async with running(feed_app(keys, pub=endpoint)):
            await logs(logged, "it does not have the key in")
            assert len(desk.box.items) == number
            keys.revoke("desk", "feed")
            keys.authorize("desk", "feed")
            await desk.more(1)


@pytest_twisted.ensureDeferred
async def test_a_peer_whose_key_is_replaced_is_left_and_dialled_with_the_new_key(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """Subscriber and requester leave the program with the old key, and connect to the one with the new key."""
    ends = {"pub": free_endpoint(), "rep": free_endpoint()}

    def server() -> App:
        app = App(**ends, **keys.of("feed"))
        app.every(0.005)(app.publisher(NUMBERS, int)(lambda: 1))
        app.reply("double")(_double)
        return app

    desk, seen = App(sub=at(ends["pub"]), req=at(ends["rep"]), **keys.of("desk")), Mailbox[int]()
    desk.subscribe(NUMBERS)(_into(seen))
    async with running(desk):
        async with running(server()):
            await seen.until(1)
            assert await desk.request("double", 2, int) == 4
            old = keys.key("feed")
            keys.renew("feed")
            (keys.peers("desk") / "feed.key").write_bytes(keys.public("feed").read_bytes())
            await turns(lambda: len(lines(logged, "desk: tcp", "it does not have the key in")) == 2)
            with pytest.raises(NoServerError):
                await desk.request("double", 2, int, timeout=0.2)
            number = len(seen.items)
        async with running(server()):
            await seen.until(number + 1)
            assert await desk.request("double", 3, int) == 6
    new = keys.key("feed").fingerprint
    assert lines(logged, "desk: the key of feed") == [
        f"desk: the key of feed was replaced ({new}, before: {old.fingerprint})"
    ]


@pytest_twisted.ensureDeferred
async def test_a_replaced_key_of_an_accepted_program_is_one_line(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """The old key is refused, the new one is not, and no line says that the key was revoked or may connect now."""
    feed = feed_app(keys)
    async with running(feed):
        desk = Desk(keys, at(feed.addresses.pub[0]))
        async with running(desk.app):
            await desk.more()
            (keys.peers("feed") / "desk.key").write_bytes(keys.public("eve").read_bytes())
            await logs(logged, "desk: ", "the peer refuses the key of desk")
    new, old = (keys.key(name).fingerprint for name in ("eve", "desk"))
    text = f"feed: the key of desk was replaced ({new}, before: {old})"
    assert [text for text in lines(logged, "feed: ", old) if "refused a connection" not in text] == [text]
    assert not lines(logged, "feed: ", "may connect now")


@pytest_twisted.ensureDeferred
async def test_an_app_that_only_connects_names_the_programs_it_connects_to(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """No program can connect to it, so neither the start nor a new key says that one may."""
    keys.authorize("desk", "eve")
    desk = Desk(keys, at("tcp://127.0.0.1:1"))
    async with running(desk.app):
        (line,) = lines(logged, "desk: encrypts as desk (")
        assert line.endswith(f"; connects only to: feed ({keys.peers('desk')})")
        keys.revoke("desk", "eve")
        await logs(logged, "desk: the key of eve was revoked")
        keys.authorize("desk", "eve")
        await logs(logged, "desk: the key of eve was added (")
    assert not lines(logged, "desk: ", "may connect")


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pauses so long that they do not end in a test, and the looks for keys frequent."""
    monkeypatch.setattr(persistent, "PAUSE", 0.01)  # before the first look for the key
    monkeypatch.setattr(refusals, "PAUSE", 1_000.0)
    monkeypatch.setattr(persistent, "PAUSE_MAX", 1_000.0)
    monkeypatch.setattr(refusals, "PAUSE_MAX", 1_000.0)
    monkeypatch.setattr(access, "_LOOK", 0.1)


@pytest.mark.parametrize("how", ["missing", "wrong"])
@pytest_twisted.ensureDeferred
async def test_a_key_that_comes_ends_the_pause(
    keys: Keys, never: None, logged: pytest.LogCaptureFixture, how: str
) -> None:
    """Subscriber, requester and worker connect as soon as the key of their peer is there, or is replaced."""
    done, seen = Mailbox[int](), Mailbox[int]()
    feed = App(**dict.fromkeys(("pub", "rep", "jobs"), "tcp://127.0.0.1:*"), **keys.of("feed"))
    feed.reply("double")(_double)
    queue = feed.job_queue("jobs.a", int)
    feed.every(0.01)(feed.publisher(NUMBERS, int)(lambda: 1))
    async with running(feed):
        sides = {"sub": feed.addresses.pub[0], "req": feed.addresses.rep[0], "work": feed.addresses.jobs[0]}
        desk = App(**{side: at(address) for side, address in sides.items()}, **keys.of("desk"))
        desk.work("jobs.a")(_job(done))
        desk.subscribe(NUMBERS)(_into(seen))
        if how == "wrong":
            (keys.peers("desk") / "feed.key").write_bytes(keys.public("eve").read_bytes())
        async with running(desk):
            if how == "missing":
                await seen.until(1)
                assert await desk.request("double", 2, int) == 4
                keys.revoke("desk", "feed")
                await turns(lambda: len(lines(logged, "no key of 'feed' in")) == 3)
            else:
                await turns(lambda: len(lines(logged, "it does not have the key in")) == 3)
                keys.revoke("desk", "feed")
            number = len(seen.items)
            keys.authorize("desk", "feed")
            await seen.until(number + 1)
            assert await desk.request("double", 3, int) == 6
            await queue.put(1)
            assert await done.until(1) == [1]


# -- errors of the start -----------------------------------------------------------------------------------


async def assert_refused(app: App, text: str) -> None:
    """Check that the app does not start, and that the error names the line of the app."""
    service: AppService | None = None

    def start() -> None:
        nonlocal service
        service = app.service(reactor)
        service.startService()

    with pytest.raises(EndpointError, match=text) as raised:
        start()
    assert raised.value.where == app.where
    assert str(raised.value) == f"{app.where}: {raised.value.text}"
    if service is not None:
        await service.stopService()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"sub": "tcp://127.0.0.1:5555", "keys": True},
            r"does not name its peer, but the app has keys: .*'connect:feed@tcp://.*/feed\.key$",
        ),
        ({"req": "tcp://127.0.0.1:5555", "keys": True}, "does not name its peer"),
        ({"work": "ipc://a", "keys": True}, "does not name its peer"),
        ({"pub": "connect:tcp://127.0.0.1:5555", "keys": True}, "does not name its peer"),
        ({"sub": "tcp://names.example:5555", "keys": True}, "does not name its peer"),
        ({"sub": "feed@tcp://127.0.0.1:5555"}, r"names the peer 'feed', but the app has no key: create one with"),
        ({"req": "feed@tcp://names.example:5555"}, "names the peer 'feed', but the app has no key"),
        ({"sub": "nowhere@tcp://127.0.0.1:5555", "keys": True}, r"no key of 'nowhere' in .*keys there: feed\)"),
        ({"sub": "nowhere@tcp://names.example:5555", "keys": True}, "no key of 'nowhere' in"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_does_not_fit_the_keys_stops_the_start(
    keys: Keys, options: dict[str, Any], text: str
) -> None:
    """The error says what to write, for each side."""
    given = keys.of("desk") if options.pop("keys", False) else {"name": "desk"}
    await assert_refused(registered(App(**options, **given), *options), text)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:5555", "tcp://names.example:5555"])
async def test_an_endpoint_that_does_not_fit_the_keys_is_not_added(keys: Keys, address: str) -> None:
    """A running app raises the error at once, also for a host name, and keeps its endpoints."""
    desk = registered(App(sub="bind:tcp://127.0.0.1:*", **keys.of("desk")), "sub")
    async with running(desk):
        before = desk.addresses.sub
        with pytest.raises(EndpointError, match="does not name its peer"):
            desk.add_endpoints(sub=address)
        assert desk.addresses.sub == before


@pytest.mark.parametrize("sub", ["feed@tcp://127.0.0.1:5555", "bind:tcp://*:5555"])
def test_an_error_that_needs_no_file_precedes_the_start(sub: str) -> None:
    """The service is not even created, so no resource is opened and no thread is started."""
    with pytest.raises(EndpointError, match=r"test_keys\.py:\d+: "):
        App(sub=sub).service(reactor)


def test_peers_without_keys_is_an_error(tmp_path: Path) -> None:
    """The directory alone would protect nothing."""
    with pytest.raises(EndpointError, match=r"peers='.*' has no effect without keys: create a key with zroute keys"):
        App(pub="tcp://127.0.0.1:*", peers=tmp_path)
    with pytest.raises(EndpointError, match="peers='anyone' has no effect without keys"):
        App(pub="tcp://127.0.0.1:*", peers="anyone")


@pytest.mark.parametrize("side", ["pub", "rep", "jobs", "sub"])
@pytest_twisted.ensureDeferred
async def test_an_open_address_needs_keys_or_a_word(keys: Keys, side: str) -> None:
    """Without keys the start fails and the port is free again; with keys, or insecure=True, the app starts."""
    ends: dict[str, Any] = {side: f"bind:tcp://0.0.0.0:{free_port()}"}

    def made(**options: Any) -> App:
        return registered(App(**ends, **options), side)

    text = r"is open to the network, .* insecure=True \(--insecure, ZROUTE_INSECURE"
    await assert_refused(made(name="open"), text)
    for options in (keys.of("feed"), {"insecure": True, "name": "open"}):
        async with running(made(**options)):
            pass


@pytest_twisted.ensureDeferred
async def test_anyone_may_connect_if_the_app_says_so(keys: Keys, logged: pytest.LogCaptureFixture) -> None:
    """An unknown key connects, but a client without keys, or with the wrong key of the server, does not."""
    feed = App(pub="tcp://127.0.0.1:*", peers="anyone", **keys.of("feed"))
    feed.every(0.01)(feed.publisher(NUMBERS, int)(lambda: 1))
    context: zmq.Context[Any] = zmq.Context()
    async with running(feed):
        address = feed.addresses.pub[0]
        eve = Desk(keys, at(address), name="eve")
        async with running(eve.app):
            await eve.box.until(1)
        assert await Caller(context.socket(zmq.SUB), address).end() == "refused"
        assert await Caller(keys.use(context.socket(zmq.SUB), "eve", "desk"), address).end() == "refused"
    context.term()
    assert lines(logged, "feed: encrypts as feed", "accepts any key (peers='anyone')")
    assert not lines(logged, "can't read the directory")


@pytest_twisted.ensureDeferred
async def test_a_missing_directory_is_no_fault_if_anyone_may_connect(
    keys: Keys, logged: pytest.LogCaptureFixture
) -> None:
    """An app that only binds needs no keys of peers then."""
    keys.secret("lone")
    keys.peers("lone").rmdir()
    async with running(App(pub="tcp://127.0.0.1:*", peers="anyone", **keys.of("lone"))):
        pass
    assert not lines(logged, "can't read the directory")


# -- what others see, and foreign programs -----------------------------------------------------------------


class Relay:
    """A TCP relay of the test between two peers, which records all bytes."""

    def __init__(self, port: int) -> None:
        self.recorded = bytearray()
        self.sent = bytearray()
        """The bytes of the side that has connected."""
        self._target = port
        self._port: Any = None

    async def __aenter__(self) -> Relay:
        factory: Any = Factory()
        factory.protocol = lambda: _Incoming(self, self._target)
        self._port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        return self

    @property
    def address(self) -> str:
        """The address of the relay."""
        return f"tcp://127.0.0.1:{self._port.getHost().port}"

    async def __aexit__(self, *_: object) -> None:
        await self._port.stopListening()


class _Incoming(Protocol):
    def __init__(self, relay: Relay, port: int) -> None:
        self._relay = relay
        self._out = socket.create_connection(("127.0.0.1", port))
        self._out.setblocking(False)
        self._timer: Any = None

    def connectionMade(self) -> None:
        self._pump()

    def dataReceived(self, data: bytes) -> None:
        self._relay.recorded += data
        self._relay.sent += data
        self._out.sendall(data)

    def _pump(self) -> None:
        try:
            data = self._out.recv(65_536)
        except BlockingIOError:
            data = b""
        self._relay.recorded += data
        assert self.transport is not None
        self.transport.write(data)
        self._timer = reactor.callLater(0.005, self._pump)

    def connectionLost(self, reason: Any = None) -> None:
        self._timer.cancel()
        self._out.close()


def _pieces(sent: bytes) -> list[bytes]:
    """Return what a client has sent: its greeting, and the rest."""
    return [sent[:64], sent[64:]]


@pytest.mark.parametrize("secure", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_recorder_between_apps_sees_no_text(keys: Keys, secure: bool) -> None:
    """Neither topic, body, subscription nor names pass in clear, and a replay gets nothing; without keys it does."""

    def options(name: str) -> dict[str, Any]:
        return keys.of(name) if secure else {"name": name}

    feed, box = App(pub="tcp://127.0.0.1:*", **options("feed")), Mailbox[str]()
    feed.every(0.01)(feed.publisher("harvest.rye", str)(lambda: "a very secret body"))
    async with running(feed), Relay(int(feed.addresses.pub[0].rpartition(":")[2])) as relay:
        desk = App(sub=("feed@" if secure else "") + relay.address, **options("desk"))
        desk.subscribe("harvest.rye")(lambda body: box.put(body))
        async with running(desk):
            await box.until(5)
            sent = bytes(relay.sent)  # without the withdrawals of the stop
        recorded = bytes(relay.recorded)
        failed = feed.stats.handshakes_failed
        expected = b"" if secure else b"secret body"
        replayed = await deferToThread(probed, feed.addresses.pub[0], _pieces(sent), expected)
        assert (b"secret body" not in replayed) is secure
        if secure:  # libzmq's event may arrive later
            await turns(lambda: feed.stats.handshakes_failed > failed)
        assert (feed.stats.handshakes_failed > failed) is secure
    found = {
        word for word in (b"harvest", b"rye", b"secret body", b"desk", b"XPUB", b"Socket-Type") if word in recorded
    }
    own = keys.key("desk").raw, keys.key("feed").raw
    assert (found == set()) is secure
    assert len(recorded) > 500
    assert not any(key in recorded for key in own)


def bound_to(socket: Any) -> str:
    """Return the address of a raw socket."""
    return str(socket.last_endpoint.decode())


@pytest_twisted.ensureDeferred
async def test_pyzmq_with_zmq_auth_is_a_peer_on_either_side(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """A SUB of pyzmq reads an app, and an app reads a PUB of pyzmq behind its ThreadAuthenticator."""
    feed, context = feed_app(keys), zmq.Context[Any]()
    async with running(feed):
        sub = keys.use(context.socket(zmq.SUB), "desk", "feed")
        sub.subscribe(b"numbers.")
        sub.connect(feed.addresses.pub[0])
        await turns(lambda: sub.poll(0))
        assert b"numbers.a" in sub.recv()
        sub.close(0)
    auth = ThreadAuthenticator(context)
    auth.start()
    auth.configure_curve(domain="global", location=str(keys.peers("feed")))
    pub, own = context.socket(zmq.PUB), keys.key("feed")
    pub.curve_server, pub.curve_publickey, pub.curve_secretkey, pub.linger = 1, own.public, own.secret, 0
    pub.zap_domain = b"global"
    pub.bind("tcp://127.0.0.1:*")
    address = bound_to(pub)
    try:
        desk, eve = Desk(keys, at(address)), Desk(keys, at(address), name="eve")
        async with running(desk.app), running(eve.app):

            def sent() -> bool:
                pub.send_multipart([b"numbers.a", b"\x07"])
                return bool(desk.box.items)

            await turns(sent)
            assert set(desk.box.items) == {7}
            await logs(logged, f"eve: {address}: the peer refuses the key of eve")
            assert eve.box.items == []
    finally:
        pub.close(0)
        auth.stop()
        context.term()


@pytest.mark.parametrize("host", ["localhost", "feeds.example"])
@pytest_twisted.ensureDeferred
async def test_a_host_name_has_the_key_of_its_peer(keys: Keys, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All addresses of a name have the key of the named peer; another program at one of them is not heard."""
    keys.introduce("other", "desk")
    monkeypatch.setattr(names, "addresses_of", lambda host, prefer_ipv6: ["127.0.0.1", "127.0.0.2"])
    port = free_port_of("127.0.0.1", "127.0.0.2")
    feed = feed_app(keys, pub=f"tcp://127.0.0.1:{port}")
    other = feed_app(keys, "other", pub=f"tcp://127.0.0.2:{port}", topic="numbers.other")
    async with running(feed), running(other):
        desk, forged = Desk(keys, f"feed@tcp://{host}:{port}"), Mailbox[int]()
        desk.app.subscribe("numbers.other")(_into(forged))
        async with running(desk.app):
            await desk.box.until(3)
            if host != "localhost":
                await turns(lambda: other.stats.handshakes_failed)
            assert forged.items == []


@pytest_twisted.ensureDeferred
async def test_an_address_that_moves_to_another_name_gets_the_key_of_that_name(
    keys: Keys, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two names with different peers have one address: the conflict is logged, and messages have the key of one."""
    keys.introduce("other", "desk")
    port, answers, asked = free_port(), {"one": ["127.0.0.1"], "two": list[str]()}, list[str]()

    def addresses_of(host: str, prefer_ipv6: bool) -> list[str]:
        asked.append(host)
        return list(answers[host])

    monkeypatch.setattr(names, "addresses_of", addresses_of)
    monkeypatch.setattr(names, "EVERY", 0.05)
    monkeypatch.setattr(names, "SOON", 0.05)
    desk = Desk(keys, f"feed@tcp://one:{port}", f"other@tcp://two:{port}")
    others = Mailbox[int]()
    desk.app.subscribe("numbers.other")(_into(others))
    async with running(desk.app):
        async with running(feed_app(keys, pub=f"tcp://127.0.0.1:{port}")):
            await desk.box.until(3)
            answers["two"] = ["127.0.0.1"]
            await logs(logged, f"desk: can't connect to tcp://127.0.0.1:{port}", "the peer 'feed' instead of 'other'")
            await desk.more()
        run: Any = desk.app._live.run
        run.transport.pause()  # the address stays connected until its messages are read
        answers["one"] = ["127.0.0.2"]
        await turns(lambda: run.transport._vanishing)
        number = len(asked)
        await turns(lambda: asked[number:].count("two") > 2)
        assert run.transport.sub.peer_at(f"tcp://127.0.0.1:{port}") == "feed"
        run.transport.resume()
        async with running(feed_app(keys, "other", pub=f"tcp://127.0.0.1:{port}", topic="numbers.other")):
            await others.until(3)


@pytest_twisted.ensureDeferred
async def test_programs_with_one_key_connect_to_each_other(keys: Keys, soon: None) -> None:
    """An app may have its own key among its peers; the end of that key ends the copies."""
    keys.authorize("feed", "feed")
    feed = feed_app(keys)
    async with running(feed):
        copy = Desk(keys, at(feed.addresses.pub[0]), name="feed")
        async with running(copy.app):
            await copy.more()
            keys.revoke("feed", "feed")
            await turns(lambda: copy.app.stats.peers == 0)
            number = len(copy.box.items)
            keys.authorize("feed", "feed")
            await copy.box.until(number + 1)


@pytest_twisted.ensureDeferred
async def test_sockets_of_txzmq_are_peers(keys: Keys) -> None:
    """A socket of `zroute.txzmq` has no options for keys; those of its raw socket, set before, work."""
    box = Mailbox[bytes]()

    class Sub(ZmqSubConnection):
        def gotMessage(self, *parts: bytes) -> None:
            box.put(b" ".join(parts))

    feed, factory = feed_app(keys), ZmqFactory()
    async with running(feed):
        sub = Sub(factory)
        keys.use(sub.socket, "desk", "feed")
        sub.addEndpoints([ZmqEndpoint("connect", feed.addresses.pub[0])])
        sub.subscribe(b"numbers.")
        try:
            assert b"numbers.a" in (await box.until(1))[0]
        finally:
            factory.shutdown()


@pytest.mark.parametrize(
    "options",
    [
        {"sub": "feed@tcp://127.0.0.1:5555", "keys": "no.key_secret"},
        {"sub": "feed@tcp://127.0.0.1:5555"},  # the keys may come from the environment of the deployment
        {"sub": "bind:tcp://*:5555"},
        {"sub": "tcp://127.0.0.1:5555", "keys": "no.key_secret"},
    ],
)
def test_a_test_app_needs_no_keys(options: dict[str, Any]) -> None:
    """The tests of an app run where its keys do not exist."""
    app, box = App(**options), Mailbox[int]()
    app.subscribe("numbers.a")(_into(box))
    with TestApp(app) as t:
        t.publish("numbers.a", 7)
    assert box.items == [7]


@pytest.mark.parametrize(
    ("name", "mode", "mended", "text"),
    [
        ("feed.key_secret", 0o644, 0o600, r"mode 0644\): run chmod 600 .*feed\.key_secret"),
        ("peers", 0o777, 0o755, "other users can add keys to the directory of peers .*: run chmod go-w .*peers"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_permissions_that_protect_no_key_stop_the_start(
    keys: Keys, name: str, mode: int, mended: int, text: str
) -> None:
    """A secret file that others read, and peers that others write; the start works after chmod."""
    app = feed_app(keys)
    path = keys.secret("feed").parent / name
    path.chmod(mode)
    await assert_refused(app, text)
    path.chmod(mended)
    async with running(app):
        pass


# -- warnings of the start ---------------------------------------------------------------------------------


def warnings(logged: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings in the log."""
    return [record.getMessage() for record in logged.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
@pytest_twisted.ensureDeferred
async def test_anyone_at_an_open_address_is_a_warning(keys: Keys, logged: pytest.LogCaptureFixture, host: str) -> None:
    """The connections are encrypted, but every program in the network may read and send; at 127.0.0.1, none can."""
    app = registered(App(pub=f"tcp://{host}:*", peers="anyone", **keys.of("feed")), "pub")
    async with running(app):
        address = app.addresses.pub[0]
    expected = f"feed: {address} is reachable from the network, and any program may connect (peers='anyone'): "
    assert [text.startswith(expected) for text in warnings(logged)] == [True] * (host == "0.0.0.0")


@pytest_twisted.ensureDeferred
async def test_an_open_address_with_peers_is_no_warning(keys: Keys, logged: pytest.LogCaptureFixture) -> None:
    """This is what keys are for."""
    async with running(feed_app(keys, pub="tcp://0.0.0.0:*")):
        pass
    assert warnings(logged) == []


@pytest_twisted.ensureDeferred
async def test_a_missing_directory_is_a_warning_and_an_empty_one_is_not(
    keys: Keys, soon: None, logged: pytest.LogCaptureFixture
) -> None:
    """An empty directory may be meant; a missing one is a mistake, and is looked for while the app runs."""
    app = feed_app(keys, "lone")
    async with running(app):
        assert lines(logged, "lone: encrypts as lone", "may connect: no program, because no key is there")
    assert warnings(logged) == []
    keys.peers("lone").rmdir()
    async with running(app):
        assert [text.partition(": run ")[0] for text in warnings(logged)] == [
            f"lone: the directory of peers {keys.peers('lone')} does not exist, so no program may connect"
        ]
        keys.authorize("lone", "desk")
        await logs(logged, "lone: desk may connect now")
    assert len(warnings(logged)) == 1

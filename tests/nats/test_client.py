"""The client with real servers: messages, order, losses of the connection, and the end."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client as NatsClient
from twisted.internet.defer import Deferred

from tests.nats.loops import until
from tests.nats.servers import NatsServer, cluster, known
from tests.support import PATIENCE, free_port
from zroute.errors import EncodeError, EndpointError, NotRunningError
from zroute.nats import client as client_module
from zroute.nats import links
from zroute.nats.client import (
    Client,
    ClientOptions,
    Connected,
    Denied,
    Dropped,
    Event,
    LameDuck,
    Lost,
    NoAnswer,
)
from zroute.nats.headers import parse_block
from zroute.nats.servers import parse_servers

UNBOUNDED = {(3, 12): (3, 12, 9), (3, 13): (3, 13, 2)}
"""The first versions whose `writelines`, which nats-py calls, waits for the network."""


class Watched:
    """A client whose messages and events can be awaited."""

    def __init__(self, *urls: str, **options: Any) -> None:
        self.client = Client(ClientOptions(parse_servers(urls), "desk", **options))
        self.client.on_event = self._event
        self.events: list[Event] = []
        self.got: list[tuple[bytes, bytes | None, bytes | None, bytes]] = []
        self._changed = asyncio.Condition()
        self._noticed: set[asyncio.Task[None]] = set()

    def _event(self, event: Event) -> None:
        self.events.append(event)
        self._notice()

    def take(self, *message: Any) -> None:
        self.got.append(message)
        self._notice()

    def _notice(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(notify())
        self._noticed.add(task)
        task.add_done_callback(self._noticed.discard)

    async def until(self, true: Callable[[], object]) -> None:
        async with self._changed:
            await self._changed.wait_for(true)

    async def event(self, kind: type[Event], times: int = 1) -> Any:
        """Return the event of a kind that occurs for the n-th time."""
        found: Callable[[], list[Event]] = lambda: [each for each in self.events if isinstance(each, kind)]  # noqa: E731
        await self.until(lambda: len(found()) >= times)
        return found()[times - 1]

    async def ready(self) -> None:
        assert await done(self.client.ping())

    async def knows(self, server: NatsServer) -> None:
        """Wait until its server has named another server of the cluster."""
        while server.url not in map(str, self.client._named):
            await self.ready()

    @property
    def bodies(self) -> list[bytes]:
        return [message[3] for message in self.got]


def done(deferred: Deferred[Any]) -> Awaitable[Any]:
    """Return an awaitable for a Deferred."""
    return deferred.asFuture(asyncio.get_running_loop())


def play(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario, which must end in time and leave no task."""

    async def bounded() -> None:
        await asyncio.wait_for(scenario, PATIENCE)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            await asyncio.wait(left, timeout=PATIENCE)
        assert not [task for task in left if not task.done()]

    asyncio.run(bounded())


@asynccontextmanager
async def connected(*urls: str, **options: Any) -> AsyncIterator[Watched]:
    """A connected client, which is closed at the end."""
    watched = Watched(*urls, **options)
    try:
        await done(watched.client.start())
        yield watched
    finally:
        await done(watched.client.close(1))


# -- messages --------------------------------------------------------------------------------------------


def test_messages_arrive_with_reply_headers_and_body_in_order(server: NatsServer, direct: bool) -> None:
    """Messages of one subscription arrive as they were published, in order."""
    block = "NATS/1.0\r\nTag: 00ff\r\nname: Zürich\r\n\r\n".encode()

    async def scenario() -> None:
        async with connected(server.url, direct=direct) as one, connected(server.url, direct=direct) as two:
            one.client.subscribe(b"news.*", one.take)
            await one.ready()
            assert two.client.publish(b"news.a", b"first")
            assert two.client.publish(b"news.b", b"", b"in.box", block)
            assert two.client.publish(b"other", b"not for us")
            for number in range(500):
                assert two.client.publish(b"news.c", b"%d" % number)
            await one.until(lambda: len(one.got) == 502)
            assert one.got[0] == (b"news.a", None, None, b"first")
            subject, reply, headers, payload = one.got[1]
            assert (subject, reply, payload) == (b"news.b", b"in.box", b"")
            assert parse_block(headers or b"").headers == {"Tag": "00ff", "name": "Zürich"}
            assert one.bodies[2:] == [b"%d" % number for number in range(500)]
            assert one.client.waiting == 0

    play(scenario())


def test_messages_keep_their_order_over_subscriptions(server: NatsServer, direct: bool) -> None:
    """Messages of several subscriptions arrive in the order in which they were sent, also after a pause."""

    async def scenario() -> None:
        async with connected(server.url, direct=direct) as one, connected(server.url) as two:
            for subject in (b"a", b"b.*", b"c.>", b"d"):
                one.client.subscribe(subject, one.take)
            await one.ready()
            one.client.pause()
            for number in range(2_000):
                two.client.publish((b"a", b"b.x", b"c.x.y", b"d")[number * 7 % 11 % 4], b"%d" % number)
            await two.ready()
            one.client.resume()
            await one.until(lambda: len(one.got) == 2_000)
            assert [int(body) for body in one.bodies] == list(range(2_000))

    play(scenario())


def test_a_foreign_client_takes_part(server: NatsServer, direct: bool) -> None:
    """A plain program with nats-py receives what this client publishes, and answers it."""

    async def scenario() -> None:
        other = await nats.connect(server.url)

        async def answer(message: Any) -> None:
            await other.publish(message.reply, b"pong to " + message.data, headers={"A": "b"})

        await other.subscribe("ask", cb=answer)
        await known(other)
        async with connected(server.url, direct=direct) as one:
            one.client.subscribe(b"_INBOX.mine.*", one.take)
            one.client.publish(b"ask", b"me", b"_INBOX.mine.1")
            one.client.publish(b"silence", b"x", b"_INBOX.mine.2")
            await one.until(lambda: len(one.got) == 2)
            found = {subject: (headers, body) for subject, _, headers, body in one.got}
            assert found[b"_INBOX.mine.1"][1] == b"pong to me"
            assert parse_block(found[b"_INBOX.mine.1"][0] or b"").headers == {"A": "b"}
            # The server itself answers at once if no program has subscribed.
            assert parse_block(found[b"_INBOX.mine.2"][0] or b"").status == 503
        await other.close()

    play(scenario())


def test_a_group_receives_each_message_once(server: NatsServer, direct: bool) -> None:
    """Each message goes to one member of a group, and to each subscriber without a group."""

    async def scenario() -> None:
        async with (
            connected(server.url, direct=direct) as one,
            connected(server.url, direct=direct) as two,
            connected(server.url, direct=direct) as three,
        ):
            one.client.subscribe(b"jobs", one.take, b"workers")
            two.client.subscribe(b"jobs", two.take, b"workers")
            three.client.subscribe(b"jobs", three.take)
            for each in (one, two, three):
                await each.ready()
            for number in range(100):
                three.client.publish(b"jobs", b"%d" % number)
            for each in (three, one, two):  # first the publisher: then the server has passed on all messages
                await each.ready()
            assert len(three.got) == 100
            assert sorted(map(int, one.bodies + two.bodies)) == list(range(100))

    play(scenario())


def test_refused_topics_are_those_that_the_server_loses(server: NatsServer) -> None:
    """A server delivers topics with an empty segment to no subscriber, without an error; overlaps arrive twice."""

    async def scenario() -> None:
        async with connected(server.url) as one:
            one.client.subscribe(b">", one.take)
            one.client.subscribe(b"b.*", one.take)
            for topic in (b"a..b", b"a.", b".a", b"b.x", b"a.b*c"):
                one.client.publish(topic, topic)
            await one.ready()
            assert sorted(one.bodies) == [b"a.b*c", b"b.x", b"b.x"]
            assert one.client.connected
            assert not [each for each in one.events if isinstance(each, Lost | Denied)]

    play(scenario())


def test_a_ping_is_answered_after_all_messages(server: NatsServer, direct: bool) -> None:
    """The answer to a PING follows all messages that were published before, and those that this client published."""

    async def scenario() -> None:
        async with connected(server.url, direct=direct) as one:
            one.client.subscribe(b"a", one.take)
            for number in range(3_000):
                one.client.publish(b"a", b"%d" % number)
            assert await done(one.client.ping())
            assert await done(one.client.ping())
            assert len(one.got) == 3_000

    play(scenario())


def test_the_end_of_a_subscription_reads_what_was_sent_and_nothing_later(server: NatsServer, direct: bool) -> None:
    """When a ping after the end of a subscription is answered, everything earlier has arrived, and nothing later."""

    async def scenario() -> None:
        async with connected(server.url, direct=direct) as one, connected(server.url) as two:
            subscribed = one.client.subscribe(b"a", one.take)
            await one.ready()
            one.client.pause()
            for number in range(3_000):
                two.client.publish(b"a", b"%d" % number)
            await two.ready()
            one.client.unsubscribe([subscribed])
            finished = one.client.ping()
            assert not finished.called
            one.client.resume()
            assert await done(finished)
            assert len(one.got) == 3_000
            two.client.publish(b"a", b"late")
            await two.ready()
            await one.ready()
            assert len(one.got) == 3_000

    play(scenario())


def test_messages_on_their_way_to_a_subscription_that_ends_arrive(server: NatsServer, direct: bool) -> None:
    """If members leave a queue group in a flood, the members together receive each message once."""

    async def scenario() -> None:
        async with (
            connected(server.url, direct=direct) as one,
            connected(server.url) as two,
            connected(server.url) as feed,
        ):
            two.client.subscribe(b"a", two.take, b"group")
            await two.ready()
            sent = 0
            for _ in range(30):
                sid = one.client.subscribe(b"a", one.take, b"group")
                await one.ready()
                for turn in range(10):
                    for _ in range(20):
                        feed.client.publish(b"a", b"%d" % sent)
                        sent += 1
                    if turn == 5:
                        one.client.unsubscribe([sid])
                    await asyncio.sleep(0)
            for each in (feed, one, two):
                await each.ready()
            got = sorted(map(int, [*one.bodies, *two.bodies]))
            assert got == list(range(sent))
            assert len(one.bodies) > 0

    play(scenario())


def test_an_ended_subscription_is_not_repeated(server: NatsServer, direct: bool) -> None:
    """A subscription that ended receives nothing, also after a reconnect; the others do."""

    async def scenario() -> None:
        async with connected(server.url, direct=direct) as one:
            sid = one.client.subscribe(b"a", one.take)
            one.client.subscribe(b"b", one.take)
            await one.ready()
            one.client.unsubscribe([sid])
            await one.ready()
            server.kill()
            server.start()
            await one.event(Connected, 2)
            one.client.publish(b"a", b"a")
            one.client.publish(b"b", b"b")
            await one.ready()
            await one.until(lambda: one.got)
            assert one.bodies == [b"b"]

    play(scenario())


# -- limits ----------------------------------------------------------------------------------------------


def test_a_paused_client_reads_no_more(server: NatsServer) -> None:
    """A pause ends the reading of the socket, so that the server keeps the messages; nothing is lost."""

    async def scenario() -> None:
        async with connected(server.url) as one, connected(server.url) as two:
            one.client.subscribe(b"a", one.take)
            await one.ready()
            one.client.after_read = one.client.pause
            for number in range(20_000):
                two.client.publish(b"a", b"%6d" % number + bytes(94))
            await two.ready()
            await one.until(lambda: one.got)
            read = len(one.got)
            assert await done(two.client.ping())
            assert len(one.got) == read < 1_000
            one.client.after_read = lambda: None
            one.client.resume()
            await one.until(lambda: len(one.got) == 20_000)
            assert [int(body[:6]) for body in one.bodies] == list(range(20_000))

    play(scenario())


def test_a_message_above_the_servers_limit_is_refused_here(tmp_path: Path, direct: bool) -> None:
    """The server would end the connection for a message above its limit, so the caller gets the error."""
    with NatsServer(tmp_path, "max_payload: 1000") as server:

        async def scenario() -> None:
            async with connected(server.url, direct=direct) as one:
                assert one.client.max_payload == 1_000
                with pytest.raises(EncodeError, match=r"a message of 1001 bytes .* accepts at most 1000"):
                    one.client.publish(b"a", bytes(1_001))
                with pytest.raises(EncodeError, match="a message of 1012 bytes"):
                    one.client.publish(b"a", bytes(1_000), None, b"NATS/1.0\r\n\r\n")
                assert one.client.publish(b"a", bytes(1_000))
                await one.ready()
                assert one.client.connected

        play(scenario())


def test_a_received_message_above_the_limit_is_dropped_and_reported(server: NatsServer) -> None:
    """A message of more than ``max_message`` bytes is skipped, and the connection goes on."""

    async def scenario() -> None:
        async with connected(server.url, max_message=1_000) as one, connected(server.url) as two:
            one.client.subscribe(b"a", one.take)
            await one.ready()
            two.client.publish(b"a", bytes(200_000))
            two.client.publish(b"a", bytes(1_001), None, b"NATS/1.0\r\n\r\n")
            two.client.publish(b"a", b"small")
            await one.until(lambda: one.got)
            assert one.bodies == [b"small"]
            dropped = [each for each in one.events if isinstance(each, Dropped)]
            assert dropped == [Dropped(b"a", 200_000, may_have_number=False), Dropped(b"a", 1_013)]

    play(scenario())


def test_messages_that_wait_without_a_pause_of_the_socket_are_limited(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py reads on during a pause; what exceeds the limit is dropped and reported, and the rest arrives."""
    monkeypatch.setattr(links, "PENDING_MAX", 10_000)

    async def scenario() -> None:
        async with connected(server.url, direct=False) as one, connected(server.url) as two:
            for subject in (b"a", b"b"):
                one.client.subscribe(subject, one.take)
            await one.ready()
            one.client.pause()
            for number in range(30):
                two.client.publish(b"ab"[number % 2 :][:1], b"%03d" % number + bytes(997))
            assert (await one.event(Dropped, 20)) == Dropped(b"b", 0, may_have_number=False)
            one.client.resume()
            await one.until(lambda: len(one.got) == 10)
            assert [int(body[:3]) for body in one.bodies] == list(range(10))
            two.client.publish(b"a", b"later")
            await one.until(lambda: one.bodies[-1] == b"later")

    play(scenario())


def test_a_full_send_buffer_refuses_messages(server: NatsServer, direct: bool) -> None:
    """A server that does not read fills the buffer up to its limit; then messages are refused."""
    if not direct and sys.version_info < UNBOUNDED.get(sys.version_info[:2], (3,)):
        pytest.skip("asyncio of this Python writes without a limit for nats-py (CVE-2024-12254)")

    async def scenario() -> None:
        async with connected(server.url, direct=direct, send_buffer=100_000, keepalive=1000) as one:
            server.freeze()
            try:
                accepted = 0
                while one.client.publish(b"a", bytes(10_000)):
                    accepted += 1
                    assert accepted < 10_000
                    await asyncio.sleep(0)
                assert 90_000 <= one.client.waiting <= 110_000
            finally:
                server.thaw()
            await one.ready()
            assert one.client.waiting == 0
            assert one.client.publish(b"a", b"x")

    play(scenario())


# -- losses of the connection ----------------------------------------------------------------------------


def test_a_restarted_server_gets_the_subscriptions_again(server: NatsServer, direct: bool) -> None:
    """A killed server is reported; after its restart, the client is back with its subscriptions."""

    async def scenario() -> None:
        async with connected(server.url, direct=direct) as one:
            one.client.subscribe(b"a", one.take)
            await one.ready()
            pinged = one.client.ping()
            server.kill()
            await done(pinged)
            lost = await one.event(Lost)
            assert lost.server == server.url
            assert not one.client.connected
            assert one.client.publish(b"a", b"away") is False
            assert await done(one.client.ping()) is False
            server.start()
            assert await one.event(Connected, 2) == Connected(server.url, again=True)
            one.client.publish(b"a", b"back")
            await one.until(lambda: one.got)
            assert one.bodies == [b"back"]

    play(scenario())


def test_a_lost_connection_is_known_before_its_pings_end(server: NatsServer, direct: bool) -> None:
    """Who waits for a PING finds no connection, so a message that can't be sent any more is refused."""

    async def scenario() -> None:
        async with connected(server.url, direct=direct) as one:
            await one.ready()
            server.freeze()
            found: list[tuple[bool, bool, bool]] = []
            pinged = one.client.ping().addCallback(
                lambda answered: found.append((answered, one.client.connected, one.client.publish(b"a", b"late")))
            )
            server.kill()
            await done(pinged)
            assert found == [(False, False, False)]
            server.start()

    play(scenario())


def test_a_client_moves_to_another_server_of_the_cluster(tmp_path: Path, direct: bool) -> None:
    """The client knows one server, learns the others from it, and uses them when its own is killed."""
    with cluster(tmp_path) as servers:

        async def scenario() -> None:
            async with connected(servers[0].url, direct=direct) as one, connected(servers[1].url) as two:
                one.client.subscribe(b"a", one.take)
                await one.knows(servers[1])
                await one.knows(servers[2])
                servers[0].kill()
                again = await one.event(Connected, 2)
                assert again.server in (servers[1].url, servers[2].url)
                await one.ready()
                two.client.subscribe(b"b", two.take)
                await two.ready()
                while not one.got:  # the interest of `one` needs some time to reach the server of `two`
                    two.client.publish(b"a", b"x")
                    await two.ready()

        play(scenario())


def test_a_frozen_server_is_left(tmp_path: Path, direct: bool) -> None:
    """A server that does not answer, but keeps the connection open, is replaced by another."""
    with cluster(tmp_path, 2) as servers:

        async def scenario() -> None:
            async with connected(servers[0].url, direct=direct, keepalive=0.1) as one:
                # On a busy machine, the client may also have left the first server before.
                await until(lambda: servers[1].url in {one.client.server, *map(str, one.client._named)})
                await until(lambda: one.client.connected)
                frozen, other = servers if one.client.server == servers[0].url else reversed(servers)
                before = len(one.events)
                frozen.freeze()
                one.client.publish(b"a", bytes(500_000))
                await one.until(lambda: one.client.server == other.url)
                lost = next(each for each in one.events[before:] if isinstance(each, Lost))
                assert (lost.server, "no answer to PING" in lost.reason) == (frozen.url, True)
                frozen.thaw()

        play(scenario())


def test_a_lame_duck_is_reported_and_left(tmp_path: Path, direct: bool) -> None:
    """A server in lame duck mode announces its end; the client then moves to another one."""
    config = "lame_duck_duration: 30s\nlame_duck_grace_period: 1s\n"
    with cluster(tmp_path, 2, config) as servers:

        async def scenario() -> None:
            async with connected(servers[0].url, direct=direct) as one:
                await one.knows(servers[1])
                servers[0].lame_duck()
                assert await one.event(LameDuck) == LameDuck(servers[0].url)
                assert (await one.event(Connected, 2)).server == servers[1].url

        play(scenario())


def test_a_start_waits_for_a_server_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a server, the start waits and logs; it ends when the server is there."""
    monkeypatch.setattr(client_module, "SILENCE", 0.0)
    caplog.set_level(logging.INFO, "zroute")
    server = NatsServer(tmp_path)
    with_secret = server.url.replace("//", "//me:s3cret@")

    async def scenario() -> None:
        one = Watched(with_secret)
        started = one.client.start()
        silent: NoAnswer = await one.event(NoAnswer)
        assert silent.reasons == {server.url: "nothing listens there"}
        assert not started.called
        with server:
            await done(started)
            await done(one.client.close(1))

    play(scenario())
    assert f"desk: no answer from {server.url} for" in caplog.text
    assert "nothing listens there; trying again" in caplog.text
    assert f"desk: connected to {server.url}" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_client_that_is_closed_before_a_server_answers(direct: bool) -> None:
    """Closing ends the attempts; the start fails with an error that says so."""

    async def scenario() -> None:
        one = Watched(f"nats://127.0.0.1:{free_port()}", direct=direct)
        started = one.client.start()
        await asyncio.sleep(0)
        await done(one.client.close())
        with pytest.raises(NotRunningError, match="closed before a NATS server has answered"):
            await done(started)
        await done(one.client.close())

    play(scenario())


# -- the fallback ----------------------------------------------------------------------------------------


def test_messages_before_the_answer_to_a_ping_are_handled_first(server: NatsServer) -> None:
    """The fallback tells the end of a read between the last message and the answer, also if both wait together."""

    async def scenario() -> None:
        async with connected(server.url, direct=False) as one:
            order: list[str] = []
            one.client.subscribe(b"a", lambda *_: order.append("message"))
            assert await done(one.client.ping())
            one.client.after_read = lambda: order.append("read")
            one.client.pause()
            one.client.publish(b"a", b"x")
            answered = one.client.ping()
            answered.addCallback(lambda _: order.append("answer"))
            link: Any = one.client.link
            async with asyncio.timeout(PATIENCE):
                while not link._arrived.qsize():  # the message is held, and the answer waits behind it
                    await asyncio.sleep(0.005)
            one.client.resume()
            await done(answered)
            # What arrives beside the message and the answer may end a read of its own.
            assert (order[0], set(order[1:-1]), order[-1]) == ("message", {"read"}, "answer")

    play(scenario())


@pytest.mark.parametrize("connects", [True, False])
def test_an_attempt_to_connect_that_ignores_its_end_is_ended(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, connects: bool
) -> None:
    """The attempt fails or succeeds at the moment of its cancellation, as in `asyncio.wait_for` of Python 3.11."""
    real = client_module.open_link

    async def scenario() -> None:
        begun = asyncio.Event()

        async def ignore(*given: Any) -> Any:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                monkeypatch.setattr(client_module, "open_link", real)
                if connects:
                    return await real(*given)
                raise ConnectionRefusedError from None

        monkeypatch.setattr(client_module, "open_link", ignore)
        client = Client(ClientOptions(parse_servers([server.url]), "desk"))
        started = client.start()
        started.addErrback(lambda failure: failure.trap(NotRunningError))
        await begun.wait()
        await asyncio.wait_for(done(client.close()), PATIENCE)
        assert started.called
        assert not client.connected

    play(scenario())


def test_without_private_names_the_public_functions_are_used(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If nats-py has not the private names, one line says so, and everything works."""
    monkeypatch.setattr(client_module, "missing_names", lambda: ["_ps"])

    async def scenario() -> None:
        async with connected(server.url) as one:
            assert isinstance(one.client.link, links.PublicLink)
            one.client.subscribe(b"a", one.take)
            one.client.publish(b"a", b"x")
            await one.until(lambda: one.got)

    play(scenario())
    assert "this version of nats-py has no _ps" in caplog.text


def test_a_version_that_loses_the_order_is_refused(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the names that keep the order of messages, the start fails, because losses would be counted wrongly."""
    monkeypatch.delattr(NatsClient, "msg_class")

    async def scenario() -> None:
        one = Watched(server.url, direct=False)
        with pytest.raises(EndpointError, match=r"can't keep the order of messages; install the version that zroute"):
            await done(one.client.start())
        await done(one.client.close())

    play(scenario())


def test_this_version_of_nats_py_has_the_private_names() -> None:
    """The pinned version supports the fast path."""
    assert links.missing_names() == []

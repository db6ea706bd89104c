"""Apps on real NATS servers: publishing, subscribing, foreign clients, back-pressure, starts and stops."""

from __future__ import annotations

import asyncio
import itertools
import logging
from pathlib import Path
from typing import Any

import nats
import pytest
from twisted.internet import reactor as default_reactor
from twisted.internet.asyncioreactor import AsyncioSelectorReactor

from tests.nats.loops import run, until
from tests.nats.servers import NatsServer, known
from tests.support import PATIENCE, free_port
from zroute import App, Envelope, Frames, Limits, Reject, startswith
from zroute.errors import (
    EncodeError,
    EndpointError,
    HighWaterMarkError,
    NotReadyError,
    PatternError,
    SignatureError,
    TopicError,
    UsageError,
)
from zroute.nats import client as client_module
from zroute.nats import servers
from zroute.transports import choosing
from zroute.transports import nats as transport_module

pytestmark = pytest.mark.usefixtures("both_ways")


# -- messages --------------------------------------------------------------------------------------------


def test_topics_and_headers_that_nats_does_not_carry_are_refused_and_not_lost(server: NatsServer) -> None:
    """A refused message raises in `publish`, and takes no number, so no subscriber counts it as lost."""

    async def check(overflow: Any) -> None:
        feed, reader = App(nats=server.url, overflow=overflow), App(nats=server.url)
        got: list[Any] = []
        reader.add_route(got.append, ">")
        async with feed.running(), reader.running():
            await reader.ready(1)
            for topic in ("$SYS.x", "_INBOX.a", "_zr.ask", "a b", "a\x01"):
                with pytest.raises(TopicError, match=r"reserved|white space|can't contain"):
                    feed.publish(topic, 1)
            for headers in ({"n": 1}, {"Zr": "x"}, {"a": "b\nc"}, {"a b": "c"}):
                with pytest.raises(EncodeError, match="can't be sent over NATS"):
                    feed.publish("a", 1, headers=headers)
            with pytest.raises(EncodeError, match=r"cannot publish to 'a': .* accepts at most 1048576"):
                feed.publish("a", b"x" * (1024 * 1024 - 20))
            feed.publish("a", 2, headers={"user": "ü"})
            await until(lambda: got)
        assert got == [2]
        assert (reader.stats.lost, reader.stats.malformed, reader.stats.unrouted) == (0, 0, 0)

    for overflow in ("drop", "raise", "wait"):
        run(check(overflow))


def test_a_merged_subject_brings_nothing_that_counts(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """Overlapping patterns bring a message once, and no messages of other topics."""

    async def check() -> None:
        reader, got = App(nats=server.url), list[str]()
        reader.add_route(lambda text: got.append(text), "news.*", "*.urgent", startswith("logs.a"))
        async with reader.running():
            client = await nats.connect(server.url)
            for topic in ("news.urgent", "news.x", "other.urgent", "other.thing", "logs.b", "logs.abc", "end.urgent"):
                await client.publish(topic, b"\xa1x" if topic != "end.urgent" else b"\xa3end")
            await until(lambda: "end" in got)
            await client.close()
        assert got == ["x", "x", "x", "x", "end"]
        assert (reader.stats.received - reader.stats.control, reader.stats.unrouted) == (5, 0)

    caplog.set_level(logging.INFO, "zroute")
    run(check())
    assert "subscribes to *.>, because some patterns overlap" in caplog.text


def test_a_pattern_for_all_topics_brings_no_internal_messages(server: NatsServer) -> None:
    """The subject ``>`` receives inboxes and zroute's own messages; handlers do not."""

    async def check() -> None:
        reader, got = App(nats=server.url, codec="raw"), list[str]()

        @reader.subscribe(">")
        def handle(envelope: Envelope) -> None:
            got.append(str(envelope.topic))

        async with reader.running():
            client = await nats.connect(server.url)
            for topic in ("_INBOX.x", "_zr.ask", "_zr.x", "a"):
                await client.publish(topic, b"1")
            await until(lambda: got)
            await client.close()
        assert got == ["a"]

    run(check())


@pytest.mark.parametrize("wire", ["tracked", "plain"])
def test_other_clients_take_part_with_clean_bodies(server: NatsServer, wire: Any) -> None:
    """A subscriber without zroute gets the body alone, and the headers of a publisher without zroute arrive."""

    async def check() -> None:
        app, got = App(nats=server.url, wire=wire, codec="json"), list[Envelope]()

        @app.subscribe("in.{x}")
        def handle(envelope: Envelope) -> None:
            got.append(envelope)

        client = await nats.connect(server.url)
        async with app.running():
            heard = await client.subscribe("out.>")
            await known(client)
            app.publish("out.a", {"n": 1}, headers={"user": "ann"} if wire == "tracked" else None)
            message = await heard.next_msg(timeout=PATIENCE)
            assert message.data == b'{"n":1}'
            assert (message.headers or {}).get("user") == ("ann" if wire == "tracked" else None)
            assert bool(message.headers) == (wire == "tracked")
            await client.publish("in.x", b'{"n":2}', headers={"user": "bob"})
            await client.publish("in.y", b'{"n":3}')
            await until(lambda: len(got) == 2)
        await client.close()
        assert [(each.body, dict(each.headers)) for each in got] == [(b'{"n":2}', {"user": "bob"}), (b'{"n":3}', {})]
        assert (app.stats.malformed, app.stats.lost) == (0, 0)

    run(check())


def test_headers_that_nats_does_not_carry_are_not_copied(server: NatsServer, direct: bool) -> None:
    """Headers of a peer that are not UTF-8 or repeated reach the handler; its result has only the others."""
    block = b"NATS/1.0\r\ntraceparent: \xff\r\ncorrelation-id: c\r\nbaggage: 1\r\nbaggage: 2\r\n\r\n"

    async def check() -> None:
        bridge, reader, got = App(nats=server.url), App(nats=server.url), list[Envelope]()

        @bridge.publisher("out", int)
        @bridge.subscribe("in")
        def forward(number: int, envelope: Envelope) -> int:
            got.append(envelope)
            return number

        @reader.subscribe("out")
        def handle(envelope: Envelope) -> None:
            got.append(envelope)

        async with bridge.running(), reader.running():
            await reader.ready(1)
            _, peer = await asyncio.open_connection("127.0.0.1", server.port)
            peer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
            peer.write(b"HPUB in %d %d\r\n%b\x07\r\n" % (len(block), len(block) + 1, block))
            await until(lambda: len(got) == 2)
            peer.close()
        if direct:  # else nats-py has changed the headers
            assert (got[0].headers["traceparent"], got[0].headers["baggage"]) == (b"\xff", ["1", "2"])
            assert dict(got[1].headers) == {"correlation-id": "c"}
        assert (bridge.stats.publish_errors, reader.stats.received - reader.stats.control) == (0, 1)

    run(check())


def test_several_messages_in_a_frame_arrive_and_are_counted(server: NatsServer) -> None:
    """With ``coalesce``, messages of one turn share frames; each arrives in order, and none counts as lost."""

    async def check() -> None:
        feed, reader, got = App(nats=server.url, coalesce=True), App(nats=server.url), list[int]()
        client, frames = await nats.connect(server.url), list[Any]()

        async def count(frame: Any) -> None:
            frames.append(frame)

        await client.subscribe("numbers.a", cb=count)
        await known(client)
        numbers = feed.publisher("numbers.{x}", int)
        reader.add_route(got.append, "numbers.a")
        async with feed.running(), reader.running():
            await reader.ready(1)
            for number in range(1_000):
                numbers.publish(number, x="a")
                numbers.publish(number, x="b")
            await until(lambda: len(got) == 1_000)
            await known(client)
        await client.close()
        assert got == list(range(1_000))
        assert 0 < len(frames) < 1_000
        assert (reader.stats.lost, reader.stats.malformed, reader.stats.duplicate) == (0, 0, 0)

    run(check())


def test_a_new_subscriber_gets_kept_messages(server: NatsServer) -> None:
    """A publisher answers a join with its kept messages, and knows its subscribers."""

    async def check() -> None:
        feed, reader = App(nats=server.url, name="feed"), App(nats=server.url, name="reader")
        prices, got, changes = feed.publisher("prices.{x}", int, keep="last"), list[int](), list[int]()
        prices.on_subscribers(changes.append)
        reader.add_route(got.append, "prices.>")
        async with feed.running():
            for price in (1, 2):
                prices.publish(price, x="a")
            prices.publish(3, x="b")
            with pytest.raises(NotReadyError, match="only 0 of 1 subscribers"):
                await prices.wait_for_subscribers(1, timeout=0.05)
            async with reader.running():
                await reader.ready(1, state=True)
                assert sorted(got) == [2, 3]
                await prices.wait_for_subscribers(1, timeout=PATIENCE)
                assert prices.subscribers == 1
            await until(lambda: prices.subscribers == 0)
        assert changes == [1, 0]

    run(check())


def test_a_plain_publisher_knows_its_subscribers(server: NatsServer) -> None:
    """On the plain wire, publishers answer joins, too."""

    async def check() -> None:
        feed, reader, got = App(nats=server.url, wire="plain"), App(nats=server.url), list[int]()
        numbers = feed.publisher("n", int)
        reader.add_route(got.append, "n")
        async with feed.running(), reader.running():
            await reader.ready()
            await numbers.wait_for_subscribers(1, timeout=PATIENCE)
            numbers.publish(1)
            with pytest.raises(TopicError, match="reserved"):
                feed.publish("$x", 1)
            await until(lambda: got)
        assert (got, reader.stats.lost, reader.stats.unknown_losses) == ([1], 0, 0)

    run(check())


def test_a_dead_letter_has_its_reason_as_text(server: NatsServer) -> None:
    """The headers of a dead letter survive NATS, and headers that NATS does not carry are omitted."""

    async def check() -> None:
        app, dead = App(nats=server.url), list[Envelope]()

        @app.subscribe("jobs.{x}", dead="dead.{x}")
        def fail(number: int) -> None:
            raise Reject("two\nlines")

        @app.subscribe("dead.{x}")
        def bury(envelope: Envelope) -> None:
            dead.append(envelope)

        async with app.running():
            app.publish("jobs.a", 7, headers={"user": "ann"})
            await until(lambda: dead)
        headers = dict(dead[0].headers)
        assert headers.pop("zr-error").startswith("Reject: two")
        assert headers == {"user": "ann", "zr-topic": "jobs.a", "zr-attempts": "1"}

    run(check())


# -- the connection --------------------------------------------------------------------------------------


def test_a_message_that_cannot_be_sent_is_treated_as_overflow_says(server: NatsServer) -> None:
    """While no server is connected: "drop" counts, "raise" raises, and "wait" sends after the reconnect."""

    async def check() -> None:
        dropping, raising = App(nats=server.url, name="drops"), App(nats=server.url, overflow="raise", name="raises")
        waiting, reader = App(nats=server.url, overflow="wait", name="waits"), App(nats=server.url, name="reader")
        got = list[int]()
        reader.add_route(got.append, "a")
        async with dropping.running(), raising.running(), waiting.running(), reader.running():
            await reader.ready(3)
            apps = [each._live.run.transport._client for each in (dropping, raising, waiting, reader)]  # type: ignore[union-attr]
            server.kill()
            await until(lambda: not any(each.connected for each in apps))
            dropping.publish("a", 1)
            with pytest.raises(HighWaterMarkError, match="no NATS server is connected"):
                raising.publish("a", 2)
            sent = waiting.publish("a", 3)
            server.start()
            await sent
            await until(lambda: all(each.connected for each in apps))
            await reader.ready(3)
            for number, app in enumerate((dropping, raising, waiting), 4):
                await app.publish("a", number)
            await until(lambda: {4, 5, 6} <= set(got))
        assert (dropping.stats.published, dropping.stats.publish_errors) == (1, 1)
        assert {1, 2}.isdisjoint(got)
        # The waiting message may be sent before the subscriber has returned: it is then handled or counted.
        assert reader.stats.lost == 1 + (3 not in got)
        assert reader.stats.unknown_losses == 0

    run(check())


LOGIN = """
authorization {{ users: [{{ user: ann, password: secret, permissions: {{
  publish: {{ allow: {publish} }}, subscribe: {{ allow: {subscribe} }}
}} }}] }}
"""
"""A server with a user who may use only some subjects."""


def test_messages_that_the_server_forbids_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message without permission counts as an error, not as published, and one line names the topic."""
    monkeypatch.setattr(client_module, "_REFUSAL", PATIENCE)

    async def check(url: str) -> None:
        app = App(nats=url)
        async with app.running():
            for number in range(5):
                app.publish("secret.a", number)
                app.publish("news.a", number)
            await until(lambda: app.stats.publish_errors == 5)
            assert app.stats.published == 5

    config = LOGIN.format(publish='["news.*", "_zr.>", "_INBOX.>"]', subscribe='">"')
    with NatsServer(tmp_path, config) as server:
        run(check(server.url.replace("//", "//ann:secret@")))
    refused = [line for line in caplog.messages if "secret.a" in line]
    assert len(refused) == 1
    assert 'permissions violation for publish to "secret.a"' in refused[0].lower()


def test_dropped_messages_are_counted_once(tmp_path: Path, direct: bool) -> None:
    """A message that is too large for the app counts as lost, with and without a number."""
    if not direct:
        pytest.skip("only zroute's own parser limits the size of messages")
    size = 3 << 20

    async def check(url: str) -> None:
        reader, got = App(nats=url, codec="raw"), list[bytes]()
        reader.add_route(got.append, "a", "x.*")
        feed = App(nats=url, codec="raw", limits=Limits(max_message=size))
        async with feed.running(), reader.running():
            await reader.ready(1)
            client = await nats.connect(url)
            await client.publish("a", bytes(size))
            await client.publish("_INBOX.other", bytes(size))
            await client.flush()
            await until(lambda: reader.stats.lost == 1)
            feed.publish("a", bytes(size))
            feed.publish("a", b"small")
            await until(lambda: got)
            await until(lambda: reader.stats.lost == 2)
            await client.close()
        assert (got, reader.stats.lost, reader.stats.gaps) == ([b"small"], 2, 2)

    with NatsServer(tmp_path, "max_payload: 4MB") as server:
        run(check(server.url))


def test_a_long_pause_is_logged(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A route that stays full warns, because the server disconnects clients that do not read; nothing is lost."""

    async def check() -> None:
        feed, reader, got, gate = App(nats=server.url), App(nats=server.url), list[int](), asyncio.Event()

        @reader.subscribe("a", max_in_flight=1, queue=1)
        async def slow(number: int) -> None:
            await gate.wait()
            got.append(number)

        async with feed.running(), reader.running():
            await reader.ready(1)
            for number in range(5_000):
                feed.publish("a", number)
            await until(lambda: "reading has been paused for" in caplog.text)
            assert "slow()" in caplog.text
            assert len(reader._live.run.transport._inbox) < 5_000  # type: ignore[union-attr]
            gate.set()
            await until(lambda: len(got) == 5_000)
        assert got == list(range(5_000))
        assert reader.stats.lost == 0

    monkeypatch.setattr(transport_module, "_PAUSED", 0.2)
    run(check())


def test_a_flood_does_not_stop_timers(server: NatsServer) -> None:
    """Messages that wait for a slow handler are delivered in short turns, between which timers run."""

    async def check() -> None:
        feed, reader, got, ticks = App(nats=server.url), App(nats=server.url), list[int](), list[int]()

        @reader.subscribe("a")
        def busy(number: int) -> None:
            sum(range(2_000))
            got.append(number)

        async with feed.running(), reader.running():
            await reader.ready(1)

            def tick() -> None:
                ticks.append(len(got))
                asyncio.get_running_loop().call_later(0.001, tick)

            for number in range(10_000):
                feed.publish("a", number)
            tick()
            await until(lambda: len(got) == 10_000)
        assert got == list(range(10_000))
        largest = max(later - earlier for earlier, later in itertools.pairwise(ticks))
        assert largest < 5_000

    run(check())


# -- the start -------------------------------------------------------------------------------------------


def test_patterns_that_nats_can_t_filter_are_refused_at_the_start() -> None:
    """The error names the line of the handler, also for a handler that is attached later."""
    app = App(nats="nats://127.0.0.1:1")
    app.add_route(print, startswith("news"))
    with pytest.raises(PatternError, match=r"test_transport.py:\d+: .*Write one of these instead"):
        app.endpoints()
    on_zeromq = App(sub="tcp://127.0.0.1:1")
    on_zeromq.add_route(print, startswith("news"))
    on_zeromq.endpoints()
    with pytest.raises(PatternError, match="begins inside a segment"):
        on_zeromq.endpoints(nats="nats://127.0.0.1:1")


def test_an_attached_handler_is_checked_too(server: NatsServer) -> None:
    """A pattern that NATS can't filter is refused by attach(), and the app goes on."""

    async def check() -> None:
        app, got = App(nats=server.url), list[int]()
        async with app.running():
            with pytest.raises(PatternError, match="begins inside a segment"):
                app.attach(startswith("news"), print)
            app.attach("a", got.append)
            await until(lambda: app.stats.peers or True)
            client = await nats.connect(server.url)
            while not got:
                await client.publish("a", b"\x01")
                await asyncio.sleep(0.01)
            await client.close()

    run(check())


def test_nats_excludes_endpoints_and_keys() -> None:
    """`nats=` beside endpoints or keys is refused at the line of the app, and so is a login without servers."""
    url = "nats://127.0.0.1:1"
    with pytest.raises(EndpointError, match=r"test_transport.py:\d+: nats= replaces all endpoints, .* sub= and pub="):
        App(nats=url, sub="tcp://127.0.0.1:1", pub="tcp://127.0.0.1:2")
    with pytest.raises(EndpointError, match="keys= has no effect on NATS"):
        App(nats=url, keys="desk.key_secret")
    with pytest.raises(EndpointError, match="no effect without nats"):
        App(nats_creds="desk.creds")
    with pytest.raises(EndpointError, match="is invalid") as refused:
        App(nats="nats://ann:secret@127.0.0.1:nope")
    assert "secret" not in str(refused.value)
    app = App(sub="tcp://127.0.0.1:1")
    with pytest.raises(EndpointError, match="--nats can't be combined with --keys"):
        app.endpoints(nats=url, keys="desk.key_secret")
    for bad in (5, ["nats://a", 5]):
        with pytest.raises(EndpointError, match="expected nats://host:4222"):
            App(nats=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("wire", ["multipart", Frames(separator=b" ")])
def test_a_wire_of_parts_is_refused(wire: Any) -> None:
    """A message of NATS has a subject and one body."""
    app = App(pub="tcp://127.0.0.1:1", wire=wire)
    with pytest.raises(SignatureError, match="not possible on NATS"):
        app.endpoints(nats="nats://127.0.0.1:1")


def test_the_app_s_own_endpoints_decide_its_sides_and_its_echo() -> None:
    """On NATS, an app subscribes and publishes as on ZeroMQ, and hears itself only if it does so there."""
    url = "nats://ann:secret@127.0.0.1:1"
    both, same = App(sub="tcp://127.0.0.1:1", pub="tcp://127.0.0.1:2"), App(sub="inproc://a", pub="inproc://a")
    only = App(pub="tcp://127.0.0.1:2").endpoints(nats=url)
    assert (only.sub, [str(each) for each in only.pub]) == ((), ["connect:nats://127.0.0.1:1"])
    assert [app.endpoints(nats=url).hears_itself for app in (both, same, App())] == [False, True, True]
    assert "secret" not in repr(both.endpoints(nats=url))
    own = App(nats=url)
    assert own.endpoints(sub=both.sub).nats is None
    assert own.endpoints(nats_creds="desk.creds").nats.creds == Path("desk.creds")  # type: ignore[union-attr]


def test_an_app_does_not_hear_itself_if_its_endpoints_differ(server: NatsServer) -> None:
    """A message that the app publishes does not come back, while that of another client arrives."""

    async def check() -> None:
        plan = App(sub="tcp://127.0.0.1:1", pub="tcp://127.0.0.1:2")
        app, got = App(nats=server.url), list[int]()
        app._ends = plan.endpoints(nats=server.url).with_sides(dict.fromkeys(("sub", "pub"), ()))
        app.add_route(got.append, "a")
        async with app.running():
            client = await nats.connect(server.url)
            app.publish("a", 1)
            while not got:
                await client.publish("a", b"\x02")
                await asyncio.sleep(0.01)
            await client.close()
        assert 1 not in got

    run(check())


def test_a_large_max_message_is_refused_at_the_start(server: NatsServer) -> None:
    """A publisher may not promise messages that the server refuses; a subscriber may accept them."""

    async def check() -> None:
        limits = Limits(max_message=2_000_000)
        with pytest.raises(
            EndpointError, match=r"accepts messages of at most 1048576 bytes, but the app may send 2000000"
        ):
            async with App(nats=server.url, limits=limits).running():
                pass

    run(check())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nats-py, the error names the extra to install."""
    monkeypatch.setattr(servers, "find_spec", lambda name: None)
    with pytest.raises(EndpointError, match=r"pip install 'zroute\[nats\]'"):
        choosing.factory_for(App(nats="nats://127.0.0.1:1").endpoints())


@pytest.mark.skipif(isinstance(default_reactor, AsyncioSelectorReactor), reason="needs another reactor")
def test_another_reactor_is_refused() -> None:
    """A service on a reactor without asyncio says what to do."""
    with pytest.raises(UsageError, match=r"runs on NATS, which needs asyncio's reactor.*asyncioreactor.install\(\)"):
        App(nats="nats://127.0.0.1:1").service(default_reactor)


def test_a_start_waits_for_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An app may start before its server, as on ZeroMQ, and on_startup may publish."""

    async def check() -> None:
        server = NatsServer(tmp_path, port=free_port())
        app, got = App(nats=server.url), list[int]()
        app.add_route(got.append, "a")
        app.on_startup(lambda: app.publish("early", 1))
        starting = asyncio.create_task(app.running().__aenter__())
        await asyncio.sleep(0)
        assert not starting.done()
        with server:
            await asyncio.wait_for(starting, PATIENCE)
            assert (app.stats.published, app.stats.publish_errors) == (1, 0)
            app.stop()
            await app.stopped()

    run(check())


def test_a_stop_while_no_server_answers(tmp_path: Path) -> None:
    """A stop ends a start that waits for a server."""

    async def check() -> None:
        app = App(nats=f"nats://127.0.0.1:{free_port()}")
        context = app.running()
        starting = asyncio.create_task(context.__aenter__())
        await until(lambda: app._live.run is not None)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    run(check())

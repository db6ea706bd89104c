"""Endpoints with a stated form, over TCP: one socket for each form, beside the socket of zroute's own wires."""

from __future__ import annotations

import logging
import sys
import zlib
from typing import Any

import pytest
import pytest_twisted
import zmq
from click.testing import CliRunner
from twisted.internet.defer import Deferred

from tests.running import Mailbox, reactor, running, turns
from tests.support import PATIENCE, free_endpoint
from tests.transports.feed import Feed, feeding
from zroute import App, EndpointError, Envelope, Frames, Limits, NotReadyError, Topic
from zroute.cli import main
from zroute.endpoints import Endpoint
from zroute.options import RECEIVED_MAX
from zroute.runtime.run import MessageLimit
from zroute.runtime.service import AppService
from zroute.transports.zeromq import ZmqTransport

SPACE = Frames(separator=b" ")


def taking(app: App, *patterns: Any) -> Mailbox[tuple[str, bytes]]:
    """Add a handler of the patterns; return the box of topics and bodies."""
    box = Mailbox[tuple[str, bytes]]()

    @app.subscribe(*patterns)
    def take(body: bytes, topic: Topic) -> None:
        box.put((str(topic), body))

    return box


def transport_of(service: AppService) -> ZmqTransport:
    """Return the transport of a running service."""
    assert isinstance(service.transport, ZmqTransport)
    return service.transport


@pytest_twisted.ensureDeferred
async def test_forms_and_the_tracked_wire_meet_in_one_app() -> None:
    """Each endpoint is read in its form: two foreign ones, a publisher of zroute, and a plain one."""
    with feeding(3) as (spaced, packed, plain):
        desk = free_endpoint()
        app = App(
            sub={
                spaced.address: SPACE,
                packed.address: Frames(topic="eddn", decompress="zlib"),
                desk: "tracked",
                plain.address: "plain",
            }
        )
        box = taking(app, "news.*", "eddn")
        zroute = App(pub=desk)
        news = zroute.publisher("news.desk", bytes)
        async with running(zroute), running(app):
            await spaced.subscribed(b"eddn", b"news.")
            await packed.subscribed(b"")
            await plain.subscribed(b"eddn", b"news.")
            await app.ready(timeout=PATIENCE)
            spaced.send(b"news.a b c")
            packed.send(zlib.compress(b"hello"))
            plain.send(b"news.b\0\xc1ZR")
            news.publish(b"tracked")
            assert sorted(await box.until(4)) == [
                ("eddn", b"hello"),
                ("news.a", b"b c"),
                ("news.b", b"\xc1ZR"),
                ("news.desk", b"tracked"),
            ]
            await turns(lambda: app.stats.peers == 1)  # only zroute's publisher is tracked
            assert app.stats.malformed == app.stats.lost == 0


@pytest_twisted.ensureDeferred
async def test_endpoints_of_one_form_share_a_socket() -> None:
    """Two endpoints of equal forms are one socket, and another form is another one."""
    with feeding(3) as (one, two, three):
        app = App(sub={one.address: SPACE, two.address: Frames(separator=b" "), three.address: Frames(separator=b",")})
        box = taking(app, "a", "b", "c")
        async with running(app) as service:
            assert len(transport_of(service)._stated.pairs) == 2
            assert transport_of(service).sub is None
            for feed, message in zip((one, two, three), (b"a 1", b"b 2", b"c,3"), strict=True):
                await feed.subscribed(b"a", b"b", b"c")
                feed.send(message)
            assert sorted(await box.until(3)) == [("a", b"1"), ("b", b"2"), ("c", b"3")]


@pytest_twisted.ensureDeferred
async def test_a_foreign_publisher_gets_the_fewest_prefixes_and_nothing_else() -> None:
    """The subscriptions are prefixes of topics: no marker of zroute is sent, also after a handler is added."""
    with feeding() as (feed,):
        app = App(sub={feed.address: SPACE})
        taking(app, "news.*", "news.sport.>", "weather")
        got = list[bytes]()
        async with running(app):
            await feed.subscribed(b"news.", b"weather")
            await app.ready(timeout=PATIENCE)
            attached = app.attach("sky.*", lambda body: got.append(body))
            await feed.subscribed(b"news.", b"sky.", b"weather")
            attached.close()
            await feed.subscribed(b"news.", b"weather")
        await feed.subscribed()


@pytest_twisted.ensureDeferred
async def test_a_topic_that_cannot_be_filtered_takes_everything_and_the_log_says_so() -> None:
    """A computed topic subscribes to everything; messages without a route are counted, and INFO says so once."""
    with feeding() as (feed,):
        app = App(sub={feed.address: Frames(topic=lambda parts: f"n.{parts[0][0]}")})
        box = taking(app, "n.7")
        async with running(app) as service:
            await feed.subscribed(b"")
            feed.send(b"\x08", b"no")
            feed.send(b"\x07", b"yes")
            assert await box.until(1) == [("n.7", b"yes")]
            await turns(lambda: (app.stats.unrouted, app.stats.routed) == (1, 1))
            summary = list(transport_of(service).summary())
    assert {level for level, _ in summary} == {logging.INFO}
    (line,) = [text for _, text in summary if "can't filter" in text]
    assert feed.address in line
    assert any(text.endswith(f"connects to {feed.address}, reads Frames(topic=<lambda>())") for _, text in summary)


@pytest_twisted.ensureDeferred
async def test_bad_messages_between_good_ones_are_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """Each bad message is malformed, the log names endpoint and reason, and the good ones are all handled."""
    with feeding() as (feed,):
        app = App(
            sub={feed.address: Frames(topic=lambda parts: parts[1].decode(), body=0)}, limits=Limits(max_message=100)
        )
        box, told = taking(app, "good"), Mailbox[tuple[str, ...]]()

        @app.on_error(Exception)
        def refused(error: Exception, envelope: Envelope) -> None:
            told.put((type(error).__name__, str(envelope.topic)))

        async with running(app):
            await feed.subscribed(b"")
            for bad in ((b"alone",), (b"x", b"\xff"), (b"p",) * 40, (bytes(101), b"good"), (b"",)):
                feed.send(*bad)
                feed.send(b"body", b"good")
            assert len(await box.until(5)) == 5
            assert await told.until(5)
            await turns(lambda: app.stats.routed == 5)
            assert (app.stats.received, app.stats.malformed) == (10, 5)
    assert {kind for kind, _ in told.items} == {"EnvelopeError"}
    assert "IndexError: tuple index out of range at tests/transports/test_stated.py:" in caplog.text
    assert f"(at connect:{feed.address}, read as Frames(topic=<lambda>(), body=0))" in caplog.text


@pytest_twisted.ensureDeferred
async def test_an_exit_of_a_topic_function_stops_the_app() -> None:
    """SystemExit of a topic function stops the app with its code, and does not close the socket under it."""
    with feeding() as (feed,):
        app = App(sub={feed.address: Frames(topic=lambda parts: sys.exit(7))})
        taking(app, "a")
        service = AppService(app.compile(), reactor)
        service.startService()
        await service.started
        await feed.subscribed(b"")
        feed.send(b"x")
        await turns(lambda: service.exit_code is not None)
        assert service.exit_code == 7
        await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_full_handler_pauses_foreign_feeds_too_and_nothing_is_lost() -> None:
    """While a queue is full no socket is read; later all messages are handled in order."""
    with feeding(2) as (one, two):
        app = App(sub={one.address: SPACE, two.address: Frames(separator=b",")})
        waiting, got = list[Deferred[None]](), list[bytes]()

        @app.subscribe("a", queue=5, max_in_flight=1)
        async def slow(body: bytes) -> None:
            got.append(body)
            if len(got) == 1:
                turn: Deferred[None] = Deferred()
                waiting.append(turn)
                await turn

        async with running(app):
            for feed in (one, two):
                await feed.subscribed(b"a")
            for number in range(300):
                one.send(b"a %d" % number)
                two.send(b"a,%d" % (number + 1000))
            await turns(lambda: app.stats.paused_by)
            received = app.stats.received
            assert received < 600
            waiting[0].callback(None)
            await turns(lambda: len(got) == 600)
        numbers = [int(body) for body in got]
        assert [each for each in numbers if each < 1000] == list(range(300))
        assert [each for each in numbers if each >= 1000] == list(range(1000, 1300))


@pytest_twisted.ensureDeferred
async def test_a_stop_reads_what_has_arrived() -> None:
    """Messages that a foreign publisher has sent before the stop are handled."""
    with feeding(2) as (one, two):
        app = App(sub={one.address: SPACE, two.address: Frames(topic="b")})
        box = taking(app, "a", "b")
        async with running(app) as service:
            await one.subscribed(b"a", b"b")
            await two.subscribed(b"")
            transport_of(service).pause()
            for number in range(RECEIVED_MAX // 2):
                one.send(b"a %d" % number)
                two.send(b"%d" % number)
            stated = transport_of(service)._stated
            await turns(lambda: all(pair.readable() for pair in stated.pairs))
        assert sorted({topic for topic, _ in box.items}) == ["a", "b"]
        assert box.items.count(("a", b"0")) == box.items.count(("b", b"0")) == 1
        assert app.stats.received == len(box.items)


@pytest_twisted.ensureDeferred
async def test_ready_waits_for_the_connection_of_each_foreign_endpoint() -> None:
    """`ready` fires when all are connected; if one is away, the error names it."""
    with feeding() as (feed,):
        app = App(sub={feed.address: SPACE})
        taking(app, "a")
        async with running(app):
            await app.ready(timeout=PATIENCE)
            await app.ready(1, timeout=PATIENCE)
        nowhere = free_endpoint()
        app = App(sub={feed.address: SPACE, nowhere: "multipart"})
        taking(app, "a")
        async with running(app):
            await app.ready(1, timeout=PATIENCE)
            with pytest.raises(NotReadyError, match=f"1 publishers are connected; connect:{nowhere} is not connected"):
                await app.ready(timeout=0.3)
            with pytest.raises(NotReadyError, match="1 publishers are connected"):
                await app.ready(2, timeout=0.1)


@pytest_twisted.ensureDeferred
async def test_a_message_limit_counts_foreign_messages() -> None:
    """An app under --max-messages stops after that number, whatever the form."""
    with feeding() as (feed,):
        app = App(sub={feed.address: SPACE})
        box, reached = taking(app, "a"), Mailbox[None]()
        async with running(app, limit=MessageLimit(3, lambda: reached.put(None))):
            await feed.subscribed(b"a")
            for number in range(10):
                feed.send(b"a %d" % number)
            await reached.until(1)
        assert [body for _, body in box.items] == [b"0", b"1", b"2"]


@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_replaces_another_keeps_its_form() -> None:
    """An endpoint given at the start has the form of its address, else the one that all endpoints share."""
    with feeding() as (feed,):
        app = App(sub={"tcp://127.0.0.1:1": SPACE})
        box = taking(app, "a")
        async with running(app, sub=(Endpoint(feed.address, bind=False),)):
            await feed.subscribed(b"a")
            feed.send(b"a b")
            assert await box.until(1) == [("a", b"b")]
    app = App(sub={"tcp://127.0.0.1:1": SPACE, "tcp://127.0.0.1:2": "tracked"})
    taking(app, "a")
    (known,) = app.endpoints(sub=(Endpoint("tcp://127.0.0.1:1", bind=False),)).sub
    assert known.form == SPACE
    with pytest.raises(EndpointError, match=r"this app declares more than one form \(Frames\(separator=b' '\) at"):
        app.endpoints(sub=(Endpoint("tcp://127.0.0.1:3", bind=False),))


@pytest_twisted.ensureDeferred
async def test_a_failed_start_leaves_no_socket() -> None:
    """If an endpoint with a form can't be opened, all sockets are closed again."""
    with feeding() as (feed,):
        app = App(sub={"tcp://127.0.0.1:1": "tracked", f"bind:{feed.address}": SPACE})
        taking(app, "a")
        service = AppService(app.compile(), reactor)
        with pytest.raises(EndpointError, match="this address is in use"):
            service.startService()
        await service.stopService()
        assert service.transport is None or not service.transport.is_open


@pytest_twisted.ensureDeferred
async def test_a_publisher_that_connects_is_read_at_a_bound_endpoint() -> None:
    """An endpoint with a form may bind, and a wildcard port is resolved."""
    app = App(sub={"bind:tcp://127.0.0.1:*": SPACE})
    box = taking(app, "a")
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    try:
        async with running(app) as service:
            (pair,) = transport_of(service)._stated.pairs
            assert pair.sub is not None
            socket.connect(pair.sub.endpoints[0])
            feed = Feed(socket)
            await feed.subscribed(b"a")
            await app.ready(timeout=PATIENCE)
            feed.send(b"a b")
            assert await box.until(1) == [("a", b"b")]
    finally:
        socket.close(0)
        context.term()


def test_the_sub_argument_is_checked_at_its_line() -> None:
    """An unknown form, and one endpoint twice, name the user's line."""
    with pytest.raises(TypeError, match=r"test_stated.py:\d+: 'json' is not a message form"):
        App(sub={"tcp://a:1": "json"})  # type: ignore[dict-item]
    with pytest.raises(EndpointError, match=r"test_stated.py:\d+: sub: endpoint 'connect:tcp://a:1' is given twice"):
        App(sub={"tcp://a:1": SPACE, "connect:tcp://a:1": "plain"})
    app = App(sub={"tcp://a:1": SPACE, "tcp://b:1": "tracked"})
    assert [endpoint.form for endpoint in app.sub] == [SPACE, None]
    assert [str(endpoint) for endpoint in app.sub] == ["connect:tcp://a:1", "connect:tcp://b:1"]


@pytest.mark.parametrize("forms", [{"ipc://a": SPACE}, {"ipc://a": "plain"}])
def test_a_form_for_sending_is_no_part_of_pub(forms: Any) -> None:
    """A mapping as ``pub`` is refused, because its forms would be ignored."""
    with pytest.raises(EndpointError, match=r"test_stated.py:\d+: .*only sub= accepts a form.* use wire=, as in"):
        App(pub=forms)


def test_check_and_routes_show_the_forms(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zroute check` and `zroute routes` show which endpoint is read in which form."""
    (tmp_path / "spaced.py").write_text(
        "from zroute import App, Frames\n"
        "app = App(sub={'tcp://127.0.0.1:1': Frames(separator=b' '), 'tcp://127.0.0.1:2': 'tracked'})\n"
        "@app.subscribe('a')\ndef take(body: bytes): ...\n"
    )
    said = "connect:tcp://127.0.0.1:1 is read as Frames(separator=b' ')"
    checked = CliRunner().invoke(main, ["check", "spaced", "--app-dir", str(tmp_path)])
    assert checked.output.endswith(f"resources 0, {said}\n")
    shown = CliRunner().invoke(main, ["routes", "spaced", "--app-dir", str(tmp_path)])
    assert shown.output.splitlines()[-1] == said
    document = CliRunner().invoke(main, ["routes", "spaced", "--app-dir", str(tmp_path), "--json"])
    assert '"connect:tcp://127.0.0.1:1": "Frames(separator=b\' \')"' in document.output


def test_a_fixed_topic_that_no_route_takes_is_a_warning(tmp_path: Any) -> None:
    """The app would drop every message of the endpoint; `zroute check` says so."""
    program = (
        "from zroute import App, Frames\n"
        "app = App(sub={'tcp://127.0.0.1:1': Frames(topic='eddn'), 'tcp://127.0.0.1:2': Frames(topic='b.c')})\n"
        "@app.subscribe('a')\n@app.subscribe('b.{name}')\ndef take(body: bytes): ...\n"
    )
    more = {"dropping": "", "heard": "app.subscribe('*')(print)\n", "hooked": "app.on_unrouted(print)\n"}
    said = "all messages of connect:tcp://127.0.0.1:1 have the topic 'eddn', which no pattern of the app matches"
    for name, lines in more.items():
        (tmp_path / f"{name}.py").write_text(program + lines)
        checked = CliRunner().invoke(main, ["check", name, "--app-dir", str(tmp_path)])
        assert checked.exit_code == 0
        warnings = [line for line in checked.output.splitlines() if "warning" in line]
        assert [line.partition(" (b.{name}")[0] for line in warnings] == [f"{name}: warning: {said}"] * (not lines)


@pytest_twisted.ensureDeferred
async def test_the_start_warns_of_a_fixed_topic_that_no_route_takes(caplog: pytest.LogCaptureFixture) -> None:
    """The log names the endpoint and its topic."""
    app = App(sub={"tcp://127.0.0.1:1": Frames(topic="eddn")}, name="feeds")
    app.subscribe("a")(print)
    async with running(app):
        pass
    (warning,) = [record for record in caplog.records if "all messages of" in record.message]
    assert warning.levelno == logging.WARNING
    assert warning.message.startswith(
        "feeds: all messages of connect:tcp://127.0.0.1:1 have the topic 'eddn', which no"
    )

"""Requests between apps on real NATS servers, and with programs that do not use zroute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import nats
import pytest

from tests.nats.loops import run, until
from tests.nats.servers import NatsServer, cluster, known
from tests.support import PATIENCE
from zroute import App, Envelope, Limits, RequestRefused
from zroute.errors import (
    BadRequestError,
    BusyError,
    EncodeError,
    NoHandlerError,
    NoServerError,
    RequestError,
    RequestLostError,
    RequestRefusedError,
    RequestTimeoutError,
    ServerError,
    TopicError,
)
from zroute.nats import requests
from zroute.nats.requests import GROUP

RETRY = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 14)
"""The seconds before each retry of a request whose server may be away: in all, more than a minute."""


@attrs.frozen
class Ask:
    """A request."""

    n: int


def pricing(url: str, **options: Any) -> App:
    """Return an app that answers requests for prices."""
    app = App(nats=url, **options)

    @app.reply("prices.{symbol}")
    async def price(ask: Ask, symbol: str) -> float:
        if symbol == "none":
            raise RequestRefused(409, "not traded")
        if symbol == "bad":
            raise ValueError("two\nlines")
        return ask.n * 2.0

    return app


async def heard(url: str, *apps: App) -> None:
    """Wait until the NATS server knows the subscriptions of the apps: it has answered a PING after them."""
    for app in apps:
        transport = app._live.run.transport  # type: ignore[union-attr]
        await transport._requests._nats.ping().asFuture(asyncio.get_running_loop())  # type: ignore[attr-defined]


@asynccontextmanager
async def plain(url: str) -> AsyncIterator[Any]:
    """Connect a client without zroute."""
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


# -- between apps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["tracked", "plain"])
def test_an_app_asks_another_app(server: NatsServer, wire: Any) -> None:
    """Replies, refusals and errors arrive as on ZeroMQ, on both wires; the asking app declares nothing."""

    async def check() -> None:
        answers, asks = pricing(server.url), App(nats=server.url, wire=wire)
        async with answers.running(), asks.running():
            await heard(server.url, answers)
            assert await asks.request("prices.a", Ask(3), float) == 6.0
            with pytest.raises(RequestRefusedError, match="not traded") as refused:
                await asks.request("prices.none", Ask(1), float)
            assert refused.value.code == 409
            with pytest.raises(ServerError, match="ValueError: two"):
                await asks.request("prices.bad", Ask(1), float)
            with pytest.raises(BadRequestError, match="n"):
                await asks.request("prices.a", {"n": "x"}, float)
        assert (answers.stats.requests, answers.stats.bad_requests) == (4, 0)
        assert (asks.stats.requests_sent, asks.stats.replies_late) == (4, 0)

    run(check())


def test_an_app_asks_itself(server: NatsServer) -> None:
    """An app without endpoints may answer its own requests, also in on_startup after the handlers are open."""

    async def check() -> None:
        app = pricing(server.url)
        price = app.requester("prices.{symbol}", Ask, float)
        async with app.running():
            assert await price.request(Ask(1), symbol="x") == 2.0

    run(check())


def test_many_requests_at_once_get_their_own_replies(server: NatsServer) -> None:
    """Replies that arrive in another order belong to their requests."""

    async def check() -> None:
        answers, asks = App(nats=server.url), App(nats=server.url)

        @answers.reply("echo", max_in_flight=300, queue=1000)
        async def echo(number: int) -> int:
            await asyncio.sleep(0.001 * (7 - number % 7))
            return number

        async with answers.running(), asks.running():
            await heard(server.url, answers)
            got = await asyncio.gather(*(asks.request("echo", number, int) for number in range(1000)))
        assert got == list(range(1000))

    run(check())


def test_a_request_without_a_server_fails_at_once(server: NatsServer) -> None:
    """NATS reports that no app subscribes; the request does not wait for its timeout, and retries work."""

    async def check() -> None:
        asks = App(nats=server.url)
        price = asks.requester("prices.{symbol}", Ask, float, timeout=PATIENCE, retry=RETRY)
        async with asks.running():
            with pytest.raises(NoServerError, match="no server answers this topic"):
                await asks.request("prices.a", Ask(1), float, timeout=None)
            waiting = asyncio.ensure_future(price.request(Ask(2), symbol="a"))
            async with pricing(server.url).running():
                assert await waiting == 4.0

    run(check())


def test_one_server_of_a_group_handles_a_request(tmp_path: Path) -> None:
    """A request is handled once, although patterns of one app and of two apps match it, also across a cluster."""

    async def check(urls: list[str]) -> None:
        calls: list[str] = []

        def answering(name: str, url: str) -> App:
            app = App(nats=url, name=name)
            for pattern in ("a.>", "a.{x}", "a.b"):
                app.reply(pattern)(lambda: calls.append(name))
            return app

        one, two, asks = answering("one", urls[0]), answering("two", urls[1]), App(nats=urls[2])
        ask, asked = asks.requester("a.b", None, None, timeout=PATIENCE, retry=RETRY), 200
        async with one.running(), two.running(), asks.running():
            await heard(urls[0], one, two)
            async with asyncio.timeout(PATIENCE):
                while set(calls) != {"one", "two"}:  # their subscriptions need some time to reach the third server
                    await ask.request(None)
                    asked += 1
            await asyncio.gather(*(ask.request(None) for _ in range(200)))
        assert len(calls) == asked
        assert asks.stats.replies_late == 0

    with cluster(tmp_path) as servers:
        run(check([server.url for server in servers]))


def test_requests_and_messages_of_a_topic_do_not_mix(server: NatsServer) -> None:
    """A subscriber receives no requests and no jobs, and the handler of requests no published messages."""

    async def check() -> None:
        feed, app, got = App(nats=server.url), App(nats=server.url), list[int]()
        app.add_route(got.append, "a.*")

        @app.reply("a.{x}")
        def increase(number: int, x: str) -> int:
            return number + 1

        async with feed.running(), app.running():
            await app.ready(1)
            assert await app.request("a.x", 1, int) == 2
            feed.publish("a.x", 5)
            await until(lambda: got)
        assert (got, app.stats.requests) == ([5], 1)

    run(check())


def test_a_full_handler_of_messages_does_not_stop_replies(server: NatsServer) -> None:
    """A handler that fills its queue and pauses reading still gets the reply that it waits for."""

    async def check() -> None:
        answers, app, got = pricing(server.url), App(nats=server.url), list[float]()

        @app.subscribe("ticks", max_in_flight=1, queue=1)
        async def tick(n: int) -> None:
            await until(lambda: got or app.stats.paused_by)
            got.append(await app.request("prices.a", Ask(n), float))
            raise_if_paused.set()

        raise_if_paused = asyncio.Event()
        async with answers.running(), app.running():
            await app.ready()
            for n in range(5):
                app.publish("ticks", n)
            await asyncio.wait_for(raise_if_paused.wait(), PATIENCE)
        assert got[0] == 0.0

    run(check())


def test_what_nats_does_not_carry_is_refused_at_the_caller(server: NatsServer) -> None:
    """Topics, headers and sizes that NATS does not carry raise errors, and later requests work."""

    async def check() -> None:
        answers, asks = pricing(server.url), App(nats=server.url)
        async with answers.running(), asks.running():
            await heard(server.url, answers)
            for topic in ("$SYS.x", "a..b", "a.*", "_INBOX.x"):
                with pytest.raises(TopicError):
                    await asks.request(topic, 1)
            for headers in ({"Zr-Request": "x"}, {"zr-reply": "x"}, {"n": 1}):
                with pytest.raises(EncodeError, match="can't be sent over NATS"):
                    await asks.request("prices.a", Ask(1), headers=headers)
            with pytest.raises(EncodeError, match="accepts at most 1048576"):
                await asks.request("prices.a", b"x" * (1024 * 1024 - 20))
            assert await asks.request("prices.a", Ask(1), float) == 2.0

    run(check())


def test_a_reply_that_is_too_large_is_a_failure(server: NatsServer) -> None:
    """A reply larger than the server's max_payload, with its header, becomes an error at the client."""

    async def check() -> None:
        answers, asks = App(nats=server.url), App(nats=server.url)
        answers.reply("big")(lambda: b"x" * (1024 * 1024 - 20))
        async with answers.running(), asks.running():
            await heard(server.url, answers)
            with pytest.raises(ServerError, match="accepts at most 1048576"):
                await asks.request("big", reply=bytes)
        assert answers.stats.replies_undelivered == 1

    run(check())


def test_what_a_client_drops_for_its_size_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A reply that is too large fails its request at once; a request that is too large is counted and logged."""

    async def check() -> None:
        with NatsServer(tmp_path, "max_payload: 8MB") as server:
            asks, answers = App(nats=server.url), App(nats=server.url, name="answers")
            answers.reply("small")(lambda body: None)
            async with asks.running(), answers.running(), plain(server.url) as client:
                await heard(server.url, answers)

                async def answer(message: Any) -> None:
                    await message.respond(bytes(6_000_000))

                await client.subscribe("big", cb=answer)
                await known(client)
                with pytest.raises(RequestError, match=r"the reply has 6000146 bytes, more than this app accepts"):
                    await asks.request("big", reply=bytes)
                await client.publish("small", bytes(6_000_000), reply="any.one")
                await until(lambda: answers.stats.bad_requests)
            assert (answers.stats.requests, answers.stats.bad_requests) == (1, 1)
            assert "answers: a request was dropped: 6000000 bytes (topic small)" in caplog.text

    run(check())


def test_headers_of_a_request_arrive(server: NatsServer) -> None:
    """The application's headers are NATS headers beside the clean body."""

    async def check() -> None:
        app, seen = App(nats=server.url), list[Envelope]()

        @app.reply("a")
        def handle(n: int, envelope: Envelope) -> int:
            seen.append(envelope)
            return n

        async with app.running():
            assert await app.request("a", 7, int, headers={"user": "ü"}) == 7
        assert (dict(seen[0].headers), seen[0].body) == ({"user": "ü"}, b"\x07")

    run(check())


# -- time, cancellation, streams -------------------------------------------------------------------------


def test_a_cancelled_request_is_cancelled_at_its_server(server: NatsServer) -> None:
    """A cancellation finds the server although the client does not know which one has the request."""

    async def check() -> None:
        answers, others, asks = App(nats=server.url), pricing(server.url), App(nats=server.url)
        begun, ended = asyncio.Event(), asyncio.Event()

        @answers.reply("slow")
        async def slow() -> None:
            begun.set()
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                ended.set()
                raise

        async with answers.running(), others.running(), asks.running():
            await heard(server.url, answers)
            task = asyncio.ensure_future(asks.request("slow", timeout=None))
            await asyncio.wait_for(begun.wait(), PATIENCE)
            task.cancel()
            await asyncio.wait_for(ended.wait(), PATIENCE)
            with pytest.raises(RequestTimeoutError):
                await asks.request("slow", timeout=0.05)
            await until(lambda: answers.stats.routes["slow()"].cancelled == 2)

    run(check())


def test_a_stream_has_credits_and_ends_when_its_reader_leaves(server: NatsServer) -> None:
    """A stream delivers all items in order, waits for its reader, and closes the handler when the reader leaves."""

    async def check() -> None:
        answers, asks = App(nats=server.url), App(nats=server.url)
        made, closed = list[int](), asyncio.Event()

        @answers.reply("rows")
        async def rows(number: int) -> AsyncIterator[int]:
            try:
                for row in range(number):
                    made.append(row)
                    yield row
            finally:
                closed.set()

        async with answers.running(), asks.running():
            await heard(server.url, answers)
            assert [row async for row in asks.request_stream("rows", 1000, int)] == list(range(1000))
            made.clear()
            closed.clear()
            async with asks.request_stream("rows", 100_000, int) as stream:
                async for row in stream:
                    if row == 300:
                        break
            await asyncio.wait_for(closed.wait(), PATIENCE)
            assert 300 < len(made) < 1000
            with pytest.raises(BadRequestError, match="stream"):
                await asks.request("rows", 1, int)

    run(check())


def test_streams_whose_reader_has_left_are_forgotten(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that leaves many streams early stores nothing for them."""
    monkeypatch.setattr(requests, "_SPARE", 5)

    async def check() -> None:
        answers, asks = App(nats=server.url), App(nats=server.url)

        @answers.reply("rows")
        async def rows() -> AsyncIterator[int]:
            for row in range(1000):
                yield row

        async with answers.running(), asks.running():
            await heard(server.url, answers)
            for _ in range(40):
                async with asks.request_stream("rows", reply=int) as stream:
                    async for _row in stream:
                        break
            client = asks._live.run.transport._requests  # type: ignore[union-attr]
            assert len(client._servers) <= len(client._lane.sent) + 6 < 40

    run(check())


def test_a_stream_whose_server_has_gone_ends(server: NatsServer) -> None:
    """NATS answers the next credits of the stream, so its reader does not wait for a timeout."""

    async def check() -> None:
        answers, asks = App(nats=server.url), App(nats=server.url)

        @answers.reply("rows")
        async def rows() -> AsyncIterator[int]:
            for row in range(100_000):
                yield row

        async with asks.running():
            async with answers.running(drain_timeout=0.1):
                await heard(server.url, answers)
                stream = asks.request_stream("rows", reply=int)
                await anext(stream)
                await answers._live.run.transport._requests.close(0).asFuture(asyncio.get_running_loop())  # type: ignore[union-attr]
            with pytest.raises(RequestLostError, match="the server has disconnected"):
                async for _ in stream:
                    pass

    run(check())


def test_a_full_server_refuses_at_once(server: NatsServer) -> None:
    """A server without room answers 503 for each client, which is not the 503 of NATS."""

    async def check() -> None:
        answers, asks, go = App(nats=server.url), App(nats=server.url), asyncio.Event()

        @answers.reply("slow", max_in_flight=1, queue=1)
        async def slow() -> None:
            await go.wait()

        async with answers.running(), asks.running():
            await heard(server.url, answers)
            tasks = [asyncio.ensure_future(asks.request("slow")) for _ in range(3)]
            with pytest.raises(BusyError):
                await tasks[2]
            go.set()
            await asyncio.gather(*tasks[:2])

    run(check())


# -- the connection --------------------------------------------------------------------------------------


def test_a_killed_server_loses_requests_that_are_told(server: NatsServer) -> None:
    """Unanswered requests fail when the connection breaks; later requests wait for the reconnect."""

    async def check() -> None:
        answers, asks, begun, go = pricing(server.url), App(nats=server.url), asyncio.Event(), asyncio.Event()

        @answers.reply("slow")
        async def slow() -> None:
            begun.set()
            await go.wait()

        price = asks.requester("prices.{symbol}", Ask, float, timeout=PATIENCE, retry=RETRY)
        async with answers.running(), asks.running():
            await heard(server.url, answers)
            task = asyncio.ensure_future(asks.request("slow", timeout=None))
            await asyncio.wait_for(begun.wait(), PATIENCE)
            server.kill()
            with pytest.raises(RequestLostError, match=r"connection to nats://.* was lost"):
                await task
            await until(lambda: not answers._live.run.transport._requests._nats.connected)  # type: ignore[union-attr]
            go.set()
            await until(lambda: answers.stats.replies_undelivered)
            with pytest.raises(NoServerError, match="NATS servers can be reached"):
                await asks.request("prices.a", Ask(1), float, timeout=0.05)
            waiting = asyncio.ensure_future(price.request(Ask(4), symbol="a"))
            server.start()
            assert await waiting == 8.0

    run(check())


def test_a_stopping_server_gives_requests_to_others(server: NatsServer) -> None:
    """Requests during a stop are answered by this app, refused as busy, or handled by another app: none is lost."""

    async def check() -> None:
        staying, asks = pricing(server.url), App(nats=server.url)
        price = asks.requester("prices.{symbol}", Ask, float, retry=(0.001,) * 20)
        async with staying.running(), asks.running():
            leaving = pricing(server.url)
            async with leaving.running():
                await heard(server.url, staying, leaving)
                await asyncio.gather(*(price.request(Ask(n), symbol="a") for n in range(200)))
                assert min(leaving.stats.requests, staying.stats.requests) > 0
                tasks = [asyncio.ensure_future(price.request(Ask(n), symbol="a")) for n in range(500)]
            assert await asyncio.gather(*tasks) == [n * 2.0 for n in range(500)]

    run(check())


def test_a_larger_limit_than_the_servers_is_refused_at_the_start(server: NatsServer) -> None:
    """An app that only answers may not promise larger replies than the server accepts."""

    async def check() -> None:
        app = pricing(server.url, limits=Limits(max_message=2 << 20))
        with pytest.raises(Exception, match="accepts messages of at most 1048576 bytes"):
            async with app.running():
                pass

    run(check())


# -- programs without zroute -----------------------------------------------------------------------------


def test_a_program_without_zroute_asks(server: NatsServer) -> None:
    """It sends and gets clean bodies, gets failures as headers of services, and its headers arrive."""

    async def check() -> None:
        app, seen = pricing(server.url), list[Any]()

        @app.reply("who")
        def who(ask: Ask, envelope: Envelope) -> dict[str, int]:
            seen.append(dict(envelope.headers))
            return {"n": ask.n}

        @app.reply("rows")
        def rows() -> AsyncIterator[int]:
            raise AssertionError

        async with app.running(), plain(server.url) as client:
            await heard(server.url, app)
            reply = await client.request("prices.a", b'{"n":4}', timeout=PATIENCE)
            assert (reply.data, reply.headers) == (b"8.0", None)
            reply = await client.request("who", b'{"n":5}', timeout=PATIENCE, headers={"user": "ann"})
            assert (reply.data, reply.headers, seen) == (b'{"n":5}', None, [{"user": "ann"}])
            for topic, body, code, text in (
                ("prices.none", b'{"n":4}', "409", "not traded"),
                ("prices.a", b'{"n":"x"}', "400", "n"),
                ("prices.bad", b'{"n":4}', "500", "ValueError: two"),
                ("rows", b"", "400", "stream"),
            ):
                reply = await client.request(topic, body, timeout=PATIENCE)
                assert (reply.data, reply.headers["Nats-Service-Error-Code"]) == (b"", code)
                assert text in reply.headers["Nats-Service-Error"]
            for header in ("zz", "00", "c15a51"):
                reply = await client.request("who", b"{}", timeout=PATIENCE, headers={"Zr-Request": header})
                assert reply.headers["Nats-Service-Error-Code"] == "400"
            await client.publish("prices.a", b'{"n":4}')  # no request, and no fault
            await client.publish("_zr.requests", b"\xc1ZQ\x01\x02", reply="a")
            await client.publish("_zr.requests", b"x")
            assert (await client.request("prices.a", b'{"n":1}', timeout=PATIENCE)).data == b"2.0"
        assert app.stats.requests == 10 + 1

    run(check())


def test_a_program_without_zroute_answers(server: NatsServer) -> None:
    """It gets clean bodies with the application's headers, and its replies and failures arrive."""

    async def check() -> None:
        asks, got = App(nats=server.url, codec="json"), list[Any]()

        async def answer(message: Any) -> None:
            got.append((message.data, (message.headers or {}).get("user")))
            if message.subject.endswith(".no"):
                failed = {"Nats-Service-Error": "no\tway", "Nats-Service-Error-Code": "417"}
                await client.publish(message.reply, b"", headers=failed)
            elif message.subject.endswith(".odd"):
                await client.publish(message.reply, b"", headers={"Zr-Reply": "zz"})
            else:
                await message.respond(b'{"n":%d}' % len(got))

        async with asks.running(), plain(server.url) as client:
            await client.subscribe("svc.*", cb=answer, queue=GROUP.decode())
            await known(client)
            assert await asks.request("svc.a", Ask(3), Ask, headers={"user": "ann"}) == Ask(1)
            assert [item async for item in asks.request_stream("svc.a", Ask(3), Ask)] == [Ask(2)]
            with pytest.raises(RequestRefusedError, match="no") as failed:
                await asks.request("svc.no", Ask(1), Ask)
            assert failed.value.code == 417
            with pytest.raises(RequestError, match="Zr-Reply header that is not hexadecimal"):
                await asks.request("svc.odd", Ask(1), Ask)
        assert got[0] == (b'{"n":3}', "ann")

    run(check())


def test_a_topic_that_only_others_answer_is_not_refused_by_this_app(server: NatsServer) -> None:
    """Patterns of two apps that overlap do not answer each other's topics with 404."""

    async def check() -> None:
        one, two, asks = App(nats=server.url), App(nats=server.url), App(nats=server.url)
        one.reply("a.{x}.get")(lambda x: 1)
        one.reply("a.b.{y}")(lambda y: 2)
        two.reply("a.c.put")(lambda: 3)
        async with one.running(), two.running(), asks.running():
            await heard(server.url, one, two)
            assert [await asks.request("a.c.put", reply=int) for _ in range(20)] == [3] * 20
            with pytest.raises((NoServerError, NoHandlerError)):
                await asks.request("a.c.post")

    run(check())

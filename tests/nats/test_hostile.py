"""The client with servers that do not keep to the protocol: it leaves them for a good one, and never hangs."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.nats.servers import NatsServer
from tests.nats.test_client import Watched, connected, done, play
from tests.support import PATIENCE
from zroute.nats import client, links
from zroute.nats.client import Connected, Denied, Lost, NoAnswer

INFO = b'INFO {"max_payload":1000,"headers":true}\r\n'
ENDLESS = b"x" * 50_000


@asynccontextmanager
async def liar(script: bytes, after: bytes, *, closes: bool) -> AsyncIterator[str]:
    """Run a server that sends ``script``, and ``after`` when the client has sent its first PING.

    It then closes the connection, or keeps it open.
    """
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(script)
        while (line := await reader.readline()) and not line.startswith(b"PING"):
            pass
        if line:
            writer.write(b"PONG\r\n" + after)
        if closes:
            writer.close()
        else:
            while await reader.read(1_000):
                pass

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are tried in the order of the list. None is given up because the machine is busy."""
    keep_order: Callable[[list[Any]], None] = lambda servers: None  # noqa: E731
    monkeypatch.setattr(random, "shuffle", keep_order)
    monkeypatch.setattr(links, "CONNECT_SECONDS", PATIENCE)


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize(
    "script",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0" * 100_000,
        b"INFO [1]\r\n",
        b"INFO {\r\n",
        b"INFO " + json.dumps({"a": "x" * 100_000}).encode() + b"\r\n",
        b'INFO {"connect_urls":5}\r\n',
        b'INFO {"tls_required":true}\r\n',
        b'INFO {"max_payload":"many"}\r\n' + b"+OK\r\n" * 20_000,
        INFO + b"-ERR 'Maximum Connections Exceeded'\r\n",
    ],
    ids=range(10),
)
def test_a_server_that_does_not_greet_is_left(
    server: NatsServer, direct: bool, script: bytes, closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A greeting that is not NATS's is a fault of that server; the client tries the next one."""
    monkeypatch.setattr(links, "CONNECT_SECONDS", 0.2)

    async def scenario() -> None:
        async with liar(script, b"", closes=closes) as url, connected(url, server.url, direct=direct) as one:
            await one.until(lambda: one.client.server == server.url)
            await one.ready()

    play(scenario())


def test_a_late_login_is_tried_again(direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server says so if the login takes too long on a busy machine. This is no refusal of the credentials."""
    monkeypatch.setattr(client, "SILENCE", 0.0)

    async def scenario() -> None:
        async with liar(INFO + b"-ERR 'Authentication Timeout'\r\n", b"", closes=True) as url:
            one = Watched(url, direct=direct)
            one.client.start().addErrback(one._event)
            await one.until(lambda: one.events)
            (event,) = one.events
            assert isinstance(event, NoAnswer), event
            assert "Authentication Timeout" in str(event.reasons)
            await done(one.client.close())

    play(scenario())


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize(
    "after",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"MSG a 1 99999999999999\r\n",
        b"MSG a z1 1\r\nxyz\r\n",
        b"HMSG a z1 5 4\r\n",
        b"INFO [1]\r\n",
        ENDLESS * 3,
        b"INFO " + ENDLESS * 22,
    ],
    ids=range(7),
)
def test_a_server_that_breaks_the_protocol_is_left(server: NatsServer, after: bytes, closes: bool) -> None:
    """After the first fault, the connection is replaced by one to another server."""

    async def scenario() -> None:
        async with liar(INFO, after, closes=closes) as url, connected(url, server.url) as one:
            one.client.subscribe(b"a", one.take)
            lost = await one.event(Lost)
            assert lost.server == url
            # A server that closes with unread input resets the connection, perhaps before its bytes are read.
            assert closes or lost.reason.startswith("the server has sent ")
            assert (await one.event(Connected, 2)).server == server.url
            one.client.publish(b"a", b"good")
            await one.until(lambda: one.got)
            assert one.bodies == [b"good"]

    play(scenario())


@pytest.mark.parametrize(
    "after",
    [
        b"PONG\r\n" * 1_000,
        b"MSG a 7 1\r\nx\r\n" * 1_000,
        b"MSG \xff z9 1\r\nx\r\nHMSG a 5 3 3\r\nabc\r\n",
        b'INFO {"connect_urls":[5,null,"::","a b","x@y:1"],"max_payload":"x","ldm":5}\r\n' * 100,
        b"-ERR 'Permissions Violation for Publish to \"\x1b[31m\"'\r\n",
        b"PING\r\n" * 1_000,
    ],
    ids=range(6),
)
def test_harmless_nonsense_keeps_the_connection(after: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Unasked answers, unknown subscriptions and odd news are ignored; texts of the server can't control a terminal."""

    async def scenario() -> None:
        async with liar(INFO, after + b"-ERR 'end'\r\n", closes=False) as url, connected(url) as one:
            assert "end" in (await one.event(Denied, 1 + after.startswith(b"-ERR"))).text
            assert one.client.connected
            assert one.client.max_payload == 1_000

    play(scenario())
    assert "\x1b" not in caplog.text


def test_an_expired_login_leads_to_a_new_connection(server: NatsServer, direct: bool) -> None:
    """An error after which nats-py would stay closed only ends this connection."""
    after = b"-ERR 'User Authentication Expired'\r\n"

    async def scenario() -> None:
        async with liar(INFO, after, closes=True) as url, connected(url, server.url, direct=direct) as one:
            assert "uthentication" in (await one.event(Lost)).reason.lower()
            assert (await one.event(Connected, 2)).server == server.url

    play(scenario())


def test_a_fault_of_a_subscriber_is_logged_and_the_connection_replaced(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A subscriber that raises an error, against its contract, can't end the reading for ever."""

    async def scenario() -> None:
        async with connected(server.url) as one:

            def fail(*message: bytes | None) -> None:
                one.take(*message)
                raise ZeroDivisionError

            sid = one.client.subscribe(b"a", fail)
            one.client.publish(b"a", b"x")
            await one.event(Lost)
            one.client.unsubscribe([sid])
            await one.event(Connected, 2)
            await one.ready()

    play(scenario())
    assert "ZeroDivisionError" in caplog.text

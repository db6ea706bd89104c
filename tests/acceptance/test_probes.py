"""Raw probes at every bound socket of apps with keys: no byte comes back, and peers with keys are served."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from struct import pack
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from tests.keyed import Keys
from tests.running import Mailbox, reactor, running, turns
from tests.support import PATIENCE
from zroute import App
from zroute.endpoints import Access, parse_endpoint
from zroute.options import MAX_MESSAGE, SENT_MAX
from zroute.sockets.proxy import Proxy

SECRET = "the secret of the house"
WAIT = 0.4
"""The time in seconds for which a probe waits for bytes, while messages are published every 10 ms."""

PIECE = 0.05


# -- the probes --------------------------------------------------------------------------------------------

PUB, SUB, DEALER = b"PUB", b"SUB", b"DEALER"
OLD_KINDS = {PUB: b"\x01", SUB: b"\x02", DEALER: b"\x05"}


def _frame(body: bytes, flags: int = 0) -> bytes:
    return bytes([flags, len(body)]) + body


def _spoken(kind: bytes) -> list[bytes]:
    """Return the parts that a socket of this kind sends first: a subscription, a message or a request."""
    return {SUB: [b"\x01"], PUB: [b"news.forged\x00" + b'"forged"'], DEALER: [b"", b"forged", b"1"]}[kind]


def _frames(parts: list[bytes]) -> bytes:
    return b"".join(_frame(part, 0 if part is parts[-1] else 1) for part in parts)


def zmtp1(kind: bytes) -> list[bytes]:
    """Return what a peer of ZMTP 1.0 sends: lengths include the flags."""
    parts = _spoken(kind)
    frames = (bytes([len(part) + 1, 0 if part is parts[-1] else 1]) + part for part in parts)
    return [b"\x01\x00" + b"".join(frames)]


def zmtp2(kind: bytes) -> list[bytes]:
    """Return what a peer of ZMTP 2.0 sends."""
    return [b"\xff" + b"\0" * 7 + b"\x01\x7f\x01" + OLD_KINDS[kind] + _frame(b"") + _frames(_spoken(kind))]


def _zmtp3(kind: bytes, mechanism: bytes, *commands: bytes) -> list[bytes]:
    greeting = b"\xff" + b"\0" * 8 + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + b"\0" * 32
    ready = b"\x05READY\x0bSocket-Type" + pack(">I", len(kind)) + kind
    return [greeting, *(_frame(command, 4) for command in (*commands, ready)), _frames(_spoken(kind))]


def zmtp3(kind: bytes) -> list[bytes]:
    """Return what a peer of ZMTP 3 without authentication sends."""
    return _zmtp3(kind, b"NULL")


def plain(kind: bytes) -> list[bytes]:
    """Return what a peer of ZMTP 3 with a password sends."""
    return _zmtp3(kind, b"PLAIN", b"\x05HELLO\x05admin\x05admin", b"\x08INITIATE\x0bSocket-Type\0\0\0\3SUB")


def curve_alone(kind: bytes) -> list[bytes]:
    """Return a peer that names CURVE, and then sends its frames without encryption."""
    return _zmtp3(kind, b"CURVE", b"\x05HELLO\x01\0" + b"\0" * 192)


def http(kind: bytes) -> list[bytes]:
    """Return a request of HTTP."""
    return [b"GET /news HTTP/1.1\r\nHost: localhost\r\n\r\n"]


def tls(kind: bytes) -> list[bytes]:
    """Return the ClientHello of TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return [outgoing.read()]


PROBES = (zmtp1, zmtp2, zmtp3, plain, curve_alone, http, tls)


def probed(address: str, sent: list[bytes], until: bytes = b"") -> bytes:
    """Send pieces of bytes to an address, and return what comes back in `WAIT` seconds.

    A peer of ZMTP 3 reads the greeting before it sends more, so each piece waits for an answer, or for `PIECE` seconds.
    If ``until`` is expected to come back, the waiting ends when it does, and a slow machine gets more time.
    """
    wait, pause = (PATIENCE, 1.0) if until else (WAIT, PIECE)
    host, port = address.removeprefix("tcp://").split(":")
    received = b""
    end = time.monotonic() + wait
    with socket.create_connection((host, int(port))) as probe, suppress(ConnectionError):
        for piece in sent:
            probe.sendall(piece)
            received += _read(probe, pause)
            # The greeting of the peer arrives in two parts, and libzmq refuses more data before the second one.
            while until and len(received) < _GREETING and time.monotonic() < end:
                received += _read(probe, pause)
        while (left := end - time.monotonic()) > 0 and not (until and until in received):
            received += _read(probe, left)
    return received


def _read(probe: socket.socket, seconds: float) -> bytes:
    probe.settimeout(seconds)
    try:
        chunk = probe.recv(65_536)
    except TimeoutError:
        return b""
    if not chunk:
        raise ConnectionResetError
    return chunk


_GREETING = 64  # the length in bytes of a greeting of ZMTP 3


async def answers(address: str, kind: bytes) -> list[bytes]:
    """Return what comes back from all probes, which run at the same time."""
    found = await gatherResults([deferToThread(probed, address, probe(kind)) for probe in PROBES])
    return list(found)


def assert_silent(found: list[bytes]) -> None:
    """Check that nothing but greetings and errors of the handshake came back."""
    for answer in found:
        assert not any(word in answer for word in (b"secret", b"house", b"news", b"forged")), answer
        assert len(answer) < 200, answer


# -- the sockets -------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The keys of house and guest, which know each other."""
    made = Keys(tmp_path)
    made.introduce("house", "guest")
    return made


def publisher(**options: Any) -> App:
    """Return an app that publishes the secret again and again."""
    app = App(pub="tcp://127.0.0.1:*", **options)

    @app.every(0.01)
    @app.publisher("news.secret", str)
    def tell() -> str:
        return SECRET

    return app


@pytest_twisted.ensureDeferred
async def test_without_keys_the_probes_get_the_secret() -> None:
    """The other tests would notice a leak: without keys, old and new peers get the message."""
    app = publisher(name="house")
    async with running(app):
        talkers = [probe for probe in PROBES if probe.__name__ in {"zmtp1", "zmtp2", "zmtp3"}]
        secret, address = SECRET.encode(), app.addresses.pub[0]
        found = [await deferToThread(probed, address, probe(SUB), secret) for probe in talkers]
        assert [secret in answer for answer in found] == [True] * 3


@pytest_twisted.ensureDeferred
async def test_a_publisher_tells_probes_nothing(keys: Keys) -> None:
    """No topic and no body comes back, and a subscriber with a key then gets the messages."""
    app, box = publisher(**keys.of("house")), Mailbox[str]()
    async with running(app):
        assert_silent(await answers(app.addresses.pub[0], SUB))
        guest = App(sub=f"house@{app.addresses.pub[0]}", **keys.of("guest"))
        guest.subscribe("news.secret")(lambda text: box.put(text))
        async with running(guest):
            assert (await box.until(3))[:3] == [SECRET] * 3


@pytest_twisted.ensureDeferred
async def test_a_binding_subscriber_takes_nothing_from_probes(keys: Keys) -> None:
    """No forged message reaches a handler, no subscription comes back, and a publisher with a key is heard."""
    box = Mailbox[Any]()
    app = App(sub="bind:tcp://127.0.0.1:*", **keys.of("house"))
    app.subscribe("news.{what}")(lambda body, what: box.put(what))
    async with running(app):
        address = app.addresses.sub[0]
        assert_silent(await answers(address, PUB))
        assert app.stats.received == 0
        guest = App(pub=f"connect:house@{address}", **keys.of("guest"))

        @guest.every(0.05)
        @guest.publisher("news.honest", int)
        def tell() -> int:
            return 1

        async with running(guest):
            assert await box.until(1) == ["honest"]


@pytest_twisted.ensureDeferred
async def test_a_server_answers_no_probe(keys: Keys) -> None:
    """No request of a probe is counted, and a client with a key gets its reply."""
    app, asked = App(rep="tcp://127.0.0.1:*", **keys.of("house")), []

    @app.reply("forged")
    def answer() -> str:
        asked.append(1)
        return SECRET

    async with running(app):
        address = app.addresses.rep[0]
        assert_silent(await answers(address, DEALER))
        assert (app.stats.requests, app.stats.bad_requests, asked) == (0, 0, [])
        guest = App(req=f"house@{address}", **keys.of("guest"))
        async with running(guest):
            assert await guest.request("forged", None, str) == SECRET


@pytest_twisted.ensureDeferred
async def test_an_owner_of_jobs_gives_no_probe_a_job(keys: Keys) -> None:
    """A probe is no worker, and the job waits for a worker with a key."""
    app, box = App(jobs="tcp://127.0.0.1:*", **keys.of("house")), Mailbox[str]()
    queue = app.job_queue("news.work", str)
    async with running(app):
        address = app.addresses.jobs[0]
        await queue.put(SECRET)
        assert_silent(await answers(address, DEALER))
        assert app.stats.workers == 0
        guest = App(work=f"house@{address}", **keys.of("guest"))

        @guest.work("news.work")
        async def take(text: str) -> None:
            box.put(text)

        async with running(guest):
            assert await box.until(1) == [SECRET]
            await turns(lambda: queue.stats.done == 1)


@asynccontextmanager
async def proxied(keys: Keys) -> AsyncIterator[tuple[str, str]]:
    """Run a proxy with the key of house; yield the addresses of its front and its back."""
    failed: list[BaseException] = []
    access = Access(keys.secret("house"))
    given = {"max_message": MAX_MESSAGE, "send_queue": SENT_MAX, "access": access}
    proxy = Proxy(reactor, "house", failed.append, **given)
    try:
        ends = [parse_endpoint("tcp://127.0.0.1:*", bind=True) for _ in range(2)]
        addresses = proxy.open(*ends)
        proxy.start()
        yield addresses
    finally:
        await proxy.close()
    assert failed == []


@pytest_twisted.ensureDeferred
async def test_a_proxy_forwards_nothing_of_and_to_probes(keys: Keys) -> None:
    """Probes at the front and the back get nothing and send nothing to a pair with keys."""
    keys.authorize("feed", "house")
    keys.authorize("house", "feed")
    box = Mailbox[tuple[str, Any]]()
    async with proxied(keys) as (front, back):
        feed = App(pub=f"connect:house@{front}", **keys.of("feed"))
        guest = App(sub=f"house@{back}", **keys.of("guest"))

        @feed.every(0.01)
        @feed.publisher("news.secret", str)
        def tell() -> str:
            return SECRET

        guest.subscribe("news.{what}")(lambda body, what: box.put((what, body)))
        async with running(feed), running(guest):
            await box.until(1)
            assert_silent(await answers(back, SUB))
            assert_silent(await answers(front, PUB))
            number = len(box.items)
            await box.until(number + 3)
    assert {what for what, _ in box.items} == {"secret"}

"""The sockets of a proxy: changes of its endpoints lose no message, and each command gets its answer."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred

from tests.running import reactor, turns
from tests.sockets.opened import Sockets
from tests.support import PATIENCE, free_endpoint, sized
from zroute.endpoints import parse_endpoint
from zroute.options import MAX_MESSAGE, SENT_MAX, frame_limit
from zroute.sockets.proxy import Forwarded, Proxy


def opened(front: str, back: str) -> Proxy:
    """Return a proxy that forwards; a failure of its thread fails the test in the reactor's log."""
    proxy = Proxy(reactor, "proxy", print, max_message=MAX_MESSAGE, send_queue=SENT_MAX)
    proxy.open(parse_endpoint(front, bind=True), parse_endpoint(back, bind=True))
    proxy.start()
    return proxy


@pytest_twisted.ensureDeferred
async def test_changes_of_the_endpoints_under_load_lose_nothing(sockets: Sockets) -> None:
    """While messages pass, another endpoint is connected and disconnected: all arrive, in order."""
    front, back, total = free_endpoint(), free_endpoint(), sized(100_000, 20_000)
    proxy, other = opened(front, back), f"connect:{free_endpoint()}"
    publisher, subscriber = sockets.raw(zmq.XPUB), sockets.raw(zmq.SUB)
    subscriber.connect(back)
    subscriber.subscribe(b"n")
    publisher.connect(front)
    room, received = threading.Semaphore(5_000), list[bytes]()  # libzmq's proxy drops what its queue has no room for
    changed = threading.Event()

    def publish() -> None:
        publisher.recv()
        for number in range(total):
            if number == total // 2:
                changed.wait(PATIENCE)
            room.acquire(timeout=PATIENCE)
            publisher.send(b"n%d" % number)

    def read() -> None:
        for _ in range(total):
            received.append(subscriber.recv())
            room.release()

    threads = [threading.Thread(target=each, daemon=True) for each in (publish, read)]
    for thread in threads:
        thread.start()
    changes = 0

    def change() -> bool:
        nonlocal changes
        proxy.front.disconnect(proxy.front.open(other))
        changes += 1
        if changes > 2:
            changed.set()
        return not any(thread.is_alive() for thread in threads)

    await turns(change)
    await proxy.close()
    assert received == [b"n%d" % number for number in range(total)]
    assert changes > 1
    assert 0 < proxy.forwarded.frames <= total  # those forwarded during a change may be missing
    assert proxy.forwarded.subscriptions <= 1


@pytest_twisted.ensureDeferred
async def test_the_counters_are_added_up_over_changes(sockets: Sockets) -> None:
    """Without load, each frame and subscription is counted, also before a change of the endpoints."""
    front, back = free_endpoint(), free_endpoint()
    proxy, other = opened(front, back), f"connect:{free_endpoint()}"
    publisher, subscriber = sockets.raw(zmq.XPUB), sockets.raw(zmq.SUB)
    subscriber.connect(back)
    subscriber.subscribe(b"n")
    publisher.connect(front)
    assert publisher.recv() == b"\1n"
    for number in range(3):
        publisher.send_multipart([b"n", b"body"])
        assert subscriber.recv_multipart() == [b"n", b"body"]
        proxy.front.disconnect(proxy.front.open(other))
        assert proxy.forwarded == Forwarded(2 * number + 2, 5 * number + 5, 1)
    await proxy.close()


@pytest_twisted.ensureDeferred
async def test_the_options_of_both_sockets() -> None:
    """Subscriptions have no limit, messages have limits in number and size, and no side sends heartbeats."""
    proxy = Proxy(reactor, "proxy", print, max_message=5000, send_queue=77)
    options: list[dict[str, Any]] = [
        {"SNDHWM": 0, "RCVHWM": 1000, "MAXMSGSIZE": frame_limit(5000), "HEARTBEAT_IVL": 0, "TCP_KEEPALIVE": 1},
        {"SNDHWM": 77, "RCVHWM": 0, "MAXMSGSIZE": 512, "HEARTBEAT_IVL": 0, "TCP_KEEPALIVE": 1},
    ]
    for end, wanted in zip((proxy.front, proxy.back), options, strict=True):
        assert {name: end.socket.get(getattr(zmq.SocketOption, name)) for name in wanted} == wanted
    await proxy.close()


@pytest_twisted.ensureDeferred
async def test_a_proxy_that_ends_by_itself_is_reported() -> None:
    """If libzmq's proxy fails, the owner gets the error, and closing still works."""
    failures: list[BaseException] = []
    proxy = Proxy(reactor, "proxy", failures.append, max_message=MAX_MESSAGE, send_queue=SENT_MAX)
    proxy.front.socket.close(0)  # libzmq then refuses the socket
    proxy.start()
    await turns(lambda: failures)
    await proxy.close()


@pytest_twisted.ensureDeferred
async def test_a_failed_proxy_is_closed_while_its_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner may close it at once: nothing is asked of a thread that answers no more."""
    joined, closed = threading.Event(), list[object]()
    call = reactor.callFromThread

    def call_and_wait(*given: Any) -> None:
        call(*given)
        if threading.current_thread().name == "zroute-proxy":
            joined.wait()

    def close(_: BaseException) -> None:
        assert proxy._thread is not None
        join = proxy._thread.join
        monkeypatch.setattr(proxy._thread, "join", lambda: (joined.set(), join()))
        try:
            closed.append(proxy.close())
        except zmq.Again as error:
            closed.append(error)
        joined.set()

    monkeypatch.setattr(reactor, "callFromThread", call_and_wait)
    proxy = Proxy(reactor, "proxy", close, max_message=MAX_MESSAGE, send_queue=SENT_MAX)
    proxy.front.socket.close(0)
    proxy.start()
    await turns(lambda: closed)
    assert isinstance(closed[0], Deferred)
    await closed[0]

"""Requests between processes: servers that die, stop and are full, cancellations, deadlines and streams."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults
from twisted.internet.threads import deferToThread

from tests.running import Mailbox, reactor, running, turns
from tests.support import PATIENCE, Child, Way, free_endpoint, sized, spans
from zroute import App, Limits
from zroute.errors import (
    BusyError,
    NoServerError,
    RequestLostError,
    RequestTimeoutError,
    ServerError,
)
from zroute.options import REPLIES_HELD_BYTES, REPLIES_SENT

Reactor = Literal["twisted", "asyncio"]
reactors = pytest.mark.parametrize("kind", ["twisted", "asyncio"])

SERVER = """
import sys
from collections.abc import AsyncIterator, Iterator
from twisted.internet.defer import Deferred
from zroute import App, as_awaitable

name, kind, drain, endpoints = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4:]
app = App(rep=["bind:" + each for each in endpoints], reactor=kind, name=name)

def say(*words):
    print(*words, flush=True)

@app.reply("echo")
def echo(n: int) -> int:
    return n

@app.reply("who")
async def who(n: int) -> str:
    return name

held = {}

@app.reply("hold", max_in_flight=3, queue=2)
async def hold(n: int) -> str:
    say("held", n)
    held[n] = Deferred()
    try:
        await as_awaitable(held[n])
    except BaseException as error:
        say("ended", n, type(error).__name__)
        raise
    return f"{name} {n}"

@app.reply("release")
def release(n: int) -> None:
    held.pop(n).callback(None)

@app.reply("big")
def big(n: int) -> bytes:
    return b"x" * n

@app.reply("rows")
def rows(n: int) -> Iterator[int]:
    try:
        yield from range(n)
    finally:
        say("closed", n)

@app.reply("rows.later")
async def rows_later(n: int) -> AsyncIterator[int]:
    try:
        for each in range(n):
            yield each
    finally:
        say("closed", n)

@app.on_startup
def begun():
    say("ready")

@app.on_shutdown
def stats():
    counts = app.stats
    routes = counts.routes.values()
    say("stats", counts.requests, sum(
        each.handled + each.handler_error + each.decode_error + each.cancelled + each.dropped_at_shutdown
        for each in routes
    ) + counts.busy + counts.bad_requests + counts.no_handler)

app.run(drain_timeout=drain)
"""

SOON = """
    from twisted.internet import reactor, task
    held[n] = task.deferLater(reactor, 0.5)
"""

CLIENT = """
import sys
from zroute import App
app = App(req=sys.argv[1])

@app.on_startup
async def begin():
    async for row in app.request_stream("rows", 10**9, int):
        print("row", row, flush=True)

app.run()
"""


@contextmanager
def server(
    *endpoints: str, name: str = "one", kind: str = "twisted", drain: float = PATIENCE, source: str = SERVER
) -> Iterator[Child]:
    """Run a server, and wait until it is ready."""
    with Child("-c", source, name, kind, str(drain), *endpoints) as child:
        child.line_with("ready")
        yield child


@asynccontextmanager
async def client(*endpoints: str, **options: Any) -> AsyncIterator[App]:
    """Run an app that sends requests."""
    app = App(req=list(endpoints), **options)
    async with running(app):
        yield app


def asked(app: App, topic: str, n: int, reply: Any = Any, timeout: float | None = PATIENCE) -> Deferred[Any]:
    """Begin a request."""
    return Deferred.fromCoroutine(app.request(topic, n, reply, timeout=timeout))


async def line(child: Child, text: str) -> str:
    """Wait for a line of a child."""
    return await deferToThread(child.line_with, text)


# -- replies ---------------------------------------------------------------------------------------------


@reactors
@pytest_twisted.ensureDeferred
async def test_requests_are_answered_one_at_a_time_and_at_once(way: Way, kind: Reactor) -> None:
    """Single requests, 64 in flight, and thousands at once get their own replies; the counters are exact."""
    bind, connect = way.meeting()
    many = sized(5_000, 1_500)
    with server(bind, kind=kind) as child:
        async with client(connect) as app:
            assert [await app.request("echo", n, int) for n in range(100)] == list(range(100))
            for first in range(0, 640, 64):
                sent = [asked(app, "echo", n, int) for n in range(first, first + 64)]
                assert await gatherResults(sent) == list(range(first, first + 64))
            replies = await gatherResults([asked(app, "who" if n % 2 else "echo", n) for n in range(many)])
            assert replies == ["one" if n % 2 else n for n in range(many)]
            assert app.stats.requests_sent == 740 + many
            assert (app.stats.requests_failed, app.stats.replies_late) == (0, 0)
        assert await deferToThread(child.end) == 0
        assert child.out[-1] == f"stats {740 + many} {740 + many}"


@pytest_twisted.ensureDeferred
async def test_a_big_reply_arrives_and_one_over_the_limit_is_an_error() -> None:
    """A reply of some megabytes arrives whole; one over max_message is a ServerError, and the connection stays."""
    app = App(limits=Limits(max_message=5_000_000))

    @app.reply("big")
    def big(n: int) -> bytes:
        return b"x" * n

    async with running(app):
        assert len(await app.request("big", 5_000_000, bytes)) == 5_000_000
        waiting = asked(app, "big", 1_000_000)
        with pytest.raises(ServerError, match="5000001 bytes, more than max_message=5000000"):
            await app.request("big", 5_000_001, bytes)
        assert len(await waiting) == 1_000_000


# -- servers that go -------------------------------------------------------------------------------------


@reactors
@pytest_twisted.ensureDeferred
async def test_a_killed_server_loses_what_it_had(kind: Reactor) -> None:
    """The request fails at once with RequestLostError; a requester with ``retry`` gets a reply later."""
    endpoint = free_endpoint()
    app = App(req=endpoint)
    holding = app.requester("hold", int, str, timeout=PATIENCE, retry=(0.05,) * 20)
    async with running(app):
        with server(endpoint, kind=kind) as child:
            lost, again = asked(app, "hold", 1), Deferred.fromCoroutine(holding.request(2))
            await line(child, "held 1")
            await line(child, "held 2")
            child.process.send_signal(signal.SIGKILL)
            began = time.monotonic()
            with pytest.raises(RequestLostError, match=r"request to 'hold': the server at .* disconnected"):
                await lost
            assert time.monotonic() - began < PATIENCE / 2
        with server(endpoint, name="two", kind=kind) as child:
            await line(child, "held 2")
            await app.request("release", 2)
            assert await again == "two 2"
    assert app.stats.requests_failed >= 2


@reactors
@pytest_twisted.ensureDeferred
async def test_a_stopping_server_answers_what_it_has_and_refuses_the_rest(kind: Reactor) -> None:
    """After SIGTERM it answers requests in flight and in the queue, and new ones get a BusyError at once."""
    for seconds in spans(2.0):
        if await _is_refused_within(seconds, kind):
            return
    raise AssertionError("the server did not refuse a request before its drain timeout")


async def _is_refused_within(drain: float, kind: Reactor) -> bool:
    """Stop a server with unfinished requests; return False if its drain timeout ended before it refused a new one."""
    endpoint = free_endpoint()
    with server(endpoint, kind=kind, drain=drain) as child:
        async with client(endpoint) as app:
            sent = [asked(app, "hold", n) for n in range(5)]
            await line(child, "held 2")
            with pytest.raises(BusyError, match="the queue of the handler is full"):
                await app.request("hold", 9)
            child.process.send_signal(signal.SIGTERM)

            async def refused() -> bool:
                try:
                    await app.request("echo", 1)
                except BusyError as error:
                    assert "the server is stopping" in str(error)  # noqa: PT017
                    return True
                return False

            try:
                while not await refused():
                    pass
            except (NoServerError, RequestLostError):
                return False
            for each in sent:
                each.addErrback(lambda failure: failure.type)
            ended = await DeferredList(sent)
            # nothing releases them before the drain timeout
            assert [result for _, result in ended] == [ServerError] * 3 + [BusyError] * 2
        assert await deferToThread(child.end, None) == 75
        requests, answered = child.line_with("stats").split()[1:]
        assert requests == answered
    return True


@pytest_twisted.ensureDeferred
async def test_a_stopping_server_answers_a_call_that_ends() -> None:
    """A call that ends while the server drains is answered, and the exit code is 0."""
    endpoint = free_endpoint()
    source = SERVER.replace("    held[n] = Deferred()\n", SOON)
    with server(endpoint, source=source) as child:
        async with client(endpoint) as app:
            sent = [asked(app, "hold", n) for n in range(5)]
            await line(child, "held 2")
            child.process.send_signal(signal.SIGTERM)
            assert await gatherResults(sent) == [f"one {n}" for n in range(5)]
        assert await deferToThread(child.end, None) == 0


@pytest_twisted.ensureDeferred
async def test_without_a_server_there_is_an_error_of_its_own() -> None:
    """NoServerError after the timeout; a server that comes later gets nothing of it."""
    endpoint = free_endpoint()
    async with client(endpoint) as app:
        with pytest.raises(NoServerError, match=r"request to 'echo': no server was connected within 0\.2 s"):
            await app.request("echo", 1, timeout=0.2)
        waiting = asked(app, "echo", 2)
        with server(endpoint) as child:
            assert await waiting == 2
            assert await deferToThread(child.end) == 0
            assert child.out[-1] == "stats 1 1"


@pytest_twisted.ensureDeferred
async def test_the_server_with_the_fewest_unanswered_requests_is_asked() -> None:
    """Of two servers, the one that holds requests gets fewer; if one dies, the other answers."""
    first, second = free_endpoint(), free_endpoint()
    with server(first, name="one") as one, server(second, name="two"):
        async with client(first, second) as app:
            await turns(lambda: not any(lane.down for lane in _lanes(app)))
            for _ in range(2):
                sent = [asked(app, "who", n) for n in range(100)]
                assert Counter(await gatherResults(sent)) == {"one": 50, "two": 50}
            waiting = [asked(app, "hold", n) for n in range(2)]
            await line(one, "held")
            assert {await app.request("who", 0), await app.request("who", 0)} == {"one", "two"}
            one.process.send_signal(signal.SIGKILL)
            await turns(lambda: any(each.called for each in waiting))
            assert {await app.request("who", n) for n in range(10)} == {"two"}
            for each in waiting:
                each.addErrback(lambda _: None)
                each.cancel()


def _lanes(app: App) -> list[Any]:
    client = app._live.client
    assert client is not None
    return client.queue._lanes


# -- callers that go -------------------------------------------------------------------------------------


@reactors
@pytest_twisted.ensureDeferred
async def test_cancelling_reaches_the_server(kind: Reactor) -> None:
    """A cancelled caller, and one whose time is over, end the handler in the other process."""
    endpoint = free_endpoint()
    with server(endpoint, kind=kind) as child:
        async with client(endpoint) as app:
            running = asked(app, "hold", 1)
            await line(child, "held 1")
            running.addErrback(lambda failure: failure.trap(CancelledError))
            running.cancel()
            assert "CancelledError" in await line(child, "ended 1")
            for number, seconds in enumerate(spans(0.2), start=2):
                with pytest.raises((RequestTimeoutError, ServerError)) as raised:
                    await app.request("hold", number, timeout=seconds)
                assert "CancelledError" in await line(child, f"ended {number}")
                # The server has the same timeout; its answer is read first if this process stands still until then.
                if raised.type is RequestTimeoutError:
                    break
            assert raised.type is RequestTimeoutError
            assert await app.request("echo", 0) == 0
        assert await deferToThread(child.end) == 0
        assert child.out[-1] == f"stats {number + 1} {number + 1}"


@pytest_twisted.ensureDeferred
async def test_an_app_that_ends_cancels_what_it_has_asked() -> None:
    """Requests that are unanswered after the drain timeout are cancelled at the server; the caller gets an error."""
    endpoint = free_endpoint()
    with server(endpoint) as child:
        app = App(req=endpoint)
        async with running(app, drain_timeout=0.2):
            waiting = asked(app, "hold", 1)
            await line(child, "held 1")
        with pytest.raises(Exception, match="stopped before the reply"):
            await waiting
        await line(child, "ended 1")


@pytest_twisted.ensureDeferred
async def test_a_stop_of_the_client_waits_for_its_replies() -> None:
    """A request that was sent before the stop gets its reply."""
    endpoint = free_endpoint()
    with server(endpoint) as child:
        app, other = App(req=endpoint), App(req=endpoint)
        async with running(other):
            async with running(app, drain_timeout=PATIENCE) as service:
                waiting = asked(app, "hold", 1)
                await line(child, "held 1")
                stopping = service.stopService()
                await other.request("release", 1)
                assert await waiting == "one 1"
                report = await stopping
            assert report.unfinished == {}


# -- many clients ----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_flood_of_one_client_does_not_starve_another() -> None:
    """While one client keeps 1,000 requests in flight, each request of another is answered, none refused."""
    served = App(rep="tcp://127.0.0.1:*")

    @served.reply("work", max_in_flight=2, queue=50)
    async def work(n: int) -> int:
        return await _soon(n)

    async with running(served) as service:
        assert service.transport is not None
        address = service.transport._requests.rep[0]
        async with client(address) as flood, client(address) as other:
            ended = Mailbox[Any]()

            def again(_: Any) -> None:
                ended.put(None)
                if not over:
                    asked(flood, "work", 0).addBoth(again)

            over: list[bool] = []
            for _ in range(1_000):
                asked(flood, "work", 0).addBoth(again)
            await ended.until(2_000)
            assert [await other.request("work", n) for n in range(50)] == list(range(50))
            over.append(True)
            assert flood.stats.requests_failed > 500
            assert other.stats.requests_failed == 0
    counts = served.stats
    ends = sum(each.handled + each.cancelled + each.dropped_at_shutdown for each in counts.routes.values())
    assert counts.requests == counts.busy + ends


def _soon(n: int) -> Deferred[int]:
    soon: Deferred[int] = Deferred(lambda _: None)
    reactor.callLater(0.001, lambda: None if soon.called else soon.callback(n))
    return soon


# -- streams ---------------------------------------------------------------------------------------------


@reactors
@pytest.mark.parametrize("topic", ["rows", "rows.later"])
@pytest_twisted.ensureDeferred
async def test_streams_are_whole_and_leave_no_generator(way: Way, kind: Reactor, topic: str) -> None:
    """A long stream arrives in order; loops that are left at any item close the generator."""
    bind, connect = way.meeting()
    many = sized(20_000, 3_000)
    with server(bind, kind=kind) as child:
        async with client(connect) as app:
            seen = [row async for row in app.request_stream(topic, many, int)]
            assert seen == list(range(many))
            await line(child, f"closed {many}")
            for taken in (1, 2, 63, 64, 65, 127, 128, 129, 300):
                number = 0
                async for row in app.request_stream(topic, 10**9 + taken, int):
                    assert row == number
                    number += 1
                    if number == taken:
                        break
                await line(child, f"closed {10**9 + taken}")
            await turns(lambda: app._live.client is not None and app._live.client.unanswered == 0)
        assert await deferToThread(child.end) == 0
        assert child.out[-1] == "stats 10 10"


@reactors
@pytest_twisted.ensureDeferred
async def test_several_streams_and_requests_share_a_connection(kind: Reactor) -> None:
    """Twenty streams at once do not delay a request; a slow loop holds up its own only."""
    endpoint = free_endpoint()
    with server(endpoint, kind=kind):
        async with client(endpoint) as app:
            slow = app.request_stream("rows", 10**9, int)
            assert await anext(slow) == 0

            async def count(n: int) -> int:
                return len([row async for row in app.request_stream("rows", n, int)])

            reading = [Deferred.fromCoroutine(count(1_000 + n)) for n in range(20)]
            assert await app.request("echo", 1) == 1
            assert await gatherResults(reading) == [1_000 + n for n in range(20)]
            assert [await anext(slow) for _ in range(500)] == list(range(1, 501))
            await slow.aclose()


@pytest_twisted.ensureDeferred
async def test_a_killed_client_leaves_no_generator() -> None:
    """The generator of a client that was killed in the middle is closed, and others are served."""
    endpoint = free_endpoint()
    with server(endpoint) as child:
        with Child("-c", CLIENT, endpoint) as reading:
            await line(reading, "row 1000")
            reading.process.send_signal(signal.SIGKILL)
            await line(child, f"closed {10**9}")
        async with client(endpoint) as app:
            assert await app.request("echo", 1) == 1


@pytest_twisted.ensureDeferred
async def test_a_killed_server_ends_a_stream() -> None:
    """The loop gets RequestLostError."""
    endpoint = free_endpoint()
    async with client(endpoint) as app:
        with server(endpoint) as child:
            stream = app.request_stream("rows", 10**9, int)
            for _ in range(300):
                await anext(stream)
            child.process.send_signal(signal.SIGKILL)
            with pytest.raises(RequestLostError):
                _ = [row async for row in stream]


# -- one process -----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_an_app_without_endpoints_asks_itself() -> None:
    """The loop inside the process carries requests, failures and streams; a handler may ask."""
    app = App()
    doubled = app.requester("double.{name}", int, int)

    @app.reply("double.{name}")
    def double(n: int, name: str) -> int:
        return 2 * n

    @app.reply("four")
    async def four(n: int) -> int:
        return await doubled.request(await doubled.request(n, name="a"), name="b")

    @app.reply("rows")
    def rows(n: int) -> Iterator[int]:
        yield from range(n)

    async with running(app):
        assert await app.request("four", 3, int) == 12
        assert [row async for row in app.request_stream("rows", 500, int)] == list(range(500))


@pytest_twisted.ensureDeferred
async def test_apps_of_one_process_share_a_context() -> None:
    """Requests over inproc, also if the server comes later."""
    context: zmq.Context[Any] = zmq.Context()
    address = "inproc://requests"
    served, asking = App(rep=address, context=context), App(req=address, context=context)

    @served.reply("n")
    def handle(n: int) -> int:
        return n + 1

    async with running(served), running(asking):
        assert await gatherResults([asked(asking, "n", n) for n in range(100)]) == list(range(1, 101))
    context.term()


def test_an_app_runs_inside_a_program_of_asyncio() -> None:
    """``async with app.running()``: tasks of the loop ask, cancel, and read streams."""
    endpoint = free_endpoint()

    async def main() -> None:
        app = App(req=endpoint)
        async with app.running():
            assert await asyncio.gather(*[app.request("echo", n, int) for n in range(64)]) == list(range(64))
            assert [row async for row in app.request_stream("rows", 300, int)] == list(range(300))
            task = asyncio.ensure_future(app.request("hold", 1))
            await asyncio.to_thread(child.line_with, "held 1")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(child.line_with, "ended 1")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await app.request("hold", 2)
            await asyncio.to_thread(child.line_with, "ended 2")
            async for row in app.request_stream("rows.later", 10**9, int):
                if row == 200:
                    break
            await asyncio.to_thread(child.line_with, f"closed {10**9}")

    with server(endpoint, kind="asyncio") as child:
        asyncio.run(main())
        assert child.end() == 0


# -- clients that do not read ----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_loses_no_reply_that_can_be_held() -> None:
    """Replies over libzmq's queue are held; when the client reads, all arrive. Others are served meanwhile."""
    served = App(rep="tcp://127.0.0.1:*")

    @served.reply("n")
    def handle(sizes: list[int]) -> bytes:
        return b"x" * sum(sizes)

    context: zmq.Context[Any] = zmq.Context()
    with context.socket(zmq.DEALER) as lazy:
        lazy.set(zmq.LINGER, 0)
        lazy.set(zmq.RCVHWM, 1)
        async with running(served) as service:
            assert service.transport is not None
            address = service.transport._requests.rep[0]
            lazy.connect(address)
            for _ in range(1_000):
                lazy.send_multipart([b"", b"n", b"[10000]"])
            async with client(address) as app:
                await turns(lambda: served.stats.requests == 1_000)
                assert len(await app.request("n", [10], bytes)) == 10
                for _ in range(1_000):
                    assert len((await deferToThread(lazy.recv_multipart))[1]) == 10_000
            assert served.stats.replies_undelivered == 0
            for _ in range(5_000):
                lazy.send_multipart([b"", b"n", b"[50000]"])
            await turns(lambda: served.stats.requests == 6_001)
            lazy.close()
            await turns(lambda: served.stats.replies_undelivered > 1_000)
        assert served.stats.handled == 6_001
    context.term()


@pytest_twisted.ensureDeferred
async def test_the_replies_of_a_client_that_does_not_read_are_bounded_in_bytes() -> None:
    """libzmq, which counts only messages, gets few of them; the rest waits where bytes are counted."""
    served, size, many = App(rep="tcp://127.0.0.1:*"), 500_000, 300

    @served.reply("n")
    def handle() -> bytes:
        return bytes(size)

    context: zmq.Context[Any] = zmq.Context()
    with context.socket(zmq.DEALER) as lazy:
        lazy.set(zmq.LINGER, 0)
        lazy.set(zmq.RCVHWM, 1)
        async with running(served) as service:
            assert service.transport is not None
            lazy.connect(service.transport._requests.rep[0])
            for _ in range(many):
                lazy.send_multipart([b"", b"n", b""])
            await turns(lambda: served.stats.requests == many)
            kept = many - served.stats.replies_undelivered
            buffers = 20_000_000  # of the system
            assert size * kept <= size * (REPLIES_SENT + 2) + REPLIES_HELD_BYTES + buffers
    context.term()

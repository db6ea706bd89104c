"""The test environment of an ``async with`` block, whose methods are awaited.

In a running asyncio loop, the apps run on that loop, as `zroute.testing.on_loop` explains. Without such a loop, for
example under pytest-twisted, each method runs the apps itself, as in a ``with`` block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol

from zroute.errors import UsageError
from zroute.messages.codecs import Codec
from zroute.messages.frames import parse_form
from zroute.options import REQUEST_TIMEOUT
from zroute.requests.client import Answer
from zroute.runtime.service import AppService
from zroute.testing.bed import Bed, UnfinishedError
from zroute.testing.on_loop import LoopDriver
from zroute.testing.reactor import VirtualReactor

__all__ = ["AsyncTestApp"]


class Driver(Protocol):
    """Runs the apps of a test."""

    @property
    def reactor(self) -> VirtualReactor:
        """The reactor of the apps."""

    async def do(self, call: Callable[[], object]) -> None:
        """Make a call, and return when the apps have nothing left to do."""

    async def advance_to(self, time: float) -> None:
        """Advance virtual time to ``time`` in seconds."""

    async def skip(self) -> bool:
        """Advance to the next scheduled call; return False if no call is scheduled."""

    async def wait(self, done: Callable[[], bool], timeout: float) -> bool:
        """Wait in real time for ``done()``; return False after ``timeout`` seconds."""

    def close(self) -> None:
        """Release threads and loops."""


class _Stepping:
    """A driver that runs the apps itself."""

    def __init__(self, *, on_asyncio: bool) -> None:
        self.reactor = VirtualReactor(on_asyncio=on_asyncio)

    async def do(self, call: Callable[[], object]) -> None:
        self.reactor.do(call)

    async def advance_to(self, time: float) -> None:
        self.reactor.advance_to(time)

    async def skip(self) -> bool:
        return self.reactor.skip()

    async def wait(self, done: Callable[[], bool], timeout: float) -> bool:
        return done()  # waiting would not help, because nothing outside the apps runs

    def close(self) -> None:
        self.reactor.close()


_GRACE = 1.0
"""The maximum real time in seconds that the end of the block waits for handlers, for example for network requests."""


class AsyncTestApp(Bed):
    """The test environment of ``async with TestApp(app) as t``; see `TestApp`.

    **Time.** In functions of the apps, ``every=``, retries, timeouts and ``asyncio.sleep`` use virtual time, which only
    `advance` changes. The test itself, its fixtures and their tasks use real time.

    **Loop.** In a running asyncio loop, ``async`` functions of the apps run as tasks of that loop. These functions can
    therefore use objects that belong to the loop, such as clients, pools and locks from fixtures. The functions also
    run while the test awaits something else. Operations outside the test, such as network requests, take real time;
    wait for such operations with `handled`.
    """

    __test__ = False

    def __enter__(self) -> NoReturn:
        raise UsageError("an AsyncTestApp needs `async with`: write `async with TestApp(app)`, or `with TestApp(app)`")

    def __exit__(self, *_: object) -> None:
        """Do nothing: `__enter__` raises an error."""

    async def __aenter__(self) -> AsyncTestApp:
        loop = _running_loop()
        on_asyncio = self._kind == "asyncio" or (self._kind is None and loop is not None)
        self._driver: Driver = LoopDriver(loop) if loop is not None and on_asyncio else _Stepping(on_asyncio=on_asyncio)
        self._set_up(self._driver.reactor, on_asyncio=on_asyncio)
        try:
            for service in self._services:
                await self._start(service)
            self._raise()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stopped = await self._stop()
        if error is None:
            self._raise_unfinished(stopped)
        else:
            self._bus.note_losses(error)

    async def _start(self, service: AppService) -> None:
        outcome: list[Any] = []
        await self._do(service.startService)
        service.started.addBoth(outcome.append)
        await self._driver.wait(lambda: bool(outcome), _GRACE)
        self._raise_unless_started(service, outcome)

    async def _stop(self) -> list[Any]:
        stopped: list[Any] = []
        if self._reactor is None:
            return stopped

        def ended() -> bool:
            return len(stopped) == len(self._services)

        try:
            await self._driver.do(partial(self._stop_services, stopped))
            await self._driver.wait(ended, _GRACE)
            while not ended() and await self._driver.skip():  # drain timeouts pass in virtual time
                pass
        finally:
            self._reactor = None
            self._driver.close()
        return stopped

    # -- inputs of the apps -----------------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        message: object,
        *more: object,
        codec: str | Codec | None = None,
        headers: Mapping[str, Any] | None = None,
        schema: Any = None,
        peer: str | None = None,
    ) -> None:
        """Publish messages to the apps, as another program would; see `TestApp.publish`.

        Args:
            topic: the topic of all messages.
            message: the first message.
            *more: further messages. All messages arrive before a handler is called.
            codec: as in ``app.publisher``; the default is the codec of the first app.
            headers: headers of each message.
            schema: the type to encode as; the default is the type of each message. If that type is ambiguous, as for a
                Decimal, a set or a list of objects, the default is the type of the first suitable handler of the topic.
            peer: the name of the publisher's key, for `Envelope.peer`; the default is None, as without keys.

        Raises:
            TopicError: the topic is invalid.
            SchemaError: no codec can carry ``schema``.
            EncodeError: a message can't be encoded.

        This method also raises the errors of handlers, unless ``raise_errors=False``.
        """
        sent = [self._framed(topic, each, codec, headers, schema, peer) for each in (message, *more)]

        def arrive() -> None:
            for frames in sent:
                self._bus.receive(frames)

        await self._do(arrive)
        self._raise()

    async def request(
        self,
        topic: str,
        message: object = None,
        reply: Any = Any,
        *,
        timeout: float | None = REQUEST_TIMEOUT,
        headers: Mapping[str, Any] | None = None,
        peer: str | None = None,
    ) -> Any:
        """Send a request to the apps, and return the reply; see `TestApp.request`."""
        client, ask = self._asked(topic, message, timeout, headers, reply, peer)
        answers: list[Answer] = []
        await self._do(lambda: answers.append(ask()))
        while not answers[0].ended and await self._driver.skip():
            pass
        client.close()
        self._raise()
        return answers[0].result()

    async def put(
        self,
        topic: str,
        job: object,
        *more: object,
        codec: str | Codec | None = None,
        headers: Mapping[str, Any] | None = None,
        retry: Sequence[float] = (),
        peer: str | None = None,
    ) -> None:
        """Put jobs for handlers under ``@app.work``; see `TestApp.put`."""
        put = self._putting(topic, (job, *more), codec, headers, retry, peer)
        await self._do(lambda: self._test_owner(peer))
        await self._do(put)
        self._raise()
        self._test_owner(peer).check()

    async def receive(self, *frames: bytes, endpoint: str | None = None, peer: str | None = None) -> None:
        """Deliver the frames of one message to the apps, as if received from the network.

        See `TestApp.receive`.

        Args:
            *frames: the parts of the message.
            endpoint: the endpoint at which the message arrives, as in ``App(sub=…)``.

        Raises:
            UsageError: a part is not bytes, no app has the endpoint, or ``endpoint`` is missing and an app declares
                more than one message form.

        This method also raises the errors of handlers, unless ``raise_errors=False``.
        """
        parts = self._parts(frames, peer)
        await self._do(lambda: self._bus.receive_at(endpoint, parts))
        self._raise()

    async def replay(self, path: str | Path) -> None:
        """Deliver a recording to the apps; its pauses pass in virtual time.

        Raises:
            RecordingError: the file is not a recording.

        This method also raises the errors of handlers, unless ``raise_errors=False``.
        """
        from zroute.recordings import read

        began, recording = self._running.seconds(), read(path)
        form = None if recording.frames is None else parse_form(recording.frames)
        for recorded in recording:
            await self._driver.advance_to(began + recorded.at)
            await self._do(partial(self._bus.receive, recorded.frames, form))
        self._raise()

    async def advance(self, seconds: float) -> None:
        """Advance virtual time by ``seconds``. Due timers run in order."""
        await self._driver.advance_to(self._running.seconds() + seconds)
        self._raise()

    async def handled(self, timeout: float = 10.0) -> None:
        """Wait in real time until all messages are handled and no handler is running.

        Use this method if handlers await something outside the test, such as a network, a database or a thread of
        asyncio.

        Args:
            timeout: the maximum time to wait in seconds.

        Raises:
            UnfinishedError: a handler is still running after that time.

        This method also raises the errors of handlers, unless ``raise_errors=False``.
        """
        await self._do(lambda: None)
        if not await self._driver.wait(lambda: not self._at_work(), timeout):
            self._raise()
            raise UnfinishedError(f"handlers still running after {timeout:g} s: {', '.join(self._at_work())}")
        await self._do(lambda: None)
        self._raise()

    def _at_work(self) -> list[str]:
        routes = [route for app in self.apps for route in app.stats.routes.items()]
        return [f"{name}: {stats.queued + stats.in_flight}" for name, stats in routes if stats.queued + stats.in_flight]

    async def _do(self, call: Callable[[], object]) -> None:
        assert self._running
        await self._driver.do(call)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None

"""Test apps without sockets or sleeps.

A `TestApp` runs the real app: codecs, routes, resources, timers and limits. Only two parts are replaced: messages are
passed in memory, and time is virtual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from zroute.app import App
from zroute.awaiting import in_task
from zroute.errors import UsageError
from zroute.messages.codecs import Codec
from zroute.messages.frames import parse_form
from zroute.options import REQUEST_TIMEOUT
from zroute.planning.plan import ReactorKind
from zroute.requests.client import Answer
from zroute.runtime.service import AppService
from zroute.testing.awaited import AsyncTestApp
from zroute.testing.bed import Bed, UnfinishedError
from zroute.testing.reactor import RestlessError, VirtualReactor

__all__ = ["AsyncTestApp", "RestlessError", "TestApp", "UnfinishedError"]


class TestApp(Bed):
    """A test environment that runs one or more apps during a ``with`` block:

        with TestApp(app, {Database: FakeDatabase()}) as t:
            t.publish("stocks.AAPL", Quote("AAPL", 1200.0, 5))
            assert t.published("alerts.>") == [Alert("AAPL at 1200.0")]

    **Calls and errors.** Each method returns when the apps have nothing left to do. All messages are then handled,
    including those that handlers publish, and all threads have ended. If a handler, timer or hook failed, the method
    then raises the error, unless an ``on_error`` function handled the error. Several errors are raised as an
    ExceptionGroup. ``t.failures`` is a list of all errors.

    **End.** When the block ends, the apps stop as they do after a signal. If a function of an app raises SystemExit,
    the app stops, and the method of the test raises the SystemExit like an error. ``app.stop(code)`` also stops the
    app. In both cases, ``t.exit_code`` is the code; otherwise ``t.exit_code`` is None.

    **In an async test**, use ``async with`` and await the methods. This works with pytest-asyncio, anyio and
    pytest-twisted. ``t`` is then an `AsyncTestApp`:

        async with TestApp(app) as t:
            await t.publish("stocks.AAPL", Quote("AAPL", 1200.0, 5))
            await t.advance(36)

    **Connections.** An app receives the messages of the other apps. An app receives its own messages only if it has no
    endpoints, or if it subscribes to an address to which it publishes. When an app subscribes, it also receives the
    messages that other apps keep (``keep="last"``). An app with ``loop=False``, which gets its endpoints later, does
    not receive its own messages.

    Args:
        *given: the apps, and at most one mapping of types to objects. Each object replaces the resource of that type.
            Resources that only replaced resources need are not opened.
        raise_errors: False to only collect errors in ``t.failures``.
        reactor: "twisted", or "asyncio" to run ``async`` functions as asyncio tasks, like ``zroute run --reactor
            asyncio``. Time is virtual with both reactors. The default is the reactor that the apps need
            (``App(reactor=…)``). If the apps need no specific reactor, the default is "asyncio" for ``async with`` in a
            running asyncio loop, and otherwise "twisted".

    Raises:
        SignatureError: no app is given, a type is not a resource of the apps, or ``reactor`` differs from the reactor
            of an app.
        UnfinishedError: an app did not start, or a handler did not end within the drain timeout in virtual time.
        UsageError: a ``with`` block is entered in a task of asyncio, or the apps need different reactors.
    """

    def __init__(
        self,
        *given: App | Mapping[Any, object],
        raise_errors: bool = True,
        reactor: ReactorKind | None = None,
    ) -> None:
        super().__init__(*given, raise_errors=raise_errors, reactor=reactor)
        self._make_awaited = partial(AsyncTestApp, *given, raise_errors=raise_errors, reactor=reactor)
        self._awaited: AsyncTestApp | None = None

    # -- the block ------------------------------------------------------------------------------------

    def __enter__(self) -> TestApp:
        if in_task():
            raise UsageError(
                "a `with` block can't run an app inside a running asyncio loop: write `async with TestApp(app) as t:` "
                "and await its methods, as in `await t.publish(…)`, or use a plain `def test_…`, without async"
            )
        on_asyncio = self._kind == "asyncio"
        self._set_up(VirtualReactor(on_asyncio=on_asyncio), on_asyncio=on_asyncio)
        try:
            for service in self._services:
                self._start(service)
            self._raise()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stopped = self._stop()
        if error is None:
            self._raise_unfinished(stopped)
        else:
            self._bus.note_losses(error)

    def _start(self, service: AppService) -> None:
        outcome: list[Any] = []
        self._do(service.startService)
        service.started.addBoth(outcome.append)
        self._raise_unless_started(service, outcome)

    def _stop(self) -> list[Any]:
        reactor, self._reactor = self._reactor, None
        stopped: list[Any] = []
        if reactor is None:
            return stopped
        reactor.do(partial(self._stop_services, stopped))
        while len(stopped) < len(self._services) and reactor.skip():  # drain timeouts pass in virtual time
            pass
        reactor.close()
        return stopped

    def _do(self, call: Callable[[], object]) -> None:
        self._running.do(call)

    async def __aenter__(self) -> AsyncTestApp:
        self._awaited = self._make_awaited()
        return await self._awaited.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._awaited is not None:
            await self._awaited.__aexit__(kind, error, traceback)

    # -- inputs of the apps -----------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        message: object,
        *more: object,
        codec: str | Codec | None = None,
        headers: Mapping[str, Any] | None = None,
        schema: Any = None,
        peer: str | None = None,
    ) -> None:
        """Publish messages to the apps, as another program would.

        `unheard` contains the messages that no handler receives.

        Args:
            topic: the topic of all messages.
            message: the first message.
            *more: further messages. All messages arrive before a handler is called, so a handler with ``batch`` gets a
                single list.
            codec: as in ``app.publisher``; the default is the codec of the first app.
            headers: headers of each message.
            schema: the type to encode as; the default is the type of each message. If that type is ambiguous, as for a
                Decimal, a set or a list of objects, the default is the type of the first suitable handler of the topic.
            peer: the name of the publisher's key, for `Envelope.peer`; the default is None, as without keys.

        Raises:
            TopicError: the topic is invalid with the separator of the first app.
            SchemaError: no codec can carry ``schema``.
            EncodeError: a message can't be encoded.

        This method also raises the errors of handlers, unless ``raise_errors=False``.
        """
        sent = [self._framed(topic, each, codec, headers, schema, peer) for each in (message, *more)]

        def arrive() -> None:
            for frames in sent:
                self._bus.receive(frames)

        self._do(arrive)
        self._raise()

    def request(
        self,
        topic: str,
        message: object = None,
        reply: Any = Any,
        *,
        timeout: float | None = REQUEST_TIMEOUT,
        headers: Mapping[str, Any] | None = None,
        peer: str | None = None,
    ) -> Any:
        """Send a request to the apps, as another program would, and return the reply.

        Virtual time advances until the reply or the timeout.

        Args:
            topic: The topic.
            message: The message, encoded by its type; None for a handler without a body.
            reply: The type of the reply (default: any).
            timeout: The seconds to wait, in virtual time (default 10); None for no limit.
            headers: The headers of the request.
            peer: The name of the client's key, for `Envelope.peer`; the default is None, as without keys.

        Returns:
            The reply, decoded as the type ``reply``.

        Raises:
            RequestError: The request got no reply; see `App.request`. Unless ``raise_errors=False``, an error of a
                handler is raised instead.
            UsageError: No app of the test answers requests.
        """
        client, ask = self._asked(topic, message, timeout, headers, reply, peer)
        answers: list[Answer] = []
        self._do(lambda: answers.append(ask()))
        while not answers[0].ended and self._running.skip():
            pass
        client.close()
        self._raise()
        return answers[0].result()

    def put(
        self,
        topic: str,
        job: object,
        *more: object,
        codec: str | Codec | None = None,
        headers: Mapping[str, Any] | None = None,
        retry: Sequence[float] = (),
        peer: str | None = None,
    ) -> None:
        """Put jobs for the handlers of the apps, as an owner in another program would.

        Each job is encoded by its type. If the last attempt of a job fails, this method raises the handler's error. To
        test an app that has a job queue, let a function of the app put the job, and give `TestApp` a worker app too.

        Args:
            topic: The topic of all jobs.
            job: The first job.
            *more: Further jobs.
            codec: As in ``app.job_queue``; the default is the codec of the first app.
            headers: Headers of each job.
            retry: The delays in virtual seconds before further attempts. Call `advance` to reach these attempts.
            peer: The name of the owner's key, for `Envelope.peer`; the default is None, as without keys.

        Raises:
            UsageError: No app of the test has a handler for jobs of this topic.
            TopicError: The topic is invalid with the separator of the first app.
            EncodeError: A job can't be encoded.

        This method also raises the errors of handlers, unless ``raise_errors=False``.
        """
        put = self._putting(topic, (job, *more), codec, headers, retry, peer)
        self._do(lambda: self._test_owner(peer))  # the workers make their offers first
        self._do(put)
        self._raise()
        self._test_owner(peer).check()

    def receive(self, *frames: bytes, endpoint: str | None = None, peer: str | None = None) -> None:
        """Deliver the frames of one message to the apps, as if received from the network.

        The message may be invalid. An app that declares message forms (`Frames`) reads the message in the form of the
        endpoint.

        Args:
            *frames: the parts of the message.
            endpoint: the endpoint at which the message arrives, as in ``App(sub=…)``. Only apps with this endpoint
                receive the message. Optional unless an app declares more than one message form.
            peer: the name of the publisher's key, for `Envelope.peer`; the default is None, as without keys.

        Raises:
            UsageError: a part is not bytes, no app has the endpoint, or ``endpoint`` is missing and an app declares
                more than one message form.

        This method also raises the errors of handlers, unless ``raise_errors=False``.
        """
        parts = self._parts(frames, peer)
        self._do(lambda: self._bus.receive_at(endpoint, parts))
        self._raise()

    def replay(self, path: str | Path) -> None:
        """Deliver a recording to the apps; its pauses pass in virtual time.

        ``zroute record`` writes recordings. The messages are read in the form that is stored in the recording,
        regardless of the forms that the apps declare.

        Raises:
            RecordingError: the file is not a recording.

        This method also raises the errors of handlers, unless ``raise_errors=False``.
        """
        from zroute.recordings import read

        began, recording = self._running.seconds(), read(path)
        form = None if recording.frames is None else parse_form(recording.frames)
        for recorded in recording:
            self._running.advance_to(began + recorded.at)
            self._bus.receive(recorded.frames, form)
        self._do(lambda: None)
        self._raise()

    def advance(self, seconds: float) -> None:
        """Advance virtual time by ``seconds``. Due timers run in order."""
        self._running.advance_to(self._running.seconds() + seconds)
        self._raise()

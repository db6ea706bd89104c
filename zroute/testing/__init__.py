"""Tests of apps without sockets and without sleeps.

A `TestApp` runs the real app: codecs, routes, resources, timers and bounds. Only two parts are replaced: frames travel
in memory, and time is virtual.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from twisted.python.failure import Failure

from zroute.app import App
from zroute.endpoints import Endpoint
from zroute.errors import SignatureError, UsageError
from zroute.functions import identity
from zroute.messages.bodies import body_decoder, runtime_encoder
from zroute.messages.codecs import Codec, find_codec
from zroute.messages.schema import describe
from zroute.messages.topics import Pattern, matches, startswith, topic_bytes
from zroute.messages.wire import Envelope, framer
from zroute.messages.wire import parse as parse_frames
from zroute.planning.plan import Plan
from zroute.runtime.run import Environment, StopReport
from zroute.runtime.service import AppService
from zroute.testing.reactor import RestlessError, VirtualReactor
from zroute.testing.transport import Bus, MemoryTransport

__all__ = ["RestlessError", "TestApp", "UnfinishedError"]

_EVERYTHING = startswith("")


class UnfinishedError(AssertionError):
    """Handlers were still running when the test ended, or the app did not start."""


class TestApp:
    """A test environment that runs one or more apps during a ``with`` block:

        with TestApp(app, {Database: FakeDatabase()}) as t:
            t.publish("stocks.AAPL", Quote("AAPL", 1200.0, 5))
            assert t.published("alerts.>") == [Alert("AAPL at 1200.0")]

    **Calls and errors.** Each method returns when the apps have nothing left to do: all messages are handled, including
    those that handlers publish, and threads have ended. It then raises the error of a handler, timer or hook, unless an
    ``on_error`` function received it. Several errors are raised as an ExceptionGroup. ``t.failures`` is a list of all
    errors.

    **End.** Leaving the block stops the apps like a signal.

    **Connections.** An app receives the messages of the other apps. It receives its own messages only if it has no
    endpoints, or if it subscribes to an address that it publishes at. When it subscribes, it also receives the messages
    that the others keep (``keep="last"``). An app with ``loop=False`` that gets its endpoints later does not receive
    its own messages.

    Args:
        *given: the apps, and at most one mapping of types to objects. An object replaces the resource of that type;
            resources that only replaced resources need are not opened.
        raise_errors: False to only collect errors in ``t.failures``.
        reactor: "twisted", or "asyncio" to run ``async`` functions as asyncio tasks, as ``zroute run --reactor
            asyncio`` does. Time is virtual with both.

    Raises:
        SignatureError: no app is given, or a type is not a resource of the apps.
        UnfinishedError: an app did not start, or a handler did not end within the drain timeout in virtual time.
        UsageError: the block is entered inside a running asyncio loop.
    """

    __test__ = False  # keeps pytest from collecting this class as tests

    def __init__(
        self,
        *given: App | Mapping[Any, object],
        raise_errors: bool = True,
        reactor: Literal["twisted", "asyncio"] = "twisted",
    ) -> None:
        self.apps = tuple(one for one in given if isinstance(one, App))
        self.failures: list[BaseException] = []
        self._replaced = {kind: fake for one in given if isinstance(one, Mapping) for kind, fake in one.items()}
        self._raise_errors = raise_errors
        self._on_asyncio = _one_of(reactor) == "asyncio"
        self._check(given)
        self._unraised: list[BaseException] = []
        self._results: dict[object, list[Any]] = {}
        self._bus = Bus()
        self._sequence = 0
        self._began = time.time()
        self._reactor: VirtualReactor | None = None
        self._services: list[AppService] = []

    def _check(self, given: tuple[object, ...]) -> None:
        if not self.apps or len(given) - len(self.apps) > 1:
            raise SignatureError(
                "TestApp takes apps, and one mapping of resources to replace: TestApp(app, {Database: fake})"
            )
        known = [resource.kind for app in self.apps for resource in app.compile().parts.resources]
        for kind in self._replaced:
            if kind not in known:
                have = ", ".join(map(describe, known)) or "none"
                raise SignatureError(
                    f"{describe(kind)} is not a resource of the app, so it can't be replaced; the app has {have}"
                )

    # -- the block ------------------------------------------------------------------------------------

    def __enter__(self) -> TestApp:
        if _in_a_loop():
            raise UsageError(
                "TestApp runs the app itself, and can't inside a running asyncio loop: use it in a plain `def test_…`, "
                "without async"
            )
        self._began = time.time()
        self._reactor = reactor = VirtualReactor(on_asyncio=self._on_asyncio)
        self._services = [
            AppService(
                app.compile(),
                reactor,
                sub=_given_later(app, bind=False),
                pub=_given_later(app, bind=True),
                environment=Environment(
                    lambda request: MemoryTransport(request, self._bus, reactor),
                    self._on_asyncio,
                    wall=lambda: self._began + reactor.seconds(),
                    replaced=self._replaced,
                    observe=self._observe,
                    results=self._result,
                ),
            )
            for app in self.apps
        ]
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
        unfinished = self._stop()
        if error is not None:
            return
        self._raise()
        if unfinished and self._raise_errors:
            names = ", ".join(f"{name}: {number}" for name, number in unfinished.items())
            raise UnfinishedError(
                f"still at work when the test ended: {names}; let them end, or let time pass with t.advance(seconds)"
            )

    def _start(self, service: AppService) -> None:
        outcome: list[Any] = []
        self._do(service.startService)
        service.started.addBoth(outcome.append)
        if not outcome:
            raise UnfinishedError(
                f"{service.plan.name} has not started: a resource or an on_startup function waits for something "
                "outside; replace the resource, as in TestApp(app, {Database: fake})"
            )
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()

    def _stop(self) -> dict[str, int]:
        reactor, self._reactor = self._reactor, None
        unfinished: dict[str, int] = {}
        if reactor is None:
            return unfinished
        ended: list[Any] = []
        for service in self._services:
            reactor.do(partial(_stop, service, ended))
        while len(ended) < len(self._services) and reactor.skip():  # drain timeouts pass in virtual time
            pass
        for drained in ended:
            if isinstance(drained, StopReport):
                unfinished.update(drained.unfinished)
        reactor.close()
        return unfinished

    # -- inputs of the apps -----------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        message: object,
        *more: object,
        codec: str | Codec | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> None:
        """Publish messages to the apps, as another program would.

        Each message is encoded by its type. `unheard` holds messages that no app subscribes to.

        Args:
            topic: the topic of all messages.
            message: the first message.
            *more: further messages. All of them arrive before a handler is called, so a handler with ``batch`` gets one
                list.
            codec: as in ``app.publisher``; the default is the codec of the first app.
            headers: headers of each message.

        Raises:
            TopicError: the topic is invalid.
            EncodeError: a message can't be encoded. Errors of handlers are raised too.
        """
        sent = [self._framed(topic, each, codec, headers) for each in (message, *more)]

        def arrive() -> None:
            for frames in sent:
                self._bus.receive(frames)

        self._do(arrive)
        self._raise()

    def _framed(
        self, topic: str, message: object, codec: str | Codec | None, headers: Mapping[str, Any] | None
    ) -> tuple[bytes, ...]:
        chosen = find_codec(codec) if codec is not None else None
        used, encode = runtime_encoder(message, codec=chosen, default=self.apps[0].codec)
        self._sequence += 1
        # Epochs of publishers are 64 random bits, so 1 is that of no app here.
        frame = framer(
            "tracked", epoch=1, next_sequence=lambda: self._sequence, clock_ns=lambda: int(self._wall() * 1e9)
        )
        sent = frame(topic_bytes(topic), used.number, encode(message), headers)
        return (sent,) if isinstance(sent, bytes) else sent

    def receive(self, *frames: bytes) -> None:
        """Give the apps the frames of one message, valid or not, as from the network."""
        self._do(lambda: self._bus.receive(frames))
        self._raise()

    def replay(self, path: str | Path) -> None:
        """Give the apps the messages of a recording, with its pauses in virtual time.

        ``zroute record`` writes recordings.

        Raises:
            RecordingError: the file is not a recording. Errors of handlers are raised too.
        """
        from zroute.recordings import read

        began = self._running.seconds()
        for recorded in read(path):
            self._running.advance_to(began + recorded.at)
            self._bus.receive(recorded.frames)
        self._do(lambda: None)
        self._raise()

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` of virtual time pass; timers run in order when they are due."""
        self._running.advance_to(self._running.seconds() + seconds)
        self._raise()

    # -- outputs of the apps ----------------------------------------------------------------------------

    def published(self, pattern: str | Pattern = _EVERYTHING, schema: Any = None) -> list[Any]:
        """Return the messages that the apps have published, in order and decoded.

        Messages from before the last `clear` are not included.

        Args:
            pattern: only messages to topics of this pattern; the default is all.
            schema: the type to decode as; the default is the declared type of the publication with that topic.
        """
        return [
            self._decoded(plan, envelope, schema)
            for plan, envelope in self._sent()
            if _matches(pattern, envelope.topic.wire)
        ]

    def envelopes(self, pattern: str | Pattern = _EVERYTHING) -> list[Envelope]:
        """Return the published messages as envelopes, with topics, headers and bodies.

        ``pattern`` is as in `published`.
        """
        return [envelope for _, envelope in self._sent() if _matches(pattern, envelope.topic.wire)]

    def results(self, function: Callable[..., Any]) -> list[Any]:
        """Return the results of all successful calls of a handler or timer.

        Awaitable results are awaited.
        """
        return list(self._results.get(identity(function), ()))

    @property
    def unheard(self) -> list[Envelope]:
        """The messages from `publish` and `receive` that no app subscribes to."""
        return [parse_frames(frames, self._wall()) for frames in self._bus.unheard]

    def clear(self) -> None:
        """Delete all recorded messages, results and errors."""
        self._bus.sent.clear()
        self._bus.unheard.clear()
        self._results.clear()
        self.failures.clear()

    def _sent(self) -> list[tuple[Plan, Envelope]]:
        return [(plan, parse_frames(frames, self._wall())) for plan, frames in self._bus.sent]

    def _decoded(self, plan: Plan, envelope: Envelope, schema: Any) -> Any:
        compiled = plan.parts
        outlet = next((one for one in compiled.outlets if _matches(one.pattern, envelope.topic.wire)), None)
        if schema is None:
            schema = outlet.schema if outlet is not None and outlet.schema is not None else Any
        codec = outlet.publication.codec if outlet is not None else None
        stated = compiled.codecs.by_number.get(envelope.codec) if envelope.codec else None
        return body_decoder(schema, stated=stated, route=codec, default=plan.choices.codec)(envelope.body)

    # -- private ----------------------------------------------------------------------------------------

    @property
    def _running(self) -> VirtualReactor:
        if self._reactor is None:
            raise UsageError("the apps are not running: use TestApp in a with block, as in `with TestApp(app) as t:`")
        return self._reactor

    def _wall(self) -> float:
        return self._began + (self._reactor.seconds() if self._reactor else 0)

    def _do(self, call: Callable[[], object]) -> None:
        self._running.do(call)

    def _observe(self, error: BaseException, hooked: bool) -> None:
        self.failures.append(error)
        if not hooked:
            self._unraised.append(error)

    def _result(self, function: Callable[..., Any], result: Any) -> None:
        self._results.setdefault(identity(function), []).append(result)

    def _raise(self) -> None:
        errors, self._unraised = self._unraised, []
        if not errors or not self._raise_errors:
            return
        if len(errors) == 1:
            raise errors[0]
        raise BaseExceptionGroup("several handlers, timers or hooks failed", errors)


def _given_later(app: App, *, bind: bool) -> tuple[Endpoint, ...] | None:
    """Return an endpoint for an app that gets its endpoints later, else None.

    Such an app has ``loop=False`` and no endpoints of its own. Its two endpoints here do not connect to each other.
    """
    if app.loop or app.sub or app.pub:
        return None
    return (Endpoint("ipc://pub" if bind else "ipc://sub", bind=bind),)


def _stop(service: AppService, ended: list[Any]) -> None:
    service.stopService().addBoth(ended.append)


def _matches(pattern: str | Pattern, topic: bytes) -> bool:
    return matches(pattern, topic) is not None


def _one_of(reactor: str) -> str:
    if reactor not in ("twisted", "asyncio"):
        raise SignatureError(f"reactor={reactor!r}: use 'twisted' or 'asyncio'", parameter="reactor")
    return reactor


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

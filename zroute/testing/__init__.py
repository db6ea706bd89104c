"""Tests of apps without sockets and without sleeps.

Codecs, routes, resources, timers and bounds really run; only frames travel in memory, and time is virtual.
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
    """Handlers were still at work when the test ended, or the app had not started."""


class TestApp:
    """``apps``, running for the time of a ``with`` block, joined to each other:

        with TestApp(app, {Database: FakeDatabase()}) as t:
            t.publish("stocks.AAPL", Quote("AAPL", 1200.0, 5))
            assert t.published("alerts.>") == [Alert("AAPL at 1200.0")]

    A mapping after the apps replaces resources by their types; what only they needed is not opened.
    ``reactor="asyncio"`` runs ``async`` functions as asyncio's tasks, as ``zroute run --reactor asyncio``
    does, on virtual time as well.

    Each call of a method returns when there is nothing left to do: messages are handled, what they caused
    is published and handled, threads have ended. Then it raises what handlers, timers and hooks raised, unless an
    ``on_error`` function took it; several errors come as an ExceptionGroup. With ``raise_errors=False``
    they are only collected in ``t.failures``, a list of all that were met. Leaving the block stops the apps, as a
    signal would, and raises
    UnfinishedError if a handler had not ended within the drain timeout of virtual time.

    An app receives what the others publish, and what itself publishes only if it has no endpoints, or
    subscribes to an address that it publishes at. When it subscribes it is given what these keep (``keep="last"``).
    With ``loop=False`` and no endpoints, which it is given
    when it is run, it does not receive its own.
    """

    __test__ = False  # pytest would take it for a class of tests

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
                    f"{describe(kind)} is no resource of the app, so nothing can replace it; it has {have}"
                )

    # -- the block ------------------------------------------------------------------------------------

    def __enter__(self) -> TestApp:
        if _in_a_loop():
            raise UsageError(
                "TestApp runs the app to its rest by itself: use it in a plain `def test_…`, without async"
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
        while len(ended) < len(self._services) and reactor.skip():
            pass
        for drained in ended:
            if isinstance(drained, StopReport):
                unfinished.update(drained.unfinished)
        reactor.close()
        return unfinished

    # -- what happens to the apps -----------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        message: object,
        *more: object,
        codec: str | Codec | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> None:
        """Publish from outside to the apps, encoded by the type of ``message``; to no one, if none subscribes.

        With ``more`` all of them have arrived before a handler is called: one with ``batch`` is given one list.
        ``codec`` as for ``app.publisher`` (default: the first app's). Raises TopicError and EncodeError
        for what can't be published, and what the handlers raise. What nobody subscribes to is in `unheard`.
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
        frame = framer(
            "tracked", epoch=1, next_sequence=lambda: self._sequence, clock_ns=lambda: int(self._wall() * 1e9)
        )
        sent = frame(topic_bytes(topic), used.number, encode(message), headers)
        return (sent,) if isinstance(sent, bytes) else sent

    def receive(self, *frames: bytes) -> None:
        """Give the apps the frames of one message just as they would come from the network, sound or not."""
        self._do(lambda: self._bus.receive(frames))
        self._raise()

    def replay(self, path: str | Path) -> None:
        """Give the apps a recording of ``zroute record``, with its pauses in virtual time.

        Raises RecordingError for a file that is none, and what the handlers raise.
        """
        from zroute.recordings import read

        began = self._running.seconds()
        for recorded in read(path):
            self._running.advance_to(began + recorded.at)
            self._bus.receive(recorded.frames)
        self._do(lambda: None)
        self._raise()

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` of virtual time pass: timers run, one after the other, as they are due."""
        self._running.advance_to(self._running.seconds() + seconds)
        self._raise()

    # -- what the apps did ------------------------------------------------------------------------------

    def published(self, pattern: str | Pattern = _EVERYTHING, schema: Any = None) -> list[Any]:
        """The messages that the apps have published to topics of ``pattern`` (default: all), in order, decoded.

        As ``schema``, or else as the publication with that topic declares. What was published before a
        `clear` is forgotten.
        """
        return [
            self._decoded(plan, envelope, schema)
            for plan, envelope in self._sent()
            if _matches(pattern, envelope.topic.wire)
        ]

    def envelopes(self, pattern: str | Pattern = _EVERYTHING) -> list[Envelope]:
        """As `published`, whole: topics, headers and bodies as they travelled."""
        return [envelope for _, envelope in self._sent() if _matches(pattern, envelope.topic.wire)]

    def results(self, function: Callable[..., Any]) -> list[Any]:
        """What ``function``, a handler or a timer, has returned each time that it ended well; awaited."""
        return list(self._results.get(identity(function), ()))

    @property
    def unheard(self) -> list[Envelope]:
        """What was published from outside, and no app subscribes to."""
        return [parse_frames(frames, self._wall()) for frames in self._bus.unheard]

    def clear(self) -> None:
        """Forget what was published, returned and raised so far."""
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

    # -- inside -----------------------------------------------------------------------------------------

    @property
    def _running(self) -> VirtualReactor:
        if self._reactor is None:
            raise UsageError("the apps do not run: use TestApp in a with block, as in `with TestApp(app) as t:`")
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
    """An endpoint for an app that waits for those of `zroute run`, so that its two do not meet; None for others."""
    if app.loop or app.sub or app.pub:
        return None
    return (Endpoint("ipc://pub" if bind else "ipc://sub", bind=bind),)


def _stop(service: AppService, ended: list[Any]) -> None:
    service.stopService().addBoth(ended.append)


def _matches(pattern: str | Pattern, topic: bytes) -> bool:
    return matches(pattern, topic) is not None


def _one_of(reactor: str) -> str:
    if reactor not in ("twisted", "asyncio"):
        raise SignatureError(f"reactor={reactor!r}: 'twisted' or 'asyncio'", parameter="reactor")
    return reactor


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

"""The base of both test environments: the apps and their outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.python.failure import Failure

from zroute.app import App
from zroute.endpoints import SIDES, Endpoint, EndpointOptions
from zroute.errors import EncodeError, JobFailedError, PatternError, SchemaError, SignatureError, UsageError
from zroute.functions import identity, users_line
from zroute.jobs.owner import Job
from zroute.messages.bodies import body_decoder, body_encoder, runtime_encoder
from zroute.messages.codecs import RAW, Codec, find_codec
from zroute.messages.extras import Extras
from zroute.messages.frames import Frames
from zroute.messages.schema import describe
from zroute.messages.topics import Pattern, Topic, matches, parse, startswith, topic_bytes
from zroute.messages.wire import Envelope, NamedFrame, framer
from zroute.messages.wire import parse as parse_frames
from zroute.planning.plan import Plan, ReactorKind, reactor_kind
from zroute.receiving.dead_letters import error_text
from zroute.requests.client import Answer, Client
from zroute.requests.requester import explain_type
from zroute.runtime.run import Environment, StopReport
from zroute.runtime.service import AppService
from zroute.stats import Stats
from zroute.testing.jobs import TestOwner
from zroute.testing.reactor import VirtualReactor
from zroute.testing.transport import Bus, MemoryTransport

__all__ = ["Bed", "UnfinishedError"]

_EVERYTHING = startswith("")


class UnfinishedError(AssertionError):
    """Handlers were still running when the test ended, or an app did not start."""


class Bed:
    """The apps of a test, and their outputs.

    Args:
        *given: see `zroute.testing.TestApp`, also for the other arguments.
    """

    __test__ = False  # keeps pytest from collecting this class as tests

    def __init__(
        self,
        *given: App | Mapping[Any, object],
        raise_errors: bool = True,
        reactor: ReactorKind | None = None,
    ) -> None:
        self.apps = tuple(one for one in given if isinstance(one, App))
        self.failures: list[BaseException] = []
        self._replaced = {kind: fake for one in given if isinstance(one, Mapping) for kind, fake in one.items()}
        self._raise_errors = raise_errors
        self._check(given)
        self._kind = self._kind_of(reactor)
        self._unraised: list[BaseException] = []
        self._results: dict[object, list[Any]] = {}
        self._bus = Bus()
        self._sequence = 0
        self._began = time.time()
        self._reactor: VirtualReactor | None = None
        self._services: list[AppService] = []
        self._owners: dict[str | None, TestOwner] = {}  # by the name of their keys
        self._looked_at_jobs = False
        self._unserved: list[str] = []  # topics of jobs that no app of the test accepts

    def _kind_of(self, reactor: ReactorKind | None) -> ReactorKind | None:
        if reactor not in (None, "twisted", "asyncio"):
            raise SignatureError(f"reactor={reactor!r}: use 'twisted' or 'asyncio'", parameter="reactor")
        needed = reactor_kind([app.compile() for app in self.apps])
        if needed is not None and reactor not in (None, needed):
            raise SignatureError(
                f"reactor={reactor!r}, but one of the apps has App(reactor={needed!r}): remove reactor= from TestApp",
                parameter="reactor",
            )
        return needed or reactor

    def _check(self, given: tuple[object, ...]) -> None:
        if not self.apps or len(given) - len(self.apps) > 1:
            raise SignatureError(
                "TestApp accepts one or more apps, and at most one mapping of resources to replace: TestApp(app, "
                "{Database: fake})"
            )
        known = [resource.kind for app in self.apps for resource in app.compile().parts.resources]
        for kind in self._replaced:
            if kind not in known:
                have = ", ".join(map(describe, known)) or "none"
                raise SignatureError(
                    f"can't replace {describe(kind)}, because it is not a resource of the app; resources of the "
                    f"app: {have}"
                )

    def _set_up(self, reactor: VirtualReactor, *, on_asyncio: bool) -> None:
        """Create the services of the apps on ``reactor``."""
        self._began = time.time()
        self._reactor = reactor
        self._services = [
            AppService(
                app.compile(),
                reactor,
                environment=Environment(
                    partial(MemoryTransport, bus=self._bus, reactor=reactor, plan=app.compile()),
                    on_asyncio,
                    wall=lambda: self._began + reactor.seconds(),
                    replaced=self._replaced,
                    observe=self._observe,
                    results=self._result,
                ),
                **_given_later(app),
            )
            for app in self.apps
        ]
        for service in self._services:
            service.reports, service.owns_pool = False, True
        self._bus.requests.begin(reactor, self._wall)
        self._bus.wall = self._bus.jobs.wall = self._wall

    def _raise_unless_started(self, service: AppService, outcome: list[Any]) -> None:
        if not outcome:
            client = service.plan.live.client
            if client is not None and client.unanswered:
                raise UnfinishedError(
                    f"{service.plan.name} has not started, because it waits for a reply: an app answers requests "
                    "only after its on_startup has ended; send the request in a timer, or name the answering app "
                    "first in TestApp(…)"
                )
            raise UnfinishedError(
                f"{service.plan.name} has not started, because a resource or an on_startup function waits for "
                "something "
                "outside the test: replace the resource, as in TestApp(app, {Database: fake})"
            )
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()

    def _stop_services(self, stopped: list[Any]) -> None:
        """Stop the apps at the same time, as a program does."""
        for owner in self._owners.values():
            owner.close()
        if self._looked_at_jobs:
            self._bus.jobs.drop_unserved()
        self._unserved = self._bus.jobs.unserved()
        for service in self._services:
            service.stopService().addBoth(stopped.append)

    def _raise_unfinished(self, stopped: list[Any]) -> None:
        try:
            self._raise()
        except BaseException as error:
            self._bus.note_losses(error)
            raise
        self._bus.check_losses()
        unfinished: dict[str, int] = {}
        for report in stopped:
            if isinstance(report, StopReport):
                unfinished.update(report.unfinished)
        if unfinished and self._raise_errors:
            names = ", ".join(f"{name}: {number}" for name, number in unfinished.items())
            advice = "wait until they end, or advance the time with t.advance(seconds)"
            if self._unserved:
                advice = (
                    f"no app in the test accepts jobs of the topic {self._unserved[0]!r}: add a worker app, as in "
                    "TestApp(owner, worker), or check the jobs with t.jobs()"
                )
            raise UnfinishedError(f"still running when the test ended: {names}; {advice}")

    def _framed(
        self,
        topic: str,
        message: object,
        codec: str | Codec | None,
        headers: Mapping[str, Any] | None,
        schema: Any,
        peer: str | None,
    ) -> tuple[bytes, ...]:
        raw = topic_bytes(topic, self.apps[0].separator)
        number, body = self._encoded(raw, message, find_codec(codec) if codec is not None else None, schema)
        self._sequence += 1
        # The epochs of publishers are 64 random bits, so no app here has the epoch 1.
        frame = framer(
            "tracked", epoch=1, next_sequence=lambda: self._sequence, clock_ns=lambda: int(self._wall() * 1e9)
        )
        sent = frame(raw, number, body, headers)
        return _named((sent,) if isinstance(sent, bytes) else sent, peer)

    def _encoded(
        self,
        topic: bytes,
        message: object,
        codec: Codec | None = None,
        schema: Any = None,
        kind: str = "subscribe",
    ) -> tuple[int, bytes]:
        """Encode a message; return the number of the codec, and the body.

        Without a schema, the message is encoded by its own type. If that type is ambiguous, as for a list of objects,
        the message is encoded by the type of the first suitable handler for the topic.
        """
        known = self.apps[0].compile().parts.codecs
        if schema is not None:
            used, encode = body_encoder(schema, codec=codec, default=known.default, extras=known.extras)
            return used.number, encode(message)
        try:
            used, encode = runtime_encoder(message, codec=codec, default=known.default, extras=known.extras)
            return used.number, encode(message)
        except EncodeError as error:
            for expected, extras in self._expected(topic, kind):
                with suppress(EncodeError, SchemaError):
                    used, encode = body_encoder(expected, codec=codec, default=known.default, extras=extras)
                    return used.number, encode(message)
            if error.schema is None:  # an untyped message
                error.args = (f"{error} (in a test, add schema=, as in t.publish(topic, message, schema=list[Quote]))",)
            raise

    def _expected(self, topic: bytes, kind: str) -> Iterator[tuple[Any, Extras]]:
        """Yield the types of the handlers of a topic, with the extras of their apps.

        ``kind`` is the kind of the handlers.
        """
        for parts in (app.compile().parts for app in self.apps):
            for route in parts.handlers:
                expected = route.info.schema if route.route.kind == kind else None
                if expected is not None and any(matches(pattern, topic) is not None for pattern in route.patterns):
                    yield expected, parts.codecs.extras

    def _client(self, topic: bytes, peer: str | None) -> Client:
        """Return a client outside the apps, with the key ``peer``."""
        reactor = self._running
        known = self.apps[0].compile().parts.codecs
        client = Client(
            reactor,
            Stats(),
            "the test",
            known,
            max_message=self.apps[0].limits.max_message,
            clock_ns=lambda: int(self._wall() * 1e9),
            later=reactor.callFromThread,
        )
        if not self._bus.requests.lane_for(client, topic, peer):
            raise UsageError(
                "no app of the test answers requests: add an @app.reply handler, and App(rep=…) if the app has "
                "other endpoints"
            )
        return client

    def _asked(
        self,
        topic: str,
        message: object,
        timeout: float | None,
        headers: Mapping[str, Any] | None,
        reply: Any,
        peer: str | None,
    ) -> tuple[Client, Callable[[], Answer]]:
        """Return a client, and a function that sends the request."""
        raw = topic_bytes(topic, self.apps[0].separator)
        number, body = RAW.number, b""
        if message is not None:
            try:
                number, body = self._encoded(raw, message, kind="reply")
            except EncodeError as error:
                explain_type(error, topic, message)
                raise
        client = self._client(raw, peer)
        return client, partial(client.ask, raw, number, body, headers, client.decoder(reply), timeout)

    def _parts(self, frames: tuple[object, ...], peer: str | None) -> tuple[bytes, ...]:
        """Return the checked parts of `receive`."""
        for part in frames:
            if not isinstance(part, bytes):
                advice = "unpack the parts, as in receive(*parts)" if isinstance(part, list | tuple) else "pass bytes"
                advice = f"encode the text, as in receive({part!r:.60}.encode())" if isinstance(part, str) else advice
                raise UsageError(f"receive() expects the parts of one message as bytes, not {part!r:.80}: {advice}")
        if not frames:
            raise UsageError("receive() expects the parts of one message, as in receive(b'topic', b'body')")
        return _named(frames, peer)  # type: ignore[arg-type]  # all are bytes

    def _putting(
        self,
        topic: str,
        jobs: Sequence[object],
        codec: str | Codec | None,
        headers: Mapping[str, Any] | None,
        retry: Sequence[float],
        peer: str | None,
    ) -> Callable[[], None]:
        """Return a function that puts jobs, as an owner in another program would."""
        chosen = find_codec(codec) if codec is not None else None
        raw = topic_bytes(topic, self.apps[0].separator)
        bodies = [self._encoded(raw, job, chosen, kind="work") for job in jobs]
        return lambda: self._test_owner(peer).put(raw, bodies, headers, retry)

    def _test_owner(self, peer: str | None) -> TestOwner:
        """Return the owner of the test's jobs with the key ``peer``."""
        if peer not in self._owners:
            self._owners[peer] = TestOwner(self._bus.jobs, self._running, self._given_up, peer)
        return self._owners[peer]

    def _given_up(self, job: Job, reason: str) -> None:
        """Record the failure of a given-up job, so that the error is raised later."""
        for error in reversed(self.failures):
            if reason == error_text(error):
                self._unraised.append(error)
                return
        topic = str(Topic.from_wire(job.topic))
        self._unraised.append(JobFailedError(reason, topic=topic, attempts=job.attempt))

    # -- outputs of the apps ----------------------------------------------------------------------------

    def requests(self, pattern: str | Pattern = _EVERYTHING) -> list[Envelope]:
        """Return the requests that the apps have sent, in order, as envelopes.

        The result does not include requests of the test itself, or requests before the last `clear`.

        Args:
            pattern: return only requests whose topic matches this pattern; the default matches all topics.
        """
        return self._matching(self._bus.requests.sent, pattern)

    def _matching(self, recorded: list[tuple[Plan, Envelope]], pattern: str | Pattern) -> list[Envelope]:
        wanted = self._by_app(pattern)
        return [
            envelope
            for plan, envelope in recorded
            if plan in wanted and matches(wanted[plan], envelope.topic.wire) is not None
        ]

    def jobs(self, pattern: str | Pattern = _EVERYTHING) -> list[Envelope]:
        """Return the jobs that the apps have put, in order, as envelopes.

        The result does not include jobs of the test itself, or jobs before the last `clear`. After a call of this
        method, the test may end while some jobs have no worker. A test of an owner therefore needs no worker app.

        Args:
            pattern: return only jobs whose topic matches this pattern; the default matches all topics.
        """
        self._looked_at_jobs = True
        return self._matching(self._bus.jobs.put, pattern)

    def published(self, pattern: str | Pattern = _EVERYTHING, schema: Any = None) -> list[Any]:
        """Return the decoded messages that the apps have published, in order.

        Messages before the last `clear` are not included.

        Args:
            pattern: return only messages whose topic matches this pattern; the default matches all topics. The
                separator of the publishing app applies.
            schema: the type to which messages are decoded; the default is the declared type of the publication with
                that topic.
        """
        return [self._decoded(plan, envelope, schema) for plan, envelope in self._sent(pattern)]

    def envelopes(self, pattern: str | Pattern = _EVERYTHING) -> list[Envelope]:
        """Return the published messages as envelopes, with topics, headers and bodies.

        For ``pattern``, see `published`.
        """
        return [envelope for _, envelope in self._sent(pattern)]

    def results(self, function: Callable[..., Any]) -> list[Any]:
        """Return the results of all successful calls of a handler or timer.

        Awaitable results are awaited.
        """
        return list(self._results.get(identity(function), ()))

    @property
    def unheard(self) -> list[Envelope]:
        """The messages from `publish` and `receive` that no handler receives.

        Either no pattern matches the topic, or a capture can't be converted to its type. Messages that a function under
        ``on_unrouted`` receives are not included.
        """
        return [parse_frames(frames, self._wall()) for frames in self._bus.unheard]

    @property
    def exit_code(self) -> int | None:
        """The exit code of ``app.stop(code)`` or of a SystemExit, else None.

        If there are several codes, the value is the first nonzero code.
        """
        codes = [service.exit_code for service in self._services if service.exit_code is not None]
        return next(filter(None, codes), 0) if codes else None

    def lose(self, many: int, pattern: str | Pattern = _EVERYTHING) -> None:
        """Lose the next messages on their way to all apps.

        An app notices the loss when the next message of its subscription arrives, or after half a second. If the
        publisher has a ``history`` and the app has ``recover=True``, it handles the lost messages then. Otherwise they
        count as lost: functions of ``on_gap`` are called, and publishers with ``snapshot=`` send their state again.

        Example:
            ```python
            t.lose(3, "orders.>")
            ```

        Args:
            many: the number of messages, 1 or more.
            pattern: lose only messages whose topic matches this pattern; the default matches all topics.

        Raises:
            UsageError: ``many`` is less than 1. At the end of the test: no message was lost that an app subscribes to.
                If the test raises another error, that error gets the text as a note instead.
            PatternError: ``pattern`` is invalid.
        """
        if type(many) is not int or many < 1:
            given: tuple[Any, Any] = many, pattern
            swapped = isinstance(given[0], str) and type(given[1]) is int
            hint = f": write lose({pattern!r}, {many!r})" if swapped else ""
            raise UsageError(f"lose({many!r}): expected the number of messages to lose, 1 or more{hint}")
        self._bus.lose(many, parse(pattern, self.apps[0].separator), users_line())

    def clear(self) -> None:
        """Delete all recorded messages, results and errors."""
        self._bus.sent.clear()
        self._bus.requests.sent.clear()
        self._bus.jobs.put.clear()
        self._bus.unheard.clear()
        self._results.clear()
        self.failures.clear()

    def _sent(self, pattern: str | Pattern) -> Iterator[tuple[Plan, Envelope]]:
        """Yield the messages whose topic matches ``pattern``, with the plan of their app."""
        wanted = self._by_app(pattern)
        for plan, frames in self._bus.sent:
            if plan is not None and plan in wanted:
                envelope = parse_frames(_in_its_form(plan, frames), self._wall())
                if matches(wanted[plan], envelope.topic.wire) is not None:
                    yield plan, envelope

    def _by_app(self, pattern: str | Pattern) -> dict[Plan, Pattern]:
        """Return the pattern for each app, parsed with the separator of the app.

        The result omits apps whose separator makes the pattern invalid.
        """
        found: dict[Plan, Pattern] = {}
        fault: PatternError | None = None
        for app in self.apps:
            try:
                found[app.compile()] = parse(pattern, app.separator)
            except PatternError as error:
                fault = error
        if fault is not None and not found:
            raise fault
        return found

    def _decoded(self, plan: Plan, envelope: Envelope, schema: Any) -> Any:
        compiled = plan.parts
        outlet = next((one for one in compiled.outlets if matches(one.pattern, envelope.topic.wire) is not None), None)
        if schema is None:
            schema = outlet.schema if outlet is not None and outlet.schema is not None else Any
        codec = outlet.publication.codec if outlet is not None else None
        stated = compiled.codecs.by_number.get(envelope.codec) if envelope.codec else None
        known = compiled.codecs
        decode = body_decoder(schema, stated=stated, route=codec, default=known.default, extras=known.extras)
        return decode(envelope.body)

    # -- private ----------------------------------------------------------------------------------------

    @property
    def _running(self) -> VirtualReactor:
        if self._reactor is None:
            raise UsageError("the apps are not running: use TestApp in a with block, as in `with TestApp(app) as t:`")
        return self._reactor

    def _wall(self) -> float:
        return self._began + (self._reactor.seconds() if self._reactor else 0)

    def _observe(self, error: BaseException, hooked: bool) -> None:
        self.failures.append(error)
        if not hooked:
            self._unraised.append(error)

    def _result(self, function: Callable[..., Any], result: Any) -> None:
        self._results.setdefault(identity(function), []).append(result)

    def _raise(self) -> None:
        errors, self._unraised = self._unraised, []
        kinds = (SystemExit, KeyboardInterrupt) if self._raise_errors else KeyboardInterrupt
        ending = next((error for error in errors if isinstance(error, kinds)), None)
        if ending is not None:
            raise ending
        if not errors or not self._raise_errors:
            return
        if len(errors) == 1:
            raise errors[0]
        raise BaseExceptionGroup("several handlers, timers or hooks failed", errors)


def _given_later(app: App) -> EndpointOptions:
    """Return endpoints for an app that gets its own later; none for other apps.

    Such an app has ``loop=False`` and no endpoints of its own. `TestApp` gives each side of the app an endpoint. These
    endpoints are not connected to each other.
    """
    if app.loop or app.compile().addresses.ends:
        return {}
    given: EndpointOptions = {}
    for side in SIDES:
        given[side.name] = (Endpoint(f"ipc://{side.name}", side.binds),)
    return given


def _in_its_form(plan: Plan, frames: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return a published message, parsed into topic and body if `Frames` are used."""
    wire = plan.choices.wire
    return wire.parser(plan.choices.max_message, plan.name)(frames) if isinstance(wire, Frames) else frames


def _named(frames: tuple[bytes, ...], peer: str | None) -> tuple[bytes, ...]:
    """Return the parts of a message that the peer with this key has sent."""
    return frames if peer is None else tuple(NamedFrame.of(frame, peer) for frame in frames)

"""`Routes`: the group that decorators record in.

A decorator is sugar over one plain method, reads the user's line, parses the pattern there, records, and
returns the function unchanged. Nothing is compiled here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, Unpack, overload

from zroute.declarations.options import (
    PUBLISHER_DEFAULTS,
    ROUTE_DEFAULTS,
    PublisherOptions,
    RouteOptions,
    complete,
    takes,
)
from zroute.declarations.records import ErrorHook, HandlerOptions, Producer, Resource, Route
from zroute.errors import AppFrozenError, PatternError, SignatureError
from zroute.functions import is_coroutine_function, is_generator_function, local_names, name_of, users_line
from zroute.messages.codecs import find_codec
from zroute.messages.topics import Pattern, parse, startswith
from zroute.options import BATCH_MAX, COALESCED_MAX, ROUTE_QUEUE
from zroute.publishing.publication import Coalesce, Publication, Schedule

__all__ = ["Routes", "coalescing", "joined", "make_route", "parse_patterns"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Routes:
    """A group of handlers and publishers, to `include` in an app or in another group.

    ``prefix`` is put before each pattern of the group with a dot; it may hold captures, as in
    ``"desk.{room}"``. An `App` is the outermost group.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.where = users_line()
        if prefix:
            parse_patterns((prefix,), self.where)
        self._routes: list[Route] = []
        self._resources: list[Resource] = []
        self._publications: list[Publication[Any]] = []
        self._producers: list[Producer] = []
        self._errors: list[ErrorHook] = []
        self._included: list[tuple[str, Routes]] = []
        self._frozen_by: str | None = None

    # -- subscribing ----------------------------------------------------------------------------------

    @takes(RouteOptions, ROUTE_DEFAULTS)
    def subscribe(self, *patterns: str | Pattern, **options: Unpack[RouteOptions]) -> Callable[[F], F]:
        """Call the decorated function with each message whose topic matches one of ``patterns``.

        With ``batch=100`` it is given lists of up to 100 messages. Sugar over `add_route`, which says what the
        arguments mean.
        """
        chosen = complete("subscribe", options, ROUTE_DEFAULTS)
        parsed = parse_patterns(patterns, users_line())

        def register(function: F) -> F:
            self._add_route(make_route(function, parsed, chosen, users_line(function)))
            return function

        return register

    @takes(RouteOptions, ROUTE_DEFAULTS)
    def add_route(
        self, function: Callable[..., Any], *patterns: str | Pattern, **options: Unpack[RouteOptions]
    ) -> Route:
        """Register ``function`` for ``patterns``: what ``@subscribe`` does.

        One message calls one function at most once, by its most specific pattern. ``codec`` says how bodies
        are written whose publisher does not say it (default: the app's). Handlers of one type share the
        decoded object; ``copy=True`` decodes once more, for a handler that changes it. ``thread=True`` runs
        a plain function in the reactor's thread pool; see `App.from_thread` for what it may do there.

        The rest is for functions that are unfinished when they return: ``async`` ones, those that return a
        Deferred, and those in threads. Messages of one topic are handled one after the other, unless
        ``ordered=False``, those of different topics side by side, up to ``max_in_flight`` at a time
        (default 100). ``queue`` messages may wait (default 1,000, or four lists of ``batch`` where that is more); then
        the app reads no more from its sockets until half of them are handled, and says which route it waits for.

        A message that was sent more than ``stale_after`` seconds ago when its turn has come is not handled but
        counted as ``stale`` (default: none is). That compares the clocks of two hosts, which must agree better than
        that; a message from the future is handled, and counted under ``negative_ages``. Only tracked messages say when
        they were sent.

        With ``batch`` (1 to 10,000) the function is given lists of up to so many messages: its parameter is a
        ``list[T]``, and each message is decoded as T, so that one that is broken costs itself only. A list holds what
        has been received so far. It is handed over when it is full, when nothing more waits to be read, and after
        10 ms of a flood; behind a call that is unfinished it grows on. No list is empty. Where the function takes a
        capture or the topic, or what it returns is published to a topic with one of the captures, each list is of
        one topic; else lists are of all topics, in order of arrival, and one is handled at a time unless
        ``ordered=False``. All counters and ``queue``, which is no less than ``batch``, are of messages,
        ``max_in_flight`` is of calls; an error counts for all messages of its list, and on_error is called once, with
        the envelope of the first.

        Raises PatternError, SchemaError for an unknown codec, SignatureError for what is no function or a
        bound below 1, and AppFrozenError after the app was compiled. What else may be wrong with the
        function shows when the app is compiled.
        """
        chosen = complete("add_route", options, ROUTE_DEFAULTS)
        where = users_line(function)
        route = make_route(function, parse_patterns(patterns, where), chosen, where)
        self._add_route(route)
        return route

    def _add_route(self, route: Route) -> None:
        self._check_open(f"subscribe({route.patterns[0].text!r})", route.where)
        self._routes.append(route)

    # -- resources ------------------------------------------------------------------------------------

    def resource(self, function: F) -> F:
        """Open what handlers need with the decorated generator function, and give it to them by its type.

        The function, plain or ``async``, yields one object, and closes it in what follows the ``yield``:

            @app.resource
            def database() -> Iterator[Database]:
                database = Database.open("quotes.db")
                yield database
                database.close()

        Handlers, timers, publishers, hooks and other resources with a parameter of the yielded type get the
        object. Resources open in the order in which they need each other, before the sockets, and close in
        reverse when the last message is handled; those that are open are also closed when a later one
        fails, which ends the start. Which type it is, is read from the annotation.

        Raises AppFrozenError, and SignatureError for what is no generator function; that it yields no type
        of its own, a type that another resource yields, or that resources need each other in a circle,
        shows when the app is compiled.
        """
        where = users_line(function)
        self._check_open("resource", where)
        _check_callable(function, "resource", where)
        if not is_generator_function(function):
            raise SignatureError(
                f"resource decorates a generator function, and {name_of(function)} yields nothing: open, yield once, "
                "close",
                where=where,
            )
        self._resources.append(Resource(function, where, local_names(function)))
        return function

    # -- publishing -----------------------------------------------------------------------------------

    @overload
    def publisher(self, pattern: str, schema: type[T], **options: Unpack[PublisherOptions]) -> Publication[T]: ...

    @overload
    def publisher(self, pattern: str, schema: Any = None, **options: Unpack[PublisherOptions]) -> Publication[Any]: ...

    @takes(PublisherOptions, PUBLISHER_DEFAULTS)
    def publisher(self, pattern: str, schema: Any = None, **options: Unpack[PublisherOptions]) -> Publication[Any]:
        """A publication to topics of ``pattern``: publish to it, or decorate a function with it.

        As a decorator it returns the function unchanged, and publishes:

        - each ``every`` seconds what the function returns, or the next value of a generator, made once;
        - without ``every``, what a generator yields, as fast as the app can take it;
        - without ``every`` and under ``subscribe`` too, what the handler returns or yields for each message.

        None publishes nothing, and a list is one message. A return annotation that can't be of ``schema`` is refused
        when the app is compiled, and so is a capture that nothing fills. ``pattern`` has no ``*`` or ``>``; its
        captures are filled at each publish. ``schema`` is the type of the messages (default: what a decorated
        function's return annotation says, else each message's own type), ``codec`` how they are written
        (default: the app's). ``jitter`` spreads each period by up to that fraction of it (0 to 1), and
        ``initial_delay`` seconds pass before the first. With ``keep="last"`` a subscriber that joins gets the latest
        message of each topic, before newer ones of it (tracked wire; in memory, of up to 100,000 topics).

        With ``coalesce=True`` messages of one topic that are published in one turn of the reactor travel in one frame,
        which costs both sides a fraction; `Coalesce` says how many, and for how long they may be held (default: as
        the app has it). To handlers they are single messages. A message of over 64,000 bytes, one with headers and
        those of the other two wires always travel alone.

        Raises PatternError, SchemaError for an unknown codec, SignatureError for a period that is no positive
        number, for ``jitter`` or ``initial_delay`` without ``every``, or another ``coalesce``, and AppFrozenError.
        """
        chosen = complete("publisher", options, PUBLISHER_DEFAULTS)
        every, codec, keep, coalesce = chosen["every"], chosen["codec"], chosen["keep"], chosen["coalesce"]
        where = users_line()
        self._check_open(f"publisher({pattern!r})", where)
        parsed = parse_patterns((pattern,), where)[0]
        if not parsed.is_template:
            raise PatternError(
                f"a publisher's pattern names its topics, and {parsed.text!r} stands for many: "
                "write a capture such as {name} where the topic varies",
                pattern=pattern,
                where=where,
            )
        if keep not in (None, "last"):
            raise SignatureError(f"keep={keep!r}: 'last' or None", parameter="keep", where=where)
        schedule = _schedule(every, chosen["jitter"], chosen["initial_delay"], where) if every is not None else None

        def register(publication: Publication[Any], function: Callable[..., Any]) -> None:
            where = users_line(function)
            self._check_open(f"publisher({pattern!r})", where)
            _check_callable(function, "publisher", where)
            names = local_names(function)
            self._producers.append(Producer(function, publication, schedule, where, names))

        found = find_codec(codec) if codec is not None else None
        together = None if coalesce is None else coalescing(coalesce, where)
        publication: Publication[Any] = Publication(parsed, schema, found, schedule, keep, together, where, register)
        self._publications.append(publication)
        return publication

    def every(self, period: float, *, jitter: float = 0.0, initial_delay: float = 0.0) -> Callable[[F], F]:
        """Call the decorated function each ``period`` seconds while the app runs, whatever it returns.

        For a function that publishes to several topics by itself; see `publisher` for ``jitter`` and
        ``initial_delay``. Periods never overlap: those missed are skipped and counted. An exception is
        logged and does not end the schedule.
        """
        where = users_line()
        schedule = _schedule(period, jitter, initial_delay, where)

        def register(function: F) -> F:
            where = users_line(function)
            self._check_open(f"every({period!r})", where)
            _check_callable(function, "every", where)
            names = local_names(function)
            self._producers.append(Producer(function, None, schedule, where, names))
            return function

        return register

    # -- errors and groups ----------------------------------------------------------------------------

    def on_error(self, *kinds: type[BaseException]) -> Callable[[F], F]:
        """Call the decorated function with ``(error, envelope)`` when a handler of this group fails.

        Without ``kinds``, for every Exception. The nearest by the error's class hierarchy is called, of the
        innermost group that has one. `DecodeError` and `EnvelopeError` reach it too (dead letters). The
        error has been counted and logged by then. The function may be ``async``.
        """
        where = users_line()
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise SignatureError(
                    f"on_error takes exception classes, not {name_of(kind) if callable(kind) else repr(kind)}: write "
                    "@app.on_error(ValueError), or @app.on_error() for all",
                    where=where,
                )

        def register(function: F) -> F:
            where = users_line(function)
            self._check_open("on_error", where)
            _check_callable(function, "on_error", where)
            names = local_names(function)
            self._errors.append(ErrorHook(function, where, names, kinds or (Exception,)))
            return function

        return register

    def include(self, routes: Routes, *, prefix: str = "") -> None:
        """Make ``routes`` part of this group, behind ``prefix`` and its own prefix.

        A reference is kept: what is registered in ``routes`` afterwards, until the app is compiled, belongs
        to it too. Raises SignatureError for what is no group, or one that would contain itself.
        """
        where = users_line()
        self._check_open("include", where)
        if not isinstance(routes, Routes):
            raise SignatureError(f"include takes a zroute.Routes, not {routes!r}", where=where)
        if self in routes._groups():
            raise SignatureError("a group can't include itself", where=where)
        if prefix:
            parse_patterns((prefix,), where)
        self._included.append((prefix, routes))

    @property
    def _holds_anything(self) -> bool:
        """True if a handler, publisher, timer or resource is registered here."""
        return bool(self._routes or self._publications or self._producers or self._resources)

    def _groups(self) -> Iterator[Routes]:
        yield self
        for _, routes in self._included:
            yield from routes._groups()

    def _walk(
        self, prefix: str = "", errors: tuple[Routes, ...] = ()
    ) -> Iterator[tuple[str, Routes, tuple[Routes, ...]]]:
        """Each group with its whole prefix and the chain of groups that hold it, the innermost first."""
        here = ".".join(part for part in (prefix, self.prefix) if part)
        chain = (self, *errors)
        yield here, self, chain
        for outer, routes in self._included:
            yield from routes._walk(".".join(part for part in (here, outer) if part), chain)

    def _freeze(self, by: str) -> None:
        for group in self._groups():
            group._frozen_by = by

    def _check_open(self, what: str, where: str) -> None:
        if self._frozen_by:
            raise AppFrozenError(
                f"{what} comes too late: {self._frozen_by} is compiled already; register before it starts, or use "
                "app.attach for what comes and goes",
                where=where,
            )


def make_route(function: Callable[..., Any], patterns: tuple[Pattern, ...], options: RouteOptions, where: str) -> Route:
    """The record of a handler, while it is being registered with all ``options``; raises as `Routes.add_route`."""
    _check_callable(function, "subscribe", where)
    codec, queue, stale_after, batch = options["codec"], options["queue"], options["stale_after"], options["batch"]
    if batch is not None:
        _check_batch(batch, queue, where)
    if queue is None:  # with room for two lists the one would always wait for half of the other
        queue = max(ROUTE_QUEUE, 4 * (batch or 0))
    for name, bound in (("max_in_flight", options["max_in_flight"]), ("queue", queue)):
        if not (isinstance(bound, int) and bound >= 1):
            raise SignatureError(f"{name}={bound!r}: a number of messages, 1 or more", parameter=name, where=where)
    if stale_after is not None and not (isinstance(stale_after, int | float) and stale_after > 0):
        text = f"stale_after={stale_after!r}: a number of seconds, more than 0"
        raise SignatureError(text, parameter="stale_after", where=where)
    if options["thread"] and (is_coroutine_function(function) or is_generator_function(function)):
        raise SignatureError(
            f"{name_of(function)} can't run in a thread: thread=True is for plain functions that block; leave it out, "
            "or the async and the yield",
            parameter="thread",
            where=where,
        )
    found = find_codec(codec) if codec is not None else None
    checked: dict[str, Any] = {**options, "codec": found, "queue": queue}
    return Route(function, patterns, HandlerOptions(**checked), where, local_names(function))


def joined(prefix: str, pattern: Pattern) -> Pattern:
    """``pattern`` behind ``prefix`` and a dot. Raises PatternError where the two make no pattern."""
    if not prefix:
        return pattern
    if pattern.kind == "prefix":
        if not parse(prefix).is_concrete:
            raise PatternError(
                f"{pattern.text} can't stand behind the prefix {prefix!r}, which is not the same bytes in each topic: "
                "write the pattern with '>', or a prefix without wildcards and captures",
                pattern=pattern.text,
            )
        return startswith(f"{prefix}.".encode() + (pattern.prefix or b""))
    return parse(f"{prefix}.{pattern.text}")


def parse_patterns(patterns: tuple[str | Pattern, ...], where: str) -> tuple[Pattern, ...]:
    """The patterns of one route. Raises PatternError, with the user's line."""
    if not patterns:
        raise PatternError("subscribe needs a pattern, as in @app.subscribe('news.*')", pattern=None, where=where)
    if callable(patterns[0]):
        raise PatternError(
            "subscribe needs a pattern: write @app.subscribe('news.*'), with parentheses", pattern=None, where=where
        )
    try:
        parsed = tuple(parse(pattern) for pattern in patterns)
    except PatternError as error:
        raise PatternError(str(error), pattern=error.pattern, where=where) from None
    names = set(parsed[0].captures)
    for pattern in parsed[1:]:
        if set(pattern.captures) != names:
            raise PatternError(
                f"the patterns of one route capture the same names, and {parsed[0].text!r} and {pattern.text!r} "
                "do not: use two decorators, or give both the same captures",
                pattern=pattern.text,
                where=where,
            )
    return parsed


def _check_batch(batch: Any, queue: Any, where: str) -> None:
    if not (isinstance(batch, int) and not isinstance(batch, bool) and 1 <= batch <= BATCH_MAX):
        fault = f"batch={batch!r}: a number of messages, from 1 to {BATCH_MAX:,}"
        raise SignatureError(fault, parameter="batch", where=where)
    if isinstance(queue, int) and batch > queue:
        raise SignatureError(
            f"batch={batch} with queue={queue}: what is in a list waits, so none would be that long; give "
            f"queue={batch} or more",
            parameter="batch",
            where=where,
        )


def _check_callable(function: Any, decorator: str, where: str) -> None:
    if not callable(function):
        raise SignatureError(f"{decorator} decorates a function, not {function!r}", where=where)
    if inspect.isclass(function):
        raise SignatureError(
            f"{decorator} decorates a function, not the class {name_of(function)[:-2]}: "
            "decorate a method of an instance",
            where=where,
        )


def coalescing(coalesce: Any, where: str) -> Coalesce | Literal[False]:
    """What was given, checked: how messages travel together, or False."""
    fault = None
    if not isinstance(coalesce, Coalesce | bool):
        fault = "True, False or Coalesce(seconds=…, messages=…)"
    elif isinstance(coalesce, Coalesce) and not (type(coalesce.seconds) in (int, float) and 0 <= coalesce.seconds <= 1):
        fault = "messages are held for 0 seconds, which is one turn of the reactor, to 1"
    elif isinstance(coalesce, Coalesce) and coalesce.messages not in range(2, COALESCED_MAX + 1):
        fault = f"2 to {COALESCED_MAX:,} messages travel together"
    if fault is not None:
        raise SignatureError(f"coalesce={coalesce!r}: {fault}", parameter="coalesce", where=where)
    return Coalesce() if coalesce is True else coalesce


def _schedule(every: float, jitter: float, initial_delay: float, where: str) -> Schedule:
    if not (isinstance(every, int | float) and math.isfinite(every) and every > 0):
        fault = f"every={every!r}: a period is a positive number of seconds"
        raise SignatureError(fault, parameter="every", where=where)
    if not 0 <= jitter <= 1:
        fault = f"jitter={jitter!r}: a fraction of the period, from 0 to 1"
        raise SignatureError(fault, parameter="jitter", where=where)
    if not (math.isfinite(initial_delay) and initial_delay >= 0):
        fault = f"initial_delay={initial_delay!r}: seconds, 0 or more"
        raise SignatureError(fault, parameter="initial_delay", where=where)
    return Schedule(float(every), jitter, initial_delay)

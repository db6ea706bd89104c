"""`Routes`, a group of handlers and publishers, and its decorators.

A decorator checks its arguments, records the function with the user's line (``file:line``), and returns the function
unchanged. Errors in arguments are raised at that line. Signatures are checked later, when the app is compiled, because
types and groups may be defined after the decorator.
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
    """A group of handlers and publishers that an app or another group can `include`.

    An `App` is the outermost group.

    Example:
        ```python
        desks = Routes("desk.{room}")

        @desks.subscribe("orders")  # the topics desk.{room}.orders
        def on_order(order: Order, room: str) -> None: ...

        app.include(desks)
        ```

    Args:
        prefix: Segments that precede each pattern of the group, joined by a dot. It may contain captures.

    Raises:
        PatternError: The prefix is not a valid pattern.
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
        """Call the decorated function for each message whose topic matches.

        `add_route` explains the options and does the same without a decorator.

        Example:
            ```python
            @app.subscribe("stocks.{symbol}")
            def on_quote(quote: Quote, symbol: str) -> None: ...
            ```

        Args:
            patterns: One or more patterns with the same captures.
            options: The options of `add_route`.

        Raises:
            PatternError: A pattern is invalid, or the patterns have different captures.
            SchemaError: The codec is unknown.
            SignatureError: The decorated object is not a function, or an option is out of range.
            AppFrozenError: The app is already compiled.
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
        """Register ``function`` for ``patterns``, as ``@subscribe`` does.

        A message calls a function at most once, by its most specific pattern. Errors in the function's signature are
        raised when the app is compiled.

        ``ordered``, ``max_in_flight`` and ``queue`` concern functions that return before they have finished: ``async``
        functions, functions that return a Deferred, and functions in threads.

        **Batches.** With ``batch`` the function receives lists of messages, and its parameter is a ``list[T]``. Each
        message is decoded as T separately, so an invalid message does not affect the others. Lists are never empty.
        The function is called when a list is full, when no further message waits to be read, and after 10 ms of
        continuous reading. While a call is unfinished, the next list keeps growing.

        A list has messages of a single topic if the function has a parameter for the topic or a capture, or if its
        results are published to a topic with one of the captures. Otherwise a list has messages of all topics in order
        of arrival, and one list is handled at a time unless ``ordered=False``. Counters and ``queue`` count messages;
        ``max_in_flight`` counts calls. An error counts for all messages of its list, and ``on_error`` is called once
        with the envelope of the first message.

        Example:
            ```python
            app.add_route(store.on_quote, "stocks.{symbol}", max_in_flight=10)
            ```

        Args:
            function: The handler: a plain or ``async`` function, a bound method, or another callable.
            patterns: One or more patterns with the same captures.

        Keyword Args:
            codec: The codec for bodies whose publisher does not name one. Default: the app's codec.
            copy: True to decode a separate object for a handler that modifies it. By default handlers with the same
                type share one object.
            thread: True to run a plain, blocking function in the reactor's thread pool. `App.from_thread` explains
                how it can publish there.
            max_in_flight: The maximum number of unfinished calls at a time (default 100).
            ordered: False to handle messages of the same topic concurrently. By default they are handled one after
                the other; messages of different topics are always handled concurrently.
            queue: The maximum number of waiting messages (default 1,000, or four times ``batch`` if that is more; at
                least ``batch``). When the queue is full, the app logs the route and stops reading from its sockets
                until half of the messages are handled.
            stale_after: The maximum age in seconds (default: no limit). An older message is skipped when its turn
                comes, and is counted as ``stale``. The age compares the clocks of two hosts, so they must agree to
                less than this time. A message from the future is handled and counted under ``negative_ages``. Only
                messages of the tracked wire have a time.
            batch: The maximum number of messages in a list, 1 to 10,000 (default: single messages).

        Raises:
            PatternError: A pattern is invalid, or the patterns have different captures.
            SchemaError: The codec is unknown.
            SignatureError: ``function`` is not a function, or an option is out of range.
            AppFrozenError: The app is already compiled.
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
        """Provide an object by its type to handlers and other functions.

        The decorated generator function, plain or ``async``, opens an object, yields it once, and closes it after the
        ``yield``. The return annotation declares the type. Handlers, timers, publishers, hooks and other resources
        receive the object in a parameter of that type.

        Resources open in dependency order, before the sockets. They close in reverse order after the last message is
        handled. If a resource fails to open, the app does not start, and the resources that are already open are
        closed.

        Compiling the app raises SignatureError if the type is missing or too general, if two resources yield the same
        type, or if resources need each other in a circle.

        Example:
            ```python
            @app.resource
            def database() -> Iterator[Database]:
                database = Database.open("quotes.db")
                yield database
                database.close()
            ```

        Args:
            function: A generator function that yields once.

        Raises:
            SignatureError: ``function`` is not a generator function.
            AppFrozenError: The app is already compiled.
        """
        where = users_line(function)
        self._check_open("resource", where)
        _check_callable(function, "resource", where)
        if not is_generator_function(function):
            raise SignatureError(
                f"resource decorates a generator function, but {name_of(function)} yields nothing: open, yield once, "
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
        """Return a publication, to publish with or to use as a decorator.

        As a decorator it returns the function unchanged and publishes:

        - with ``every``: the result of a call each period, or the next value of a generator, which is created once;
        - without ``every``: the values of a generator, as fast as the app can send them;
        - together with ``subscribe``: the result, or each yielded value, of the handler for each message.

        None publishes nothing. A list is published as one message. Compiling the app raises SignatureError if the
        return annotation contradicts ``schema``, and PatternError if nothing fills a capture of ``pattern``.

        Example:
            ```python
            alerts = app.publisher("alerts.{level}", str)

            @app.publisher("beat", every=1.0)
            def beat() -> int:
                alerts.publish("alive", level="low")
                return 1
            ```

        Args:
            pattern: The topic, without ``*`` and ``>``. Captures are filled at each publish.
            schema: The type of the messages. Default: the type that the decorated function's return annotation
                declares, or else the type of each message.

        Keyword Args:
            every: The period in seconds between calls of the decorated function (default: no timer).
            codec: The codec of the messages. Default: the app's codec.
            jitter: The random variation of each period as a fraction of it, 0 to 1 (default 0); requires ``every``.
            initial_delay: The delay in seconds before the first call (default 0); requires ``every``.
            keep: With ``"last"``, a new subscriber receives the latest message of each topic before newer messages of
                that topic. This needs the tracked wire. Up to 100,000 topics are kept, in memory (default None).
            coalesce: True to send messages of one topic that are published in one turn of the reactor together in one
                frame, which reduces the cost on both sides. `Coalesce` sets the number and the delay (default: the
                app's ``coalesce``). Handlers still receive single messages. A message over 64,000 bytes, a message
                with headers and a message on another wire than "tracked" is always sent separately.

        Raises:
            PatternError: ``pattern`` is invalid, or has a wildcard.
            SchemaError: The codec is unknown.
            SignatureError: An option is out of range, or requires another option.
            AppFrozenError: The app is already compiled.
        """
        chosen = complete("publisher", options, PUBLISHER_DEFAULTS)
        every, codec, keep, coalesce = chosen["every"], chosen["codec"], chosen["keep"], chosen["coalesce"]
        where = users_line()
        self._check_open(f"publisher({pattern!r})", where)
        parsed = parse_patterns((pattern,), where)[0]
        if not parsed.is_template:
            raise PatternError(
                f"a publisher's pattern can't have a wildcard, and {parsed.text!r} stands for many topics: "
                "write a capture such as {name} for the part that varies",
                pattern=pattern,
                where=where,
            )
        if keep not in (None, "last"):
            raise SignatureError(f"keep={keep!r}: expected 'last' or None", parameter="keep", where=where)
        schedule = _schedule(every, chosen["jitter"], chosen["initial_delay"], where) if every is not None else None

        def register(publication: Publication[Any], function: Callable[..., Any]) -> None:
            where = users_line(function)
            self._check_open(f"publisher({pattern!r})", where)
            _check_callable(function, "publisher", where)
            names = local_names(function)
            self._producers.append(Producer(function, publication, schedule, where, names))

        # None means "as the app": the app that includes this group may not exist yet.
        found = find_codec(codec) if codec is not None else None
        together = None if coalesce is None else coalescing(coalesce, where)
        publication: Publication[Any] = Publication(parsed, schema, found, schedule, keep, together, where, register)
        self._publications.append(publication)
        return publication

    def every(self, period: float, *, jitter: float = 0.0, initial_delay: float = 0.0) -> Callable[[F], F]:
        """Call the decorated function every ``period`` seconds while the app runs.

        Its results are ignored. Use this for a function that publishes to several topics, or that publishes nothing.
        Calls never overlap: a period that passes during a call is skipped and counted. An exception is logged and
        does not end the schedule.

        Example:
            ```python
            @app.every(60.0)
            def clean_up(database: Database) -> None:
                database.delete_old_rows()
            ```

        Args:
            period: Seconds between calls, more than 0.
            jitter: The random variation of each period as a fraction of it, 0 to 1.
            initial_delay: The delay in seconds before the first call.

        Raises:
            SignatureError: An argument is out of range, or the decorated object is not a function.
            AppFrozenError: The app is already compiled.
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
        """Call the decorated function when a handler of this group fails.

        The arguments are the error and the envelope of the message. Messages that cannot be read (dead letters) reach
        it too, as `DecodeError` or `EnvelopeError`. zroute has already counted and logged the error. The function may
        be ``async``.

        Only one function is called for an error. It is found in the innermost group that has a function for the
        error's class. Within a group, the function for the most specific class is called.

        Example:
            ```python
            @app.on_error(ValueError)
            def on_bad_value(error: ValueError, envelope: Envelope) -> None:
                rejected.append(envelope.topic)
            ```

        Args:
            kinds: The exception classes. Default: every Exception.

        Raises:
            SignatureError: An argument is not an exception class, or the decorated object is not a function.
            AppFrozenError: The app is already compiled.
        """
        where = users_line()
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise SignatureError(
                    f"on_error takes exception classes, not {name_of(kind) if callable(kind) else repr(kind)}: write "
                    "@app.on_error(ValueError), or @app.on_error() for all exceptions",
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
        """Add the handlers and publishers of ``routes`` to this group.

        Their patterns follow ``prefix`` and the prefix of ``routes``. Functions registered in ``routes`` later are
        included too, until the app is compiled. A group may be included several times under different prefixes.

        Example:
            ```python
            app.include(desks, prefix="london")
            ```

        Args:
            routes: The group to include.
            prefix: Segments that precede each pattern of ``routes``, joined by a dot.

        Raises:
            SignatureError: ``routes`` is not a group, or it contains this group.
            PatternError: The prefix is not a valid pattern.
            AppFrozenError: The app is already compiled.
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
        """True if a handler, publisher, timer or resource is registered in this group."""
        return bool(self._routes or self._publications or self._producers or self._resources)

    def _groups(self) -> Iterator[Routes]:
        yield self
        for _, routes in self._included:
            yield from routes._groups()

    def _walk(
        self, prefix: str = "", errors: tuple[Routes, ...] = ()
    ) -> Iterator[tuple[str, Routes, tuple[Routes, ...]]]:
        """Yield each group with its whole prefix and its chain of groups.

        The chain starts with the group itself and ends with the outermost group.
        """
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
                f"{what} comes too late: {self._frozen_by} is already compiled; register before it starts, or use "
                "app.attach while it runs",
                where=where,
            )


def make_route(function: Callable[..., Any], patterns: tuple[Pattern, ...], options: RouteOptions, where: str) -> Route:
    """Check the complete ``options`` of a handler and return its record.

    Raises the errors of `Routes.add_route`.
    """
    _check_callable(function, "subscribe", where)
    codec, queue, stale_after, batch = options["codec"], options["queue"], options["stale_after"], options["batch"]
    if batch is not None:
        _check_batch(batch, queue, where)
    if queue is None:  # room for two lists only would let each wait for half of the other
        queue = max(ROUTE_QUEUE, 4 * (batch or 0))
    for name, bound in (("max_in_flight", options["max_in_flight"]), ("queue", queue)):
        if not (isinstance(bound, int) and bound >= 1):
            raise SignatureError(
                f"{name}={bound!r}: expected a number of messages, 1 or more", parameter=name, where=where
            )
    if stale_after is not None and not (isinstance(stale_after, int | float) and stale_after > 0):
        text = f"stale_after={stale_after!r}: expected a number of seconds, more than 0"
        raise SignatureError(text, parameter="stale_after", where=where)
    if options["thread"] and (is_coroutine_function(function) or is_generator_function(function)):
        raise SignatureError(
            f"{name_of(function)} can't run in a thread: thread=True is for plain functions that block; remove it, "
            "or remove async and yield",
            parameter="thread",
            where=where,
        )
    found = find_codec(codec) if codec is not None else None
    checked: dict[str, Any] = {**options, "codec": found, "queue": queue}
    return Route(function, patterns, HandlerOptions(**checked), where, local_names(function))


def joined(prefix: str, pattern: Pattern) -> Pattern:
    """Return the pattern that joins ``prefix`` and ``pattern`` by a dot.

    Raises:
        PatternError: The result is not a valid pattern.
    """
    if not prefix:
        return pattern
    if pattern.kind == "prefix":
        if not parse(prefix).is_concrete:
            raise PatternError(
                f"{pattern.text} can't follow the prefix {prefix!r}, which varies from topic to topic: "
                "write the pattern with '>', or use a prefix without wildcards and captures",
                pattern=pattern.text,
            )
        return startswith(f"{prefix}.".encode() + (pattern.prefix or b""))
    return parse(f"{prefix}.{pattern.text}")


def parse_patterns(patterns: tuple[str | Pattern, ...], where: str) -> tuple[Pattern, ...]:
    """Parse the patterns of one route.

    Raises:
        PatternError: A pattern is missing or invalid, or the patterns have different captures. It names ``where``,
            the user's line.
    """
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
                f"the patterns of one route must capture the same names, but {parsed[0].text!r} and {pattern.text!r} "
                "do not: use two decorators, or give both the same captures",
                pattern=pattern.text,
                where=where,
            )
    return parsed


def _check_batch(batch: Any, queue: Any, where: str) -> None:
    if not (isinstance(batch, int) and not isinstance(batch, bool) and 1 <= batch <= BATCH_MAX):
        fault = f"batch={batch!r}: expected a number of messages, from 1 to {BATCH_MAX:,}"
        raise SignatureError(fault, parameter="batch", where=where)
    if isinstance(queue, int) and batch > queue:
        raise SignatureError(
            f"batch={batch} with queue={queue}: the queue holds the messages of a list, so no list would be that long; "
            f"use queue={batch} or more",
            parameter="batch",
            where=where,
        )


def _check_callable(function: Any, decorator: str, where: str) -> None:
    if not callable(function):
        raise SignatureError(f"{decorator} decorates a function, not {function!r}", where=where)
    # A class is callable, but as a decorator's target it is almost always a mistake.
    if inspect.isclass(function):
        raise SignatureError(
            f"{decorator} decorates a function, not the class {name_of(function)[:-2]}: "
            "decorate a method of an instance",
            where=where,
        )


def coalescing(coalesce: Any, where: str) -> Coalesce | Literal[False]:
    """Return the checked value of ``coalesce``: a `Coalesce`, or False.

    Raises:
        SignatureError: It is none of True, False and a `Coalesce` with values in range.
    """
    fault = None
    if not isinstance(coalesce, Coalesce | bool):
        fault = "expected True, False or Coalesce(seconds=…, messages=…)"
    elif isinstance(coalesce, Coalesce) and not (type(coalesce.seconds) in (int, float) and 0 <= coalesce.seconds <= 1):
        fault = "expected 0 to 1 seconds; 0 holds messages for one turn of the reactor"
    elif isinstance(coalesce, Coalesce) and coalesce.messages not in range(2, COALESCED_MAX + 1):
        fault = f"expected 2 to {COALESCED_MAX:,} messages"
    if fault is not None:
        raise SignatureError(f"coalesce={coalesce!r}: {fault}", parameter="coalesce", where=where)
    return Coalesce() if coalesce is True else coalesce


def _schedule(every: float, jitter: float, initial_delay: float, where: str) -> Schedule:
    if not (isinstance(every, int | float) and math.isfinite(every) and every > 0):
        fault = f"every={every!r}: expected a positive number of seconds"
        raise SignatureError(fault, parameter="every", where=where)
    if not 0 <= jitter <= 1:
        fault = f"jitter={jitter!r}: expected a fraction of the period, from 0 to 1"
        raise SignatureError(fault, parameter="jitter", where=where)
    if not (math.isfinite(initial_delay) and initial_delay >= 0):
        fault = f"initial_delay={initial_delay!r}: expected 0 seconds or more"
        raise SignatureError(fault, parameter="initial_delay", where=where)
    return Schedule(float(every), jitter, initial_delay)

"""What decorators record: `Route`, timers, producers, hooks, and `Routes`, the group that holds them.

A decorator is sugar over one plain method, reads the user's line, parses the pattern there, records, and
returns the function unchanged. Nothing is compiled here.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

import attrs

from zroute.errors import AppFrozenError, PatternError, SignatureError
from zroute.messages.codecs import Codec, find_codec
from zroute.messages.topics import Pattern, parse, startswith
from zroute.routing.parameters import name_of
from zroute.routing.publications import Publication, Schedule

__all__ = ["ErrorHook", "Producer", "Route", "Routes", "caller", "joined"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@attrs.frozen(eq=False)
class Route:
    """A handler and the patterns it takes, as registered at ``where`` (``file:line``)."""

    function: Callable[..., Any]
    patterns: tuple[Pattern, ...]
    codec: Codec | None
    copy: bool
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class Producer:
    """A function under a publisher (``publication``) or under ``every`` alone (None)."""

    function: Callable[..., Any]
    publication: Publication[Any] | None
    schedule: Schedule | None
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class ErrorHook:
    """A function that is given errors of ``kinds`` with the envelope they were met in."""

    function: Callable[..., Any]
    kinds: tuple[type[BaseException], ...]
    where: str


class Routes:
    """A group of handlers and publishers, to `include` in an app or in another group.

    ``prefix`` is put before each pattern of the group with a dot; it may hold captures, as in
    ``"desk.{room}"``. An `App` is the outermost group.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        if prefix:
            _parse_all((prefix,), caller())
        self._routes: list[Route] = []
        self._publications: list[Publication[Any]] = []
        self._producers: list[Producer] = []
        self._errors: list[ErrorHook] = []
        self._included: list[tuple[str, Routes]] = []
        self._frozen_by: str | None = None

    # -- subscribing ----------------------------------------------------------------------------------

    def subscribe(
        self, *patterns: str | Pattern, codec: str | Codec | None = None, copy: bool = False
    ) -> Callable[[F], F]:
        """Call the decorated function with each message whose topic matches one of ``patterns``.

        Sugar over `add_route`, which says what the arguments mean.
        """
        where, namespace = _user()
        parsed = _parse_all(patterns, where)

        def register(function: F) -> F:
            self._add_route(function, parsed, codec, copy, where, namespace)
            return function

        return register

    def add_route(
        self,
        function: Callable[..., Any],
        *patterns: str | Pattern,
        codec: str | Codec | None = None,
        copy: bool = False,
    ) -> Route:
        """Register ``function`` for ``patterns``: what ``@subscribe`` does.

        One message calls one function at most once, by its most specific pattern. ``codec`` says how bodies
        are written whose publisher does not say it (default: the app's). Handlers of one type share the
        decoded object; ``copy=True`` decodes once more, for a handler that changes it.

        Raises PatternError, SchemaError for an unknown codec, SignatureError for what is no function, and
        AppFrozenError after the app was compiled. What else may be wrong with the function shows when the
        app is compiled.
        """
        where, namespace = _user()
        return self._add_route(function, _parse_all(patterns, where), codec, copy, where, namespace)

    def _add_route(
        self,
        function: Callable[..., Any],
        patterns: tuple[Pattern, ...],
        codec: str | Codec | None,
        copy: bool,
        where: str,
        namespace: Mapping[str, Any],
    ) -> Route:
        self._check_open(f"subscribe({patterns[0].text!r})", where)
        _check_callable(function, "subscribe", where)
        found = find_codec(codec) if codec is not None else None
        route = Route(function, patterns, found, copy, where, _local_names(function, namespace))
        self._routes.append(route)
        return route

    # -- publishing -----------------------------------------------------------------------------------

    @overload
    def publisher(
        self,
        pattern: str,
        schema: type[T],
        *,
        every: float | None = None,
        codec: str | Codec | None = None,
        jitter: float = 0.0,
        initial_delay: float = 0.0,
    ) -> Publication[T]: ...

    @overload
    def publisher(
        self,
        pattern: str,
        schema: Any = None,
        *,
        every: float | None = None,
        codec: str | Codec | None = None,
        jitter: float = 0.0,
        initial_delay: float = 0.0,
    ) -> Publication[Any]: ...

    def publisher(
        self,
        pattern: str,
        schema: Any = None,
        *,
        every: float | None = None,
        codec: str | Codec | None = None,
        jitter: float = 0.0,
        initial_delay: float = 0.0,
    ) -> Publication[Any]:
        """A publication to topics of ``pattern``: publish to it, or decorate a function with it.

        As a decorator it returns the function unchanged, and publishes:

        - each ``every`` seconds what the function returns, or the next value of a generator, made once;
        - without ``every``, what a generator yields, as fast as the app can take it;
        - without ``every`` and under ``subscribe`` too, what the handler returns or yields for each message.

        None publishes nothing, and a list is one message. ``pattern`` has no ``*`` or ``>``; its captures
        are filled at each publish. ``schema`` is the type of the messages (default: what a decorated
        function's return annotation says, else each message's own type), ``codec`` how they are written
        (default: the app's). ``jitter`` spreads each period by up to that fraction of it (0 to 1), and
        ``initial_delay`` seconds pass before the first.

        Raises PatternError, SchemaError for an unknown codec, SignatureError for a period that is no positive
        number, and AppFrozenError.
        """
        where, namespace = _user()
        self._check_open(f"publisher({pattern!r})", where)
        parsed = _parse_all((pattern,), where)[0]
        if not parsed.is_template:
            raise PatternError(
                f"a publisher's pattern names its topics, and {parsed.text!r} stands for many: "
                "write a capture such as {name} where the topic varies",
                pattern=pattern,
                where=where,
            )
        schedule = _schedule(every, jitter, initial_delay, where) if every is not None else None

        def register(publication: Publication[Any], function: Callable[..., Any]) -> None:
            self._check_open(f"publisher({pattern!r})", where)
            _check_callable(function, "publisher", where)
            names = _local_names(function, namespace)
            self._producers.append(Producer(function, publication, schedule, where, names))

        found = find_codec(codec) if codec is not None else None
        publication: Publication[Any] = Publication(parsed, schema, found, schedule, where, register)
        self._publications.append(publication)
        return publication

    def every(self, period: float, *, jitter: float = 0.0, initial_delay: float = 0.0) -> Callable[[F], F]:
        """Call the decorated function each ``period`` seconds while the app runs, whatever it returns.

        For a function that publishes to several topics by itself; see `publisher` for ``jitter`` and
        ``initial_delay``. Periods never overlap: those missed are skipped and counted. An exception is
        logged and does not end the schedule.
        """
        where, namespace = _user()
        schedule = _schedule(period, jitter, initial_delay, where)

        def register(function: F) -> F:
            self._check_open(f"every({period!r})", where)
            _check_callable(function, "every", where)
            self._producers.append(Producer(function, None, schedule, where, _local_names(function, namespace)))
            return function

        return register

    # -- errors and groups ----------------------------------------------------------------------------

    def on_error(self, *kinds: type[BaseException]) -> Callable[[F], F]:
        """Call the decorated function with ``(error, envelope)`` when a handler of this group fails.

        Without ``kinds``, for every Exception. The nearest by the error's class hierarchy is called, of the
        innermost group that has one. `DecodeError` and `EnvelopeError` reach it too (dead letters). The
        error has been counted and logged by then. The function may be ``async``.
        """
        where = caller()
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise SignatureError(
                    f"on_error takes exception classes, not {kind!r}: write @app.on_error(ValueError), or "
                    "@app.on_error() for all",
                    where=where,
                )

        def register(function: F) -> F:
            self._check_open("on_error", where)
            self._errors.append(ErrorHook(function, kinds or (Exception,), where))
            return function

        return register

    def include(self, routes: Routes, *, prefix: str = "") -> None:
        """Make ``routes`` part of this group, behind ``prefix`` and its own prefix.

        A reference is kept: what is registered in ``routes`` afterwards, until the app is compiled, belongs
        to it too. Raises SignatureError for what is no group, or one that would contain itself.
        """
        where = caller()
        self._check_open("include", where)
        if not isinstance(routes, Routes):
            raise SignatureError(f"include takes a zroute.Routes, not {routes!r}", where=where)
        if self in routes._groups():
            raise SignatureError("a group can't include itself", where=where)
        if prefix:
            _parse_all((prefix,), where)
        self._included.append((prefix, routes))

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
                f"{what} comes too late: {self._frozen_by} is compiled already; register before it starts", where=where
            )


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


# -- the user's line -------------------------------------------------------------------------------------


def _user() -> tuple[str, Mapping[str, Any]]:
    """``file:line`` and the local names of the caller of the method that calls this."""
    return caller(2), sys._getframe(2).f_locals


def caller(depth: int = 1) -> str:
    """``file:line`` of the code ``depth`` calls above the function that calls this."""
    frame = sys._getframe(depth + 1)
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"


def _short(filename: str) -> str:
    path = Path(filename)
    try:
        return str(path.relative_to(os.getcwd()))
    except ValueError:
        return filename


def _local_names(function: Callable[..., Any], namespace: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A copy of the local names for a function defined inside another: its annotations may mean them."""
    inner = function.func if isinstance(function, partial) else function
    if "<locals>" in getattr(inner, "__qualname__", "") or "<locals>" in type(inner).__qualname__:
        return dict(namespace)
    return None


def _parse_all(patterns: tuple[str | Pattern, ...], where: str) -> tuple[Pattern, ...]:
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


def _check_callable(function: Any, decorator: str, where: str) -> None:
    if not callable(function):
        raise SignatureError(f"{decorator} decorates a function, not {function!r}", where=where)
    if inspect.isclass(function):
        raise SignatureError(
            f"{decorator} decorates a function, not the class {name_of(function)[:-2]}: "
            "decorate a method of an instance",
            where=where,
        )


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

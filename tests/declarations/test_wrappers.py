"""Decorators without functools.wraps: hidden parameters are found at compile time."""
# ruff: noqa: D103  # the wrapped functions are explained by their names and parameters

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ParamSpec, TypedDict, TypeVar
from unittest.mock import Mock

import attrs
import pytest
from twisted.internet.defer import maybeDeferred

from tests.pure import Wired, plain
from zroute import App, Envelope, Gap, SignatureError, Topic
from zroute.declarations.wrappers import forwarded

P = ParamSpec("P")
R = TypeVar("R")


@attrs.frozen
class Quote:
    symbol: str


class Point(TypedDict):
    x: int


class Database: ...


def bare(function: Callable[..., Any]) -> Callable[..., Any]:
    """The usual decorator without functools.wraps."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        print("called with", args, kwargs)
        return function(*args, **kwargs)

    return wrapper


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """The same decorator with types."""

    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    return wrapper


def asynchronous(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator for coroutines."""

    async def wrapper(*a: Any, **kw: Any) -> Any:
        return await function(*a, **kw)

    return wrapper


def positional(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator without keyword arguments."""
    return lambda *args: function(*args)


def handing_over(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that passes the function to another function."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return maybeDeferred(function, *args, **kwargs)

    return wrapper


def optional(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator with an option."""

    def wrapper(*args: Any, retries: int = 3, **kwargs: Any) -> Any:
        return function(*args, **kwargs) or retries

    return wrapper


def reading(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that reads its arguments."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        symbol = kwargs["symbol"] if "symbol" in kwargs else kwargs.get("symbol")
        print(args[:1], symbol, len(kwargs), list(kwargs), *kwargs.keys(), *kwargs.values(), *kwargs.items())
        return function(*args, **kwargs)

    return wrapper


class Counting:
    """A decorator that is a class."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@attrs.frozen
class Slotted:
    """The same class with slots."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


DECORATORS = [bare, typed, asynchronous, positional, handing_over, optional, reading, Counting, Slotted]


def with_capture(quote: Any, symbol: str) -> None: ...
def with_envelope(envelope: Envelope) -> None: ...
def with_topic(quote: Any, topic: Topic) -> None: ...
def with_resource(quote: Any, database: Database) -> None: ...
def with_class(quote: Quote) -> None: ...
def with_optional_class(quote: Quote | None) -> None: ...
def with_classes(quotes: list[Quote]) -> None: ...
def keyword_only(*, quote: Any) -> None: ...
def with_two(quote: Any, other: Any) -> None: ...
def with_nothing() -> None: ...


HIDDEN = [
    with_capture,
    with_envelope,
    with_topic,
    with_resource,
    with_class,
    with_optional_class,
    with_classes,
    keyword_only,
    with_two,
    with_nothing,
]


def app_with(function: Any) -> App:
    """Return an app with a resource and the handler ``function``."""
    app = App()

    @app.resource
    def database() -> Iterator[Database]:
        yield Database()

    app.subscribe("quotes.{symbol}")(function)
    return app


@pytest.mark.parametrize("decorate", DECORATORS)
def test_a_wrapper_that_hides_a_capture_is_refused(decorate: Callable[..., Any]) -> None:
    """The error for a missing functools.wraps names the wrapper, the function and the line."""
    with pytest.raises(SignatureError, match=r"hides the parameters of with_capture\(quote, symbol\)") as caught:
        app_with(decorate(with_capture)).compile()
    assert decorate.__name__ in str(caught.value)
    assert "@functools.wraps" in str(caught.value)
    assert "tests/declarations/test_wrappers.py:" in str(caught.value)


@pytest.mark.parametrize("function", HIDDEN)
def test_whatever_zroute_would_have_filled_is_missed(function: Callable[..., Any]) -> None:
    """Hidden names, hidden types and parameters that do not fit the call are refused."""
    with pytest.raises(SignatureError, match=r"bare\.<locals>\.wrapper\(\) hides"):
        app_with(bare(function)).compile()


@pytest.mark.parametrize("wrap", [partial, bare, lambda inner: functools.wraps(inner)(bare(inner))])
def test_it_is_found_through_other_wrappers(wrap: Callable[..., Any]) -> None:
    """Wrappers are found behind partials and other wrappers."""
    function = wrap(bare(with_capture))
    with pytest.raises(SignatureError, match=r"bare\.<locals>\.wrapper\(\) hides the parameters of with_capture"):
        app_with(function).compile()


def test_it_is_found_in_a_method() -> None:
    """A wrapper of a bound method is found."""

    class Desk:
        @bare
        def on_quote(self, quote: Any, symbol: str) -> None: ...

        @bare
        def on_any(self, quote: Any) -> None:
            got.append(quote)

    got: list[Any] = []
    with pytest.raises(SignatureError, match=r"hides the parameters of .*on_quote\(quote, symbol\)"):
        app_with(Desk().on_quote).compile()
    Wired(app_with(Desk().on_any), {Database: None}).feed(plain("quotes.a", 5))
    assert got == [5]


def with_body(quote: Any) -> None: ...
def unannotated(quote): ...
def with_number(quote: int | None) -> None: ...
def with_rows(quote: list[dict[str, float]]) -> None: ...
def with_map(quote: Point) -> None: ...
def with_default(quote: Any, limit: int = 3) -> None: ...
def with_default_only(quote: object = None) -> None: ...


@pytest.mark.parametrize("decorate", DECORATORS)
@pytest.mark.parametrize(
    "function", [with_body, unannotated, with_number, with_rows, with_map, with_default, with_default_only]
)
def test_what_takes_just_a_body_works(decorate: Callable[..., Any], function: Callable[..., Any]) -> None:
    """A wrapper is accepted if functools.wraps would change nothing."""
    app_with(decorate(function)).compile()


def test_with_wraps_everything_is_filled() -> None:
    """With functools.wraps the handler is accepted."""
    got: list[Any] = []

    def on_quote(quote: Quote, symbol: str, database: Database) -> None:
        got.append((quote, symbol, database))

    Wired(app_with(functools.wraps(on_quote)(bare(on_quote))), {Database: "db"}).feed(
        plain("quotes.a", {"symbol": "A"})
    )
    assert got == [(Quote("A"), "a", "db")]


def test_a_wrapper_that_changes_the_arguments_is_left_alone() -> None:
    """A wrapper that changes its arguments is not checked."""

    def adding(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: function(*args, "symbol")

    def naming(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, symbol="A", **kwargs)

        return wrapper

    def converting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            args = (Quote(**args[0]), "A")
            return function(*args)

        return wrapper

    def injecting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            kwargs["symbol"] = "A"
            return function(*args, **kwargs)

        return wrapper

    def defaulting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("symbol", "A")
            return function(*args, **kwargs)

        return wrapper

    def removing(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            del kwargs["symbol"]
            return function(*args, **kwargs)

        return wrapper

    def updating(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            kwargs |= {"symbol": kwargs.get("symbol")}
            return function(*args, **kwargs)

        return wrapper

    def first_only(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: function(args[0], "A")

    for decorate in (adding, naming, converting, injecting, defaulting, removing, updating, first_only):
        app_with(decorate(with_capture)).compile()


def test_a_wrapper_with_parameters_of_its_own_is_taken_as_it_is() -> None:
    """A wrapper with its own parameters is planned by them."""

    def named(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(message: Any) -> Any:
            return function(message)

        return wrapper

    got: list[Any] = []

    def on_quote(quote: Quote) -> None:
        got.append(quote)

    Wired(app_with(named(on_quote)), {Database: None}).feed(plain("quotes.a", {"symbol": "A"}))
    assert got == [{"symbol": "A"}]


def test_a_helper_that_is_given_the_body_is_no_handler() -> None:
    """A wrapper that converts the untyped body is accepted."""

    def make(body: dict[str, Any]) -> Quote:
        return Quote(**body)

    def on_quote(quote: Quote) -> None:
        got.append(quote)

    got: list[Quote] = []
    Wired(app_with(lambda *args: on_quote(make(*args))), {Database: None}).feed(plain("quotes.a", {"symbol": "A"}))
    assert got == [Quote("A")]


def test_where_nothing_can_be_told_nothing_is_said() -> None:
    """Wrappers that cannot be analysed are accepted."""
    names: dict[str, Any] = {"with_capture": with_capture}
    exec("def make(f):\n    return lambda *args: f(*args)\nhidden = make(with_capture)", names)

    def unknown(quote: Nowhere) -> None: ...  # noqa: F821  # type: ignore[name-defined]

    def later() -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            return function(*args)

        if not names:
            function = with_capture
        return wrapper

    for function in (names["hidden"], bare(unknown), bare(Quote), Mock(), print, later()):
        app_with(function).compile()
    assert forwarded(with_capture) == forwarded(print) == []


def test_timers_resources_and_hooks_are_looked_at_too() -> None:
    """Wrappers of hooks must not hide parameters that are filled by type."""

    def tick(database: Database) -> None: ...
    def idle(step: int = 1) -> None: ...
    def on_gap(gap: Gap, database: Database) -> None: ...
    def on_gap_alone(gap: Gap) -> None: ...

    for register, hidden, fine in (
        (lambda app: app.every(1.0), tick, idle),
        (lambda app: app.on_startup, tick, idle),
        (lambda app: app.on_gap, on_gap, on_gap_alone),
    ):
        for function, decorated in ((hidden, bare(hidden)), (fine, fine), (fine, bare(fine))):
            app = app_with(with_body)
            register(app)(decorated)
            if function is fine:
                app.compile()
                continue
            with pytest.raises(SignatureError, match=rf"hides the parameters of {function.__name__}\("):
                app.compile()

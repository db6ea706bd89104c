"""Return annotations under publishers: contradictions are refused at compile time."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import functools
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NoReturn,
    Protocol,
    TypedDict,
    TypeVar,
    runtime_checkable,
)

import attrs
import msgspec
import pytest
from twisted.internet.defer import Deferred, inlineCallbacks

from zroute import App, PatternError, Routes, SignatureError, Stamped
from zroute.declarations.results import lacks, message_type, misfit
from zroute.messages.codecs import MSGPACK
from zroute.testing import TestApp

T = TypeVar("T")
Number = NewType("Number", int)


@attrs.frozen
class Quote:
    symbol: str


@attrs.frozen
class Special(Quote):
    note: str


@dataclasses.dataclass
class Alert:
    text: str


class Row(msgspec.Struct):
    symbol: str
    room: str = ""


class Point(TypedDict):
    x: int


class Place(NamedTuple):
    x: int


class Level(enum.Enum):
    HIGH = "high"


@attrs.frozen
class Box(Generic[T]):
    inside: T


class Sized(Protocol):
    size: int


@runtime_checkable
class Named(Protocol):
    def name(self) -> str: ...


@attrs.define
class Growing:
    x: int

    def __attrs_post_init__(self) -> None: ...


@dataclasses.dataclass(init=False)
class Handmade:
    x: int

    def __init__(self, x: int) -> None:
        self.x, self.room = x, "north"


@attrs.frozen
class Computed:
    x: int

    @property
    def room(self) -> str:
        return "north"


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (Quote, Quote),
        (Quote | None, Quote),
        (None, Quote),
        (type(None), Quote),
        (Any, Quote),
        (object, Quote),
        (Special, Quote),
        (Quote, Special),
        (T, Quote),
        (NoReturn, Quote),
        (Sized, Quote),
        (Awaitable[Quote], Quote),
        (Coroutine[Any, Any, Quote], Quote),
        (Deferred[Quote], Quote),
        (Deferred[Quote | None] | Quote | None, Quote),
        (Deferred, Quote),
        (asyncio.Future[Quote], Quote),
        (Iterator[Quote | None], Quote),
        (Generator[Quote, None, None], Quote),
        (AsyncIterator[Quote], Quote),
        (AsyncGenerator[Quote, None], Quote),
        (Iterable[Quote], Quote),
        (Iterator, Quote),
        (Generator[Deferred[int], Any, Quote], Quote),
        (Generator[Deferred[int] | Deferred[str], Any, Quote], Quote),
        (Generator[Deferred[int] | None, Any, Quote], Quote),
        (Generator[Annotated[Deferred[int], "later"], Any, Quote], Quote),
        (Iterator[Deferred[int]], Quote),
        (Iterable[Deferred[int] | None], Quote),
        (Iterable[int], list[int]),
        (Iterator[list[int]], list[int]),
        (Sequence[int], list[int]),
        (list[bool], list[int]),
        (list[Any], list[Quote]),
        (list, list[Quote]),
        (list[int | None], list[int]),
        (tuple[int, ...], tuple[int, int]),
        (dict[str, int], Mapping[str, float]),
        (dict[str, int], Point),
        (Point, dict[str, int]),
        (Place, tuple[int]),
        (int, float),
        (Number, int),
        (int, Number),
        (Annotated[int, "metres"], int),
        (Literal["a", "b"], str),
        (str, Literal["a", "b"]),
        (Level, Level),
        (Box[int], Box[float]),
        (Box, Box[int]),
        (Quote, Quote | Alert),
        (Alert, Quote | bytes | Alert),
        (Quote, Any),
        (Quote, dict),
        (datetime.datetime, datetime.date),
    ],
)
def test_what_may_be_published_is_not_refused(hint: Any, schema: Any) -> None:
    """Annotations that may fit are accepted: subclasses, wrappers, None and vague types."""
    assert misfit(hint, schema) is None


@pytest.mark.parametrize(
    ("hint", "schema", "found"),
    [
        (int, Quote, int),
        (int, str, int),
        (float, int, float),
        (str, bytes, str),
        (Alert, Quote, Alert),
        (Row, Quote, Row),
        (dict, Quote, dict),
        (Quote, dict[str, int], Quote),
        (int | None, Quote, int),
        (Quote | int, Quote, int),
        (Awaitable[int], Quote, int),
        (Coroutine[Any, Any, int | None], Quote, int),
        (Deferred[int], Quote, int),
        (Quote | Deferred[int], Quote, int),
        (asyncio.Future[int], Quote, int),
        (Iterator[int], Quote, int),
        (Generator[int, None, Quote], Quote, int),
        (Generator[Deferred[Quote], Any, int], Quote, int),
        (Generator[Deferred[Quote] | None, Any, int], Quote, int),
        (AsyncIterator[int], Quote, int),
        (Iterable[int], Quote, int),
        (list[Quote], Quote, list[Quote]),
        (Quote, list[Quote], Quote),
        (list[int], list[str], list[int]),
        (list[Quote], Sequence[Alert], list[Quote]),
        (dict[str, Quote], dict[str, int], dict[str, Quote]),
        (Box[str], Box[int], Box[str]),
        (Quote, Stamped[Quote], Quote),
        (Literal[1], str, Literal[1]),
        (str, Level, str),
        (decimal.Decimal, float, decimal.Decimal),
        (int, Quote | Alert, int),
        (Named, Quote, Named),
    ],
)
def test_what_can_not_be_published_is_found(hint: Any, schema: Any, found: Any) -> None:
    """The check finds the part of the annotation that does not fit."""
    assert misfit(hint, schema) == found


def test_a_publisher_refuses_a_function_that_returns_something_else() -> None:
    """The error names the function, both types, the line and the remedy."""

    def timer() -> int: ...
    async def coroutine() -> int: ...
    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    for function in (timer, coroutine, generator, async_generator):
        app = App()
        app.publisher("out", Quote, every=1.0)(function)
        with pytest.raises(SignatureError, match=rf"{function.__name__}\(\) (returns|yields) int, but pub") as caught:
            app.compile()
        assert "publisher('out', Quote) publishes Quote" in str(caught.value)
        assert "tests/declarations/test_results.py:" in str(caught.value)

    routes, app = Routes(), App()

    @routes.publisher("out", Quote)
    @routes.subscribe("in")
    def handler(number: int) -> str: ...

    app.include(routes, prefix="desk")
    with pytest.raises(SignatureError, match=r"handler\(\) returns str"):
        app.compile()


def quoted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that changes the type of the results."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Quote:
        return Quote(str(function(*args, **kwargs)))

    return wrapper


class Quoted:
    """The same decorator as a class."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any) -> Quote:
        return Quote(str(self.function(*args)))


def numbered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that keeps its own annotation beside the copied ones."""

    @functools.wraps(function, assigned=("__name__", "__qualname__"))
    def wrapper() -> int:
        return 1

    return wrapper


@pytest.mark.parametrize("decorate", [quoted, Quoted, lambda f: quoted(quoted(f)), lambda f: partial(quoted(f))])
def test_an_annotation_that_wraps_has_copied_is_not_compared(decorate: Callable[..., Any]) -> None:
    """A copied annotation is ignored, because the wrapper may return another type."""

    class Desk:
        @quoted
        def tick(self) -> int:
            return 1

    def timer() -> int:
        return 1

    def handler(number: int) -> int:
        return number

    app = App()
    app.publisher("timers", Quote, every=1.0)(decorate(timer))
    app.publisher("methods.{symbol}", Quote, every=1.0)(Desk().tick)
    wrapped = decorate(handler)
    app.publisher("handlers.{symbol}", Quote)(app.subscribe("in")(wrapped))
    with TestApp(app) as t:
        t.publish("in", 5)
        for pattern in ("timers", "methods.*", "handlers.*"):
            assert {type(message) for message in t.published(pattern)} == {Quote}


def test_an_annotation_of_the_wrapper_itself_is_compared() -> None:
    """A wrapper's own annotation is checked."""

    def timer() -> Quote: ...

    app = App()
    app.publisher("out", Quote, every=1.0)(numbered(timer))
    with pytest.raises(SignatureError, match=r"timer\(\) returns int"):
        app.compile()


def test_what_declares_nothing_is_not_compared() -> None:
    """Functions without a useful annotation are not checked."""

    def nothing(): ...
    def none() -> None: ...
    def anything() -> Any: ...
    @inlineCallbacks
    def inline() -> Generator[Deferred[int], int, Quote]:
        yield Deferred()
        return Quote("")

    for function in (nothing, none, anything, inline, lambda: 5):
        app = App()
        app.publisher("out", Quote, every=1.0)(function)
        app.compile()
    assert message_type(Generator[Deferred[int], int, Quote]) is Quote
    assert message_type(Deferred[Quote] | Quote | None) is Quote
    assert message_type(Deferred[Any] | Quote) is None


class Liberal:
    """A codec that accepts any object."""

    name, number = "liberal", 200

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        return MSGPACK.encoder(Any)

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        return MSGPACK.decoder(Any)


@pytest.mark.parametrize("of_app", [True, False])
def test_a_codec_of_ones_own_may_take_anything(of_app: bool) -> None:
    """Publishers with a user-defined codec are not checked."""
    app = App(codec=Liberal()) if of_app else App()

    @app.publisher("out.{room}", Quote, codec=None if of_app else Liberal(), every=1.0)
    def timer() -> int: ...

    app.compile()


# -- captures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema", [Quote, Alert, Point, Place, Box[int], int, str, bytes, list[int], tuple[int, ...], Quote | int | None]
)
def test_a_type_without_a_field_of_that_name_lacks_it(schema: Any) -> None:
    """Types with a fixed set of names lack all others."""
    assert lacks(schema, "room")


@pytest.mark.parametrize(
    "schema",
    [
        *(Row, Computed, Growing, Handmade, Level, Sized, Any, object, T, dict, dict[str, int], Mapping[str, int]),
        *(Quote | Row, Quote | Any, Callable[[], int]),
    ],
)
def test_a_type_that_has_or_may_have_it_does_not(schema: Any) -> None:
    """Types that may have the name do not lack it."""
    assert not lacks(schema, "room")


def test_a_capture_that_nothing_fills_is_refused() -> None:
    """The error for an unfilled capture names both messages and the line."""
    app = App()

    @app.publisher("out.{desk}")
    @app.subscribe("stocks.{symbol}")
    def derive(number: int) -> Quote: ...

    with pytest.raises(PatternError, match=r"derive\(\) publishes to 'out\.\{desk\}', but nothing fills") as caught:
        app.compile()
    assert "'stocks.{symbol}' has no such capture, and Quote has no field 'desk'" in str(caught.value)
    assert "tests/declarations/test_results.py:" in str(caught.value)
    assert caught.value.pattern == "out.{desk}"

    app = App()

    @app.publisher("out.{desk}", Quote, every=1.0)
    def timer(): ...

    with pytest.raises(
        PatternError, match=r"timer\(\) publishes to 'out\.\{desk\}'.*timer\(\) gets no message, and Quote"
    ):
        app.compile()


def test_a_capture_of_a_prefix_counts() -> None:
    """A capture in a group's prefix is filled for handlers but not for timers."""
    routes, app = Routes(prefix="desk.{room}"), App()

    @routes.publisher("answer", Quote)
    @routes.subscribe("ask")
    def answer(number: int) -> Quote: ...

    app.include(routes)
    app.compile()
    routes, app = Routes(prefix="desk.{room}"), App()

    @routes.publisher("beat", every=1.0)
    def beat() -> int: ...

    app.include(routes)
    with pytest.raises(PatternError, match=r"nothing fills \{room\}"):
        app.compile()


def test_a_capture_that_may_be_filled_is_left_to_the_message() -> None:
    """A capture may be filled by the topic, by a field, at the call, or by an undeclared message."""
    app = App()
    app.publisher("calls.{desk}", Quote)

    @app.publisher("a.{symbol}.{x}")
    @app.subscribe("in.{x}")
    def derive(number: int) -> Quote: ...

    @app.publisher("b.{room}", every=1.0)
    def row() -> Row: ...

    @app.publisher("c.{room}", every=1.0)
    def unknown(): ...

    @app.publisher("d.{room}", every=1.0)
    def nothing() -> None: ...

    app.compile()


def test_a_publisher_of_several_segments_is_refused_by_its_name() -> None:
    """The error names the capture, which is no wildcard, and what to do."""
    with pytest.raises(
        PatternError, match=r"test_results\.py:\d+: .*\{rest\+\} can be several segments; use app\.publish\("
    ) as caught:
        App().publisher("out.{rest+}", int)
    assert "wildcard" not in str(caught.value)


def test_a_capture_of_several_segments_fills_no_publisher() -> None:
    """The error says that a publisher's topic has one segment there."""
    app = App()

    @app.publisher("out.{rest}", int)
    @app.subscribe("in.{rest+}")
    def copy(n: int, rest: str) -> int:
        return n

    with pytest.raises(PatternError, match=r"\{rest\} can be several segments of a topic of 'in\.\{rest\+\}'"):
        app.compile()
    with pytest.raises(SignatureError, match=r"\{rest\+\} can be several segments"):
        app.subscribe("in.{rest+}", dead="dead.{rest}")(lambda n: None)

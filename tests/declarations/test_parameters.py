"""Signatures: the argument of each parameter, and the errors if there is none."""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType
from unittest.mock import Mock
from uuid import UUID

import pytest
from msgspec import Meta

from tests.pure import Wired, plain
from zroute import App, Envelope, SignatureError, Topic
from zroute.declarations.signatures import NO_BODY, plan
from zroute.functions import identity, is_generator_function, name_of
from zroute.testing import TestApp

if TYPE_CHECKING:
    from collections import OrderedDict


class Level(enum.Enum):
    HIGH = "high"
    TWO = 2


class Desk:
    def __init__(self) -> None:
        self.got: list[Any] = []

    def on_message(self, message: Any) -> None:
        self.got.append(message)

    def __call__(self, message: int) -> None:
        self.got.append(("called", message))


def planned(function: Any, *captures: str, given: Any = None, namespace: Any = None, handler: bool = False) -> Any:
    """Return the plan of ``function`` at the line ``app.py:1``."""
    return plan(function, captures=captures, given=given or {}, namespace=namespace, where="app.py:1", handler=handler)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (Any, "a", "a"),
        (str, "é", "é"),
        (int, "-12", -12),
        (float, "3", 3.0),
        (float, "1e3", 1000.0),
        (UUID, str(UUID(int=1)), UUID(int=1)),
        (Level, "high", Level.HIGH),
        (Level, "2", Level.TWO),
        (bool, "true", True),
        (bool, "false", False),
        (date, "2026-01-02", date(2026, 1, 2)),
        (datetime, "2026-01-02T12:00:00+00:00", datetime(2026, 1, 2, 12, tzinfo=UTC)),
        (datetime, "2026-01-02T12:00:00", datetime(2026, 1, 2, 12)),
        (Literal["a", "b"], "b", "b"),
        (Literal[1, "x"], "1", 1),
        (Annotated[int, "a note"], "7", 7),
        (Annotated[int, Meta(gt=0)], "7", 7),
        (NewType("Key", str), "k", "k"),
    ],
)
def test_a_capture_is_converted_to_its_annotation(annotation: Any, text: str, value: Any) -> None:
    """A capture is converted to the annotated type."""

    def handle(x: Any) -> None: ...

    handle.__annotations__["x"] = annotation
    converted = planned(handle, "x").convert({"x": text.encode()})["x"]
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "x"),
        (int, "1_0"),
        (int, "٣"),
        (float, "nan"),
        (float, "1_0"),
        (UUID, "no"),
        (UUID, "urn:uuid:00000000-0000-0000-0000-00000000000a"),
        (UUID, "{00000000-0000-0000-0000-00000000000a}"),
        (UUID, "0000000000000000000000000000000a"),
        (UUID, "00000000-0000-0000-0000-00000000000A"),
        (date, "20260102"),
        (date, "2026-W01-5"),
        (datetime, "2026-01-02 12:00:00"),
        (datetime, "2026-01-02x12:00:00"),
        (datetime, "20260102T120000"),
        (datetime, "2026-01-02T12"),
        (datetime, "2026-01-02T12:00:00Z"),
        (datetime, "2026-01-02T12:00:00+0000"),
        (Level, "low"),
        (bool, "1"),
        (bool, "True"),
        (date, "2026-13-01"),
        (date, "2026-01-01T00:00:00"),
        (datetime, "2026-01-02"),
        (Literal["a"], "b"),
        (Annotated[int, Meta(gt=0)], "0"),
    ],
)
def test_a_segment_that_does_not_convert_does_not_match(annotation: Any, text: str) -> None:
    """If a segment has the wrong type, the next candidate receives the message."""

    def handle(x: Any) -> None: ...

    handle.__annotations__["x"] = annotation
    assert planned(handle, "x").convert({"x": text.encode()}) is None


def test_a_capture_that_nobody_asks_for_is_left_out() -> None:
    """A handler need not have a parameter for each capture."""

    def handle(message: int) -> None: ...

    call = planned(handle, "x")
    assert (call.convert({"x": b"1"}), call.body, call.schema) == ({}, "message", int)


@pytest.mark.parametrize("annotation", [bytes, list[int], Topic, int | None, Literal[True], {"not": "a type"}])
def test_a_capture_of_another_type_is_refused(annotation: Any) -> None:
    """The error for an unsupported capture type lists the supported types."""

    def handle(x: Any) -> None: ...

    handle.__annotations__["x"] = annotation
    with pytest.raises(SignatureError) as caught:
        planned(handle, "x")
    assert str(caught.value).startswith("app.py:1: ")


def test_a_body_that_is_not_asked_for_is_not_decoded() -> None:
    """A handler without a body parameter accepts an invalid body."""
    app, got = App(), []

    @app.subscribe("a.{x}")
    def handle(x: str) -> None:
        got.append(x)

    Wired(app).feed(plain("a.b", body=b"\xc1"))
    assert got == ["b"]


def test_a_parameter_without_annotation_is_any() -> None:
    """An unannotated body is decoded to built-in types."""

    def handle(message): ...

    assert planned(handle).schema is Any


def test_two_bodies_name_both_and_the_line() -> None:
    """If two parameters could receive the body, the error names both, the line and the remedies."""

    def handle(quote: int, symbool: str) -> None: ...

    with pytest.raises(
        SignatureError, match=r"'quote' and 'symbool' would both receive the body, but only one parameter can"
    ) as caught:
        planned(handle, "symbol")
    assert str(caught.value).startswith("app.py:1: ")
    assert "captures 'symbol'" in str(caught.value)
    assert (caught.value.parameter, caught.value.where) == ("symbool", "app.py:1")


def test_two_envelopes_are_refused() -> None:
    """A handler with two Envelope parameters is refused."""

    def handle(one: Envelope, two: Envelope) -> None: ...

    with pytest.raises(SignatureError, match="both receive the envelope"):
        planned(handle)


def test_leftovers_keep_their_defaults() -> None:
    """A parameter that nothing fills keeps its default, and variadic parameters stay empty."""
    app, got = App(), []

    @app.subscribe("a")
    def handle(message: int, limit: int = 3, *rest: int, **more: int) -> None:
        got.append((message, limit, rest, more))

    Wired(app).feed(plain("a", 1))
    assert got == [(1, 3, (), {})]


def test_what_is_injected_goes_by_annotation() -> None:
    """Envelope, Topic and App parameters may have any order and may be keyword-only."""
    app, got = App(), []

    @app.subscribe("a.{x}")
    def handle(app: App, x: str, topic: Topic, message: int, *, envelope: Envelope) -> None:
        got.append((app, x, topic, message, envelope.body))

    Wired(app).feed(plain("a.b", 5))
    assert got == [(app, "b", "a.b", 5, b"\x05")]


def test_what_is_injected_may_be_keyword_only_without_a_body() -> None:
    """Keyword-only parameters of handlers and timers are filled by name."""
    app, got = App(), []

    @app.subscribe("a.{x}")
    def handle(*, x: str, topic: Topic) -> None:
        got.append((x, topic))

    @app.every(1.0)
    def tick(*, app: App) -> None:
        got.append(app)

    with TestApp(app) as t:
        t.publish("a.b", None)
    assert got == [app, ("b", "a.b")]


def test_a_function_of_nothing_but_args_is_given_the_body(capsys: pytest.CaptureFixture[str]) -> None:
    """print, a Mock, and a handler behind a decorator with *args receive the body."""
    app, mock, got = App(), Mock(), []

    def doubling(function: Callable[..., None]) -> Callable[..., None]:
        return lambda *args: function(*[2 * arg for arg in args])

    @app.subscribe("a")
    @doubling
    def handle(message: int) -> None:
        got.append(message)

    @app.subscribe("a")
    def typed(*numbers: float, topic: Topic) -> None:
        got.append((numbers, topic))

    app.subscribe("a")(print)
    app.subscribe("a")(mock)
    Wired(app).feed(plain("a", 5))
    assert capsys.readouterr().out == "5\n"
    assert mock.call_args.args == (5,)
    assert got == [10, ((5.0,), "a")]
    assert type(got[1][0][0]) is float


def test_a_timer_of_nothing_but_args_is_called_without_any() -> None:
    """A timer behind a decorator with *args needs no body."""
    app, got = App(), []

    @app.every(1.0)
    def tick(*args: int) -> None:
        got.append(args)

    with TestApp(app):
        assert got == [()]


def test_the_only_parameter_left_is_the_body_also_with_a_default() -> None:
    """A body parameter with a default receives the decoded body, and an invalid body is refused."""
    app, got = App(), []

    @app.subscribe("a")
    def leading(message: int | None = None) -> None:
        got.append(("leading", message))

    @app.subscribe("a")
    def keyword(*, message: int = 7) -> None:
        got.append(("keyword", message))

    @app.subscribe("{x}")
    def behind(x: str, message: int = 7) -> None:
        got.append((x, message))

    wired = Wired(app)
    wired.feed(plain("a", 5), plain("a", body=b"\xc1"))
    assert set(got) == {("leading", 5), ("keyword", 5), ("a", 5)}
    assert {(stats.handled, stats.decode_error) for stats in wired.stats.routes.values()} == {(1, 1)}


def test_a_default_beside_an_envelope_stays() -> None:
    """In a handler with an Envelope, parameters with a default keep it."""
    app, got = App(), []

    for name in ("rooms", "desks"):

        @app.subscribe(name)
        def hit(envelope: Envelope, name: str = name, *, limit: int = 3) -> None:
            got.append((name, limit, envelope.body))

    @app.subscribe("both")
    def both(envelope: Envelope, message: int, limit: int = 3) -> None:
        got.append((message, limit, envelope.body))

    wired = Wired(app)
    wired.feed(plain("rooms", body=b"\xc1"), plain("desks", 5), plain("both", 5))
    assert got == [("rooms", 3, b"\xc1"), ("desks", 3, b"\x05"), (5, 3, b"\x05")]
    assert {(stats.handled, stats.decode_error) for stats in wired.stats.routes.values()} == {(1, 0)}


def test_lists_may_have_a_default() -> None:
    """The list parameter of a handler with batch= may have a default."""
    app, got = App(), []

    @app.subscribe("a", batch=10)
    def handle(numbers: list[int] = []) -> None:  # noqa: B006  # a common mistake
        got.append(numbers)

    with TestApp(app) as t:
        t.publish("a", 1, 2)
    assert got == [[1, 2]]


def test_two_parameters_left_that_have_defaults_are_refused() -> None:
    """If two parameters with defaults could receive the body, the error says how to choose one."""

    def handle(x: str, limit: int = 3, unit: str = "m") -> None: ...

    with pytest.raises(SignatureError, match=r"'limit' and 'unit' of handle\(\) both have a default") as caught:
        planned(handle, "x", handler=True)
    assert (caught.value.parameter, caught.value.where) == ("unit", "app.py:1")
    call = planned(partial(handle, unit="m"), "x", handler=True)
    assert (call.body, call.schema) == ("limit", int)


def test_what_is_called_without_a_message_keeps_its_defaults() -> None:
    """A timer's parameter with a default keeps it."""
    app, got = App(), []

    @app.every(1.0)
    def tick(step: int = 5) -> None:
        got.append(step)

    with TestApp(app):
        assert got == [5]


def test_a_keyword_only_body_is_given_by_name() -> None:
    """The body parameter may be keyword-only."""
    app, got = App(), []

    @app.subscribe("a")
    def handle(*, message: int) -> None:
        got.append(message)

    Wired(app).feed(plain("a", 5), plain("a", 6))
    assert got == [5, 6]


def test_a_capture_before_and_one_behind_the_body_arrive() -> None:
    """The body parameter may stand anywhere among the captures."""
    app, got = App(), []

    @app.subscribe("{a}.{b}")
    def handle(a: str, message: int, b: str) -> None:
        got.append((a, message, b))

    Wired(app).feed(plain("x.y", 1))
    assert got == [("x", 1, "y")]


def test_positional_only_parameters_but_the_body_are_refused() -> None:
    """A positional-only parameter that is filled by name is refused."""

    def body_first(message: int, /, x: str) -> None: ...
    def capture_first(x: str, message: int, /) -> None: ...

    assert planned(body_first, "x").body == "message"
    with pytest.raises(SignatureError, match="positional-only") as caught:
        planned(capture_first, "x")
    assert caught.value.parameter == "x"


# -- kinds of callables ----------------------------------------------------------------------------------


def test_bound_methods_are_handlers() -> None:
    """A bound method of each instance receives its messages."""
    app, one, two = App(), Desk(), Desk()
    app.add_route(one.on_message, "a")
    app.add_route(two.on_message, "a")
    Wired(app).feed(plain("a", 1))
    assert one.got == two.got == [1]


def test_the_same_bound_method_is_the_same_function() -> None:
    """Two accesses of a bound method count as the same handler."""
    desk = Desk()
    assert identity(desk.on_message) == identity(desk.on_message)
    assert identity(desk.on_message) != identity(Desk().on_message)
    assert identity(planned) != identity(name_of)


def test_an_instance_with_call_is_a_handler() -> None:
    """A callable object can be a handler, and its annotations are used."""
    app, desk = App(), Desk()
    app.add_route(desk, "a")
    Wired(app).feed(plain("a", 1), plain("a", "text"))
    assert desk.got == [("called", 1)]


def test_a_partial_is_a_handler() -> None:
    """Arguments bound by functools.partial are not filled, whether by position or by name."""
    app, got = App(), []

    def handle(tag: str, message: int, *, unit: str) -> None:
        got.append((tag, message, unit))

    app.add_route(partial(handle, "t", unit="u"), "a")
    Wired(app).feed(plain("a", 1))
    assert got == [("t", 1, "u")]


def test_a_builtin_method_is_a_handler() -> None:
    """A built-in method such as list.append can be a handler."""
    app, got = App(), []
    app.add_route(got.append, "a")
    Wired(app).feed(plain("a", {"x": 1}))
    assert got == [{"x": 1}]


@pytest.mark.parametrize("decorator", ["subscribe", "reply", "work"])
def test_a_method_without_its_instance_says_so(decorator: str) -> None:
    """The error for a decorator in a class body says how to register the bound method."""
    app = App()

    class Inner:
        @getattr(app, decorator)("a")  # type: ignore[untyped-decorator]
        def on_message(self, message: Any) -> None:
            raise AssertionError

    advice = rf"a method without an instance: .* app\.{decorator}\(pattern\)\(instance\.on_message\)"
    with pytest.raises(SignatureError, match=advice) as caught:
        app.compile()
    assert caught.value.parameter == "self"
    assert "test_parameters.py:" in str(caught.value)


def test_a_static_method_is_a_plain_function() -> None:
    """A function in a class without a self parameter is not a method."""

    class Inner:
        @staticmethod
        def on_message(message: int) -> None: ...

    assert planned(Inner.on_message).schema is int


def test_what_has_no_signature_or_is_no_function_is_refused() -> None:
    """The error names a callable without a readable signature."""
    with pytest.raises(SignatureError, match="Python can't read the signature of"):
        planned(dict)
    with pytest.raises(SignatureError, match="is not a function"):
        planned(5)


# -- annotations -----------------------------------------------------------------------------------------


def test_postponed_annotations_of_nested_functions_resolve() -> None:
    """A class defined in the registering function can be used in postponed annotations."""
    app, got = App(), []

    class Local(enum.IntEnum):
        ONE = 1

    @app.subscribe("a.{x}")
    def handle(x: Local) -> None:
        got.append(x)

    Wired(app).feed(plain("a.1", body=b""))
    assert got == [Local.ONE]


def test_a_type_imported_for_type_checkers_only_is_a_clear_error() -> None:
    """The error names an annotation imported under TYPE_CHECKING, with the remedy."""

    def handle(message: OrderedDict[str, int]) -> None: ...

    with pytest.raises(SignatureError, match=r"annotation 'OrderedDict' of .*TYPE_CHECKING") as caught:
        planned(handle)
    assert caught.value.where == "app.py:1"


@pytest.mark.parametrize("annotation", ["int + str", "enum.Missing", "not python ("])
def test_an_annotation_that_is_no_type_is_a_clear_error(annotation: str) -> None:
    """The error for an annotation that is not a type names the function and the line."""

    def handle(message: Any) -> None: ...

    handle.__annotations__["message"] = annotation
    with pytest.raises(SignatureError, match=r"handle\(\) has an annotation that is not a type") as caught:
        planned(handle)
    assert caught.value.where == "app.py:1"


def test_an_unhashable_annotation_is_a_body() -> None:
    """Annotated metadata that can't be hashed is accepted."""

    def handle(message: Any) -> None: ...

    hint = Annotated[int, []]
    handle.__annotations__["message"] = hint
    assert planned(handle).schema == hint


def test_a_function_of_a_module_that_is_gone_is_still_read() -> None:
    """A function made by exec without a module uses the local names at its registration."""
    names: dict[str, Any] = {}
    exec("def handle(message: 'Mine') -> None: ...", {"__name__": "nowhere"}, names)
    assert planned(names["handle"], namespace={"Mine": int}).schema is int


# -- names and kinds -------------------------------------------------------------------------------------


def test_names_are_short_and_readable() -> None:
    """Logs and counters use the qualified names of functions."""
    assert name_of(Desk().on_message) == "Desk.on_message()"
    assert name_of(partial(partial(planned))) == "planned()"
    assert name_of(Desk()) == "Desk()"
    assert name_of(lambda: None) == "<lambda>()"


def test_generators_are_known_through_partials_and_callables() -> None:
    """Plain and async generator functions are recognised behind wrappers."""

    def plain_generator():
        yield

    async def async_generator():
        yield

    async def coroutine(): ...

    class Callable:
        def __call__(self):
            yield

    assert all(map(is_generator_function, [plain_generator, async_generator, partial(plain_generator), Callable()]))
    assert not any(map(is_generator_function, [coroutine, lambda: None, len, Desk()]))


def test_a_call_without_constants_is_the_function_itself() -> None:
    """A plain handler is called without a wrapper."""

    def handle(message: int) -> None: ...

    call = planned(handle)
    assert call.bind({}, b"a") is handle
    assert planned(lambda: None).schema is NO_BODY

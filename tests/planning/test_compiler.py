"""Compiling finds mistakes before a socket is opened, and names the user's line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import attrs
import pytest

from tests.pure import Wired, plain
from zroute import (
    App,
    AppFrozenError,
    DuplicateRouteError,
    Envelope,
    PatternError,
    Routes,
    SchemaError,
    SignatureError,
    Topic,
    startswith,
)
from zroute.messages.codecs import MSGPACK


@attrs.frozen
class Alert:
    text: str


class Numbered:
    """A custom codec: msgpack under another name."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number

    def encoder(self, schema: Any) -> Any:
        return MSGPACK.encoder(schema)

    def decoder(self, schema: Any) -> Any:
        return MSGPACK.decoder(schema)


def here(error: BaseException) -> bool:
    """Return True if the error names this file and a line."""
    return "tests/planning/test_compiler.py:" in str(error)


def schema_of(app: App) -> Any:
    """Return the schema of the app's only publication."""
    return app.compile().parts.outlets[0].schema


# -- duplicates ------------------------------------------------------------------------------------------


def test_the_same_function_on_the_same_pattern_twice_is_refused() -> None:
    """A function that is decorated twice with one pattern is an error that names both lines."""
    app = App()

    @app.subscribe("a.{x}")
    @app.subscribe("a.*")
    def handle(x: str = "") -> None:
        raise AssertionError

    with pytest.raises(DuplicateRouteError, match=r"handle\(\) subscribes to .* twice") as caught:
        app.compile()
    assert str(caught.value).count("test_compiler.py:") == 2


def test_one_pattern_twice_in_one_decorator_is_refused() -> None:
    """One pattern twice in one decorator is an error."""
    app = App()
    app.add_route(lambda message: None, "a.*", "a.*")
    with pytest.raises(DuplicateRouteError, match="twice"):
        app.compile()


def test_two_functions_of_one_pattern_are_two_handlers() -> None:
    """Two functions may subscribe to one pattern, even with the same name."""
    app, got = App(), []
    for number in (1, 2):

        @app.subscribe("a")
        def handle(message: Any, number: int = number) -> None:
            got.append(number)

    wired = Wired(app).feed(plain("a", 0))
    assert got == [1, 2]
    assert list(wired.stats.routes) == ["handle()", "handle()#2"]


def test_two_of_equal_rank_are_refused_where_one_is_to_be_called() -> None:
    """Two equal patterns with dispatch="most_specific" are an error that names both lines."""
    app = App(dispatch="most_specific")
    app.add_route(lambda message: None, "a.{x}")
    app.add_route(lambda message: None, "a.*")
    with pytest.raises(DuplicateRouteError, match="make one of the patterns more specific") as caught:
        app.compile()
    assert str(caught.value).count("test_compiler.py:") == 2


# -- groups ----------------------------------------------------------------------------------------------


def test_prefixes_are_joined_with_dots() -> None:
    """The prefixes of app, include and group come before the pattern, in this order."""
    app, inner, outer, got = App(), Routes("inner"), Routes("outer"), []

    @inner.subscribe("a", startswith("b"))
    def handle(message: Any, topic: Topic) -> None:
        got.append(str(topic))

    outer.include(inner, prefix="mid")
    app.include(outer, prefix="top")
    Wired(app).feed(plain("top.outer.mid.inner.a", 1), plain("top.outer.mid.inner.bcd", 2), plain("a", 3))
    assert got == ["top.outer.mid.inner.a", "top.outer.mid.inner.bcd"]


def test_a_prefix_with_captures_gives_them_to_the_handler_and_to_derived_streams() -> None:
    """Routes("desk.{room}") passes the room to handlers, and publishes to the room of the message."""
    app, desk, got = App(), Routes("desk.{room}"), []

    @desk.publisher("answer")
    @desk.subscribe("ask")
    def answer(message: str, room: str) -> str:
        got.append(room)
        return message.upper()

    app.include(desk)
    wired = Wired(app).feed(plain("desk.north.ask", body=b"hi"))
    assert got == ["north"]
    assert wired.published == [("desk.north.answer", "HI")]


def test_a_group_included_twice_answers_under_each_prefix() -> None:
    """A group with two prefixes publishes under the prefix of the received message."""
    app, echo = App(), Routes()

    @echo.publisher("out")
    @echo.subscribe("in")
    def answer(message: int) -> int:
        return message + 1

    app.include(echo, prefix="a")
    app.include(echo, prefix="b")
    wired = Wired(app).feed(plain("a.in", 1), plain("b.in", 5))
    assert wired.published == [("a.out", 2), ("b.out", 6)]
    assert list(wired.stats.routes) == ["answer()", "answer()#2"]


def test_a_publisher_of_the_app_may_stand_above_a_handler_of_a_group() -> None:
    """A publisher of the app above a handler of a group publishes the handler's results."""
    app, group = App(), Routes("g")

    @app.publisher("out")
    @group.subscribe("in")
    def answer(message: int) -> int:
        return message

    app.include(group)
    assert Wired(app).feed(plain("g.in", 1)).published == [("out", 1)]


def test_the_timers_of_a_group_included_twice_run_once() -> None:
    """A timer in a shared group is one timer, and publishes under both prefixes."""
    app, group = App(), Routes()

    @group.publisher("beat", every=1.0)
    def beat() -> int:
        return 1

    app.include(group, prefix="a")
    app.include(group, prefix="b")
    (trigger,) = app.compile().parts.triggers
    assert [outlet.pattern.text for outlet in trigger.outlets] == ["a.beat", "b.beat"]


def test_a_prefix_that_makes_a_topic_too_long_is_refused_with_the_users_line() -> None:
    """A joined pattern that is too long is an error with the user's line and the limit."""
    app, group = App(), Routes()
    group.add_route(lambda message: None, "x" * 200)
    app.include(group, prefix="y" * 100)
    with pytest.raises(PatternError, match="limited to 255 bytes") as caught:
        app.compile()
    assert here(caught.value)


def test_a_byte_prefix_behind_captures_is_refused() -> None:
    """startswith() after a prefix with captures is an error: such a prefix has no bytes."""
    app, group = App(), Routes("desk.{room}")
    group.add_route(lambda message: None, startswith("x"))
    app.include(group)
    with pytest.raises(PatternError, match="can't follow the prefix") as caught:
        app.compile()
    assert here(caught.value)


def test_a_registration_after_compiling_is_refused_with_its_line() -> None:
    """A registration after compiling is an error, in the app and in its groups."""
    app, group = App(), Routes()
    publication = app.publisher("out")
    app.include(group)
    app.compile()
    late = [
        lambda: app.subscribe("a")(lambda message: None),
        lambda: group.add_route(lambda message: None, "a"),
        lambda: app.publisher("a"),
        lambda: publication(lambda: None),
        lambda: app.every(1.0)(lambda: None),
        lambda: app.on_error()(lambda error, envelope: None),
        lambda: app.on_startup(lambda: None),
        lambda: app.on_shutdown(lambda: None),
        lambda: app.on_unrouted(lambda envelope: None),
        lambda: app.include(Routes()),
    ]
    for register in late:
        with pytest.raises(AppFrozenError, match="is too late") as caught:
            register()
        assert here(caught.value)
    for decorator, remedy in (("subscribe", "app.attach"), ("publisher", r"app.publish\(topic, message\)")):
        with pytest.raises(AppFrozenError, match=f"before the start of the app; or use {remedy}"):
            getattr(app, decorator)("late")(print)
    with pytest.raises(AppFrozenError, match=r"move this call before the start of the app$"):
        app.every(1.0)(print)


# -- publishers ------------------------------------------------------------------------------------------


def test_a_publisher_that_nothing_triggers_is_refused() -> None:
    """A plain function under a publisher alone is an error: it would never be called."""
    app = App()

    @app.publisher("a")
    def made() -> int:
        raise AssertionError

    with pytest.raises(SignatureError, match=r"nothing calls made\(\)") as caught:
        app.compile()
    assert here(caught.value)


def test_a_period_without_a_function_is_refused() -> None:
    """publisher(every=…) without a function is an error: it would publish nothing."""
    app = App()
    app.publisher("a", every=1.0)
    with pytest.raises(SignatureError, match="has no function to call") as caught:
        app.compile()
    assert caught.value.parameter == "every"
    assert here(caught.value)


@pytest.mark.parametrize("schedule", [{"every": 2.0}, {"jitter": 0.1}, {"initial_delay": 1.0}], ids=str)
def test_two_schedules_for_one_function_are_refused(schedule: Any) -> None:
    """A function with two schedules is an error that names all options of a schedule."""
    app = App()

    @app.publisher("a", every=1.0)
    @app.publisher("b", **{"every": 1.0, **schedule})
    def made() -> int:
        raise AssertionError

    with pytest.raises(SignatureError, match="different schedules: use the same every, jitter and initial_delay"):
        app.compile()


def test_a_subscription_and_a_period_are_refused() -> None:
    """A function with a subscription and a period is an error."""
    app = App()

    @app.publisher("a", every=1.0)
    @app.subscribe("b")
    def made(message: Any = None) -> int:
        raise AssertionError

    with pytest.raises(SignatureError, match="both a subscription and every="):
        app.compile()


def test_several_publishers_at_one_period_share_a_call() -> None:
    """Two publishers above one timer function: one call, two topics; `every` may be given once."""
    app = App()

    @app.every(2.0)
    @app.publisher("a", every=2.0)
    @app.publisher("b", every=2.0)
    def made() -> int:
        raise AssertionError

    (trigger,) = app.compile().parts.triggers
    assert [outlet.pattern.text for outlet in trigger.outlets] == ["a", "b"]
    assert trigger.schedule is not None
    assert trigger.schedule.every == 2.0


@pytest.mark.parametrize(("annotation", "name"), [(int, "given"), (Envelope, "given"), (Topic, "given")])
def test_a_timer_that_wants_a_message_is_refused(annotation: Any, name: str) -> None:
    """A timer with a parameter for a message is an error that names the parameter."""
    app = App()

    def tick(given: Any) -> None:
        raise AssertionError

    tick.__annotations__["given"] = annotation
    app.every(1.0)(tick)
    with pytest.raises(SignatureError, match="without a message") as caught:
        app.compile()
    assert caught.value.parameter == name


def test_a_timer_may_be_given_the_app() -> None:
    """Timers get injected values that do not depend on a message."""
    app, got = App(), []

    @app.every(1.0)
    def tick(app: App) -> None:
        got.append(app)

    (trigger,) = app.compile().parts.triggers
    trigger.call.bind({}, b"")()
    assert got == [app]


def test_a_generator_that_only_subscribes_is_refused() -> None:
    """A generator handler without a publisher is an error: its code would never run."""
    app = App()

    @app.subscribe("a")
    def handle(message: int) -> Iterator[int]:
        yield message

    with pytest.raises(SignatureError, match="no publisher publishes its values") as caught:
        app.compile()
    assert here(caught.value)


# -- schemas ---------------------------------------------------------------------------------------------


def test_what_a_function_returns_is_the_schema_of_its_publisher() -> None:
    """The return annotation is the schema of the publisher, also with wrappers and None."""
    from twisted.internet.defer import Deferred

    def plain_one() -> Alert | None: ...
    async def async_one() -> Alert: ...
    def deferred() -> Deferred[Alert]: ...
    def generator() -> Iterator[Alert | None]:
        yield None

    async def async_generator() -> AsyncIterator[Alert]:
        yield Alert("")

    for function in (plain_one, async_one, deferred, generator, async_generator):
        app = App()
        app.publisher("a", every=1.0)(function)
        assert schema_of(app) is Alert, function


def test_what_says_nothing_declares_no_schema() -> None:
    """Without a useful annotation, each message is encoded by its own type."""

    def nothing(): ...
    def none() -> None: ...
    def anything() -> Any: ...
    def bare() -> Iterator:
        yield 1

    for function in (nothing, none, anything, bare):
        app = App()
        app.publisher("a", every=1.0)(function)
        assert schema_of(app) is None, function


def test_a_union_of_answers_stays_a_union() -> None:
    """int | str | None publishes ints and texts."""
    app = App()

    @app.publisher("a", every=1.0)
    def made() -> int | str | None:
        raise AssertionError

    assert schema_of(app) == int | str


def test_two_functions_under_one_publication_declare_nothing() -> None:
    """If two functions share one publication, no annotation declares its schema."""
    app = App()
    publication = app.publisher("a", every=1.0)

    @publication
    def one() -> Alert:
        raise AssertionError

    @publication
    def two() -> int:
        raise AssertionError

    assert schema_of(app) is None


class Unserved:
    """A class that can't be encoded."""


def test_a_type_that_cannot_be_carried_names_parameter_and_line() -> None:
    """The error of an invalid handler type names file, line and parameter."""
    app = App()

    @app.subscribe("a")
    def handle(message: Unserved) -> None:
        raise AssertionError

    with pytest.raises(SchemaError, match=r"parameter 'message' of handle\(\)") as caught:
        app.compile()
    assert here(caught.value)


def test_a_type_that_cannot_be_published_names_the_publisher() -> None:
    """The error of an invalid publisher type names its pattern and line."""
    app = App()
    app.publisher("alerts.{x}", Unserved)
    with pytest.raises(SchemaError, match=r"publisher 'alerts\.\{x\}'") as caught:
        app.compile()
    assert here(caught.value)


def test_two_codecs_of_one_number_are_refused() -> None:
    """Two custom codecs with the same number are an error: the wire identifies a codec by it."""
    app = App(codec=Numbered("one", 130))
    app.add_route(lambda message: None, "a", codec=Numbered("two", 130))
    with pytest.raises(SchemaError, match="have the same number 130") as caught:
        app.compile()
    assert here(caught.value)


def test_codecs_of_ones_own_are_known_by_their_numbers() -> None:
    """Messages in the custom codecs of routes and publishers can be decoded."""
    app, one, two = App(), Numbered("one", 130), Numbered("two", 131)
    app.add_route(lambda message: None, "a", codec=one)
    app.publisher("b", codec=two)
    codecs = app.compile().parts.codecs.by_number
    assert codecs[130] is one
    assert codecs[131] is two


def test_compiling_twice_is_the_same_object() -> None:
    """app.compile() can be called repeatedly, and returns the same object."""
    app = App()
    assert app.compile() is app.compile()


@pytest.mark.parametrize("declare", ["nothing", "req", "startup", "shutdown", "resource", "reply"])
def test_an_app_that_can_ask_or_has_hooks_is_not_empty(declare: str) -> None:
    """`zroute check` and the warning at the start agree: only an app that does nothing at all is empty."""
    app = App(req="tcp://127.0.0.1:7001") if declare == "req" else App()
    if declare == "startup":
        app.on_startup(lambda: None)
    elif declare == "shutdown":
        app.on_shutdown(lambda: None)
    elif declare == "reply":
        app.reply("a")(lambda: None)
    elif declare == "resource":

        @app.resource
        def price() -> Iterator[Alert]:
            yield Alert("x")

    assert app.compile().is_empty(app.endpoints()) == (declare == "nothing")

"""The decorators: their records, and their errors at the user's line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from zroute import App, History, PatternError, Routes, SchemaError, SignatureError, startswith
from zroute.declarations.options import NEEDS, PublisherOptions, RouteOptions
from zroute.declarations.routes import joined
from zroute.functions import users_line
from zroute.messages.topics import parse

HERE = "test_routes.py:"

F = TypeVar("F", bound=Callable[..., Any])


def test_a_decorator_returns_the_function_unchanged() -> None:
    """A decorator returns the function unchanged."""

    def function(*args: Any) -> None: ...

    routes = Routes()
    decorators = [
        routes.subscribe("a"),
        routes.publisher("b"),
        routes.every(1.0),
        routes.on_error(ValueError),
        App().on_startup,
        App().on_shutdown,
        App().on_unrouted,
    ]
    assert all(decorate(function) is function for decorate in decorators)


def test_the_decorator_is_sugar_over_one_method() -> None:
    """add_route and @subscribe make equal records."""
    routes = Routes()

    def function(message: Any) -> None: ...

    routes.subscribe("a", startswith("b"), codec="json", copy=True)(function)
    route = routes.add_route(function, "a", startswith("b"), codec="json", copy=True)
    first, second = routes._routes
    assert second is route
    assert (first.function, first.patterns, first.options.codec, first.options.copy) == (
        second.function,
        second.patterns,
        second.options.codec,
        second.options.copy,
    )


def test_a_route_knows_its_line() -> None:
    """The line of a registration is relative to the working directory."""
    route = Routes().add_route(lambda message: None, "a")
    line = sys._getframe().f_lineno - 1
    assert route.where == f"{os.path.relpath(__file__)}:{line}"


def test_a_file_from_elsewhere_is_named_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The line of a file outside the working directory has the whole path."""
    monkeypatch.chdir(tmp_path)

    def who() -> str:
        return users_line()

    assert who().startswith(str(Path(__file__)))


def on(routes: Routes, pattern: str) -> Callable[[F], F]:
    """A helper that returns the decorator."""
    return routes.subscribe(pattern)


def on_quotes(routes: Routes) -> Callable[[F], F]:
    """A helper that is a decorator itself."""

    def register(function: F) -> F:
        return routes.subscribe("quotes")(routes.publisher("copies")(function))

    return register


def test_a_helper_around_the_decorators_reports_the_users_line() -> None:
    """For a decorator in a helper, the line is the place of its use."""
    routes, here = Routes(), sys._getframe

    line = here().f_lineno + 2

    @on(routes, "news")
    @on_quotes(routes)
    def handle(message: int) -> None: ...

    quotes, news = routes._routes
    (producer,) = routes._producers
    assert (news.where, quotes.where, producer.where) == tuple(
        f"{os.path.relpath(__file__)}:{line + number}" for number in (0, 1, 1)
    )


def test_a_function_that_is_passed_along_is_found_where_it_is_registered() -> None:
    """For add_route, the line is the call instead of the function's definition."""

    def handle(message: int) -> None: ...

    def create() -> Routes:
        routes = Routes()
        routes.add_route(handle, "a")
        return routes

    (route,) = create()._routes
    line = create.__code__.co_firstlineno + 2
    assert route.where == f"{os.path.relpath(__file__)}:{line}"


@pytest.mark.parametrize(
    ("register", "says"),
    [
        (lambda routes: routes.subscribe(), "needs a pattern"),
        (lambda routes: routes.subscribe(lambda message: None), "with parentheses"),
        (lambda routes: routes.subscribe("news.>.x"), "segment 2"),
        (lambda routes: routes.subscribe("a.{x}", "a.{y}"), "have different captures"),
        (lambda routes: routes.add_route(lambda message: None), "needs a pattern"),
        (lambda routes: routes.publisher("a.*"), "more than one topic, but a publisher needs one: replace each"),
        (lambda routes: routes.publisher("a.{rest+}"), r"\{rest\+\} can be several segments; use app.publish"),
        (lambda routes: routes.publisher(startswith("a")), "instead of startswith, or use app.publish"),
        (lambda routes: routes.publisher("a..b"), "empty"),
        (lambda routes: routes.include(Routes(), prefix="a b"), "a b"),
    ],
)
def test_a_bad_pattern_fails_at_its_line(register: Any, says: str) -> None:
    """The error for an invalid pattern names the line of the decorator."""
    with pytest.raises(PatternError, match=says) as caught:
        register(Routes())
    assert HERE in str(caught.value)
    assert caught.value.where is not None


@pytest.mark.parametrize(
    ("register", "says"),
    [
        (lambda routes: routes.subscribe("a")(5), "decorates a function, not 5"),
        (lambda routes: routes.subscribe("a")(dict), "not the class dict"),
        (lambda routes: routes.publisher("a")("x"), "publisher decorates"),
        (lambda routes: routes.every(1)("x"), "every decorates"),
        (lambda routes: routes.on_error(lambda error, envelope: None), "expected exception classes"),
        (lambda routes: routes.on_error(5), "expected exception classes"),
        (lambda routes: routes.on_error(print), r"got print.*, as in @app\.on_error\(ValueError\)"),
        (lambda routes: routes.include("x"), r"include\('x'\): expected a zroute\.Routes"),
        (lambda routes: routes.include(routes), "can't include itself"),
        (lambda routes: routes.every(0), "positive number"),
        (lambda routes: routes.every(float("inf")), "positive number"),
        (lambda routes: routes.publisher("a", every="1s"), "positive number"),
        (lambda routes: routes.publisher("a", every=1, jitter=2), "jitter=2"),
        (lambda routes: routes.publisher("a", every=1, initial_delay=-1), "initial_delay=-1"),
    ],
)
def test_a_bad_registration_fails_at_its_line(register: Any, says: str) -> None:
    """The error for an invalid function or schedule names the line of the decorator."""
    with pytest.raises(SignatureError, match=says) as caught:
        register(Routes())
    assert HERE in str(caught.value)


def test_a_circle_of_groups_is_refused() -> None:
    """A group can't include a group that contains it."""
    outer, inner = Routes(), Routes()
    outer.include(inner)
    with pytest.raises(SignatureError, match="can't include itself"):
        inner.include(outer)


@pytest.mark.parametrize("make", [Routes().subscribe, Routes().publisher])
def test_an_unknown_codec_is_refused(make: Any) -> None:
    """The error for an unknown codec lists the known codecs."""
    with pytest.raises(SchemaError, match="msgpack"):
        make("a", codec="yaml")(lambda message: None)


def test_an_include_keeps_a_reference() -> None:
    """Functions registered in a group after its inclusion belong to the app."""
    app, group = App(), Routes("g")
    app.include(group)
    group.add_route(lambda message: None, "late")
    (route,) = app.compile().parts.routes
    assert [pattern.text for pattern in route.patterns] == ["g.late"]


def test_a_bad_prefix_is_refused() -> None:
    """An invalid prefix is refused."""
    with pytest.raises(PatternError):
        Routes("a..b")


def test_joining_without_a_prefix_is_the_pattern() -> None:
    """A group without a prefix does not change patterns."""
    pattern = parse("a.{x}")
    assert joined("", pattern) is pattern
    assert joined("p", pattern).text == "p.a.{x}"
    assert joined("p", startswith("x")).subscription == b"p.x"


ALONE: dict[str, Any] = {
    "codec": "json",
    "copy": True,
    "thread": True,
    "max_in_flight": 5,
    "ordered": False,
    "queue": 5,
    "stale_after": 5.0,
    "batch": 5,
    "retry": (1, 5),
    "dead": "dead",
    "timeout": 5.0,
    "every": 5.0,
    "keep": "last",
    "coalesce": True,
    "history": History(messages=10),
    "recover": True,
    "snapshot": lambda: 1,
    "since": "all",
}
"""Options that can be used alone, with a value other than the default."""


async def _coroutine(body: Any) -> None:
    """A handler that can be cancelled."""


BESIDE = {"jitter": 0.5, "initial_delay": 0.5}
"""Options that need another option."""


def test_each_option_says_what_it_needs() -> None:
    """Each option is in ALONE or BESIDE, so a new option must be added to one of them."""
    every_option = {*RouteOptions.__annotations__, *PublisherOptions.__annotations__} - {"topics"}
    assert every_option == {*ALONE, *BESIDE}
    assert set(NEEDS) == set(BESIDE)


@pytest.mark.parametrize("name", ALONE)
def test_an_option_that_needs_no_other_is_taken_alone(name: str) -> None:
    """An option that can be used alone is accepted alone."""
    routes = Routes()
    if name in RouteOptions.__annotations__:
        routes.add_route(_coroutine if name == "timeout" else lambda body: None, "a", **{name: ALONE[name]})
    if name in PublisherOptions.__annotations__:
        routes.publisher("a", int, **{name: ALONE[name]})


@pytest.mark.parametrize("name", BESIDE)
def test_an_option_without_what_it_needs_is_refused(name: str) -> None:
    """The error for a lonely option names the line and the missing option."""
    routes, needed = Routes(), NEEDS[name]
    with pytest.raises(SignatureError, match=f"{name}=0.5 has no effect without {needed}=") as raised:
        routes.publisher("a", int, **{name: BESIDE[name]})
    assert raised.value.parameter == name
    assert HERE in str(raised.value.where)
    routes.publisher("a", int, **{name: BESIDE[name], needed: ALONE[needed]})
    routes.publisher("a", int, **{name: 0.0})  # the default is accepted alone


@pytest.mark.parametrize("function", ["requester", "job_queue", "publisher"])
def test_a_type_in_place_of_the_pattern_shows_the_order(function: str) -> None:
    """Functions that are no handlers' decorators are not advised to be used as such."""
    routes: Any = Routes()
    with pytest.raises(
        PatternError,
        match=rf"{function}\(int, …\): expected the pattern .* as the first argument, as in app\.{function}\('",
    ):
        getattr(routes, function)(int, "a.{x}")


def test_an_unknown_option_of_the_app_lists_the_options() -> None:
    """The error is at the user's line, as for the options of decorators."""
    make: Any = App
    listed = {
        "encrypt": r"App\(\) has no option 'encrypt': the options are sub, pub, rep, req, ",
        "reply": r"App\(\) has no option 'reply': did you mean 'rep'\? The options are sub, pub, rep, req, ",
        "since": r"App\(\) has no option 'since': it is an option of app.subscribe\(\). The options are ",
        "history": r"App\(\) has no option 'history': it is an option of app.publisher\(\). The options are ",
        "retry": r"App\(\) has no option 'retry': it is an option of app.subscribe\(\) and app.job_queue\(\). The ",
        "key": r"App\(\) has no option 'key': did you mean 'keys'\? The options are ",
        "peer": r"App\(\) has no option 'peer': did you mean 'peers'\? The options are ",
    }
    for name, text in listed.items():
        with pytest.raises(SignatureError, match=text) as error:
            make(**{name: "tcp://127.0.0.1:1"})
        assert "test_routes.py" in str(error.value.where)

"""Compilation of resources: types, dependencies and errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from functools import partial
from typing import Any, NewType

import pytest

from zroute import App, Envelope, Routes, SignatureError, Topic
from zroute.errors import AppFrozenError
from zroute.functions import name_of
from zroute.messages.schema import describe


class Settings:
    """The dependency of the database."""


class Database:
    """The resource that handlers use."""


class Cache:
    """A resource that depends on both."""


Reader = NewType("Reader", Database)
Writer = NewType("Writer", Database)


def order(app: App) -> list[str]:
    """Return the types of the resources in opening order."""
    return [describe(one.kind) for one in app.compile().parts.resources]


def settings() -> Iterator[Settings]:
    """A resource without dependencies."""
    yield Settings()


def database(settings: Settings) -> Iterator[Database]:
    """A resource with one dependency."""
    yield Database()


def cache(database: Database, settings: Settings) -> Iterator[Cache]:
    """A resource with two dependencies."""
    yield Cache()


# -- order -----------------------------------------------------------------------------------------------


def test_resources_open_in_order_of_dependency() -> None:
    """Dependencies open first, in any order of registration."""
    app = App()
    for function in (cache, database, settings):
        assert app.resource(function) is function
    assert order(app) == ["Settings", "Database", "Cache"]


def test_resources_that_need_nothing_keep_the_order_of_registration() -> None:
    """Independent resources open in the order of registration."""
    app = App()

    @app.resource
    def first() -> Iterator[Database]:
        yield Database()

    app.resource(settings)
    assert order(app) == ["Database", "Settings"]


@pytest.mark.parametrize(
    "hint", [Iterator[Database], Generator[Database, None, None], Iterable[Database], "Iterator[Database]"]
)
@pytest.mark.parametrize("is_async", [False, True])
def test_each_annotation_of_a_generator_is_read(hint: Any, is_async: bool) -> None:
    """All iterator annotations declare the type, plain or async, also as postponed text."""
    swapped = {
        Iterator[Database]: AsyncIterator[Database],
        Generator[Database, None, None]: AsyncGenerator[Database, None],
        Iterable[Database]: AsyncIterable[Database],
    }
    app = App()

    def plain() -> Any:
        yield Database()

    async def asynchronous() -> Any:
        yield Database()

    function: Any = asynchronous if is_async else plain
    function.__annotations__["return"] = swapped.get(hint, hint) if is_async else hint
    app.resource(function)

    @app.subscribe("a")
    def handle(message: int, database: Database) -> None: ...

    assert order(app) == ["Database"]
    assert app.compile().parts.routes[0].call.needs == (Database,)


def test_methods_and_partials_are_resources_too() -> None:
    """A bound method or a functools.partial can be a resource."""

    class Opener:
        def database(self) -> Iterator[Database]:
            yield Database()

    def cached(size: int) -> Iterator[Cache]:
        yield Cache()

    app = App()
    app.resource(Opener().database)
    app.resource(partial(cached, 10))
    assert order(app) == ["Database", "Cache"]


def test_a_type_of_its_own_tells_two_apart() -> None:
    """With typing.NewType, one class can have two resources."""
    app = App()

    @app.resource
    def reader() -> Iterator[Reader]:
        yield Reader(Database())

    @app.resource
    def writer(reader: Reader) -> Iterator[Writer]:
        yield Writer(Database())

    @app.subscribe("a")
    def handle(message: int, to: Writer, source: Reader) -> None: ...

    assert order(app) == ["Reader", "Writer"]
    assert app.compile().parts.routes[0].call.needs == (Writer, Reader)


# -- groups ----------------------------------------------------------------------------------------------


def test_a_group_brings_its_resources_and_shares_those_of_the_app() -> None:
    """The resources of groups and of the app are available to both."""
    app, desk = App(), Routes(prefix="desk")
    desk.resource(database)
    app.resource(settings)

    @desk.subscribe("a")
    def inner(message: int, settings: Settings) -> None: ...

    @app.subscribe("a")
    def outer(message: int, database: Database) -> None: ...

    app.include(desk)
    assert order(app) == ["Settings", "Database"]
    assert {route.name: route.call.needs for route in app.compile().parts.routes} == {
        "outer()": (Database,),
        "inner()": (Settings,),
    }


def test_a_group_that_is_included_twice_has_its_resource_once() -> None:
    """A group that is included twice has one object of its resource."""
    app, desk = App(), Routes()
    desk.resource(settings)
    app.include(desk, prefix="eu")
    app.include(desk, prefix="us")
    assert order(app) == ["Settings"]


# -- who may take one ------------------------------------------------------------------------------------


def test_hooks_take_resources_beside_their_arguments() -> None:
    """Hooks receive resources by type."""
    app = App()
    app.resource(settings)

    @app.on_startup
    @app.on_shutdown
    def life(settings: Settings, app: App) -> None: ...

    @app.on_error(ValueError)
    def failed(error: ValueError, envelope: Envelope, settings: Settings) -> None: ...

    @app.on_unrouted
    def lost(envelope: Envelope, *, settings: Settings) -> None: ...

    compiled = app.compile().parts
    assert {name_of(function): set(compiled.hooked[id(function)]) for function in (life, failed, lost)} == {
        "life()": {"settings", "app"},
        "failed()": {"settings"},
        "lost()": {"settings"},
    }


def test_a_hook_that_needs_what_nobody_yields_is_refused() -> None:
    """The error for a hook with an unknown parameter names its line."""
    app = App()

    @app.on_startup
    def start(database: Database) -> None: ...

    with pytest.raises(
        SignatureError, match=r"test_resources.py:\d+: start\(\) can't be called without arguments: .*'database'"
    ):
        app.compile()


def test_timers_take_resources_and_say_what_is_missing() -> None:
    """Timers and publishers receive resources, and the error for other parameters has the remedy."""
    app = App()
    app.resource(settings)

    @app.every(1.0)
    def tick(settings: Settings) -> None: ...

    @app.publisher("a", every=1.0)
    def beat(settings: Settings) -> int:
        return 1

    assert [trigger.call.needs for trigger in app.compile().parts.triggers] == [(Settings,), (Settings,)]
    other = App()

    @other.every(1.0)
    def tock(database: Database) -> None: ...

    with pytest.raises(SignatureError, match=r"'database': .* write an @app.resource that yields the parameter's type"):
        other.compile()


def test_a_handler_without_the_resource_is_told_how_to_get_one() -> None:
    """The error for a second parameter that can't be a body mentions resources."""
    app = App()

    @app.subscribe("a")
    def handle(message: int, database: Database) -> None: ...

    with pytest.raises(
        SignatureError, match=r"'database' of handle\(\) .* write an @app.resource that yields Database"
    ):
        app.compile()


def test_a_resource_may_take_the_app_and_defaults() -> None:
    """A resource can have an App parameter, and other parameters keep their defaults."""
    app = App()

    @app.resource
    def here(app: App, size: int = 3) -> Iterator[Database]:
        assert size == 3
        yield Database()

    assert order(app) == ["Database"]


# -- what can't be ---------------------------------------------------------------------------------------


def test_a_circle_is_drawn() -> None:
    """The error for a cycle shows the chain and a line."""
    app = App()

    @app.resource
    def one(database: Database) -> Iterator[Settings]:
        yield Settings()

    @app.resource
    def two(cache: Cache) -> Iterator[Database]:
        yield Database()

    @app.resource
    def three(settings: Settings) -> Iterator[Cache]:
        yield Cache()

    with pytest.raises(SignatureError) as caught:
        app.compile()
    text = str(caught.value)
    drawn = text.partition("opened first: ")[2].partition(";")[0].split(" -> ")
    needs = {"Settings": "Database", "Database": "Cache", "Cache": "Settings"}
    assert len(drawn) == 4
    assert [needs[name] for name in drawn[:-1]] == drawn[1:]
    assert "test_resources.py:" in text


def test_a_resource_that_needs_itself_is_a_circle() -> None:
    """The error for a resource that needs itself shows the cycle."""
    app = App()

    @app.resource
    def database(database: Database) -> Iterator[Database]:
        yield database

    with pytest.raises(
        SignatureError, match="Database -> Database; create the object of one resource inside the function of another"
    ):
        app.compile()


def test_a_missing_one_is_drawn() -> None:
    """The error for a missing resource names both types."""
    app = App()
    app.resource(database)
    with pytest.raises(SignatureError) as caught:
        app.compile()
    assert (
        "parameter 'settings' of database() needs Settings, but no resource yields Settings: Database -> Settings "
        "(missing)" in str(caught.value)
    )
    assert caught.value.parameter == "settings"


@pytest.mark.parametrize("scope", ["app", "message"])
@pytest.mark.parametrize(
    ("parameter", "text"),
    [
        (Topic, "resources do not receive messages: set a ContextVar in a middleware"),
        (Envelope, "resources do not receive messages: set a ContextVar in a middleware"),
        (Any, r"no resource yields .*\(missing\)"),
    ],
)
def test_a_resource_can_not_take_what_only_messages_have(parameter: Any, text: str, scope: Any) -> None:
    """A resource with a Topic, Envelope or body parameter is refused."""
    app = App()

    def needing(it: Any) -> Iterator[Database]:
        yield Database()

    needing.__annotations__["it"] = parameter
    app.resource(scope=scope)(needing)
    with pytest.raises(SignatureError, match=rf"parameter 'it' of needing\(\) needs .*, but {text}"):
        app.compile()


@pytest.mark.parametrize("kind", [str, int, dict, dict[str, int], list[Database], App, Envelope, Topic])
def test_a_type_that_many_parameters_have_is_refused(kind: Any) -> None:
    """A resource of a built-in type is refused, with the alternatives."""
    app = App()

    def wide() -> Any:
        yield kind

    wide.__annotations__["return"] = Iterator[kind]
    app.resource(wide)
    with pytest.raises(
        SignatureError, match=r"wide\(\) yields .*, so every parameter of that type would receive the object"
    ):
        app.compile()


def test_a_class_of_an_executed_file_is_no_builtin() -> None:
    """A class from a .tac file, whose module is called builtins, can be a resource."""
    app, namespace = App(), {"__builtins__": __builtins__}
    exec("class Own: ...", namespace)
    own: Any = namespace["Own"]
    assert own.__module__ == "builtins"

    def make() -> Any:
        yield own()

    make.__annotations__["return"] = Iterator[own]
    app.resource(make)
    app.compile()


@pytest.mark.parametrize(
    "hint", [None, Database, Iterator, Iterator[Any], Iterator[object], Iterator[None], list[Database]]
)
def test_a_resource_without_its_type_is_shown_how_to_write_it(hint: Any) -> None:
    """The error for a missing or vague annotation shows the right one."""
    app = App()

    async def vague() -> Any:
        yield Database()

    if hint is None:
        del vague.__annotations__["return"]
    else:
        vague.__annotations__["return"] = hint
    app.resource(vague)
    with pytest.raises(
        SignatureError, match=r"add a return annotation, as in `async def vague\(\) -> AsyncIterator\[Database\]`"
    ):
        app.compile()


def test_two_resources_of_one_type_are_refused() -> None:
    """The error for two resources of one type names both and their lines."""
    app, desk = App(), Routes()
    app.resource(settings)

    @desk.resource
    def others() -> Iterator[Settings]:
        yield Settings()

    app.include(desk)
    with pytest.raises(SignatureError, match=r"others\(\) and settings\(\) at .* both yield Settings, .*NewType"):
        app.compile()


def test_a_resource_is_a_generator_function() -> None:
    """A function that returns its object is refused at the decorator's line."""
    app = App()
    with pytest.raises(
        SignatureError, match=r"but opened\(\) has no yield: open the object, yield the object once, and then close"
    ):

        @app.resource
        def opened() -> Database:
            return Database()

    with pytest.raises(SignatureError, match="decorates a function"):
        app.resource(Database())  # type: ignore[type-var]


def test_a_resource_after_the_start_comes_too_late() -> None:
    """A compiled app accepts no further resources."""
    app = App()
    app.compile()
    with pytest.raises(AppFrozenError, match="resource is too late"):
        app.resource(settings)

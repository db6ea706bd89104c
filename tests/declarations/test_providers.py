"""Match of annotations to resources: what fills a parameter, what stays the body, and what is refused."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Annotated, Any, Generic, NewType, Optional, Protocol, TypeVar

import attrs
import fastapi
import msgspec
import pytest

from zroute import App, Envelope, SignatureError, Topic
from zroute.declarations.providers import Needed
from zroute.declarations.signatures import plan
from zroute.testing import TestApp

T = TypeVar("T")


class Database:
    """The base class of a resource's class."""

    def query(self) -> int:
        """Return a number."""
        return 1


class Postgres(Database):
    """The class of the resource."""

    name: str = "postgres"


class Other:
    """Another resource, which shares nothing with the first."""


class Repository(Generic[T]):
    """A generic base class."""


@attrs.frozen
class User:
    """The type of a message."""

    name: str


class Users(Repository[User]):
    """A resource with a generic base class."""


class Queries(Protocol):
    """What the database can do."""

    def query(self) -> int:
        """Return a number."""


class Named(Protocol):
    """A protocol of one attribute."""

    name: str


class Writes(Protocol):
    """What no resource can do."""

    def write(self) -> None:
        """Write."""


class Anything(Protocol):
    """A protocol without members, which every object satisfies."""


Primary = NewType("Primary", Database)
Replica = NewType("Replica", Database)


def app_with(*kinds: Any) -> App:
    """Return an app with a resource of each type; each is an object of a class of its own."""
    app = App()
    for kind in kinds:

        def resource(made: Any) -> Iterator[Any]:
            yield made

        made = kind.__supertype__() if isinstance(kind, NewType) else kind()
        function = partial(resource, made)
        function.func.__annotations__["return"] = Iterator[kind]
        app.resource(function)
    return app


def handled(app: App, annotation: Any, *default: Any) -> list[Any]:
    """Return the arguments of a handler with a body and a second parameter with ``annotation``."""
    got: list[Any] = []

    def handle(number: int, thing: Any) -> None:
        got.extend((number, thing))

    handle.__annotations__["thing"] = annotation
    handle.__defaults__ = default
    app.subscribe("x")(handle)
    with TestApp(app) as t:
        t.publish("x", 1)
    return got


@pytest.mark.parametrize(
    "annotation",
    [
        Postgres,
        "Postgres",
        Annotated[Postgres, "a note"],
        Annotated["Postgres", msgspec.Meta(description="the database")],
        Optional[Postgres],  # noqa: UP045  # as users of earlier versions write it
        Postgres | None,
        "Postgres | None",
        Annotated[Postgres | None, 1],
        Annotated[Postgres, 1] | None,
        Database,
        Annotated[Database, 1],
        Database | None,
        Queries,
        "Queries",
        Annotated[Queries, 1],
        Queries | None,
        Named,
    ],
)
def test_a_parameter_that_only_one_resource_satisfies_receives_it(annotation: Any) -> None:
    """A resource fills annotated, optional, base class, Protocol and text annotations, in every function."""
    number, thing = handled(app_with(Postgres, Other), annotation)
    assert (number, type(thing)) == (1, Postgres)
    got: list[Any] = []

    def hook(thing: Any) -> None:
        got.append(thing)

    def needs(thing: Any) -> Iterator[Users]:
        got.append(thing)
        yield Users()

    hook.__annotations__["thing"] = needs.__annotations__["thing"] = annotation
    app = app_with(Postgres, Other)
    app.on_startup(hook)
    app.resource(needs)
    app.every(60)(hook)
    with TestApp(app):
        assert [type(each) for each in got] == [Postgres] * 3


def test_the_default_of_an_optional_resource_counts_without_it() -> None:
    """An optional resource that the app does not have leaves the parameter its default."""
    assert handled(App(), Postgres | None, None) == [1, None]


def test_a_generic_base_class_has_to_agree_in_its_arguments() -> None:
    """A base class with arguments matches only a class that derives from just that."""
    assert type(handled(app_with(Users), Repository[User])[1]) is Users
    with pytest.raises(SignatureError, match=r"annotated with Repository\[int\], but no message can have this type"):
        handled(app_with(Users), Repository[int])


@pytest.mark.parametrize(
    ("kinds", "annotation", "names"),
    [
        ((Postgres, Database), Queries, "Postgres and Database"),
        ((Primary, Replica), Database, "Primary and Replica"),
        ((Primary, Replica), Queries | None, "Primary and Replica"),
    ],
)
def test_an_ambiguous_annotation_is_refused_with_the_candidates(kinds: Any, annotation: Any, names: str) -> None:
    """Of several resources that satisfy an annotation none is chosen; the error names them and the user's line."""
    with pytest.raises(
        SignatureError, match=rf"test_providers.py:[0-9]+: parameter 'thing' .* have this type \({names}\)"
    ):
        handled(app_with(*kinds), annotation)


def test_the_exact_type_wins_over_a_derived_one() -> None:
    """A parameter of a resource's own type receives it, also if the class of another resource derives from it."""
    assert type(handled(app_with(Postgres, Database), Database)[1]) is Database


def test_the_metadata_of_a_resource_may_tell_two_of_one_class_apart() -> None:
    """A resource that yields an annotated type is found by exactly that; the bare class is then ambiguous."""
    app = App()

    @app.resource
    def first() -> Iterator[Annotated[Database, "first"]]:
        yield Postgres()

    @app.resource
    def second() -> Iterator[Annotated[Database, "second"]]:
        yield Database()

    assert type(handled(app, Annotated[Database, "first"])[1]) is Postgres


@pytest.mark.parametrize("annotation", [Writes, Anything, Users])
def test_a_type_that_no_resource_yields_is_refused_with_those_there_are(annotation: Any) -> None:
    """The error says what was asked for, what the app has, and what to write."""
    text = (
        rf"'thing' of handled.*\(\) is annotated with {annotation.__name__}, but no message can "
        r"have this type, and no resource yields \w+ \(the app's resources: Database, Other\): "
        rf"write an @app.resource that yields {annotation.__name__}"
    )
    with pytest.raises(SignatureError, match=text.replace("handled.*", ".*handle")):
        handled(app_with(Database, Other), annotation)


@attrs.frozen
class Settings(User):
    """A resource whose class derives from the class of a message."""

    name: str = "settings"


class Table(dict[str, int]):
    """A resource that is a map."""


@pytest.mark.parametrize("body", [User, dict[str, int], dict, object, Any, User | None, Iterable, int | None])
def test_a_body_is_never_mistaken_for_a_resource(body: Any) -> None:
    """A parameter of a type that messages can have stays the body, even if a resource is an instance of it."""
    app = app_with(Settings, Table)

    def handle(message: Any, settings: Settings) -> None: ...

    handle.__annotations__["message"] = body
    app.subscribe("x")(handle)
    if body is Iterable:
        with pytest.raises(Exception, match="no codec supports"):
            app.compile()
        return
    (route,) = app.compile().parts.routes
    assert route.call.body == "message"
    assert route.call.needs == (Settings,)


def test_under_a_codec_of_the_user_a_base_class_is_a_body() -> None:
    """A codec of one's own may decode any class, so only protocols are matched beside the resource's own type."""

    def handle(message: Database, queries: Queries, exact: Postgres | None) -> None: ...

    call = plan(handle, captures=(), given={Postgres: Needed(Postgres)}, where="here", handler=True, own_codec=True)
    assert (call.body, call.needs) == ("message", (Postgres, Postgres))


def test_a_resource_may_wrap_another_one_of_its_kind() -> None:
    """A resource that asks for a base class or protocol of its own type gets the other resource."""
    app = app_with(Postgres)

    class Cached:
        def __init__(self, inner: Queries) -> None:
            self.inner = inner

        def query(self) -> int:
            return self.inner.query() + 1

    @app.resource
    def cached(inner: Queries) -> Iterator[Cached]:
        yield Cached(inner)

    got = []

    @app.subscribe("x")
    def handle(cached: Cached) -> None:
        got.append(cached.query())

    @app.subscribe("x")
    def other(number: int, cached: Cached) -> None:
        got.append(cached.query())

    with TestApp(app) as t:
        t.publish("x", 1)
    assert got == [2, 2]


def test_what_zroute_itself_fills_may_be_annotated_and_optional_too() -> None:
    """`Annotated` and ``| None`` are also ignored around App, Topic and Envelope."""
    app, got = App(), []

    @app.subscribe("x")
    def handle(
        n: int, here: Annotated[App, 1], topic: Topic | None, envelope: Annotated[Envelope | None, "whole"]
    ) -> None:
        got.append((n, here, topic, envelope))

    with TestApp(app) as t:
        t.publish("x", 1)
    ((n, here, topic, envelope),) = got
    assert (n, here, topic) == (1, app, "x")
    assert envelope is not None
    assert envelope.topic == "x"


class Depends:
    """A marker as other frameworks have it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.dependency = function


class Security(Depends):
    """A marker that derives from it."""


@pytest.mark.parametrize("marker", [Depends(list), Security(list)])
@pytest.mark.parametrize("register", ["subscribe", "every", "on_error", "on_startup", "resource"])
@pytest.mark.parametrize("way", ["annotated", "default"])
def test_a_marker_of_another_framework_is_refused(marker: Any, register: str, way: str) -> None:
    """``Depends`` in an annotation or as a default is an error that names @app.resource, in every function."""
    app = App()

    def function(error: int, envelope: Envelope, user: Any) -> Any: ...

    def bare(user: Any) -> Any: ...

    def opened(user: Any) -> Iterator[Database]:
        yield Database()

    chosen: Any = {"subscribe": function, "on_error": function, "resource": opened}.get(register, bare)
    chosen.__annotations__["user"] = Annotated[str, marker] if way == "annotated" else str
    chosen.__defaults__ = (marker,) if way == "default" else None
    decorators: dict[str, Any] = {"subscribe": app.subscribe("x"), "every": app.every(1), "on_error": app.on_error()}
    decorators.get(register, getattr(app, register))(chosen)
    name = type(marker).__name__
    text = rf"test_providers.py:[0-9]+: parameter 'user' of .*\(\) uses {name}\(…\), .*`@app.resource def user\(\)"
    with pytest.raises(SignatureError, match=text):
        app.compile()


class Context:
    """A marker as FastStream makes it, also for its ``Header`` and ``Path``."""

    __module__ = "faststream._internal.context"

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        (fastapi.Header(), r"Header\(…\), .*read envelope.headers"),
        (fastapi.Cookie(), r"Cookie\(…\), .*read envelope.headers"),
        (fastapi.Query(), r"Query\(…\), .*write the capture \{user\} in the pattern"),
        (fastapi.Path(), r"Path\(…\), .*write the capture \{user\} in the pattern"),
        (fastapi.Body(), r"Body\(…\), .*only the type of the body"),
        (fastapi.Form(), r"Form\(…\), .*only the type of the body"),
        (fastapi.File(), r"File\(…\), .*only the type of the body"),
        (fastapi.Depends(list), r"Depends\(…\), .*`@app.resource def user\(\)"),
        (fastapi.Security(list), r"Security\(…\), .*`@app.resource def user\(\)"),
        (Context(), r"Context\(…\), .*`@app.resource def user\(\)"),
        (Context("message.headers."), r"Header\(…\), .*read envelope.headers"),
        (Context("message.path."), r"Path\(…\), .*write the capture \{user\} in the pattern"),
    ],
)
@pytest.mark.parametrize("way", ["annotated", "default"])
def test_a_marker_for_a_part_of_a_request_is_refused_with_the_way_of_zroute(marker: Any, says: str, way: str) -> None:
    """Its parameter would receive the body, or the marker itself as its default."""
    app = App()

    def handler(message: int, user: Any) -> None: ...

    def with_default(message: int, user: Any = marker) -> None: ...

    chosen = handler if way == "annotated" else with_default
    chosen.__annotations__["user"] = Annotated[str, marker] if way == "annotated" else str
    app.subscribe("x")(chosen)
    with pytest.raises(SignatureError, match=says):
        app.compile()


def test_a_marker_of_a_filled_parameter_does_no_harm() -> None:
    """A capture fills its parameter, whatever else it is annotated with."""
    app, got = App(), list[Any]()

    @app.subscribe("x.{user}")
    def handler(message: int, user: Annotated[str, fastapi.Path()]) -> None:
        got.append(user)

    with TestApp(app) as t:
        t.publish("x.ann", 1)
    assert got == ["ann"]


def test_a_marker_beside_a_resources_type_does_no_harm() -> None:
    """A function that is shared with another framework keeps its metadata; the resource's type decides."""
    assert type(handled(app_with(Postgres), Annotated[Database, Depends(list)])[1]) is Postgres


@pytest.mark.parametrize("how", ["function", "partial", "method"])
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_context_manager_function_is_a_resource(kind: str, how: str) -> None:
    """Functions under contextlib's decorators open and close as the generators inside do, and stay usable."""
    events: list[str] = []

    class Owner:
        @contextmanager
        def plain(self, name: str = "open") -> Iterator[Database]:
            events.append(name)
            yield Postgres()
            events.append("close")

        @asynccontextmanager
        async def later(self, name: str = "open") -> AsyncIterator[Database]:
            events.append(name)
            yield Postgres()
            events.append("close")

    owner, app = Owner(), App()
    method: Any = owner.plain if kind == "plain" else owner.later

    @contextmanager
    def plain() -> "Iterator[Database]":
        with owner.plain() as made:
            yield made

    @asynccontextmanager
    async def later() -> AsyncIterator[Database]:
        async with owner.later() as made:
            yield made

    function: Any = {"function": plain if kind == "plain" else later, "partial": partial(method, name="open")}.get(
        how, method
    )
    assert app.resource(function) is function
    number, thing = handled(app, Database)
    assert (number, type(thing), events) == (1, Postgres, ["open", "close"])


def test_a_context_manager_function_without_a_type_is_refused_as_a_generator_is() -> None:
    """The error about a missing annotation names the decorated function."""
    app = App()

    @app.resource
    @contextmanager
    def vague():  # type: ignore[no-untyped-def]
        yield Database()

    with pytest.raises(SignatureError, match=r"vague\(\) does not declare the type that it yields"):
        app.compile()

"""App: its arguments, its endpoints, and errors at the line of the mistake."""

from __future__ import annotations

import inspect
import re
from typing import Any

import attrs
import pytest
import zmq

from tests.patience import WAITING
from tests.pure import Wired
from zroute import App, EndpointError, NotRunningError, Routes, SchemaError, SignatureError, TopicError
from zroute.declarations.options import PUBLISHER_DEFAULTS, ROUTE_DEFAULTS, PublisherOptions, RouteOptions
from zroute.endpoints import SIDES, Side, parse_endpoint, parse_ends
from zroute.messages.codecs import JSON


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        *(
            (
                {side.name: ["tcp://127.0.0.1:x"]},
                EndpointError,
                f"{side.name}: endpoint .* does not have the form 'tcp://host:port'",
            )
            for side in SIDES
        ),
        ({"codec": "pickle"}, SchemaError, "unknown codec 'pickle'"),
        ({"wire": "fast"}, SignatureError, "wire='fast' is unknown: use one of 'plain', 'multipart', 'tracked'"),
        ({"dispatch": "some"}, SignatureError, "dispatch='some'"),
        (
            {"max_message": 10},
            SignatureError,
            r"App\(\) no longer has the option 'max_message': write limits=Limits\(max_message=10\)",
        ),
    ],
)
def test_a_bad_choice_fails_at_the_app_with_its_line(options: Any, kind: type[Exception], says: str) -> None:
    """The error of a wrong argument names the user's line and the valid values."""
    with pytest.raises(kind, match=says) as caught:
        App(**options)
    assert "tests/test_app.py:" in str(caught.value)


def test_sub_connects_and_pub_binds() -> None:
    """By default ``sub`` connects and ``pub`` binds."""
    app = App(sub=["tcp://h:1", "bind:tcp://127.0.0.1:2"], pub="tcp://127.0.0.1:3")
    assert [str(endpoint) for endpoint in (*app.sub, *app.pub)] == [
        "connect:tcp://h:1",
        "bind:tcp://127.0.0.1:2",
        "bind:tcp://127.0.0.1:3",
    ]


def test_no_endpoints_are_a_loop_of_the_apps_own() -> None:
    """An app without endpoints receives its own messages; two such apps are not connected."""
    ends = App().endpoints()
    (sub,), (pub,) = ends.sub, ends.pub
    assert sub.address == pub.address
    assert (sub.bind, pub.bind) == (False, True)
    app, other = App(), App()
    assert app.endpoints() != other.endpoints()


def test_the_loop_can_be_forbidden() -> None:
    """With loop=False, an app without endpoints is an error."""
    with pytest.raises(EndpointError, match="loop=False") as caught:
        App(loop=False).endpoints()
    assert "test_app.py:" in str(caught.value)


def test_routes_without_an_endpoint_to_subscribe_to_are_an_error() -> None:
    """An app with a handler and only ``pub`` is an error that names the handler and the remedy."""
    app = App(pub="tcp://127.0.0.1:3")
    app.add_route(lambda message: None, "a")
    with pytest.raises(EndpointError, match=r"write App\(sub=") as caught:
        app.endpoints()
    assert "<lambda>()" in str(caught.value)


def test_publishers_without_an_endpoint_to_publish_at_are_an_error() -> None:
    """An app with a publisher and only ``sub`` is an error."""
    app = App(sub="tcp://127.0.0.1:3")
    app.publisher("alerts")
    with pytest.raises(EndpointError, match=r"publisher\('alerts'\).*write App\(pub="):
        app.endpoints()


def test_given_endpoints_go_before_the_apps_own() -> None:
    """Endpoints of the command line replace those of the app, each side separately."""
    texts = {side.name: f"tcp://127.0.0.1:{port}" for port, side in enumerate(SIDES, 1)}
    app, other = App(**texts), (parse_endpoint("tcp://h:9", bind=False),)
    own = parse_ends(texts)
    assert app.endpoints() == app.endpoints(**dict.fromkeys(texts)) == own
    for side in SIDES:
        assert app.endpoints(**{side.name: other}) == attrs.evolve(own, **{side.name: other})


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
def test_endpoints_on_any_side_replace_the_loop(side: Side) -> None:
    """An app with endpoints on one side only has no loop inside the process."""
    ends = App(**{side.name: "tcp://127.0.0.1:1"}).endpoints()
    assert [str(endpoint) for endpoint in ends] == [str(parse_endpoint("tcp://127.0.0.1:1", bind=side.binds))]


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
def test_an_inproc_address_needs_an_app_that_binds_it(side: Side) -> None:
    """An app that connects over inproc:// needs a shared context, or an endpoint of its own that binds."""
    with pytest.raises(EndpointError, match="no other app shares the context of this app"):
        App(**{side.name: "connect:inproc://a"}).endpoints()
    assert App(**{side.name: ["connect:inproc://a", "bind:inproc://a"]}).endpoints()
    other = App()
    assert App(**{side.name: "connect:inproc://a"}, context=other.context).endpoints()


def test_the_new_endpoints_are_parameters_and_no_attributes() -> None:
    """The names of the parameters are free for methods of the app."""
    app = App(**{side.name: f"tcp://127.0.0.1:{port}" for port, side in enumerate(SIDES, 1)})
    assert [side.name for side in SIDES if isinstance(getattr(app, side.name, None), tuple)] == ["sub", "pub"]


def test_publishing_before_the_start_is_refused() -> None:
    """app.publish before the start is an error that says where to publish from."""
    with pytest.raises(NotRunningError, match="is not running"):
        App().publish("a", 1)


def test_publish_takes_a_topic_and_any_message() -> None:
    """app.publish sends any message to any topic, in the app's codec."""
    app = App(codec="json")
    wired = Wired(app)
    app.publish("a.b", {"x": 1})
    app.publish("a", "text", headers={"k": 1})
    assert [(topic, number) for topic, number, *_ in wired.sent] == [("a.b", JSON.number), ("a", 3)]
    for topic in ("a.*", "a b", "a..b", 5):
        with pytest.raises(TopicError):
            app.publish(topic, 1)  # type: ignore[arg-type]
    assert len(wired.sent) == 2


@pytest.mark.parametrize("hook", ["on_startup", "on_shutdown", "on_unrouted"])
def test_hooks_decorate_functions(hook: str) -> None:
    """A hook that is not a function is an error with the user's line."""
    with pytest.raises(SignatureError, match=f"{hook} decorates a function") as caught:
        getattr(App(), hook)(5)
    assert "test_app.py:" in str(caught.value)


def test_a_zmq_context_of_ones_own_is_used_and_left_alone() -> None:
    """context= takes a zmq.Context, which the app never terminates."""
    context = zmq.Context()
    app = App(context=context)
    assert app.context.acquire() is context
    done = app.context.release(None)
    assert done.called
    assert not context.closed
    context.term()


def test_an_app_may_include_another_groups_handlers_and_shows_itself() -> None:
    """The repr of an app has its name and line, and an app can include groups."""
    app = App(name="desk")
    assert isinstance(app, Routes)
    assert repr(app).startswith("<App 'desk' at ")
    assert "test_app.py:" in repr(app)


@pytest.mark.parametrize("code", [0, 3])
def test_run_is_zroute_run_for_scripts(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """app.run() runs the app with its options, and raises SystemExit if the exit code is not 0."""
    import zroute.runtime.runner

    calls: list[Any] = []
    monkeypatch.setattr(zroute.runtime.runner, "run", lambda apps, **options: calls.append((apps, options)) or code)
    app = App()
    if code:
        with pytest.raises(SystemExit) as caught:
            app.run(drain_timeout=1.0)
        assert caught.value.code == code
    else:
        app.run(drain_timeout=1.0)
    assert calls == [([app], {"drain_timeout": 1.0})]


def test_the_options_of_run_are_those_of_the_runner() -> None:
    """app.run() shows each option of the runner with its default, and the two lists of options agree."""
    from zroute.runtime.runner import RUN_DEFAULTS, RunOptions
    from zroute.runtime.runner import run as runner

    expected = [
        each for each in inspect.signature(runner).parameters.values() if each.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    _, *shown = inspect.signature(App.run).parameters.values()
    assert list(RunOptions.__annotations__) == list(RUN_DEFAULTS)
    assert [(each.name, each.annotation, each.default) for each in shown] == [
        (each.name, each.annotation, each.default) for each in expected
    ]


@pytest.mark.parametrize("function", WAITING, ids=lambda function: function.__name__)
def test_calls_that_give_no_timeout_wait_for_ten_seconds(function: Any) -> None:
    """The tests with real sockets replace these defaults, so they do not notice other ones."""
    assert inspect.signature(function).parameters["timeout"].default == 10.0


def test_a_subclass_of_app_is_injected_by_its_own_type_too() -> None:
    """A parameter of the type of a program's own App class receives the app."""

    class Desk(App):
        pass

    app, got = Desk(), []

    @app.every(1.0)
    def tick(desk: Desk, app: App) -> None:
        got.append((desk, app))

    (trigger,) = app.compile().parts.triggers
    trigger.call.bind({}, b"")()
    assert got == [(app, app)]


def call(name: str, **options: Any) -> Any:
    """Call one of the functions that take options, with ``options``."""
    app = App()
    given = {"subscribe": ("a",), "add_route": (print, "a"), "attach": ("a", print), "publisher": ("a",)}
    return getattr(app, name)(*given[name], **options)


OPTIONS = {
    "subscribe": (RouteOptions, ROUTE_DEFAULTS),
    "add_route": (RouteOptions, ROUTE_DEFAULTS),
    "attach": (RouteOptions, ROUTE_DEFAULTS),
    "publisher": (PublisherOptions, PUBLISHER_DEFAULTS),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_keyword_that_is_no_option_is_a_type_error_that_lists_them(name: str) -> None:
    """An unknown keyword is a TypeError that names the function and its options."""
    names = ", ".join(OPTIONS[name][0].__annotations__)
    says = rf"^{name}\(\) got an unexpected keyword argument 'bach': the options are {names}$"
    with pytest.raises(TypeError, match=says):
        call(name, bach=1)


@pytest.mark.parametrize("name", OPTIONS)
def test_help_shows_each_option_with_its_default(name: str) -> None:
    """help() shows each option with its default, although the function takes them as a group."""
    kind, defaults = OPTIONS[name]
    assert list(kind.__annotations__) == list(defaults)
    parameters = inspect.signature(getattr(App(), name)).parameters.values()
    shown = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert shown == defaults
    assert not [each for each in parameters if each.kind is each.VAR_KEYWORD]
    source = inspect.getsource(kind)
    for option, default in defaults.items():
        text = source.partition(f"    {option}: ")[2].partition('"""')[2].partition('"""')[0]
        said = re.search(r"Default: ([\w.]+)", text)
        assert said, f"the documentation of {option} says no default"
        if isinstance(default, int | float):  # the text describes None and ()
            assert said[1].rstrip(".") == (f"{default:g}" if isinstance(default, float) else str(default))

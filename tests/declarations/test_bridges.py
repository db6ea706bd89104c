"""Bridges: one function under decorators of two apps."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any
from weakref import ref

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.cli.test_run import module, zroute
from tests.running import Mailbox, reactor, running, turns
from tests.support import PATIENCE, free_endpoint, sized
from zroute import App, PatternError, Routes, SignatureError
from zroute.options import DRAIN_TIMEOUT
from zroute.runtime.service import AppService
from zroute.testing import TestApp

SUB, PUB = "tcp://127.0.0.1:5001", "tcp://127.0.0.1:5002"


def pair() -> tuple[App, App]:
    """Return an app that subscribes and one that publishes."""
    return App(sub=SUB, name="inside"), App(pub=PUB, name="outside")


def increased(n: int, s: str) -> int:
    """The handler of the bridges that are made by calls."""
    return n + 1


Stacker = Callable[[App, App, Any], Any]

ORDERS: dict[str, Stacker] = {
    "publisher on top": lambda a, b, f: b.publisher("out.{s}")(a.subscribe("in.{s}")(f)),
    "publisher below": lambda a, b, f: a.subscribe("in.{s}")(b.publisher("out.{s}")(f)),
}


@pytest.mark.parametrize("order", ["publisher on top", "publisher below"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["plain", "async", "generator", "method"])
def test_the_results_of_one_app_are_published_by_the_other(order: str, reverse: bool, kind: str) -> None:
    """The other app publishes what the handler returns, with its captures, in any order of decorators and apps."""
    a, b = pair()

    def plain(n: int, s: str) -> int:
        return n + 1

    async def later(n: int, s: str) -> int:
        return n + 1

    def several(n: int, s: str) -> Iterator[int]:
        yield n + 1

    class Owner:
        def method(self, n: int, s: str) -> int:
            return n + 1

    owner = Owner()
    functions: dict[str, Any] = {"async": later, "generator": several, "method": owner.method}
    ORDERS[order](a, b, functions.get(kind, plain))
    with TestApp(*((b, a) if reverse else (a, b))) as t:
        t.publish("in.x", 1)
        t.publish("in.y", 2)
        assert t.published("out.>") == [2, 3]
        assert [str(envelope.topic) for envelope in t.envelopes("out.>")] == ["out.x", "out.y"]
        assert (a.stats.published, b.stats.published) == (0, 2)


def test_decorators_of_three_apps_and_of_groups() -> None:
    """Several apps publish the results, also behind the prefix of a group, and beside the app's own publisher."""
    a = App(sub=SUB, pub="tcp://127.0.0.1:5003", name="a")
    b, c, desk = App(pub=PUB, name="b"), App(pub="tcp://127.0.0.1:5004", name="c"), Routes()

    @b.publisher("b")
    @desk.publisher("c")
    @a.publisher("a")
    @a.subscribe("in")
    def bridge(n: int) -> int:
        return n + 1

    c.include(desk, prefix="desk")
    with TestApp(a, b, c) as t:
        t.publish("in", 1)
        assert {str(envelope.topic): envelope.body for envelope in t.envelopes()} == {
            "a": b"\x02",
            "b": b"\x02",
            "desk.c": b"\x02",
        }


def test_the_other_app_does_not_run() -> None:
    """Without the other app each result is a publish error that says what to do; the message is handled."""
    a, b = pair()
    ORDERS["publisher on top"](a, b, increased)
    with TestApp(a, raise_errors=False) as t:
        t.publish("in.x", 1)
        (error,) = t.failures
    assert type(error).__name__ == "NotRunningError"
    assert "cannot publish to <Publication 'out.{s}'" in str(error)
    assert "the app of this publication is not running; run both apps together" in str(error)
    assert (a.stats.publish_errors, a.stats.handled, a.stats.failed) == (1, 1, 0)


class Slow:
    """A handler of two bridged apps whose calls end when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[None]] = []

    async def __call__(self, n: int, s: str) -> int:
        self.waiting.append(Deferred())
        await self.waiting[-1]
        return n + 1


@pytest.mark.parametrize("reverse", [False, True])
def test_a_stop_publishes_the_results_of_handlers_that_drain(reverse: bool) -> None:
    """The app that publishes ends after the handlers of the app that calls, and before its own on_shutdown."""
    (a, b), slow, heard = pair(), Slow(), list[int]()
    ORDERS["publisher on top"](a, b, slow)
    b.on_shutdown(lambda: heard.append(b.stats.published))
    with TestApp(*((b, a) if reverse else (a, b))) as t:
        t.publish("in.x", 1)
        t._running.callLater(3, lambda: slow.waiting[0].callback(None))
    assert t.published("out.>") == [2]
    assert (heard, a.stats.publish_errors) == ([1], 0)


def test_apps_that_publish_for_each_other_stop() -> None:
    """Neither waits for the other one without an end."""
    a, b = App(sub=SUB, pub="tcp://127.0.0.1:5003", name="a"), App(sub="tcp://127.0.0.1:5004", pub=PUB, name="b")
    there, back = Slow(), Slow()
    ORDERS["publisher on top"](a, b, there)
    b.subscribe("in.{s}")(a.publisher("back.{s}")(back))
    with TestApp(a, b) as t:
        t.publish("in.x", 1)
        for delay, slow in ((2, there), (3, back)):
            t._running.callLater(delay, slow.waiting[0].callback, None)
    assert sorted(str(each.topic) for each in t.envelopes()) == ["back.x", "out.x"]


def test_a_stop_waits_for_a_bridge_no_longer_than_its_time() -> None:
    """A handler that does not end is given up, and both apps stop."""
    (a, b), slow = pair(), Slow()
    ORDERS["publisher on top"](a, b, slow)
    with TestApp(a, b, raise_errors=False) as t:
        t.publish("in.x", 1)
        clock = t._running
    assert DRAIN_TIMEOUT <= clock.seconds() < DRAIN_TIMEOUT + 3
    assert [route.dropped_at_shutdown for route in a.stats.routes.values()] == [1]


def test_an_app_that_stops_alone_waits_for_no_bridge() -> None:
    """The other app continues, and its results are errors that are counted."""
    (a, b), slow = pair(), Slow()
    ORDERS["publisher on top"](a, b, slow)
    with TestApp(a, b, raise_errors=False) as t:
        t.publish("in.x", 1)
        b.stop()
        t.advance(1)
        slow.waiting[0].callback(None)
        t.advance(0)
        assert (a.stats.publish_errors, a.stats.handled) == (1, 1)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("reverse", [False, True])
async def test_a_stop_over_sockets_publishes_the_results_of_handlers_that_drain(reverse: bool) -> None:
    """Nothing is lost at the subscriber either: the result comes before the goodbye."""
    inner, outer, slow, got = free_endpoint(), free_endpoint(), Slow(), Mailbox[int]()
    feed, end = App(pub=inner, name="feed"), App(sub=outer, name="end")
    a, b = App(sub=inner, name="a"), App(pub=outer, name="b")
    ORDERS["publisher on top"](a, b, slow)
    end.subscribe("out.*")(got.put)
    numbers, outs = feed.publisher("in.x", int), b.publisher("out.x", int)
    async with running(feed), running(end):
        apps = (b, a) if reverse else (a, b)
        services = [AppService(each.compile(), reactor, drain_timeout=PATIENCE) for each in apps]
        for service in services:
            service.startService()
            await service.started
        await numbers.wait_for_subscribers(timeout=PATIENCE)
        await outs.wait_for_subscribers(timeout=PATIENCE)
        numbers.publish(1)
        await turns(lambda: slow.waiting)
        stops = [service.stopService() for service in services]
        reactor.callLater(0.2, slow.waiting[0].callback, None)  # the app without a handler ends sooner
        for stop in stops:
            assert (await stop).complete
        assert await got.until(1) == [2]
    assert (end.stats.lost, end.stats.unknown_losses) == (0, 0)


def test_the_publisher_alone_compiles_and_publishes_nothing() -> None:
    """The app of the publisher needs no other caller of the function."""
    a, b = pair()
    ORDERS["publisher below"](a, b, increased)
    assert [len(part) for part in (b.compile().parts.triggers, b.compile().parts.routes)] == [0, 0]


def test_both_apps_check_the_function() -> None:
    """A capture that nothing fills, and a result of the wrong type, are refused with the user's line."""
    a, b = pair()

    @b.publisher("out.{missing}", int)
    @a.subscribe("in.{s}")
    def bridge(n: int, s: str) -> int:
        return n

    with pytest.raises(PatternError, match=r"test_bridges.py:[0-9]+: .*nothing fills \{missing\}"):
        a.compile()
    a, b = pair()
    wrong: Any = b.publisher("out", str)

    @wrong
    @a.subscribe("in")
    def other(n: int) -> int:
        return n

    with pytest.raises(SignatureError, match=r"test_bridges.py:[0-9]+: other\(\) returns int, but publisher"):
        b.compile()


@pytest.mark.parametrize("order", ["subscribe", "publisher"])
def test_apps_with_a_whole_function_each_are_no_bridge(order: str) -> None:
    """If each app subscribes and publishes one function, each publishes its own results only."""
    apps = [App(sub=SUB, pub=PUB, name=name) for name in "ab"]
    for app in apps:
        if order == "subscribe":
            app.publisher("out.{s}")(app.subscribe("in.{s}")(increased))
        else:
            app.subscribe("in.{s}")(app.publisher("out.{s}")(increased))
    assert [len(route.outlets) for app in apps for route in app.compile().parts.routes] == [1, 1]


def test_apps_that_are_made_in_succession_do_not_meet() -> None:
    """A factory for tests uses one function again and again; apps of another call are not linked."""
    for _ in range(3):
        a, b = pair()
        ORDERS["publisher on top"](a, b, increased)
        with TestApp(a, b) as t:
            t.publish("in.x", 1)
            assert t.published() == [2]
    lonely = App(pub=PUB)
    lonely.publisher("out")(increased)
    with pytest.raises(SignatureError, match=r"nothing calls increased\(\)"):
        lonely.compile()


def test_registrations_apart_from_each_other_are_no_bridge() -> None:
    """Only decorators that directly follow each other are a bridge."""
    a, b = pair()
    a.subscribe("in.{s}")(increased)
    a.subscribe("other")(print)
    b.publisher("out.{s}")(increased)
    with pytest.raises(SignatureError, match=r"nothing calls increased\(\)"):
        b.compile()


def test_a_timer_stays_one() -> None:
    """A publisher with every= calls the function itself, also if another app subscribes it."""
    a, b = pair()
    calls = []

    @b.publisher("out", every=1.0)
    @a.subscribe("in")
    def tick() -> int:
        calls.append(1)
        return 1

    with TestApp(a, b) as t:
        assert t.published("out") == [1]
        t.publish("in", 1)
        assert (t.published("out"), len(calls)) == ([1], 2)


def test_a_bridge_keeps_no_app_alive() -> None:
    """The link between two apps is weak."""
    a, b = pair()
    ORDERS["publisher on top"](a, b, increased)
    weak = ref(b)
    del b
    gc.collect()
    assert weak() is None
    (route,) = a.compile().parts.routes
    assert route.outlets == ()


def test_a_compiled_app_ends_its_bridge() -> None:
    """A decorator that follows after one of the apps is compiled belongs to no bridge with it."""
    a, b = pair()
    ORDERS["publisher on top"](a, b, increased)
    a.compile()
    late = App(pub=PUB)
    late.publisher("late")(increased)
    with pytest.raises(SignatureError, match=r"nothing calls increased\(\)"):
        late.compile()


def test_a_group_that_joins_after_another_is_gone_completes_a_bridge() -> None:
    """A bridge of the apps that are left has all of them, also if they came at different times."""
    gone, a = pair()
    gone.subscribe("in.{s}")(increased)
    a.subscribe("in.{s}")(increased)
    del gone
    gc.collect()
    b = App(pub=PUB)
    b.publisher("out.{s}")(increased)
    assert [len(app._stacks) for app in (a, b)] == [1, 1]
    (route,) = a.compile().parts.routes
    assert len(route.outlets) == 1


def steps(call: Callable[[], object]) -> int:
    """Return the number of lines of Python that a call executes."""
    count = 0

    def step(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def registering(kind: str) -> Callable[[], object]:
    """Return a function that registers once more at each call."""
    a, b = pair()
    keep: list[Any] = []

    def again() -> None:
        group, function = a, increased
        if kind == "a group for each":
            keep.append(group := Routes())  # type: ignore[assignment]
        if kind == "a function for each, in two apps":
            keep.append(function := lambda n: n)  # type: ignore[assignment, misc]
        group.add_route(function, "in.{s}")
        if "two apps" in kind:
            b.publisher("out.{s}")(function)

    return again


@pytest.mark.parametrize("kind", ["one app", "two apps", "a group for each", "a function for each, in two apps"])
def test_a_registration_costs_the_same_after_many_others(kind: str) -> None:
    """A program that makes its routes in a loop starts in a time that is proportional to their number."""
    again = registering(kind)
    for _ in range(10):
        again()
    first = steps(again)
    for number in (500, sized(20_000, 4_000)):
        for _ in range(number):
            again()
        assert steps(again) < 2 * first, f"after {number}"


def test_a_bridge_over_sockets(tmp_path: Any) -> None:
    """`zroute run` runs both apps in one process, and every message crosses the bridge before the stop."""
    source = f"""
from zroute import App
feed = App(pub="{(inner := free_endpoint())}", name="feed")
a = App(sub="{inner}", name="a")
b = App(pub="{(outer := free_endpoint())}", name="b")
end = App(sub="{outer}", name="end")
numbers = feed.publisher("in.{{s}}", int)

@b.publisher("out.{{s}}")
@a.subscribe("in.{{s}}")
def bridge(n: int) -> int:
    return n + 1

@end.subscribe("out.{{s}}")
def on(n: int, s: str) -> None:
    print(s, n, flush=True)
    if n == 3:
        end.stop()

@feed.every(60)
async def go() -> None:
    await numbers.wait_for_subscribers(timeout=100)
    await outs.wait_for_subscribers(timeout=100)
    for n in (1, 2):
        numbers.publish(n, s="x")

outs = b.publisher("out.x", int)
"""
    apps = [f"quotes:{name}" for name in ("feed", "a", "b", "end")]
    done = zroute("run", *apps, "--for", "100s", cwd=module(tmp_path, source))
    assert (done.returncode, done.stdout) == (0, "x 2\nx 3\n"), done.stderr
    assert "end: received 2, handled 2" in done.stderr

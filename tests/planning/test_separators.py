"""Apps whose topics are separated by another character than the dot."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import pytest_twisted

from tests.running import Mailbox, running
from tests.support import PATIENCE, free_endpoint
from zroute import App, Envelope, PatternError, Routes, SignatureError, Topic, TopicError, startswith
from zroute.testing import TestApp


def test_patterns_captures_and_publishers_are_separated_by_slashes() -> None:
    """Handlers, publishers, results, `app.publish`, streams and TestApp all use the separator of the app."""
    app, got = App(separator="/"), []
    poses = app.publisher("/pose/{camera}", int)

    @poses
    @app.subscribe("/camera/{camera}/pose")
    def pose(number: int, camera: str) -> int:
        got.append((camera, number))
        return number

    @app.subscribe("/files/{path+}")
    def file(body: int, path: str) -> None:
        got.append((path, body))

    @app.subscribe("version/1.2")
    def version(body: int) -> None:
        got.append(("version", body))

    with TestApp(app) as t:
        t.publish("/camera/front.left/pose", 1)
        t.publish("/files/a/b.txt", 2)
        app.publish("version/1.2", 3)
        poses.publish(4, camera="back")
        t.advance(0)
        assert got == [("front.left", 1), ("a/b.txt", 2), ("version", 3)]
        assert t.published("/pose/*") == [1, 4]
        assert [envelope.topic for envelope in t.envelopes("/pose/{x}")] == ["/pose/front.left", "/pose/back"]
        with pytest.raises(TopicError, match="ends with a slash"):
            app.publish("/camera/", 1)
        with pytest.raises(TopicError, match="contains a slash, which would split the value into two segments"):
            poses.publish(4, camera="a/b")
        with pytest.raises(PatternError, match="two slashes in a row"):
            t.published("/pose//x")


MOMENT = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


@pytest.mark.parametrize("separator", ["/", "|", ",", ";", "~"])
@pytest.mark.parametrize("value", [1.5, -0.25, 1e-07, 1.5e300, -3, True, MOMENT, MOMENT.date(), UUID(int=7), "a.b"])
def test_a_capture_that_is_published_arrives_equal(value: Any, separator: str) -> None:
    """Values with a dot, too: no segment ends there."""
    app, got = App(separator=separator), []
    values = app.publisher(f"values{separator}{{value}}", int)

    def on_value(number: int, value: Any) -> None:
        got.append(value)

    on_value.__annotations__["value"] = type(value)
    app.subscribe(f"values{separator}{{value}}")(on_value)
    with TestApp(app) as t:
        values.publish(1, value=value)
        t.advance(0)
    assert got == [value]


@pytest.mark.parametrize("text", ["1e400", "-1e400", "nan", "inf", "1.", ".5", "1_0", "1.5.5"])
def test_a_float_in_a_topic_is_finite_and_a_number(text: str) -> None:
    """Another text does not match: no publisher writes it."""
    app, got = App(separator="/"), []

    @app.subscribe("prices/{price}")
    def on_price(body: int, price: float) -> None:
        got.append(price)

    with TestApp(app) as t:
        t.publish(f"prices/{text}", 1)
    assert (got, app.stats.unrouted) == ([], 1)


def test_attached_handlers_use_the_separator_of_the_app() -> None:
    """`attach` reads its pattern with slashes, and names my line if it is none."""
    app, got = App(separator="/"), []

    @app.subscribe("/begin")
    def begin(body: int) -> None:
        app.attach("/late/{name}", lambda body, name: got.append((name, body)))

    with TestApp(app) as t:
        t.publish("/begin", 0)
        t.publish("/late/a.b", 1)
        assert got == [("a.b", 1)]
        with pytest.raises(PatternError, match=r"test_separators\.py:\d+: .*between slashes"):
            app.attach("/a*b/c", lambda body: None)


def test_dead_letters_use_the_separator_of_the_app() -> None:
    """The topic of a dead letter is separated by slashes, also behind the prefix of a group."""
    app, robot = App(separator="/"), Routes("/robot", separator="/")

    @robot.subscribe("jobs/{kind}", dead="dead/{kind}")
    def job(body: int, kind: str) -> None:
        raise ValueError(kind)

    app.include(robot)
    with TestApp(app, raise_errors=False) as t:
        t.publish("/robot/jobs/a.b", 1)
        t.advance(0)
        assert [envelope.topic for envelope in t.envelopes(">")] == ["/robot/dead/a.b"]


def test_groups_are_joined_by_the_separator_of_the_app() -> None:
    """Prefixes of groups, and `startswith` behind them, are joined by slashes."""
    app, outer, inner, got = App(separator="/"), Routes("/fleet/{n}", separator="/"), Routes(separator="/"), []

    @inner.subscribe("pose/>")
    def pose(body: int, n: int, topic: Topic) -> None:
        got.append((n, topic))

    logs = Routes(separator="/")

    @logs.subscribe(startswith("log"))
    def log(body: int, topic: Topic) -> None:
        got.append((0, topic))

    outer.include(inner, prefix="arm.1")
    app.include(outer)
    app.include(logs, prefix="/all")
    with TestApp(app) as t:
        t.publish("/fleet/7/arm.1/pose/x", 1)
        t.publish("/all/logger", 1)
    assert got == [(7, "/fleet/7/arm.1/pose/x"), (0, "/all/logger")]


def test_a_group_with_another_separator_is_refused_at_my_line() -> None:
    """The error names the line of `include`, that of the group, and what to write."""
    app, group = App(separator="/"), Routes()
    with pytest.raises(SignatureError, match=r"test_separators\.py:\d+: .*write Routes\(separator='/'\)") as caught:
        app.include(group)
    assert caught.value.parameter == "separator"
    assert group.where in str(caught.value)


@pytest.mark.parametrize("separator", ["", "//", "a", "_", "*", ">", "{", "+", "#", " ", "\0", "é", 7, None, b"/"])
@pytest.mark.parametrize("kind", [App, Routes])
def test_a_separator_that_is_none_is_refused_at_my_line(separator: Any, kind: Any) -> None:
    """Letters, digits, wildcards and several characters are no separators."""
    with pytest.raises(SignatureError, match=r"test_separators\.py:\d+: separator=.*expected one of the characters"):
        kind(separator=separator)


def test_apps_with_different_separators_meet_in_a_test() -> None:
    """A bridge from slashes to dots runs in one TestApp; each pattern is read as in the app that published."""
    robot = App(pub="tcp://127.0.0.1:5555", separator="/")
    poses = robot.publisher("/pose/{camera}", int)
    bridge = App(sub="tcp://127.0.0.1:5555", separator="/")
    desk = App(pub="tcp://127.0.0.1:5556", loop=False)
    out = desk.publisher("pose.{camera}", int)

    @bridge.subscribe("/pose/{camera}")
    def pass_on(number: int, camera: str) -> None:
        out.publish(number, camera=camera)

    with TestApp(robot, bridge, desk) as t:
        poses.publish(1, camera="front")
        t.advance(0)
        assert (t.published("/pose/*"), t.published("pose.*"), t.published(">")) == ([1], [1], [1, 1])


@pytest_twisted.ensureDeferred
async def test_a_publisher_filters_by_slashes() -> None:
    """Over a socket, the publisher sends only the topics below the literal part of the pattern, and nothing is lost."""
    endpoint, box = free_endpoint(), Mailbox[str]()
    app = App(sub=endpoint, pub=endpoint, separator="/")

    @app.subscribe("/camera/*/pose")
    def pose(envelope: Envelope) -> None:
        box.put(envelope.topic)

    async with running(app) as service:
        await app.ready(timeout=PATIENCE)
        assert service.transport.pub.subscriptions >= {b"/camera/"}
        for topic in ("camera/a/pose", "/other", "/camera/front/pose", "/camera/front/pose/x", "/camera/back/pose"):
            app.publish(topic, 1)
        assert await box.until(2) == ["/camera/front/pose", "/camera/back/pose"]
    assert app.stats.lost == 0

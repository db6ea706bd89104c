"""Publications: the source of the topic, and errors raised before sending."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import attrs
import pytest
from twisted.internet.defer import Deferred

from tests.pure import Wired, plain
from zroute import App, EncodeError, NotRunningError, PatternError, Routes, TopicError
from zroute.publishing import publication as publications
from zroute.publishing.publication import DONE


@attrs.frozen
class Alert:
    text: str
    level: Any = None


def test_captures_come_from_the_arguments() -> None:
    """publish(message, level="high") fills the capture."""
    app = App()
    alerts = app.publisher("alerts.{level}", Alert)
    wired = Wired(app)
    alerts.publish(Alert("x"), level="high")
    assert wired.published == [("alerts.high", {"text": "x", "level": None})]


@pytest.mark.parametrize("message", [Alert("x", "low"), {"text": "x", "level": "low"}])
def test_captures_come_from_the_message(message: Any) -> None:
    """A missing capture is read from the message's attribute or key of that name."""
    app = App()
    alerts = app.publisher("alerts.{level}")
    wired = Wired(app)
    alerts.publish(message)
    assert [topic for topic, _ in wired.published] == ["alerts.low"]


def test_an_argument_goes_before_the_message() -> None:
    """A capture given at the call takes precedence over the message."""
    app = App()
    alerts = app.publisher("alerts.{level}", Alert)
    wired = Wired(app)
    alerts.publish(Alert("x", "low"), level="high")
    assert wired.sent[0][0] == "alerts.high"


def test_in_a_derived_stream_the_inbound_capture_goes_before_the_message() -> None:
    """The captures of the received message fill those of the handler's publication."""
    app = App()

    @app.publisher("out.{level}")
    @app.subscribe("in.{level}")
    def forward(message: str) -> Alert:
        return Alert(message, "from the message")

    wired = Wired(app).feed(plain("in.high", body=b"x"))
    assert [topic for topic, *_ in wired.sent] == ["out.high"]


@pytest.mark.parametrize("value", [7, 2e300, UUID(int=1), "a"])
def test_values_of_simple_types_make_a_segment(value: Any) -> None:
    """Numbers, UUIDs and texts become segments that convert back."""
    app = App()
    made = app.publisher("a.{x}")
    wired = Wired(app)
    made.publish(1, x=value)
    made.publish(1, x=value)
    assert [topic for topic, *_ in wired.sent] == [f"a.{value}"] * 2


def test_equal_values_of_other_types_keep_their_own_topics() -> None:
    """1, "1" and True are different captures, also after earlier messages."""
    app = App()
    made = app.publisher("a.{x}")
    wired = Wired(app)
    for value in (1, "1", "True", 2):
        made.publish(0, x=value)
    assert [topic for topic, *_ in wired.sent] == ["a.1", "a.1", "a.True", "a.2"]


@pytest.mark.parametrize("value", ["a.b", "a b", "", "*", "a\0", ">", None, object(), "x" * 300])
def test_a_value_that_makes_no_segment_is_refused(value: Any) -> None:
    """A capture with a dot, NUL, white space or wildcard raises TopicError."""
    app = App()
    made = app.publisher("a.{x}")
    wired = Wired(app)
    with pytest.raises(TopicError):
        made.publish(1, x=value)
    assert wired.sent == []


def test_a_capture_that_is_not_there_is_named() -> None:
    """The error for a missing or unknown capture names it."""
    app = App()
    alerts, fixed = app.publisher("alerts.{level}", Alert), app.publisher("fixed")
    Wired(app)
    with pytest.raises(TopicError, match="needs a value for 'level'"):
        alerts.publish(Alert("x"))
    with pytest.raises(TopicError, match="has no capture 'lvl'; it has level"):
        alerts.publish(Alert("x"), lvl="high")
    with pytest.raises(TopicError, match="has no capture 'x'; it has none"):
        fixed.publish(1, x="y")


def test_a_message_of_another_type_is_refused() -> None:
    """A message of another type is refused before sending."""
    app = App()
    alerts = app.publisher("alerts", Alert)
    wired = Wired(app)
    with pytest.raises(EncodeError, match="expected Alert, got str"):
        alerts.publish("x")  # type: ignore[arg-type]
    assert wired.sent == []


def test_none_is_no_message() -> None:
    """Publishing None raises an error that names the alternatives."""
    app = App()
    made = app.publisher("a")
    Wired(app)
    with pytest.raises(EncodeError, match="None is not a message"):
        made.publish(None)


def test_without_a_schema_each_message_goes_by_its_own_type() -> None:
    """Without a schema, text is sent as text, bytes raw, and objects in the publisher's codec."""
    app = App()
    made = app.publisher("a", codec=None)
    wired = Wired(app)
    for message in ("x", b"x", 5, Alert("t"), "y"):
        made.publish(message)
    assert [number for _, number, *_ in wired.sent] == [3, 4, 1, 1, 3]


def test_a_publisher_may_have_its_own_codec() -> None:
    """codec="json" applies to its publisher."""
    app = App()
    made = app.publisher("a", codec="json")
    wired = Wired(app)
    made.publish({"x": 1})
    assert wired.sent[0][1:3] == (2, b'{"x":1}')


def test_headers_are_handed_on() -> None:
    """Headers are sent with the message."""
    app = App()
    made = app.publisher("a")
    wired = Wired(app)
    made.publish(1, headers={"k": "v"})
    assert wired.sent[0][3] == {"k": "v"}


def test_before_the_start_and_after_the_stop_publishing_is_refused() -> None:
    """A publication without a running app raises NotRunningError."""
    app = App()
    made = app.publisher("a")
    with pytest.raises(NotRunningError, match="no running app includes this publication"):
        made.publish(1)
    wired = Wired(app)
    outlet = app.compile().parts.outlets[0]
    made.publish(1)
    wired.close()
    with pytest.raises(NotRunningError):
        made.publish(1)
    with pytest.raises(NotRunningError, match="its app has stopped"):
        outlet.publish(1)


def test_a_group_included_twice_publishes_under_both_prefixes() -> None:
    """A publication in a group with two prefixes publishes to two topics."""
    app, group = App(), Routes()
    made = group.publisher("out")
    app.include(group, prefix="a")
    app.include(group, prefix="b")
    wired = Wired(app)
    made.publish(1)
    assert [topic for topic, *_ in wired.sent] == ["a.out", "b.out"]


def test_a_pattern_behind_wildcards_cannot_be_published_to() -> None:
    """A publisher behind a prefix with a wildcard is refused."""
    app, group = App(), Routes("*")
    group.publisher("out")
    app.include(group)
    with pytest.raises(PatternError, match="can't publish under the prefix") as caught:
        app.compile()
    assert "test_publications.py:" in str(caught.value)


def test_more_topics_than_are_remembered_are_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of topics from captures has a limit."""
    monkeypatch.setattr(publications, "TOPIC_CACHE", 1_000)
    app = App()
    made = app.publisher("a.{x}")
    wired = Wired(app)
    for number in range(10):
        made.publish(1, x=f"n{number}")
    assert [topic for topic, *_ in wired.sent] == [f"a.n{number}" for number in range(10)]
    assert len(app.compile().parts.outlets[0]._topics) <= 3


def test_what_publish_returns_can_be_awaited_anywhere() -> None:
    """The result of publish can be awaited in asyncio and Twisted, or ignored."""

    async def use() -> str:
        await DONE
        await DONE
        return "done"

    got: list[str] = []
    Deferred.fromCoroutine(use()).addCallback(got.append)
    assert got == ["done"]
    assert asyncio.run(use()) == "done"
    assert repr(DONE) == "<done>"


def test_a_publication_shows_its_pattern_and_line() -> None:
    """The repr of a publication names its pattern and line."""
    assert "Publication 'a.{x}' at " in repr(App().publisher("a.{x}"))
    assert "test_publications.py:" in repr(App().publisher("a.{x}"))

"""The generated function that publishes: it does what the general path does, and ends with its run."""

from __future__ import annotations

import inspect
import linecache
import threading
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest
import zmq
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.publish import join, subscriber
from benchmarks.receive import StillReactor
from tests.publishing.joined import ADDRESS, joined
from zroute import App, Limits, NotRunningError, WrongThreadError
from zroute.endpoints import Endpoint
from zroute.publishing.publication import Publication
from zroute.runtime.service import AppService


@attrs.frozen
class Quote:
    symbol: Any
    price: float
    volume: int


class Subclass(Quote):
    """A type that a publication of quotes refuses."""


ODD = st.sampled_from([None, True, 1, 2**63, 2**64, -(2**63) - 1, 1.5, float("nan"), "A", "", "a.b", "x" * 300, b"A"])
QUOTES = st.builds(
    lambda kind, *fields: kind(*fields),
    st.sampled_from([Quote, Quote, Quote, Subclass]),
    st.sampled_from(["A", "B", "C"]) | ODD,
    st.floats() | ODD,
    st.integers() | ODD,
)
MESSAGES = st.one_of(QUOTES, QUOTES, ODD, st.just({"symbol": "A", "price": 1.0, "volume": 1}))
CAPTURES = st.sampled_from([{}, {}, {}, {"symbol": "A"}, {"symbol": 1}, {"other": "A"}, {"symbol": "A", "other": 1}])
HEADERS = st.sampled_from([None, None, None, {}, {"a": 1}, {1: "a"}])
OPTIONS = st.fixed_dictionaries(
    {"wire": st.sampled_from(["tracked", "plain"]), "overflow": st.sampled_from(["drop", "raise", "wait"])}
)
CALLS = st.lists(st.tuples(MESSAGES, HEADERS, CAPTURES), min_size=1, max_size=30)


def published(
    options: Mapping[str, Any], pattern: str, declared: Any, calls: Any, publish_of: Callable[[Any], Any]
) -> tuple[list[Any], list[bytes], Any]:
    """Return the errors of ``calls``, the frames without epoch and time, and the counters."""
    context: zmq.Context[Any] = zmq.Context()
    app = App(pub=ADDRESS, codec="json", context=context, limits=Limits(max_message=200), **options)
    publication = app.publisher(pattern, declared)
    errors: list[Any] = []
    frames: list[bytes] = []

    clock = StillReactor()
    service = AppService(app.compile(), clock, pub=(Endpoint(ADDRESS, bind=True),))
    service.startService()
    sub = subscriber(context, (b"",))
    sub.connect(ADDRESS)
    clock.advance(0)
    if options["wire"] == "tracked":
        join(sub, clock, service, (b"",))
    try:
        for message, headers, captures in calls:
            try:
                publish_of(publication)(message, headers, captures)
            except Exception as error:
                errors.append((type(error), str(error)))
            else:
                errors.append(None)
        while sub.poll(0):
            topic, _, rest = sub.recv().partition(b"\0")
            frames.append(topic + (rest if options["wire"] == "plain" else rest[:8] + rest[16:24] + rest[32:]))
        return errors, frames, (app.stats.published, app.stats.publish_errors)
    finally:
        assert service.transport is not None
        assert service.transport.pub is not None
        service.transport.pub.close(0)
        context.destroy(linger=0)


GOOD = Quote("A", 1.0, 1)
EACH = [
    (GOOD, None, {}),
    (GOOD, None, {}),
    (GOOD, {"a": 1}, {}),
    (GOOD, None, {"symbol": "A", "other": 1}),
    (Quote("A" * 180, 1.0, 1), None, {"symbol": "A"}),
    (Quote("A", float("nan"), 1), None, {}),
    (GOOD, None, {}),
]
"""Each way to leave the fast path, beside good messages."""


@example({"wire": "tracked", "overflow": "drop"}, "quotes", Quote, EACH)
@example({"wire": "tracked", "overflow": "wait"}, "quotes.{symbol}", Quote, EACH)
@example({"wire": "plain", "overflow": "drop"}, "quotes.{symbol}", Quote, EACH)
@given(OPTIONS, st.sampled_from(["quotes", "quotes.{symbol}"]), st.sampled_from([Quote, int, bytes]), CALLS)
def test_the_fast_path_does_what_the_general_path_does(
    options: Mapping[str, Any], pattern: str, declared: Any, calls: Any
) -> None:
    """Random messages, headers and captures give the same errors, frames, numbers and counters on both paths."""

    def general(publication: Publication[Any]) -> Any:
        return publication._publish

    def fast(publication: Publication[Any]) -> Any:
        assert publication._fast_path is not None
        assert publication.publish is publication._fast_path.publish
        return lambda message, headers, captures: publication.publish(message, headers=headers, **captures)

    assert published(options, pattern, declared, calls, fast) == published(options, pattern, declared, calls, general)


@pytest.mark.parametrize("pattern", ["quotes", "quotes.{symbol}"])
def test_a_function_that_a_program_keeps_ends_with_its_run(pattern: str) -> None:
    """After the run, it raises the error of a publication without an app; in a second run, it publishes again."""
    context: zmq.Context[Any] = zmq.Context()
    app = App(pub=ADDRESS, codec="json", context=context)
    quotes = app.publisher(pattern, Quote)
    before = quotes.publish
    with joined(app, context) as run:
        kept = quotes.publish
        for publish in (kept, kept, before, quotes.publish):
            publish(Quote("A", 1.0, 1))
        assert [each.header.sequence for each in run.read()] == [1, 2, 3, 4]
        run.service._run._publisher.close()  # type: ignore[union-attr]
        for publish in (kept, before, quotes.publish):
            with pytest.raises(NotRunningError, match="no running app includes this publication"):
                publish(Quote("A", 1.0, 1))
    assert "publish" not in vars(quotes)


def test_the_function_looks_like_the_method() -> None:
    """Signature and docstring are those of `Publication.publish`, and a traceback shows its source."""
    context: zmq.Context[Any] = zmq.Context()
    app = App(pub=ADDRESS, codec="json", context=context)
    quotes = app.publisher("quotes", Quote)
    with joined(app, context):
        made: Any = quotes.publish
        method = inspect.signature(Publication.publish).parameters
        assert list(inspect.signature(made).parameters) == [name for name in method if name != "self"]
        assert (made.__doc__, made.__qualname__) == (Publication.publish.__doc__, "Publication.publish")
        assert "body = write(m)" in "".join(linecache.getlines(made.__code__.co_filename))


def test_another_thread_may_not_publish() -> None:
    """The generated function raises WrongThreadError in each thread but the reactor's."""
    context: zmq.Context[Any] = zmq.Context()
    app = App(pub=ADDRESS, codec="json", context=context)
    quotes, errors = app.publisher("quotes", Quote), list[BaseException]()

    def publish() -> None:
        try:
            quotes.publish(Quote("A", 1.0, 1))
        except WrongThreadError as error:
            errors.append(error)

    with joined(app, context) as run:
        quotes.publish(Quote("A", 1.0, 1))
        thread = threading.Thread(target=publish)
        thread.start()
        thread.join()
        assert len(run.read()) == app.stats.published == len(errors) == 1

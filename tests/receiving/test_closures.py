"""The closures of topics: whatever arrives, they do what a plain model does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import fail, succeed

from tests.pure import Wired
from tests.support import sized
from zroute import App, Envelope
from zroute.messages.codecs import JSON
from zroute.messages.control import Statement
from zroute.messages.wire import FIXED, HEAD_SIZE, Kind, pack_head
from zroute.receiving.dispatch import _UNROLLED

TOPIC, PREFIX, MARKER = b"a.x", b"a.", b"marker"
JOINED, UNKNOWN = (1, 2), (3, 4)
"""The epochs of publishers that have answered the join, and of some that have not: their numbers mean nothing.

The last one counts another subscription.
"""


@attrs.frozen
class Value:
    """A type with a checked number."""

    value: int


@attrs.frozen
class Name:
    """Another type, whose decoder needs no check of numbers."""

    name: str


# -- the handlers -------------------------------------------------------------------------------------------


def react(number: int) -> Any:
    """Do what ``number`` asks for: return None, return a result, or raise an error."""
    match number % 7:
        case 1:
            raise ValueError(number)
        case 2:
            raise SystemExit
        case 3:
            raise KeyboardInterrupt
        case 4:
            return "a result that is not published"
        case 5:
            return succeed(None)
        case 6:
            return fail(ValueError(number))
    return None


OUTCOMES = ("handled", "handler_error", "handled", "handler_error", "handled", "handled", "handler_error")
"""The counter of each reaction. SystemExit counts as handled, and asks the app to stop."""

Call = tuple[int, Any, int]
"""A call: the handler, the message, and the number of handled messages that the handler sees."""


def handler(form: str, index: int, calls: list[Call], handled: Callable[[], int]) -> Callable[..., Any]:
    """Return a handler of a form, which records its calls and then reacts."""

    def called(message: Any) -> Any:
        calls.append((index, message, handled()))
        return react(message.value) if isinstance(message, Value) else None

    def value(message: Value) -> Any:
        return called(message)

    def name(message: Name) -> Any:
        return called(message)

    def by_name(envelope: Envelope, *, body: Value) -> Any:
        assert envelope.topic == TOPIC.decode()
        return called(body)

    def nothing() -> Any:
        return called(None)

    return {"value": value, "name": name, "envelope": by_name, "nothing": nothing}[form]


SCHEMAS = {"value": Value, "name": Name, "envelope": Value, "nothing": None}

# -- the frames ---------------------------------------------------------------------------------------------

NUMBERS = (0, 1, -1, 2**30 - 1, 2**30, -(2**30), 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1)
BODIES = st.one_of(
    st.integers(0, 7).map(lambda value: b'{"value":%d}' % value),
    st.sampled_from(NUMBERS).map(lambda value: b'{"value":%d}' % value),
    st.sampled_from(
        [
            b'{"name":"n"}',
            '{"name":"ö","value":0}'.encode(),
            b'{"name":"n","value":0,"other":"\xff"}',
            b'{"value":1.5}',
            b'{"value":true}',
            b"{",
            b"\xff",
            b"",
        ]
    ),
)
HEADS = {
    (epoch, codec): pack_head(kind=Kind.DATA, codec=codec, span=len(PREFIX) - (epoch == UNKNOWN[-1]), epoch=epoch)
    for epoch in JOINED + UNKNOWN
    for codec in (JSON.number, 99)
}


@attrs.frozen
class Sent:
    """A frame, and what it means.

    ``epoch`` is 0 for a plain frame, ``number`` the number of the message, and ``codec`` the stated codec. ``topic`` is
    False if no handler takes the topic, and ``end`` is the number of bytes that a cut frame has; None for a whole one.
    """

    body: bytes
    epoch: int = 0
    number: int = 0
    codec: int = JSON.number
    topic: bool = True
    end: int | None = None

    @property
    def frame(self) -> bytes:
        """The bytes of the frame."""
        header = FIXED.pack(HEADS[self.epoch, self.codec], self.number, 1) if self.epoch else b""
        return (TOPIC if self.topic else b"b") + b"\0" + header + self.body

    @property
    def raw(self) -> bytes:
        """The bytes that arrive."""
        return self.frame[: self.end]


TRACKED = st.builds(
    Sent,
    BODIES,
    st.sampled_from([1, 1, 1, 1, 2, *UNKNOWN]),
    st.integers(0, 9),
    st.sampled_from([JSON.number] * 5 + [99]),
)
IN_ORDER = st.lists(BODIES, max_size=8).map(lambda bodies: [Sent(body, 1, at) for at, body in enumerate(bodies, 1)])
PLAIN = st.builds(Sent, BODIES, topic=st.sampled_from([True] * 5 + [False]))
CUT = st.builds(
    lambda sent, end: attrs.evolve(sent, end=end),
    TRACKED,
    st.sampled_from([3, len(TOPIC) + 4, len(TOPIC) + 1 + HEAD_SIZE]),
)
FRAMES = st.builds(list.__add__, IN_ORDER, st.lists(TRACKED | PLAIN | TRACKED | PLAIN | CUT, max_size=12)) | st.lists(
    PLAIN, max_size=12
)

# -- both sides ---------------------------------------------------------------------------------------------


@attrs.define
class Outcome:
    """The calls of handlers, all counters, and the number of requests to stop."""

    calls: list[Call]
    received: int = 0
    routed: int = 0
    unrouted: int = 0
    malformed: int = 0
    duplicate: int = 0
    lost: int = 0
    exits: int = 0
    routes: list[dict[str, int]] = attrs.field(factory=list)


COUNTED = ("handled", "handler_error", "decode_error")


def modelled(forms: list[str], frames: list[Sent]) -> Outcome:
    """Return what the documentation promises."""
    outcome = Outcome([], routes=[dict.fromkeys(COUNTED, 0) for _ in forms])
    expected = dict.fromkeys(JOINED, 1)
    for sent in frames:
        outcome.received += 1
        if sent.end is not None:
            outcome.malformed += 1
            continue
        if not sent.topic:
            outcome.unrouted += 1
            continue
        if sent.epoch in JOINED and sent.number:
            before = expected[sent.epoch]
            if sent.number < before:
                outcome.duplicate += 1
                continue
            outcome.lost += sent.number - before
            expected[sent.epoch] = sent.number + 1
        outcome.routed += 1
        for index, (form, counters) in enumerate(zip(forms, outcome.routes, strict=True)):
            try:
                message = read(SCHEMAS[form], sent)
            except ValueError:
                counters["decode_error"] += 1
                continue
            outcome.calls.append((index, message, counters["handled"]))
            number = message.value % 7 if isinstance(message, Value) else 0
            counters[OUTCOMES[number]] += 1
            outcome.exits += number == 2
    return outcome


def read(schema: Any, sent: Sent) -> Any:
    """Return the message for a handler. Raises ValueError if the body can't be decoded."""
    if schema is None:
        return None
    if sent.codec != JSON.number:
        raise ValueError("unknown codec")
    fields = json.loads(sent.body.decode())
    if schema is Name and isinstance(fields.get("name"), str):
        return Name(fields["name"])
    if schema is Value and type(value := fields.get("value")) is int and -(2**63) <= value < 2**64:
        return Value(value)
    raise ValueError("a missing field, or a field of another type")


def observed(forms: list[str], frames: list[Sent], *, isolate: bool, middleware: bool) -> Outcome:
    """Return what the closures do."""
    app, outcome = App(codec="json", isolate=isolate), Outcome([])
    if middleware:
        app.middleware(lambda call, route: lambda message: call(message))
    routes: list[Any] = []
    for at, form in enumerate(forms):
        app.add_route(handler(form, at, outcome.calls, lambda at=at: routes[at].handled), "a.*")  # type: ignore[misc]
    wired = Wired(app)
    routes.extend(route.stats for route in wired.table.routes)
    tracker = wired.accounts._tracker
    tracker.subscribe([PREFIX])
    tracker.join(MARKER, 0.0)
    for epoch in JOINED:
        tracker.stated(epoch, MARKER, Statement(0, 1, f"p{epoch}", False, ((PREFIX, 0),)))
    wired.feed(*[sent.raw for sent in frames])
    assert wired.balanced()
    for name in ("received", "routed", "unrouted", "malformed", "duplicate", "lost"):
        setattr(outcome, name, getattr(wired.stats, name))
    outcome.exits = len(wired.exits)
    outcome.routes = [{name: getattr(stats, name) for name in COUNTED} for stats in routes]
    return outcome


FORMS = st.one_of(
    st.sampled_from(list(SCHEMAS)).map(lambda form: [form]),
    st.integers(2, 4).map(lambda many: ["value"] * many),
    st.just(["name", "name"]),
    st.lists(st.sampled_from(list(SCHEMAS)), min_size=2, max_size=4),
)
EACH = [Sent(b'{"value":%d}' % value, 1, value + 1) for value in range(7)]
EARLY = [Sent(b'{"value":0}', epoch, number) for epoch in UNKNOWN for number in (0, 0, 1, 2, 1)]
ODD = [
    Sent(b'{"value":0}', 1, 9),
    Sent(b'{"value":0}', 1, 10),
    Sent(b'{"value":0}', 1, 2),
    Sent(b"{", 1, 11),
    Sent(b'{"name":"n","value":0,"other":"\xff"}', 1, 12),
    Sent(b'{"value":%d}' % 2**64, 1, 13),
    Sent(b'{"value":0}', 2, 1),
    Sent(b'{"value":0}'),
]


@example(forms=["value"], frames=EACH + ODD, isolate=False, middleware=False)
@example(forms=["value"], frames=EARLY, isolate=False, middleware=False)
@example(forms=["value", "value"], frames=EARLY, isolate=False, middleware=False)
@example(forms=["envelope"], frames=EACH + ODD, isolate=True, middleware=False)
@example(forms=["value"], frames=EACH + ODD, isolate=False, middleware=True)
@example(forms=["value", "value"], frames=EACH + ODD, isolate=False, middleware=False)
@example(forms=["value", "value"], frames=EACH + ODD, isolate=True, middleware=True)
@example(forms=["value", "name", "nothing"], frames=EACH + ODD, isolate=False, middleware=False)
@given(forms=FORMS, frames=FRAMES, isolate=st.booleans(), middleware=st.booleans())
@settings(max_examples=sized(1_000, 60))
def test_closures_do_what_the_model_does(
    forms: list[str], frames: list[Sent], *, isolate: bool, middleware: bool
) -> None:
    """Calls, their order and all counters are right, also while a handler runs."""
    assert observed(forms, frames, isolate=isolate, middleware=middleware) == modelled(forms, frames)


@pytest.mark.parametrize("many", [_UNROLLED, _UNROLLED + 1])
def test_any_number_of_handlers_of_one_type_is_called(many: int) -> None:
    """Up to a limit, a generated closure calls the handlers; above it, a loop."""
    forms, frames = ["value"] * many, EACH + ODD
    assert observed(forms, frames, isolate=False, middleware=False) == modelled(forms, frames)

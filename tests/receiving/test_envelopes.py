"""Envelopes are decoded when they are read; the loop skips headers that it does not need."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pure import Wired, packed, plain, tracked
from zroute import App, Envelope, EnvelopeError
from zroute.messages.wire import HEADERS_LENGTH, lazy_envelopes, parse
from zroute.options import HEADERS_MAX

TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}


def broken(frame: bytes, length: int | None = None) -> bytes:
    """Return a frame whose headers are no map, or claim ``length`` bytes."""
    at = frame.index(b"\x81\xabtraceparent")
    if length is None:
        return frame[:at] + b"\xc1" + frame[at + 1 :]
    return frame[: at - HEADERS_LENGTH] + length.to_bytes(HEADERS_LENGTH) + frame[at:]


@given(st.sampled_from([None, TRACE]), st.booleans())
def test_an_envelope_that_is_decoded_late_equals_one_decoded_at_once(headers: Any, multipart: bool) -> None:
    """All fields, comparison, copies, pickles and `attrs.evolve` are those of a decoded envelope."""
    raw: Any = (b"a.b", b"body", b"more") if multipart else tracked("a.b", 1, headers=headers)
    lazy, known = lazy_envelopes(lambda: 3.0), parse(raw if multipart else (raw,), 3.0)
    assert lazy(raw) == known
    assert known == lazy(raw)
    assert repr(lazy(raw)) == repr(known)
    assert pickle.loads(pickle.dumps(lazy(raw))) == copy.copy(lazy(raw)) == known
    assert attrs.evolve(lazy(raw), codec=9) == attrs.evolve(known, codec=9)
    for field in attrs.fields(Envelope):
        assert getattr(lazy(raw), field.name) == getattr(known, field.name)


def test_an_envelope_has_no_other_attributes_and_stays_frozen() -> None:
    """A typing error in a handler is an AttributeError, also before the envelope is decoded."""
    envelope: Any = lazy_envelopes(lambda: 3.0)(tracked("a", 1))
    with pytest.raises(AttributeError, match="no attribute 'header'"):
        _ = envelope.header
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        envelope.codec = 3


@pytest.mark.parametrize("further", [False, True])
@pytest.mark.parametrize("wants_envelope", [False, True])
def test_messages_with_headers_are_handled_the_short_way(further: bool, wants_envelope: bool) -> None:
    """A second message of a publisher finds its closure, and its handler sees the headers of its own message."""
    app, got = App(), []
    if wants_envelope:

        @app.subscribe("a")
        def handle(message: int, envelope: Envelope) -> None:
            got.append((message, envelope.headers))
    else:

        @app.subscribe("a")
        def handle_plainly(message: int) -> None:
            got.append((message, {}))

    wired = Wired(app)
    sent = [{"n": str(number)} for number in range(4)]
    for number, headers in enumerate(sent):
        wired.feed(tracked("a", number, headers=headers, sequence=number + 1))
    assert wired.stats.cache_misses == 1
    assert got == [(number, headers if wants_envelope else {}) for number, headers in enumerate(sent)]


@pytest.mark.parametrize("length", [HEADERS_MAX + 1, 1 << 31, 3000])
def test_headers_of_a_wrong_length_are_refused_the_short_way(length: int) -> None:
    """Headers that claim more bytes than there are, or than are allowed, make a message malformed."""
    app, got = App(), []
    app.subscribe("a")(lambda message: got.append(message))
    wired = Wired(app).feed(tracked("a", 1, headers=TRACE), tracked("a", 2, headers=TRACE, sequence=2))
    wired.feed(broken(tracked("a", 3, headers=TRACE, sequence=3), length), tracked("a", 4, headers=TRACE, sequence=4))
    assert got == [1, 2, 4]
    assert (wired.stats.malformed, wired.stats.routed) == (1, 3)


def test_a_frame_that_ends_inside_its_headers_is_refused_the_short_way() -> None:
    """The loop reads no further than the frame."""
    app, got = App(), []
    app.subscribe("a")(lambda message: got.append(message))
    whole = tracked("a", 1, headers=TRACE)
    wired = Wired(app).feed(whole)
    start = whole.index(b"\x81\xabtraceparent") - HEADERS_LENGTH
    for end in range(start + 1, start + HEADERS_LENGTH + 20):
        wired.feed(tracked("a", 1, headers=TRACE, sequence=end - start + 1)[:end])
    assert got == [1]
    assert wired.stats.malformed == HEADERS_LENGTH + 19


def test_malformed_headers_that_a_handler_reads_are_a_fault_of_the_peer(caplog: pytest.LogCaptureFixture) -> None:
    """Reading them raises EnvelopeError: counted as a decode error, logged without a traceback, given to the hook."""
    app, hooked, got = App(), [], []

    @app.subscribe("a")
    def handle(message: int, envelope: Envelope) -> None:
        got.append((message, envelope.headers))

    @app.on_error(EnvelopeError)
    def on_error(error: EnvelopeError, envelope: Envelope) -> None:
        hooked.append((error.reason, envelope.topic))

    wired = Wired(app).feed(tracked("a", 1, headers=TRACE))
    wired.feed(broken(tracked("a", 2, headers=TRACE, sequence=2)), tracked("a", 3, headers=TRACE, sequence=3))
    stats = wired.stats.routes["handle()"]
    assert got == [(1, TRACE), (3, TRACE)]
    assert hooked == [("headers that are not a msgpack map", "a")]
    assert (stats.handled, stats.handler_error, stats.decode_error) == (2, 0, 1)
    assert "refused, because its envelope is malformed" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_handler_without_a_body_may_ask_for_the_envelope_alone() -> None:
    """The body of such a message is not decoded, on any wire."""
    app, got = App(), []

    @app.subscribe("a")
    def handle(envelope: Envelope) -> None:
        got.append((envelope.tracked, envelope.body))

    Wired(app).feed(plain("a", body=b"{"), tracked("a", 2), tracked("a", 3, sequence=2), (b"a", b"whole"))
    assert got == [(False, b"{"), (True, packed(2)), (True, packed(3)), (False, b"whole")]


def test_an_envelope_error_in_a_list_counts_for_each_of_its_messages() -> None:
    """The sum of the counters is the number of messages, also if a handler with ``batch`` raises EnvelopeError."""
    app = App()

    @app.subscribe("a", batch=3)
    def handle(messages: list[int]) -> None:
        raise EnvelopeError("of a message inside a message")

    wired = Wired(app).feed(plain("a", 1), plain("a", 2), plain("a", 3))
    stats = wired.stats.routes["handle()"]
    assert (stats.decode_error, stats.queued, stats.in_flight, stats.handled) == (3, 0, 0, 0)

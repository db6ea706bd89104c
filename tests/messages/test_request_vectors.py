"""The wire of requests: test vectors for implementations in other languages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import wire_vectors
from zroute.messages.requests import (
    Kind,
    pack_cancel,
    pack_credits,
    pack_failure,
    pack_reply,
    parse,
    parse_credits,
    parse_reply,
    parse_request,
    request_packer,
    topic_of,
)
from zroute.messages.wire import parse as parse_message

VECTORS = wire_vectors()["requests"]
EPOCH, NOW = 0x1122334455667788, 1_700_000_000_123_456_789


def seconds(vector: dict[str, Any]) -> float | None:
    """Return the time of a request in seconds."""
    return None if vector["ms"] is None else vector["ms"] / 1000


def packed(vector: dict[str, Any]) -> bytes:
    """Return the frame that zroute sends for the facts of a vector."""
    id, kind, body = bytes.fromhex(vector["id"]), vector["kind"], bytes.fromhex(vector.get("body", ""))
    if kind == "request":
        topic, headers = bytes.fromhex(vector["topic"]), vector["headers"] or None
        pack = request_packer(EPOCH, lambda: NOW)
        return pack(id, topic, vector["codec"], body, headers, seconds(vector), vector["window"])
    if kind == "cancel":
        return pack_cancel(id)
    if kind == "credits":
        return pack_credits(id, vector["number"])
    if kind == "failed":
        return pack_failure(id, vector["code"], vector["text"])
    return pack_reply(id, Kind[kind.upper()], vector["codec"], body)


@pytest.mark.parametrize("vector", [pytest.param(vector, id=vector["name"]) for vector in VECTORS])
def test_a_vector_is_what_is_sent_and_is_read_as_it_says(vector: dict[str, Any]) -> None:
    """The facts of a vector make its frame, and reading the frame gives the facts."""
    frame = bytes.fromhex(vector["frame"])
    assert packed(vector) == frame
    message = parse(frame)
    assert (Kind(message.kind).name.lower(), message.id.hex()) == (vector["kind"], vector["id"])
    if vector["kind"] == "request":
        left, window, rest = parse_request(message)
        envelope = parse_message((rest,), 0.0)
        assert (left, window, topic_of(rest).hex()) == (seconds(vector), vector["window"], vector["topic"])
        assert (envelope.codec, envelope.body.hex(), dict(envelope.headers)) == (
            vector["codec"],
            vector["body"],
            vector["headers"],
        )
        assert envelope.sent_at == pytest.approx(NOW / 1e9)
    elif vector["kind"] == "credits":
        assert parse_credits(message) == vector["number"]
    elif vector["kind"] == "failed":
        reply = parse_reply(message)
        assert (reply.number, reply.body.decode()) == (vector["code"], vector["text"])
    elif vector["kind"] != "cancel":
        reply = parse_reply(message)
        assert (reply.number, reply.body.hex()) == (vector["codec"], vector["body"])


def test_every_kind_has_a_vector() -> None:
    """The vectors show each kind of frame."""
    assert {vector["kind"] for vector in VECTORS} == {kind.name.lower() for kind in Kind}

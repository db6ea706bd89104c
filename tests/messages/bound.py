"""Encoders and decoders for tests, bound to a type as an app binds them."""

from __future__ import annotations

from typing import Any

from tests.messages.kinds import Plain
from zroute.messages.bodies import body_decoder, body_encoder
from zroute.messages.codecs import JSON, MSGPACK, Codec

FORMATS = [MSGPACK, JSON]
QUOTE = Plain("AAPL", 187.23, 1200)


def decode(schema: Any, body: bytes, codec: Codec = JSON, **said: Any) -> Any:
    """Decode a body as a subscriber without a codec of its own does."""
    given = {"stated": None, "route": None, "default": codec, **said}
    return body_decoder(schema, **given)(body)


def encode(schema: Any, message: Any, codec: Codec = JSON) -> bytes:
    """Encode a message as a publisher without a codec of its own does."""
    return body_encoder(schema, codec=None, default=codec)[1](message)

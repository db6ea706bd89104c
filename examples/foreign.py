"""A reader for publishers that know nothing of zroute: whole envelopes, several parts, topics that are not text.

    zroute run --app-dir examples foreign --sub tcp://127.0.0.1:28332
"""

from typing import Any

from zroute import App, DecodeError, Envelope, EnvelopeError, startswith

app = App(sub="tcp://127.0.0.1:5714")


@app.subscribe("rawblock", "hashtx")
def block(body: bytes, envelope: Envelope) -> None:
    """[topic, body, 4-byte sequence], as a Bitcoin node sends it."""
    sequence = int.from_bytes(envelope.frames[2], "little") if len(envelope.frames) == 3 else None
    print(f"{envelope.topic} {sequence}: {body.hex()}")


@app.subscribe(startswith(b"\xff\x01"))
def instrument(body: bytes, envelope: Envelope) -> None:
    """Topics of bytes that are no text."""
    print(f"instrument {envelope.topic.wire.hex()}: {len(body)} bytes")


@app.subscribe("log.>")
def log(body: Any, envelope: Envelope) -> None:
    """Whatever it is: JSON and msgpack are told apart by their first byte."""
    print(f"{envelope.topic}: {body}")


@app.on_error(DecodeError, EnvelopeError)
def dead_letter(error: Exception, envelope: Envelope) -> None:
    print(f"dead letter: {error}; {len(envelope.frames)} parts")


@app.on_unrouted
def fallback(envelope: Envelope) -> None:
    print(f"nobody takes {envelope.topic!r}")

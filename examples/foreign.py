"""Subscribe to programs that do not use zroute.

Their messages may have several parts, topics that are not text, and bodies of any kind.

zroute run --app-dir examples foreign --sub tcp://127.0.0.1:28332
"""

from typing import Any

from zroute import App, DecodeError, Envelope, EnvelopeError, Topic, startswith

app = App(sub="tcp://127.0.0.1:5714")


@app.subscribe("rawblock", "hashtx")
def chain(body: bytes, envelope: Envelope) -> None:
    """Receive [topic, body, 4-byte sequence number] from a Bitcoin node."""
    sequence = int.from_bytes(envelope.frames[2], "little")
    print(f"{envelope.topic} {sequence}: {body.hex()}")


@app.subscribe(startswith(b"\xff\x01"))
def instrument(body: bytes, topic: Topic) -> None:
    """Receive messages whose topic is bytes, not text."""
    print(f"instrument {topic.wire.hex()}: {len(body)} bytes")


@app.subscribe("log.{level}.>", "log.{level}")
def log(line: str, level: str) -> None:
    """Receive [topic, line] from the logging handler of pyzmq."""
    print(f"{level}: {line.rstrip()}")


@app.subscribe("metrics.>")
def metrics(values: Any, topic: Topic) -> None:
    """Receive JSON or msgpack: the first byte of an object shows the format."""
    print(f"{topic}: {values}")


@app.on_error(DecodeError, EnvelopeError)
def dead_letter(error: Exception, envelope: Envelope) -> None:
    print(f"dead letter of {len(envelope.frames)} part(s) on {envelope.topic!r}: {error}")


@app.on_unrouted
def fallback(envelope: Envelope) -> None:
    print(f"no handler for {envelope.topic!r}")

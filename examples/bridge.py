"""Convert messages of a program without zroute into typed messages.

The feed sends [topic, JSON]. Messages that the bridge can't read are published as dead letters.

zroute run --app-dir examples bridge

In a second terminal, run a subscriber. In a third, run the feed, with a valid and an invalid message:

zroute tail tcp://127.0.0.1:5742
zroute pub tcp://127.0.0.1:5741 temp.kitchen '{"celsius": 21.5, "battery": 80}' --wire multipart
zroute pub tcp://127.0.0.1:5741 temp.kitchen '{"celsius": "warm"}' --wire multipart
"""

import attrs

from zroute import App, Envelope, PeerError

app = App(sub="tcp://127.0.0.1:5741", pub="tcp://127.0.0.1:5742")


@attrs.frozen
class Reading:
    """The message of the feed. Other fields in it are ignored."""

    celsius: float = attrs.field(validator=attrs.validators.ge(-273.15))


@attrs.frozen
class Temperature:
    """The message of the bridge, as msgpack with time and sequence number."""

    room: str
    kelvin: float


@attrs.frozen
class DeadLetter:
    frames: list[bytes]
    reason: str


dead_letters = app.publisher("dead.{why}", DeadLetter)


@app.publisher("rooms.{room}.temperature")
@app.subscribe("temp.{room}", codec="json")
def temperature(reading: Reading, room: str) -> Temperature:
    return Temperature(room, round(reading.celsius + 273.15, 2))


@app.on_error(PeerError)
def unreadable(error: PeerError, envelope: Envelope) -> None:
    dead_letters.publish(DeadLetter(list(envelope.frames), str(error)), why="unreadable")


@app.on_unrouted
def unknown(envelope: Envelope) -> None:
    dead_letters.publish(DeadLetter(list(envelope.frames), "no such topic"), why="unknown")

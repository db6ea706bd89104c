"""A bridge: a feed that knows nothing of zroute sends [topic, JSON]; others get typed messages, and the dead letters.

zroute run --app-dir examples bridge

In a second terminal who reads, in a third the feed, once well and once not:

zroute tail tcp://127.0.0.1:5742
zroute pub tcp://127.0.0.1:5741 temp.kitchen '{"celsius": 21.5, "battery": 80}' --wire multipart
zroute pub tcp://127.0.0.1:5741 temp.kitchen '{"celsius": "warm"}' --wire multipart
"""

import attrs

from zroute import App, Envelope, PeerError

app = App(sub="tcp://127.0.0.1:5741", pub="tcp://127.0.0.1:5742")


@attrs.frozen
class Reading:
    """What the feed says; fields that are not named here are left out."""

    celsius: float = attrs.field(validator=attrs.validators.ge(-273.15))


@attrs.frozen
class Temperature:
    """What readers of the bridge get, as msgpack, with time and sequence."""

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

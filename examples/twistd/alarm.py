"""The app and the web page of alarm.tac: a fire alarm and its panel."""

import json

import attrs
from twisted.web.resource import Resource
from twisted.web.server import Request

from zroute import App

LIMIT = 0.1
"""The fraction of light that smoke absorbs per metre, above which there is an alarm."""


@attrs.frozen
class Smoke:
    density: float


@attrs.frozen
class Alarm:
    text: str


app = App(sub="tcp://127.0.0.1:5748", pub="tcp://127.0.0.1:5749", name="alarm")
alarms = app.publisher("alarms.{room}", Alarm)
rooms: dict[str, float] = {}


@app.subscribe("smoke.{room}")
def on_smoke(smoke: Smoke, room: str) -> None:
    rooms[room] = smoke.density
    if smoke.density > LIMIT:
        alarms.publish(Alarm(f"smoke in the {room}"), room=room)


class Panel(Resource):
    isLeaf = True  # noqa: N815

    def render_GET(self, request: Request) -> bytes:
        return json.dumps({room: "ALARM" if density > LIMIT else "clear" for room, density in rooms.items()}).encode()

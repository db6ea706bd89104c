"""A chat relay: whoever connects by TCP enters and leaves rooms while it runs.

zroute run --app-dir examples chat --for 600s

In another terminal `nc 127.0.0.1 5720`, then `/join lobby`, `hello`, `/leave lobby`; in one more
`zroute tail tcp://127.0.0.1:5721 'rooms.>'`. CHAT in the environment says where to listen instead.
"""

import os
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import attrs
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from zroute import App, Attached, as_awaitable

LISTEN = os.environ.get("CHAT", "tcp:5720:interface=127.0.0.1")
app = App(pub="tcp://127.0.0.1:5721", sub="tcp://127.0.0.1:5721")


@attrs.frozen
class Said:
    by: str
    text: str


said = app.publisher("rooms.{room}", Said)
guests = count(1)


class Client(LineReceiver):
    delimiter = b"\n"

    def connectionMade(self) -> None:
        self.rooms: dict[str, Attached] = {}
        self.name = f"guest{next(guests)}"

    def lineReceived(self, line: bytes) -> None:
        match line.decode(errors="replace").split():
            case ["/join", room] if room.isalnum() and room not in self.rooms:  # a star would be every room
                self.rooms[room] = app.attach(f"rooms.{room}", self.hear)
            case ["/leave", room] if room in self.rooms:
                self.rooms.pop(room).close()
            case [word, *more] if self.rooms and not word.startswith("/"):
                said.publish(Said(self.name, " ".join([word, *more])), room=list(self.rooms)[-1])
            case _:
                self.sendLine(b"/join ROOM, /leave ROOM, or something to say in the room joined last")

    def hear(self, message: Said) -> None:
        self.sendLine(f"{message.by}: {message.text}".encode())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        for room in self.rooms.values():
            room.close()


class Door(Factory):
    protocol = Client
    port: Any = None

    async def open(self) -> None:
        from twisted.internet import reactor  # in here, because the import installs one where there is none

        self.port = await as_awaitable(serverFromString(reactor, LISTEN).listen(self))
        print(f"listens on port {self.port.getHost().port}")


@app.resource
async def door() -> AsyncIterator[Door]:
    door = Door()
    yield door
    if door.port is not None:
        await as_awaitable(door.port.stopListening())


@app.on_startup
async def open_door(door: Door) -> None:  # not in the resource: nobody can join before the app's sockets are open
    await door.open()


@app.subscribe("rooms.{room}")
def log(message: Said, room: str) -> None:  # and because of it a room is heard from the moment that it is joined
    print(f"{room} {message.by}: {message.text}")

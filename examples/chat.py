"""Relay a chat between TCP clients, which join and leave rooms.

zroute run --app-dir examples chat --for 600s

In another terminal, run `nc 127.0.0.1 5720`, and type `/join lobby`, `hello` and `/leave lobby`. In a third, run
`zroute tail tcp://127.0.0.1:5721 'rooms.>'`. The environment variable CHAT replaces the address of the TCP port.
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
            case ["/join", room] if room.isalnum() and room not in self.rooms:  # a room named * would be a wildcard
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
        from twisted.internet import reactor  # here, because this import installs a reactor if there is none

        self.port = await as_awaitable(serverFromString(reactor, LISTEN).listen(self))
        print(f"listens on port {self.port.getHost().port}")


@app.resource
async def door() -> AsyncIterator[Door]:
    door = Door()
    yield door
    if door.port is not None:
        await as_awaitable(door.port.stopListening())


@app.on_startup
async def open_door(door: Door) -> None:  # not in the resource: clients may join only after the app's sockets are open
    await door.open()


@app.subscribe("rooms.{room}")
def log(message: Said, room: str) -> None:  # it also subscribes to all rooms in advance, so a join takes effect at once
    print(f"{room} {message.by}: {message.text}")

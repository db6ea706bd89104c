"""A chat relay with live rooms: a line server over TCP, and a room for whoever asks for one.

    zroute run examples/chat.py

and in as many terminals as you like::

    nc 127.0.0.1 5750
    /join lobby
    hello

Each client's place in a room is a handler that is attached when it joins and closed when it leaves. What is said
travels over ``rooms.*``, so another program could listen, or speak: ``zroute tail`` shows it.
"""

import itertools
import os
from collections.abc import AsyncIterator

import attrs
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.protocols.basic import LineOnlyReceiver

from zroute import App, Attached, TopicError, as_awaitable

app = App()
guests = itertools.count(1)


@attrs.frozen
class Said:
    who: str
    text: str


rooms = app.publisher("rooms.{room}", Said)


class Client(LineOnlyReceiver):
    """One connection: a name, and the rooms that it is in."""

    delimiter = b"\n"

    def connectionMade(self) -> None:  # noqa: N802
        self.name = f"guest{next(guests)}"
        self.rooms: dict[str, Attached] = {}
        self.say("welcome: /join ROOM, /leave ROOM, /name NAME, or speak")

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        word, _, rest = line.decode(errors="replace").strip().partition(" ")
        try:
            if word == "/join":
                self.join(rest)
            elif word == "/leave" and rest in self.rooms:
                self.rooms.pop(rest).close()
            elif word == "/name":
                self.name = rest
            else:
                for room in self.rooms:
                    rooms.publish(Said(self.name, f"{word} {rest}".strip()), room=room)
        except (TopicError, ValueError) as error:
            self.say(f"no: {error}")

    def connectionLost(self, reason: object = None) -> None:  # noqa: N802
        for place in self.rooms.values():
            place.close()

    def join(self, room: str) -> None:
        def hear(said: Said) -> None:
            self.say(f"[{room}] {said.who}: {said.text}")

        if room not in self.rooms:
            self.rooms[room] = app.attach(f"rooms.{room}", hear)
            self.say(f"you are in {room}")

    def say(self, text: str) -> None:
        if self.transport is not None:
            self.transport.write(f"{text}\n".encode())


class Server(ServerFactory):
    """Remembers who is connected, so that a stop can say good-bye."""

    def __init__(self) -> None:
        self.clients: list[Client] = []

    def buildProtocol(self, addr: IAddress | None) -> Client:  # noqa: N802
        client = Client()
        self.clients.append(client)
        return client


@app.resource
async def server() -> AsyncIterator[Server]:
    from twisted.internet import reactor  # in here, since the import installs one

    made = Server()
    port = reactor.listenTCP(int(os.environ.get("CHAT_PORT", "5750")), made, interface="127.0.0.1")
    yield made
    await as_awaitable(maybeDeferred(port.stopListening))
    for client in made.clients:
        if client.transport is not None:
            client.transport.loseConnection()

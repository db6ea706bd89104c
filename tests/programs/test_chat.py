"""The chat relay: rooms in memory and between real sockets."""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest

from tests.support import PATIENCE, Child
from zroute.testing import TestApp


class InMemory:
    """A connection that keeps what is written.

    Twisted's own imports trial, and pytest then looks for Twisted's version before each further test.
    """

    disconnecting = False

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def seated(chat: Any) -> tuple[Any, InMemory]:
    """Return a client whose connection is in memory."""
    client, transport = chat.Client(), InMemory()
    client.makeConnection(transport)
    return client, transport


class NoDoor:
    async def open(self) -> None:
        """Open no listening port."""


def test_a_room_is_heard_from_joining_to_leaving(
    example: Callable[[str], Any], test_app: Callable[..., TestApp]
) -> None:
    """A client hears its room from joining to leaving, and nothing before or after."""
    chat = example("chat")
    t = test_app(chat.app, {chat.Door: NoDoor()})
    client, transport = seated(chat)
    for line in (b"/join lobby", b"/leave lobby"):
        client.dataReceived(line + b"\n")
        t.publish("rooms.lobby", chat.Said("ada", line.decode()))
        t.publish("rooms.attic", chat.Said("ada", "boo"))
    assert transport.written == b"ada: /join lobby\n"


def test_what_is_said_goes_to_the_room_joined_last(
    example: Callable[[str], Any], test_app: Callable[..., TestApp]
) -> None:
    """A client in two rooms speaks in the one it joined last; a client that hangs up leaves all rooms."""
    chat = example("chat")
    t = test_app(chat.app, {chat.Door: NoDoor()})
    client, transport = seated(chat)
    client.dataReceived(b"/join lobby\n/join attic\nhello  there\n")
    t.advance(0)
    assert [one.text for one in t.published("rooms.>")] == ["hello there"]
    assert not t.published("rooms.lobby")
    assert transport.written.endswith(b": hello there\n")
    client.connectionLost()
    transport.written = b""
    t.publish("rooms.attic", chat.Said("ada", "anyone?"))
    assert transport.written == b""


def test_a_line_that_is_nothing_is_answered(example: Callable[[str], Any], test_app: Callable[..., TestApp]) -> None:
    """An invalid room name, words outside a room and undecodable bytes are answered with the usage."""
    chat = example("chat")
    t = test_app(chat.app, {chat.Door: NoDoor()})
    client, transport = seated(chat)
    client.dataReceived(b"/join *\n/leave lobby\nhello\n\xff\n\n")
    t.advance(0)
    assert transport.written.count(b"/join ROOM, ") == 5
    assert not t.published()


def heard(speaker: TextIO, listener: TextIO, end: socket.socket, text: str) -> str:
    """Say ``text`` until the listener hears something, and return the line.

    A message that directly follows a join may reach the publisher before the subscription.
    """
    for _ in range(int(PATIENCE)):
        speaker.write(f"{text}\n")
        speaker.flush()
        if select.select([end], [], [], 1)[0]:
            return listener.readline()
    raise AssertionError(f"{text!r} was not heard")


@pytest.mark.usefixtures("network")
def test_two_people_talk(copied: Callable[[str], Path]) -> None:
    """With two real clients, one hears the other in the lobby until the other leaves."""
    folder = copied("chat")
    command = ("-m", "zroute", "run", "--app-dir", str(folder), "chat")
    with Child(*command, env={"CHAT": "tcp:0:interface=127.0.0.1"}) as child:
        port = int(re.findall(r"port (\d+)", child.line_with("listens on port"))[0])
        child.wait_for(lambda lines: any("connects to" in line or "on NATS" in line for line in lines), stream="err")
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as ada,
            socket.create_connection(("127.0.0.1", port), PATIENCE) as bob,
            ada.makefile("rw") as from_ada,
            bob.makefile("rw") as from_bob,
        ):
            for file in (from_ada, from_bob):
                file.write("/join lobby\n/nonsense\n")
                file.flush()
                assert file.readline().startswith("/join ROOM")  # the answer shows that the client is in the room
            for file, end in ((from_bob, bob), (from_ada, ada)):
                assert heard(from_ada, file, end, "hello").endswith(": hello\n")
            from_bob.write("/leave lobby\n/nonsense\n")
            from_bob.flush()
            assert next(line for line in from_bob if not line.endswith(": hello\n")).startswith("/join ROOM")
            from_ada.write("still there?\n")
            from_ada.flush()
            assert next(line for line in from_ada if not line.endswith(": hello\n")).endswith(": still there?\n")
            from_bob.write("/join attic\n")
            assert heard(from_bob, from_bob, bob, "alone").endswith(": alone\n")
            assert child.end() == 0, child.err

"""The chat relay: rooms come and go with those who are in them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from tests.support import PATIENCE, ROOT, Child, free_port


class Terminal:
    """What `nc` is to its user."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.lines = self.socket.makefile("rw", encoding="utf-8", newline="\n")
        assert self.read().startswith("welcome")

    def type(self, line: str) -> None:
        self.lines.write(line + "\n")
        self.lines.flush()

    def read(self) -> str:
        return self.lines.readline().rstrip("\n")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: Any) -> None:
        self.lines.close()
        self.socket.close()


def test_people_meet_in_rooms_and_leave_nothing_behind(tmp_path: Path) -> None:
    """Two in the lobby hear each other, a third elsewhere does not; who leaves hears no more; names are kept."""
    port = free_port()
    program = str(ROOT / "examples" / "chat.py")
    with Child("-m", "zroute", "run", program, cwd=tmp_path, env={"CHAT_PORT": str(port)}) as child:
        child.line_with("routes 0, publications 1", stream="err")
        with Terminal(port) as ann, Terminal(port) as bob, Terminal(port) as eve:
            for one, name, room in ((ann, "ann", "lobby"), (bob, "bob", "lobby"), (eve, "eve", "attic")):
                one.type(f"/name {name}")
                one.type(f"/join {room}")
                assert one.read() == f"you are in {room}"
            ann.type("hello")
            assert ann.read() == bob.read() == "[lobby] ann: hello"
            ann.type("/leave lobby")
            bob.type("still there?")
            assert bob.read() == "[lobby] bob: still there?"
            ann.type("/join attic")
            assert ann.read() == "you are in attic"
            eve.type("up here")
            assert ann.read() == eve.read() == "[attic] eve: up here"
            eve.type("/join a..b")
            assert eve.read().startswith("no: ")
            assert child.end() == 0
            assert eve.read() == ""
        assert "failed 0" in child.err[-1]

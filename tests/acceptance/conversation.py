"""A publisher process and a zroute app process that are connected by tcp, and the app's output."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import Child, Way

PRELUDE = """
import json
from typing import Any
import attrs
from twisted.internet import defer
from zroute import *

def say(*words):
    print(json.dumps(words), flush=True)

@attrs.frozen
class Quote:
    symbol: str
    price: float
    volume: int
"""

CODA = """
@app.subscribe("sync")
def sync():
    say("sync")

@app.subscribe("end")
def end():
    say("end")

@app.on_shutdown
def bye():
    say("stats", app.stats.as_dict())
"""

END = [b"end\0"]
ADDRESS = Way("address")


class Conversation:
    """The two processes: `send` publishes messages, and `heard` returns the output of the handlers."""

    def __init__(self, publisher: Child, app: Child) -> None:
        self.publisher = publisher
        self.app = app

    def send(self, *messages: Sequence[bytes]) -> None:
        """Publish these messages, each a list of parts."""
        self.publisher.write(json.dumps([[part.hex() for part in parts] for parts in messages]) + "\n")

    def heard(self, end: Sequence[bytes] = END) -> list[Any]:
        """Publish ``end``, and return all earlier output of the handlers, in order."""
        self.send(end)
        self.app.line_with('["end"]')
        said = [json.loads(line) for line in self.app.out if line.startswith("[")]
        return [words for words in said if words[0] not in ("sync", "end")]

    def stats(self) -> dict[str, Any]:
        """Stop the app, and return its counters."""
        assert self.app.end(signal.SIGINT) == 0, self.app.err
        line = next(line for line in self.app.out if line.startswith('["stats"'))
        counters: dict[str, Any] = json.loads(line)[1]
        counters["received"] -= self.app.out.count('["sync"]') + 1
        return counters

    @property
    def log(self) -> str:
        """The app's log so far."""
        return "\n".join(self.app.err)


@contextmanager
def conversation(
    folder: Path,
    source: str,
    *,
    peer: str = "pyzmq_publisher",
    options: Sequence[str] = (),
    way: Way = ADDRESS,
) -> Iterator[Conversation]:
    """Start ``peer`` and an app of ``source`` that connects to it by ``way``; wait until the app receives."""
    (folder / "reader.py").write_text(PRELUDE + source + CODA)
    address = way.meeting().bind if peer.startswith("txzmq") else way.wildcard
    with Child("-m", "tests.acceptance.peers", peer, address) as publisher:
        publisher.wait_for(lambda lines: lines)
        arguments = ["--app-dir", str(folder), "--sub", way.to(publisher.out[0]), *options]
        with Child("-m", "zroute", "run", "reader:app", *arguments) as app:
            app.line_with('["sync"]')
            yield Conversation(publisher, app)

"""A publisher process that waits for its subscriber, and a zroute command that listens to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support import Child, free_endpoint

SOURCE = """
from zroute import App
app = App(pub={endpoint!r}, wire={wire!r}, codec="json")
stocks = app.publisher("stocks.{{symbol}}", dict)

@app.every(0.02)
def tick():
    for symbol in ("ABC", "XYZ"):
        stocks.publish({{"price": 12.5, "who": "Ü"}}, symbol=symbol)
    app.publish("stocks.XYZ", {{"price": 13}})
"""


class Feed:
    """The publisher: an XPUB socket, which sees subscriptions come, and answers each with the topic "sync"."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.endpoint: str = child.wait_for(lambda lines: lines)[0]

    def heard(self, subscriptions: int = 1) -> None:
        """Wait until so many subscriptions have arrived."""
        self._child.wait_for(lambda lines: lines.count("subscribed") >= subscriptions)

    def send(self, *messages: bytes | Sequence[bytes]) -> None:
        """Publish these messages, each of one part or several."""
        parts = [[message] if isinstance(message, bytes) else message for message in messages]
        self._child.write(json.dumps([[part.hex() for part in message] for message in parts]) + "\n")


@contextmanager
def feed() -> Iterator[Feed]:
    """A publisher that sends what it is told."""
    with Child("-m", "tests.acceptance.peers", "watching_publisher", "tcp://127.0.0.1:*") as child:
        yield Feed(child)


@contextmanager
def ticker(folder: Path, wire: str = "tracked") -> Iterator[str]:
    """The endpoint of a zroute app that publishes on "stocks.ABC", and twice as much on "stocks.XYZ", all the time."""
    endpoint = free_endpoint()
    (folder / "ticker.py").write_text(SOURCE.format(endpoint=endpoint, wire=wire))
    with Child("-m", "zroute", "run", "ticker", "--app-dir", str(folder)) as child:
        child.line_with("publishes", stream="err")
        yield endpoint


@contextmanager
def listening(command: str, publisher: Feed, *arguments: str, subscriptions: int = 1) -> Iterator[Child]:
    """``zroute COMMAND`` with its subscriptions arrived."""
    with Child("-m", "zroute", command, publisher.endpoint, *arguments) as child:
        publisher.heard(subscriptions)
        yield child

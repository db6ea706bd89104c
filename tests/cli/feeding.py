"""Publishers in processes of their own, and zroute commands that listen to them."""

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
    """A publisher that answers each subscription with a message on "sync"."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.endpoint: str = child.wait_for(lambda lines: lines)[0]

    def heard(self, subscriptions: int = 1, by: Child | None = None) -> None:
        """Wait until this number of subscriptions has arrived, or until the subscriber ``by`` has ended."""

        def done(lines: list[str]) -> bool:
            return lines.count("subscribed") >= subscriptions or (by is not None and by.process.poll() is not None)

        self._child.wait_for(done)

    def send(self, *messages: bytes | Sequence[bytes]) -> None:
        """Publish these messages, each of one part or several."""
        parts = [[message] if isinstance(message, bytes) else message for message in messages]
        self._child.write(json.dumps([[part.hex() for part in message] for message in parts]) + "\n")


@contextmanager
def feed() -> Iterator[Feed]:
    """A publisher that sends the messages given to `Feed.send`."""
    with Child("-m", "tests.acceptance.peers", "watching_publisher", "tcp://127.0.0.1:*") as child:
        yield Feed(child)


@contextmanager
def ticker(folder: Path, wire: str = "tracked") -> Iterator[str]:
    """The endpoint of an app that publishes periodically.

    It publishes to "stocks.ABC", and twice as often to "stocks.XYZ".
    """
    endpoint = free_endpoint()
    (folder / "ticker.py").write_text(SOURCE.format(endpoint=endpoint, wire=wire))
    with Child("-m", "zroute", "run", "ticker", "--app-dir", str(folder)) as child:
        child.line_with("publishes", stream="err")
        yield endpoint


@contextmanager
def listening(command: str, publisher: Feed, *arguments: str, subscriptions: int = 1) -> Iterator[Child]:
    """``zroute COMMAND``, after its subscriptions have arrived at the publisher."""
    with Child("-m", "zroute", command, publisher.endpoint, *arguments) as child:
        publisher.heard(subscriptions, by=child)
        yield child

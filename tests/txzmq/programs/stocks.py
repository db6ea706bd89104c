"""A publisher of prices ten times a second, and subscribers of one or several topics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall

from tests.txzmq.programs.common import LIBRARY, endpoint, main, say

PRICES = {b"stocks.AAPL": 190, b"stocks.MSFT": 410, b"news.sports": "a goal", b"weather.oslo": -3}


def publisher(reactor: Any, factory: Any) -> Any:
    """Publish prices as JSON with the time, and the weather as raw text."""
    connection = LIBRARY.ZmqPubConnection(factory, endpoint())

    def publish() -> None:
        for tag, value in PRICES.items():
            if tag.startswith(b"weather"):
                connection.publish(f"{value} degrees".encode(), tag)
            else:
                connection.publish(json.dumps({"timestamp": time.time(), "data": value}).encode(), tag)

    LoopingCall(publish).start(0.1)
    return connection


class Topics(LIBRARY.ZmqSubConnection):  # type: ignore[misc]
    """A subscriber with a handler per prefix; the longest matching prefix gets the message."""

    def __init__(self, factory: Any, where: Any, handlers: dict[bytes, Callable[[bytes, Any], None]]) -> None:
        super().__init__(factory, where)
        self.handlers = handlers
        for prefix in handlers:
            self.subscribe(prefix)

    def gotMessage(self, message: bytes, tag: bytes) -> None:
        """Decode JSON if possible; otherwise pass the bytes on."""
        try:
            body = json.loads(message)["data"]
        except ValueError:
            body = message.decode()
        fitting = [prefix for prefix in self.handlers if tag.startswith(prefix)]
        self.handlers[max(fitting, key=len)](tag, body)


def stocks(reactor: Any, factory: Any) -> Any:
    """Run a subscriber of one topic."""
    return Topics(factory, endpoint(), {b"stocks.": lambda tag, body: say("stock", tag.decode(), body)})


def everything(reactor: Any, factory: Any) -> Any:
    """Run a subscriber of several topics, with the most specific handler for each."""
    return Topics(
        factory,
        endpoint(),
        {
            b"": lambda tag, body: say("any", tag.decode(), body),
            b"stocks.": lambda tag, body: say("stock", tag.decode(), body),
            b"stocks.AAPL": lambda tag, body: say("apple", body),
            b"weather.": lambda tag, body: say("weather", body),
        },
    )


if __name__ == "__main__":
    main(publisher=publisher, stocks=stocks, everything=everything)

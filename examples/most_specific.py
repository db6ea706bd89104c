"""Pass each message to its most specific handler, as JSON or raw bytes.

This is the smart subscriber of txZMQ's documentation.

zroute run --app-dir examples most_specific

In a second terminal, send messages like those of a txZMQ publisher, which calls
`publish(json.dumps({"timestamp": …, "data": …}).encode(), tag)`:

zroute pub tcp://127.0.0.1:5740 weather.oslo '{"timestamp": 1767225600, "data": {"celsius": -3.5}}' --wire plain
zroute pub tcp://127.0.0.1:5740 weather.oslo '4;CRC=77' --wire plain --codec raw
zroute pub tcp://127.0.0.1:5740 news.sports.final '{"timestamp": 1767225600, "data": {"title": "We won"}}' --wire plain
zroute pub tcp://127.0.0.1:5740 newsletter '{"timestamp": 1767225600, "data": [1, 2]}' --wire plain
"""

from datetime import UTC, datetime
from typing import Any

import attrs

from zroute import App, Stamped, Topic, startswith

app = App(sub="tcp://127.0.0.1:5740", codec="json", dispatch="most_specific")


@attrs.frozen
class Weather:
    celsius: float


@attrs.frozen
class Story:
    title: str


@app.subscribe("weather.{city}")
def weather(report: Stamped[Weather] | bytes, city: str) -> None:
    if isinstance(report, bytes):
        print(f"{city}, raw: {report.decode(errors='replace')}")
    else:
        print(f"{city}: {report.data.celsius} °C at {clock(report.timestamp)}")


@app.subscribe("news.>")
def news(story: Stamped[Story] | bytes, topic: Topic) -> None:
    if isinstance(story, bytes):
        print(f"{topic}, raw: {story.decode(errors='replace')}")
    else:
        print(f"{topic}: {story.data.title}, at {clock(story.timestamp)}")


@app.subscribe("news.sports.>")
def sports(story: Stamped[Story]) -> None:
    print(f"Sports! {story.data.title}")


@app.subscribe(startswith(""))  # all other messages, like the tag b"" in txZMQ
def anything(message: Stamped[Any] | bytes, topic: Topic) -> None:
    print(f"somewhere else, {topic}: {message!r}")


def clock(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%H:%M:%S")

"""A news desk: each message goes to the most specific handler, the rest to a fallback.

    zroute run --app-dir examples news_desk:wire_service news_desk:desk --for 3s
"""

from collections.abc import Iterator
from itertools import cycle

from zroute import App, Envelope, Topic

ENDPOINT = "tcp://127.0.0.1:5711"
STORIES = {
    "news.breaking": "Volcano wakes up",
    "news.sports": "Home side wins",
    "news.local.harbour": "New crane arrives",
    "weather.oslo": "Snow by noon",
    "puzzle": "Seven across: brokerless",
}

wire_service = App(pub=ENDPOINT, codec="text")
stories = cycle(STORIES.items())


@wire_service.every(0.2)
def send_next() -> None:
    topic, headline = next(stories)
    wire_service.publish(topic, headline)


@wire_service.publisher("corrections.{number}")
def corrections() -> Iterator[str]:
    yield from ()  # none today: a generator that ends is finished


desk = App(sub=ENDPOINT, dispatch="most_specific")


@desk.subscribe("news.breaking")
def breaking(headline: str) -> None:
    print(f"*** {headline.upper()} ***")


@desk.subscribe("news.>")
def news(headline: str, topic: Topic) -> None:
    print(f"{topic}: {headline}")


@desk.subscribe("weather.{city}")
def weather(headline: str, city: str) -> None:
    print(f"Weather in {city.title()}: {headline}")


@desk.subscribe("*")
def anything_else(headline: str, envelope: Envelope) -> None:
    print(f"({envelope.topic}) {headline}, message {envelope.sequence}")

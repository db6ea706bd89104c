"""Pass each story to its most specific handler, or else to a fallback.

zroute run --app-dir examples news_desk:agency news_desk:desk --for 3s
"""

from itertools import cycle

from zroute import App, Envelope, Topic

ENDPOINT = "tcp://127.0.0.1:5711"
STORIES = cycle(
    [
        ("news.breaking", "Volcano wakes up"),
        ("news.culture", "Opera reopens"),
        ("sports.football.final", "Home side wins"),
        ("weather.oslo", "Snow by noon"),
        ("news.local.harbour", "New crane arrives"),
        (
            "puzzle",
            "Seven across: brokerless",
        ),  # not sent: no pattern of the desk has this prefix
    ]
)

agency = App(pub=ENDPOINT)
desk = App(sub=ENDPOINT, dispatch="most_specific")


@agency.every(0.2)
def send_next() -> None:
    topic, headline = next(STORIES)
    agency.publish(topic, headline)


@desk.subscribe("news.breaking")
def breaking(headline: str) -> None:
    print(f"*** {headline.upper()} ***")


@desk.subscribe("news.*")
def news(headline: str, topic: Topic) -> None:
    print(f"{topic}: {headline}")


@desk.subscribe("sports.>")
def sports(headline: str) -> None:
    print(f"Sports: {headline}")


@desk.subscribe("weather.{city}")
def weather(headline: str, city: str) -> None:
    print(f"Weather in {city.title()}: {headline}")


@desk.on_unrouted
def fallback(envelope: Envelope) -> None:
    print(f"no desk for {envelope.topic}: {envelope.body.decode()}")

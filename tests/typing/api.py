"""What type checkers see of the API. Lines that end in ``# E`` hold a deliberate error; no other line may."""
# ruff: noqa: D103  # it is read by checkers and never run

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks, succeed

from zroute import App, Envelope, Publication, Routes, Topic, as_awaitable, startswith


@attrs.frozen
class Quote:
    symbol: str
    price: float


@attrs.frozen
class Alert:
    text: str


@attrs.frozen
class Loud(Alert):
    loudness: int = 11


app = App(sub="tcp://127.0.0.1:5555", pub=["tcp://127.0.0.1:5556"], wire="plain", dispatch="most_specific")
App(wire="fast")  # E
App(dispatch="some")  # E
App("tcp://127.0.0.1:5555")  # E

alerts = app.publisher("alerts.{level}", Alert)
anything = app.publisher("anything")
typed: Publication[Alert] = alerts
mistyped: Publication[Quote] = alerts  # E


@app.subscribe("stocks.{symbol}", startswith("quotes."), codec="json", copy=True)
def on_quote(quote: Quote, symbol: str) -> int:
    alerts.publish(Alert(symbol), level="high", headers={"trace": 1})
    alerts.publish(Quote(symbol, 1.0), level="high")  # E
    alerts.publish("text", level="high")  # E
    alerts.publish()  # E
    alerts.publish(Alert(symbol), headers="no")  # E
    anything.publish("text")
    anything.publish(5)
    return 1


number: int = on_quote(Quote("A", 1.0), "A")
text: str = on_quote(Quote("A", 1.0), "A")  # E
on_quote(Quote("A", 1.0), 5)  # E
on_quote("A", "A")  # E
app.subscribe(5)  # E
app.subscribe("a", copy="yes")  # E


@app.subscribe("a")
async def on_async(message: Any, envelope: Envelope, topic: Topic) -> None:
    await alerts.publish(Alert(topic), level="low")
    app.publish("a", 5)
    app.publish(5, "a")  # E
    early: str = envelope.received_at  # E
    print(early, envelope.topic.upper(), envelope.headers.get("trace"))


@app.subscribe("a", batch=100)
def on_list(quotes: list[Quote], topic: Topic) -> int:
    return len(quotes)


count: int = on_list([Quote("A", 1.0)], Topic("a"))
on_list(Quote("A", 1.0), Topic("a"))  # E
app.subscribe("a", batch="100")  # E
app.add_route(on_list, "a", batch=100)
app.attach("a", on_list, batch=100).close()
app.attach("a", on_list, batch=1.5)  # E


@alerts
@app.subscribe("in.{level}")
def derive(quote: Quote, level: str) -> Alert | None:
    return Alert(level) if quote.price else None


kept: Alert | None = derive(Quote("A", 1.0), "low")
lost: Quote = derive(Quote("A", 1.0), "low")  # E


@alerts
@app.subscribe("in.{level}")
async def later(quote: Quote, level: str) -> Alert | None:
    return Alert(level)


@alerts
def deferred(quote: Quote) -> Deferred[Alert] | None:
    return succeed(Alert(quote.symbol))


@alerts
@inlineCallbacks
def inline(quote: Quote) -> Generator[Deferred[Any], Any, Alert]:
    yield succeed(None)
    return Alert(quote.symbol)


@alerts
def several(quote: Quote) -> Iterator[Alert | None]:
    yield Alert(quote.symbol)


@alerts
async def several_later(quote: Quote) -> AsyncIterator[Alert]:
    yield Alert(quote.symbol)


@alerts
def generated() -> Generator[Alert, None, None]:
    yield Alert("a")


@alerts
def loud(quote: Quote) -> Loud:
    return Loud(quote.symbol)


@alerts
def unsaid(quote: Quote) -> Any:
    return quote


@alerts
def silent(quote: Quote, *, level: str = "low") -> None:
    alerts.publish(Alert(quote.symbol), level=level)


@anything
@alerts
def alert(quote: Quote) -> Alert:
    return Alert(quote.symbol)


class Desk:
    @alerts
    def on_quote(self, quote: Quote) -> Alert:
        return Alert(quote.symbol)


loudness: int = loud(Quote("A", 1.0)).loudness
silent(Quote("A", 1.0), level="high")
silent("A")  # E
silent(Quote("A", 1.0), volume=1)  # E
made: Alert = alert(Quote("A", 1.0))
waiting: Deferred[Alert] | None = deferred(Quote("A", 1.0))
inlined: Deferred[Alert] = inline(Quote("A", 1.0))
of_desk: Alert = alerts(Desk().on_quote)(Quote("A", 1.0))
alerts(partial(derive, level="low"))
alerts(lambda: Alert("a"))


def other(quote: Quote) -> Quote:
    return quote


def other_or_none(quote: Quote) -> Quote | None:
    return quote


async def other_later(quote: Quote) -> Quote:
    return quote


def others(quote: Quote) -> Iterator[Quote]:
    yield quote


async def others_later(quote: Quote) -> AsyncIterator[Quote]:
    yield quote


def other_deferred(quote: Quote) -> Deferred[Quote]:
    return succeed(quote)


def either(quote: Quote) -> Alert | Quote:
    return quote


def no_text() -> int:
    return 1


alerts(other)  # E
alerts(other_or_none)  # E
alerts(other_later)  # E
alerts(others)  # E
alerts(others_later)  # E
alerts(other_deferred)  # E
alerts(either)  # E
alerts(no_text)  # E
alerts(5)  # E
anything(other)
app.publisher("texts", str, every=1.0)(no_text)  # E
app.publisher("numbers", float, every=1.0)(no_text)
app.publisher("texts", str | int, every=1.0)(no_text)


@app.publisher("quotes", Quote)  # E
@app.subscribe("trades")
def wrong_quote(quote: Quote) -> Alert:
    return Alert(quote.symbol)


@app.publisher("beat", every=1.0)
def beat() -> dict[str, bool]:
    return {"ok": True}


ok: bool = beat()["ok"]
beat(1)  # E
app.publisher("beat", every="1s")  # E


@app.publisher("numbers")
def numbers() -> Iterator[int]:
    yield from range(3)


first: int = next(numbers())
wrong: str = next(numbers())  # E


@app.every(1.0, jitter=0.1, initial_delay=1.0)
def tick() -> None:
    return


app.every()  # E


@app.on_error(ValueError, KeyError)
def on_error(error: Exception, envelope: Envelope) -> int:
    return 0


app.on_error("ValueError")  # E
zero: int = on_error(ValueError(), Envelope(Topic("a"), b"", (), 0.0))


@app.on_unrouted
def on_unrouted(envelope: Envelope) -> None:
    return


@app.on_startup
async def on_startup() -> None:
    return


@app.on_shutdown
def on_shutdown(needs: int) -> None:
    return


desk = Routes(prefix="desk.{room}")
app.include(desk, prefix="top")
app.include("desk")  # E


@desk.subscribe("ask")
def ask(question: str, room: str) -> str:
    return question + room


answer: str = ask("?", "north")
nothing: int = ask("?", "north")  # E
as_awaitable(5)  # E


async def counted(text: str) -> int:
    return len(text)


@app.subscribe("scans.{room}", thread=True, max_in_flight=2, queue=10)
def scan(picture: bytes, room: str) -> None:
    app.from_thread(alerts.publish, Alert(room), level="high", headers={"trace": 1})
    app.from_thread(alerts.publish, Quote(room, 1.0), level="high")  # E
    app.from_thread(alerts.publish)  # E
    app.from_thread(app.publish, "a", 5)
    size: int = app.from_thread(len, room)
    later: int = app.from_thread(counted, room)
    other: str = app.from_thread(counted, room)  # E
    print(size, later, other)


async def embedded(reactor: Any) -> bool:
    service = app.service(reactor)
    await service.started
    print(service.starts)  # E
    return (await service.stopService()).complete

"""What type checkers see of the API. Lines that end in ``# E`` hold a deliberate error; no other line may."""
# ruff: noqa: D103  # it is read by checkers and never run

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks, succeed

from zroute import (
    App,
    Envelope,
    Frames,
    JobQueue,
    Publication,
    ReplyStream,
    Requester,
    RequestRefused,
    RouteInfo,
    Routes,
    Topic,
    WithHeaders,
    as_awaitable,
    startswith,
)


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
App(propagate_headers=["x-tenant"])
App(propagate_headers=5)  # E
App("tcp://127.0.0.1:5555")  # E
App(sub={"tcp://127.0.0.1:5555": "tracked", "tcp://127.0.0.1:9500": Frames(topic="eddn", decompress="zlib")})
App(pub="tcp://127.0.0.1:5556", wire=Frames(separator=b" "))
Frames(topic=lambda parts: parts[0].decode(), body=lambda parts: parts[1])
Frames(separator=" ")  # E
Frames(decompress="gzip")  # E

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


@alerts
def headed(quote: Quote) -> WithHeaders[Alert]:
    return WithHeaders(Alert(quote.symbol), {"priority": "high"})


@alerts
def headed_or_not(quote: Quote) -> WithHeaders[Loud] | Alert | None:
    return WithHeaders(Loud(quote.symbol), {}) if quote.price else Alert(quote.symbol)


@alerts
async def headed_later(quote: Quote) -> WithHeaders[Alert]:
    return WithHeaders(Alert(quote.symbol), {})


@alerts
def several_headed(quote: Quote) -> Iterator[WithHeaders[Alert] | None]:
    yield WithHeaders(Alert(quote.symbol), {})


@app.publish_middleware
def stamp(call: Callable[[Any], Awaitable[None]], route: RouteInfo) -> Callable[..., Awaitable[None]]:
    def around(message: Any, topic: Topic) -> Awaitable[None]:
        return call(WithHeaders(message, {"topic": topic, "kind": route.kind}))

    return around


app.publish_middleware(5)  # E


@app.middleware
def timed(call: Callable[[Any], Any], route: RouteInfo) -> Callable[..., Any]:
    return call


app.middleware(5)  # E
app.resource(scope="request")  # E


class Desk:
    @alerts
    def on_quote(self, quote: Quote) -> Alert:
        return Alert(quote.symbol)


@app.resource(scope="message")
def session() -> Iterator[Desk]:
    yield Desk()


text_of: str = headed(Quote("A", 1.0)).value.text
WithHeaders(Alert("a"), "no")  # E
alerts.publish(WithHeaders(Alert("a"), {}))  # E
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


def other_headed(quote: Quote) -> WithHeaders[Quote]:
    return WithHeaders(quote, {})


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
alerts(other_headed)  # E
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


@app.on_error()
def on_any_error(error: Exception, envelope: Envelope, route: RouteInfo | None, attempts: int) -> str:
    return f"{route.name} {route.where} {attempts}" if route is not None else ""


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


views = app.publisher("views", memoryview)
raw = app.publisher("raw", bytes)
held: Publication[memoryview] = views
packed: Publication[bytes] = raw


@views
@raw
@app.subscribe("crops.{name}")
def crop(picture: memoryview) -> memoryview:
    views.publish(b"")
    views.publish(bytearray())
    views.publish(memoryview(b""), headers={"a": 1}, name="x")
    raw.publish(b"", name="x")
    raw.publish(bytearray())
    raw.publish(memoryview(b""))
    held.publish(b"")
    views.publish("")  # E
    raw.publish("")  # E
    views.publish(5)  # E
    views.publish()  # E
    views.publish(b"", headers="no")  # E
    return picture


@views
@raw
@app.subscribe("copies")
def copied(picture: memoryview) -> bytes | None:
    return picture.tobytes()


@views  # E
@app.subscribe("texts")
def spelled(picture: memoryview) -> str:
    return ""


same_result: memoryview = crop(memoryview(b""))
wrong_result: str = crop(memoryview(b""))  # E


async def send_views(later: Awaitable[None]) -> None:
    await views.publish(b"")
    await raw.publish(bytearray())
    app.from_thread(views.publish, b"", name="x")
    app.from_thread(raw.publish, bytearray(), headers={"a": 1})
    app.from_thread(anything.publish, 5)
    app.from_thread(views.publish, "")  # E


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


App(reactor="asyncio")
App(reactor="epoll")  # E
app.run(reactor="epoll", log_level="debug", log_format="json", seconds=1.5)
app.run(reactor="trio")  # E
app.run(log_level="loud")  # E


async def inside() -> int | None:
    async with app.running(drain_timeout=20) as running:
        app.running(patience=1)  # E
        same: App = running
        await same.ready()
        number: int = app.exit_code  # E
        return await app.stopped() or number


jobs = app.job_queue("jobs.{kind}", Quote, retry=(1, 5), dead="dead.{kind}", waiting=5, silent_after=1.0)
untyped_jobs = app.job_queue("others")
jobs(print)  # E
typed_jobs: JobQueue[Quote] = jobs
mistyped_jobs: JobQueue[Alert] = jobs  # E
app.job_queue("jobs", Quote, timeout=5)  # E
app.job_queue("jobs", Quote, retry=5)  # E


@app.work("jobs.{kind}", startswith("more."), max_in_flight=2, timeout=1.0, thread=False, batch=None)
async def on_job(quote: Quote, kind: str) -> None:
    await jobs.put(quote, kind=kind, headers={"trace": 1})
    jobs.put_nowait(quote, kind=kind)
    await jobs.put(Alert("x"), kind=kind)  # E
    jobs.put_nowait("text")  # E
    await jobs.put()  # E
    await untyped_jobs.put("text")
    done: int = jobs.stats.done
    reveal_name: str = jobs.stats.done  # E
    print(done, reveal_name)


app.work("jobs", retry=(1, 5))  # E
app.work("jobs", thread="yes")  # E
worked: Callable[[Quote, str], Any] = on_job


# -- requests --------------------------------------------------------------------------------------------

alerting = app.requester("alerts.{level}", Quote, Alert, timeout=2.0, retry=(0.05,))
asking_anything = app.requester("anything")
typed_requester: Requester[Quote, Alert] = alerting
wider_reply: Requester[Quote, object] = alerting
mistyped_message: Requester[Alert, Alert] = alerting  # E
mistyped_reply: Requester[Quote, Quote] = alerting  # E
app.requester("alerts", Quote, Alert, queue=5)  # E
app.requester("alerts", Quote, Alert, retry=5)  # E


@app.reply("quotes.{symbol}", startswith("more."), codec="json", max_in_flight=2, queue=5, timeout=1.0)
async def reply_to(quote: Quote, symbol: str) -> Alert:
    if not symbol:
        raise RequestRefused(409, "no symbol")
    alert: Alert = await app.request("alerts.high", quote, Alert, timeout=2.0, headers={"trace": 1})
    found = await app.request("alerts.high", quote, Alert)
    other: Quote = found  # E
    anything: Any = await app.request("alerts.high", quote)
    await app.request("alerts.high", quote, Alert, retry=(1,))  # E
    await app.request("alerts.high", quote, Alert, timeout="1 s")  # E
    answer: Alert = await alerting.request(quote, level="high", timeout=None)
    wrong: Quote = await alerting.request(quote, level="high")  # E
    await alerting.request(alert, level="high")  # E
    await alerting.request()  # E
    number: int = await asking_anything.request("text")
    print(alert, other, anything, answer, wrong, number)
    return alert


@app.reply("rows")
async def reply_with_rows(quote: Quote) -> AsyncIterator[Alert]:
    async for alert in app.request_stream("rows.{table}", quote, Alert, timeout=10):
        text: str = alert.text
        print(text)
        yield alert
    async with alerting.stream(quote, level="high") as stream:
        same: ReplyStream[Alert] = stream
        other: ReplyStream[Quote] = stream  # E
        async for each in stream:
            yield each
        print(same, other)
    async for row in app.request_stream("rows.{table}", quote, Alert):
        mistyped: Quote = row  # E
        print(mistyped)
    async for unknown in app.request_stream("rows.{table}"):
        print(unknown.text)


app.reply("rows", batch=5)  # E
app.reply("rows", stale_after=5.0)  # E
app.reply("rows", queue="all")  # E
replied: Awaitable[Alert] = reply_to(Quote("A", 1.0), "A")
RequestRefused("409", "no")  # E

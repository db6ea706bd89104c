"""Publish alerts for high quotes of a simulated market, as in the README.

zroute run --app-dir examples alerts:market alerts alerts:pager --for 10s
"""

import random

import attrs

from zroute import App

app = App(sub="tcp://127.0.0.1:5555", pub="tcp://127.0.0.1:5556")


@attrs.frozen
class Quote:
    symbol: str
    price: float
    volume: int


@attrs.frozen
class Alert:
    text: str


alerts = app.publisher("alerts.{level}", Alert)


@app.subscribe("stocks.{symbol}")
def on_quote(quote: Quote, symbol: str) -> None:
    print(f"{symbol:5} {quote.price:8.2f}  x {quote.volume}")
    if quote.price > 1000:
        alerts.publish(Alert(f"{symbol} at {quote.price}"), level="high")


@app.publisher("heartbeat.desk", every=1.0)
def beat() -> dict[str, bool]:
    return {"ok": True}


market = App(pub="tcp://127.0.0.1:5555")
pager = App(sub="tcp://127.0.0.1:5556")


@market.publisher("stocks.{symbol}", every=1.0)
def quote() -> Quote:
    symbol, usual = random.choice([("ACME", 990.0), ("AAPL", 187.0), ("NVR", 9050.0)])
    return Quote(symbol, round(random.gauss(usual, usual / 50), 2), random.randint(1, 900))


@pager.subscribe("alerts.{level}")
def page(alert: Alert, level: str) -> None:
    print(f"  {level} alert: {alert.text}")


@pager.subscribe("heartbeat.*")
def alive(state: dict[str, bool]) -> None:
    print(f"  the desk is {'well' if state['ok'] else 'unwell'}")

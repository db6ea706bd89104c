"""Publish prices every second on two kinds of topics, and show them.

zroute run --app-dir examples ticker:feed ticker:screen --for 10s
"""

import random

import attrs

from zroute import App

ENDPOINT = "tcp://127.0.0.1:5710"


@attrs.frozen
class Quote:
    symbol: str
    price: float
    volume: int


@attrs.frozen
class Status:
    open: bool
    quotes: int


feed = App(pub=ENDPOINT)
quotes = feed.publisher("stocks.{symbol}", Quote)
status = feed.publisher("market.status", Status)
prices = {"AAPL": 187.0, "MSFT": 411.0, "ACME": 9.5}


@feed.every(1.0)
def tick() -> None:
    for symbol in prices:
        prices[symbol] = round(prices[symbol] * random.uniform(0.98, 1.03), 2)
        quotes.publish(Quote(symbol, prices[symbol], random.randint(1, 900)))
    status.publish(Status(open=True, quotes=len(prices)))


screen = App(sub=ENDPOINT)


@screen.subscribe("stocks.{symbol}")
def show(quote: Quote, symbol: str) -> None:
    print(f"{symbol:5} {quote.price:8.2f}  x {quote.volume}")


@screen.subscribe("market.status")
def show_status(now: Status) -> None:
    print(f"market {'open' if now.open else 'closed'}, {now.quotes} quotes")

"""The app of the desk, and an app of an exchange that sends orders to it."""

from collections.abc import Iterator
from itertools import count
from typing import Any

from zroute import App

from . import book, orders, risk
from .schemas import Order

ORDERS, RESULTS = "tcp://127.0.0.1:5715", "tcp://127.0.0.1:5716"

app = App(sub=ORDERS, pub=RESULTS, name="desk")
app.include(book.routes)
app.include(orders.routes)
app.include(risk.routes)

exchange = App(pub=ORDERS, sub=RESULTS, name="exchange")
numbers = count(1)


@exchange.publisher("orders.new.{symbol}", every=0.3)
def order() -> Iterator[Order]:
    for number in numbers:
        yield Order(number, "ACME", 9.5, 200 * number)


@exchange.subscribe("orders.filled.*", "alerts.*", "risk.*")
def result(body: dict[str, Any]) -> None:
    print(f"exchange sees {body}")

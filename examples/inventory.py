"""Keep stock levels that follow orders and survive a restart.

    zroute run examples/inventory.py

In other terminals::

    zroute tail tcp://127.0.0.1:5771 'stock.>'
    zroute pub tcp://127.0.0.1:5770 orders.bolt 5

Changes go to ``stock.{item}``. All levels go to ``stock``, every minute and after ``zroute pub … snapshot null``.
The levels are stored in a file. The environment variable INVENTORY sets its name (default: inventory.json).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from zroute import App, Envelope

app = App(sub="bind:tcp://127.0.0.1:5770", pub="tcp://127.0.0.1:5771", codec="json")


@attrs.frozen
class Level:
    item: str
    left: int


class SoldOutError(Exception):
    """An order exceeds the stock."""


@attrs.define
class Stock:
    path: Path
    levels: dict[str, int]

    def take(self, item: str, number: int) -> Level:
        left = self.levels.get(item, 0) - number
        if left < 0:
            raise SoldOutError(f"{number} of {item} ordered, {self.levels.get(item, 0)} left")
        self.levels[item] = left
        return Level(item, left)

    def save(self) -> None:
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(self.levels))
        beside.replace(self.path)  # atomic: a power failure leaves the old file or the new one


@app.resource
def stock() -> Iterator[Stock]:
    path = Path(os.environ.get("INVENTORY", "inventory.json"))
    stock = Stock(path, json.loads(path.read_text()) if path.exists() else {"bolt": 100, "nut": 250})
    yield stock
    stock.save()


@app.publisher("stock.{item}")
@app.subscribe("orders.{item}")
def on_order(number: int, item: str, stock: Stock) -> Level:
    level = stock.take(item, number)
    stock.save()
    return level


@app.publisher("stock", every=60.0)
def whole(stock: Stock) -> dict[str, int]:
    return stock.levels


@app.publisher("stock")
@app.subscribe("snapshot")
def on_request(stock: Stock) -> dict[str, int]:
    return stock.levels


refused = app.publisher("refused", str)


@app.on_error(SoldOutError)
def on_sold_out(error: SoldOutError, envelope: Envelope) -> None:
    refused.publish(f"{envelope.topic}: {error}")

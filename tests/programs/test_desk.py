"""The desk: modules that share a database, opened by a resource of one module."""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.commands import patient, zroute
from tests.programs.terminal import Network
from tests.support import Child, Way, free_endpoint
from zroute.testing import TestApp


@pytest.fixture
def desk(example: Callable[[str], Any]) -> Any:
    """Return the program as a module."""
    return example("desk.app")


class FakeBook:
    """A book in memory."""

    def __init__(self) -> None:
        self.orders: list[Any] = []

    async def add(self, order: Any) -> None:
        self.orders.append(order)

    async def total(self) -> tuple[int, float]:
        return len(self.orders), sum(order.value for order in self.orders)


def test_both_modules_work_on_one_book(desk: Any, test_app: Callable[..., TestApp]) -> None:
    """The risk module adds up the orders that the other module books; the test replaces the book."""
    schemas, book = importlib.import_module("desk.schemas"), FakeBook()
    t = test_app(desk.app, {importlib.import_module("desk.book").Book: book})
    t.publish("orders.new.ACME", schemas.Order(1, "ACME", 10.0, 5))
    t.publish("orders.new.ACME", schemas.Order(2, "ACME", 10.0, 2000))
    assert t.published("orders.filled.ACME") == [schemas.Fill(1, 10.0), schemas.Fill(2, 10.0)]
    assert t.published("alerts.high") == [schemas.Alert("order 2 is worth 20000")]
    t.advance(1)
    assert t.published("risk.total")[-1] == schemas.Total(2, 20050.0)
    assert len(book.orders) == 2


def test_orders_are_in_the_database_when_it_ends(tmp_path: Path, way: Way, network: Network) -> None:
    """An order from the shell is in the SQLite file after the program has stopped."""
    orders, results, path = way.meeting(), free_endpoint(), tmp_path / "book.db"
    flags = network.flags("--sub", f"bind:{orders.bind}", "--pub", results)
    with Child(
        "-m", "zroute", "run", "--app-dir", "examples", "desk.app:app", *flags, env={"DESK_BOOK": str(path)}
    ) as child:
        child.line_with(network.address("publishes, bound to"), stream="err")
        body = '{"id": 7, "symbol": "ACME", "price": 9.5, "quantity": 10}'
        address = network.address(f"connect:{orders.connect}")
        assert zroute(*patient("pub", address, "orders.new.ACME", body)).returncode == 0
        child.line_with("order 7: 10 ACME at 9.5")
        assert child.end() == 0
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("select * from orders").fetchall() == [(7, "ACME", 95.0)]

"""The order book: a database that the modules of the desk share as a resource."""

import os
from collections.abc import AsyncIterator

import attrs
from twisted.enterprise.adbapi import ConnectionPool

from zroute import Routes, as_awaitable

from .schemas import Order

routes = Routes()


@attrs.frozen
class Book:
    pool: ConnectionPool

    async def add(self, order: Order) -> None:
        await as_awaitable(
            self.pool.runOperation("INSERT INTO orders VALUES (?, ?, ?)", (order.id, order.symbol, order.value))
        )

    async def total(self) -> tuple[int, float]:
        """Return the number of orders and their total value."""
        ((number, value),) = await as_awaitable(self.pool.runQuery("SELECT count(*), total(value) FROM orders"))
        return number, value


@routes.resource
async def book() -> AsyncIterator[Book]:
    path = os.environ.get("DESK_BOOK", ":memory:")
    pool = ConnectionPool("sqlite3", path, check_same_thread=False, cp_min=1, cp_max=1)
    await as_awaitable(pool.runOperation("CREATE TABLE IF NOT EXISTS orders (id INTEGER, symbol TEXT, value REAL)"))
    yield Book(pool)
    pool.close()

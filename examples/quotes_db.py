"""Store quotes in SQLite. A resource opens and closes the database.

zroute run --app-dir examples ticker:feed quotes_db --for 10s
"""

from collections.abc import AsyncIterator

import attrs
from ticker import ENDPOINT, Quote
from twisted.enterprise.adbapi import ConnectionPool

from zroute import App, as_awaitable

app = App(sub=ENDPOINT)


@attrs.frozen
class Database:
    pool: ConnectionPool

    async def add(self, quote: Quote) -> None:
        await as_awaitable(self.pool.runOperation("INSERT INTO quotes VALUES (?, ?, ?)", attrs.astuple(quote)))

    async def highest(self) -> list[tuple[str, float]]:
        rows: list[tuple[str, float]] = await as_awaitable(
            self.pool.runQuery("SELECT symbol, max(price) FROM quotes GROUP BY symbol")
        )
        return rows


@app.resource
async def database() -> AsyncIterator[Database]:
    pool = ConnectionPool("sqlite3", "quotes.db", check_same_thread=False, cp_max=1)
    await as_awaitable(pool.runOperation("CREATE TABLE IF NOT EXISTS quotes (symbol TEXT, price REAL, volume INTEGER)"))
    yield Database(pool)
    pool.close()


@app.subscribe("stocks.*")
async def save(quote: Quote, database: Database) -> None:
    await database.add(quote)


@app.every(1.0, initial_delay=0.5)
async def report(database: Database) -> None:
    for symbol, price in await database.highest():
        print(f"{symbol:5} {price:8.2f} at its highest")

"""Add data of an HTTP service to orders, with retries and a deadline.

An order that fails is published as a dead letter.

zroute run --app-dir examples enrich --for 600s

In another terminal, run `zroute tail tcp://127.0.0.1:5726`. In a third, send an order:

zroute pub connect:tcp://127.0.0.1:5725 orders.ada '{"id": 7}'

The environment variable CUSTOMERS is the URL of the service. The app appends the name of the customer.
"""

import json
import os
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import attrs
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater
from twisted.web.client import Agent, HTTPConnectionPool, ResponseFailed

from zroute import App, Envelope, as_awaitable

URL = os.environ.get("CUSTOMERS", "http://127.0.0.1:8080/customers/")
PAUSES = (0.2, 1.0)  # seconds before each retry
DEADLINE = 5.0  # seconds for one order, including retries
FAULTS = (LookupError, ConnectError, ResponseFailed, TimeoutError)  # errors that a retry may solve
app = App(sub="bind:tcp://127.0.0.1:5725", pub="tcp://127.0.0.1:5726")


@attrs.frozen
class Order:
    id: int


@attrs.frozen
class Enriched:
    order: Order
    city: str


@attrs.frozen
class Dead:
    topic: str
    body: bytes
    why: str


@attrs.frozen
class Customers:
    client: HTTPClient
    reactor: Any

    async def city_of(self, name: str) -> str:
        end = self.reactor.seconds() + DEADLINE
        for pause in PAUSES:
            try:
                return await self.ask(name, end)
            except FAULTS:
                await as_awaitable(deferLater(self.reactor, pause))
        return await self.ask(name, end)

    async def ask(self, name: str, end: float) -> str:
        asking = Deferred.fromCoroutine(self.call(name))
        return await as_awaitable(asking.addTimeout(max(end - self.reactor.seconds(), 0), self.reactor))

    async def call(self, name: str) -> str:
        response = await self.client.get(URL + quote(name, safe=""))
        body = await response.content()
        if response.code != 200:
            raise LookupError(f"{response.code} for customer {name!r}")
        return str(json.loads(body)["city"])


@app.resource
async def customers() -> AsyncIterator[Customers]:
    from twisted.internet import reactor  # here, because this import installs a reactor if there is none

    pool = HTTPConnectionPool(reactor)
    yield Customers(HTTPClient(Agent(reactor, pool=pool)), reactor)
    await as_awaitable(pool.closeCachedConnections())


dead = app.publisher("dead.orders", Dead)


@app.subscribe("orders.{customer}", max_in_flight=20)  # one order at a time for each customer, 20 customers at a time
@app.publisher("enriched.{customer}")
async def enrich(order: Order, customer: str, customers: Customers) -> Enriched:
    return Enriched(order, await customers.city_of(customer))


@app.on_error()
def bury(error: Exception, envelope: Envelope) -> None:
    dead.publish(Dead(str(envelope.topic), envelope.body, f"{type(error).__name__}: {error}"))

"""Send breaking news as HTTP requests with treq.

While a handler waits for the response, the app handles other messages.

zroute run --app-dir examples news_desk:agency webhook --for 3s

The environment variable WEBHOOK is the URL. The app works with any reactor, because of as_awaitable.
"""

import os
from collections.abc import AsyncIterator

import attrs
from news_desk import ENDPOINT
from treq.client import HTTPClient
from twisted.web.client import Agent, HTTPConnectionPool

from zroute import App, as_awaitable

app = App(sub=ENDPOINT)


@attrs.frozen
class Webhook:
    client: HTTPClient
    url: str = os.environ.get("WEBHOOK", "http://127.0.0.1:8080/news")

    async def call(self, text: str) -> int:
        response = await as_awaitable(self.client.post(self.url, json={"text": text}, timeout=5))
        await as_awaitable(response.content())  # read it to the end, so that the connection can be reused
        return int(response.code)


@app.resource
async def webhook() -> AsyncIterator[Webhook]:
    from twisted.internet import reactor  # here, because this import installs a reactor if there is none

    pool = HTTPConnectionPool(reactor)
    yield Webhook(HTTPClient(Agent(reactor, pool=pool)))
    await as_awaitable(pool.closeCachedConnections())


@app.subscribe("news.breaking")
async def forward(headline: str, webhook: Webhook) -> None:
    print(f"{headline}: {await webhook.call(headline)}")

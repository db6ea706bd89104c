"""Send breaking news as HTTP requests with an asyncio client.

With asyncio's reactor, handlers are asyncio tasks.

zroute run --app-dir examples news_desk:agency webhook_asyncio --reactor asyncio --for 3s

The environment variable WEBHOOK is the URL.
"""

import asyncio
import os
from collections.abc import AsyncIterator

from httpx import AsyncClient
from news_desk import ENDPOINT

from zroute import App

URL = os.environ.get("WEBHOOK", "http://127.0.0.1:8080/news")
app = App(sub=ENDPOINT)


@app.resource
async def client() -> AsyncIterator[AsyncClient]:
    async with AsyncClient() as client:
        yield client


@app.subscribe("news.breaking")
async def forward(headline: str, client: AsyncClient) -> None:
    async with asyncio.timeout(5):
        response = await client.post(URL, json={"text": headline})
    print(f"{headline}: {response.status_code}")

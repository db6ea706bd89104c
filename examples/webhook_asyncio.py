"""Breaking news as HTTP requests, with a client that is made for asyncio: handlers are asyncio's tasks.

zroute run --app-dir examples news_desk:agency webhook_asyncio --reactor asyncio --for 3s

WEBHOOK in the environment is the address to call.
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

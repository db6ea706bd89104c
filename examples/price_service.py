"""Answer requests for prices, and ask for them from another process.

The service answers with a price, refuses symbols that it does not know, and streams the history of a symbol.

zroute run --app-dir examples price_service

In a second terminal, run the client, which asks once a second:

zroute run --app-dir examples price_service:client --for 5s

In a third terminal, ask from the shell:

zroute request tcp://127.0.0.1:5773 prices.ACME '{"size": 3}'
"""

from collections import deque
from collections.abc import Iterator
from itertools import cycle
from random import uniform

import attrs

from zroute import App, RequestError, RequestRefused

app = App(rep="tcp://127.0.0.1:5773")
client = App(req="tcp://127.0.0.1:5773", name="client")
history = {"ACME": deque([990.5], maxlen=100), "NVR": deque([9100.0], maxlen=100)}


@attrs.frozen
class Ask:
    size: int


@attrs.frozen
class Price:
    each: float
    total: float


@app.every(0.2)
def trade() -> None:
    for prices in history.values():
        prices.append(round(prices[-1] * uniform(0.99, 1.01), 2))


@app.reply("prices.{symbol}")
def price(ask: Ask, symbol: str) -> Price:
    if symbol not in history:
        raise RequestRefused(409, f"no symbol {symbol}")
    each = history[symbol][-1]
    return Price(each, round(ask.size * each, 2))


@app.reply("history.{symbol}")
def past(symbol: str) -> Iterator[float]:
    yield from tuple(history.get(symbol, ()))


prices = client.requester("prices.{symbol}", Ask, Price, timeout=2.0, retry=(0.1, 0.5))
symbols = cycle(("ACME", "NVR", "LOST"))


@client.every(1.0)
async def ask() -> None:
    symbol = next(symbols)
    try:
        found = await prices.request(Ask(3), symbol=symbol)
    except RequestError as error:
        print(f"{symbol}: {error.code} {error.reason}")
        return
    past = [each async for each in client.request_stream(f"history.{symbol}", None, float)]
    print(f"{symbol}: 3 cost {found.total}, lowest of {len(past)} was {min(past)}")

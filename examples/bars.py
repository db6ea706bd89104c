"""Turn stock quotes into bars of one second, for any subscriber.

zroute run --app-dir examples ticker:feed bars bars:chart --for 10s
"""

import attrs
from ticker import ENDPOINT, Quote

from zroute import App

BARS = "tcp://127.0.0.1:5713"


@attrs.define
class Bar:
    symbol: str
    open: float
    high: float
    low: float
    close: float
    count: int = 1

    def add(self, price: float) -> None:
        self.high, self.low, self.close = max(self.high, price), min(self.low, price), price
        self.count += 1


app = App(sub=ENDPOINT, pub=BARS)
bars = app.publisher("bars.{symbol}", Bar)
current: dict[str, Bar] = {}


@app.subscribe("stocks.{symbol}")
def collect(quote: Quote, symbol: str) -> None:
    if symbol in current:
        current[symbol].add(quote.price)
    else:
        current[symbol] = Bar(symbol, quote.price, quote.price, quote.price, quote.price)


@app.every(1.0)
def close() -> None:
    for bar in current.values():
        bars.publish(bar)  # zroute takes the symbol in the topic from the bar
    current.clear()


chart = App(sub=BARS)


@chart.subscribe("bars.*")
def draw(bar: Bar) -> None:
    print(f"bar {bar.symbol:5} {bar.open:8.2f} {bar.high:8.2f} {bar.low:8.2f} {bar.close:8.2f}  ({bar.count})")

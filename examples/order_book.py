"""Follow an order book: first its whole state, then each change.

The feed changes its books 200 times a second. The desk may start at any time: it receives a snapshot of each book, and
then the changes that follow it. Each change contains a checksum, so the desk notices a wrong book.

zroute run examples/order_book.py:feed

In a second terminal, as often as you like:

zroute run examples/order_book.py:desk
"""

import random
import zlib

import attrs

from zroute import App, Envelope, Gap

feed = App(pub="tcp://127.0.0.1:5746")
desk = App(sub="tcp://127.0.0.1:5746")


@attrs.frozen
class Book:
    """The whole state of a symbol: the size at each price."""

    sizes: dict[int, int]


@attrs.frozen
class Delta:
    """A change: the new size at a price, where 0 removes the price; and the checksum of the changed book."""

    price: int
    size: int
    checksum: int


def apply(book: dict[int, int], price: int, size: int) -> int:
    """Change a book, and return its checksum."""
    if size:
        book[price] = size
    else:
        book.pop(price, None)
    return zlib.crc32(repr(sorted(book.items())).encode())


# -- the publisher

books: dict[str, dict[int, int]] = {"ACME": {}, "INIT": {}, "OMNI": {}}


def full(symbol: str) -> Book:
    return Book(dict(books[symbol]))


def symbols() -> list[dict[str, str]]:
    return [{"symbol": symbol} for symbol in books]


deltas = feed.publisher("book.{symbol}", Book | Delta, snapshot=full, topics=symbols)


@feed.every(0.005)
def trade() -> None:
    symbol, price, size = random.choice(list(books)), random.randrange(90, 110), random.randrange(5) * 100
    # No await between the change of the state and its publication.
    checksum = apply(books[symbol], price, size)
    deltas.publish(Delta(price, size, checksum), symbol=symbol)


# -- the subscriber

followed: dict[str, dict[int, int]] = {}
sources: dict[str, str | None] = {}
changes = wrong = 0


@desk.subscribe("book.{symbol}")
def on_change(change: Book | Delta, symbol: str, envelope: Envelope) -> None:
    global changes, wrong
    if isinstance(change, Book):
        followed[symbol], sources[symbol] = dict(change.sizes), envelope.publisher
    elif sources.get(symbol) == envelope.publisher:
        changes += 1
        wrong += apply(followed[symbol], change.price, change.size) != change.checksum


@desk.on_gap
def forget(gap: Gap) -> None:
    """Forget the books of a publisher. zroute asks it for their snapshots."""
    for symbol in [symbol for symbol, source in sources.items() if source == gap.publisher]:
        del followed[symbol], sources[symbol]


@desk.every(1.0)
def show() -> None:
    print(f"{len(followed)} books, {changes} changes, {wrong} wrong")

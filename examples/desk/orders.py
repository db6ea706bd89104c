"""Book each order, and publish a fill: the return value of the handler."""

from zroute import Routes

from .book import Book
from .schemas import Fill, Order

routes = Routes(prefix="orders")


@routes.publisher("filled.{symbol}")
@routes.subscribe("new.{symbol}")
async def fill(order: Order, symbol: str, book: Book) -> Fill | None:
    print(f"order {order.id}: {order.quantity} {symbol} at {order.price}")
    await book.add(order)
    return Fill(order.id, order.price) if order.quantity else None

"""Check the same orders. An error hook turns TooMuchError into an alert."""

from zroute import Envelope, Routes

from .book import Book
from .schemas import Alert, Order, Total

routes = Routes()
alerts = routes.publisher("alerts.{level}", Alert)


class TooMuchError(Exception):
    pass


@routes.subscribe("orders.new.*")
def check(order: Order) -> None:
    if order.value > 10_000:
        raise TooMuchError(f"order {order.id} is worth {order.value:.0f}")


@routes.publisher("risk.total", every=1.0)
async def total(book: Book) -> Total:
    return Total(*await book.total())


@routes.on_error(TooMuchError)
def tell(error: TooMuchError, envelope: Envelope) -> None:
    alerts.publish(Alert(str(error)), level="high")
    print(f"alert: {error}")

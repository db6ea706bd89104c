"""Looks at the same orders; an error of its own kind becomes an alert."""

from zroute import Envelope, Routes

from .schemas import Alert, Order

routes = Routes()
alerts = routes.publisher("alerts.{level}", Alert)


class TooMuchError(Exception):
    pass


@routes.subscribe("orders.new.*")
def check(order: Order) -> None:
    if order.price * order.quantity > 10_000:
        raise TooMuchError(f"order {order.id} is worth {order.price * order.quantity:.0f}")


@routes.on_error(TooMuchError)
def tell(error: TooMuchError, envelope: Envelope) -> None:
    alerts.publish(Alert(str(error)), level="high")
    print(f"alert: {error}")

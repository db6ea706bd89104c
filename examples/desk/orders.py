"""Orders come in, fills go out: what a handler returns is published."""

from zroute import Routes

from .schemas import Fill, Order

routes = Routes(prefix="orders")


@routes.publisher("filled.{symbol}")
@routes.subscribe("new.{symbol}")
def fill(order: Order, symbol: str) -> Fill | None:
    print(f"order {order.id}: {order.quantity} {symbol} at {order.price}")
    return Fill(order.id, order.price) if order.quantity else None

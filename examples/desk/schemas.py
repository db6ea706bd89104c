"""The messages of the desk."""

import attrs


@attrs.frozen
class Order:
    id: int
    symbol: str
    price: float
    quantity: int

    @property
    def value(self) -> float:
        return self.price * self.quantity


@attrs.frozen
class Fill:
    order: int
    price: float


@attrs.frozen
class Total:
    orders: int
    value: float


@attrs.frozen
class Alert:
    text: str

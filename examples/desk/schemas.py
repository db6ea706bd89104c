"""What travels between the modules of the desk, and to others."""

import attrs


@attrs.frozen
class Order:
    id: int
    symbol: str
    price: float
    quantity: int


@attrs.frozen
class Fill:
    order: int
    price: float


@attrs.frozen
class Alert:
    text: str

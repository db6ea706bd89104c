"""Publish calibrated sensor readings, and a summary every ten seconds.

    zroute run examples/sensor_gateway.py

In another terminal::

    zroute tail tcp://127.0.0.1:5760 'sensors.>'

The bus of the sensors is a resource, so a test can replace it. Here it is simulated, with temperatures around 21
degrees and occasional invalid values.
"""

import random
from collections.abc import Iterator

import attrs

from zroute import App

app = App(pub="tcp://127.0.0.1:5760")


@attrs.frozen
class Reading:
    sensor: str
    celsius: float


@attrs.frozen
class Summary:
    readings: int
    outliers: int
    mean: float | None


class Bus:
    """The bus of the sensors. `poll` returns the raw values since the last call."""

    def poll(self) -> list[tuple[str, int]]:
        return [(sensor, int(random.gauss(8600, 40))) for sensor in ("roof", "cellar")] + [
            ("roof", 65535) for _ in range(random.random() < 0.05)
        ]


class Calibration:
    """Converts raw values to degrees, and counts values out of range as outliers."""

    def __init__(self, offset: float = -65.0, span: float = 0.01) -> None:
        self.offset, self.span = offset, span
        self.readings: list[float] = []
        self.outliers = 0

    def __call__(self, raw: int) -> float | None:
        celsius = round(self.offset + raw * self.span, 2)
        if not -40 <= celsius <= 85:
            self.outliers += 1
            return None
        self.readings.append(celsius)
        return celsius

    def summary(self) -> Summary:
        taken, self.readings = self.readings, []
        outliers, self.outliers = self.outliers, 0
        return Summary(len(taken), outliers, round(sum(taken) / len(taken), 2) if taken else None)


@app.resource
def bus() -> Iterator[Bus]:
    yield Bus()


@app.resource
def calibration() -> Iterator[Calibration]:
    yield Calibration()


readings = app.publisher("sensors.{sensor}", Reading)


@app.every(0.5)
def poll(bus: Bus, calibration: Calibration) -> None:
    for sensor, raw in bus.poll():
        celsius = calibration(raw)
        if celsius is not None:
            readings.publish(Reading(sensor, celsius))


@app.publisher("summary", every=10.0, initial_delay=10.0)
def summary(calibration: Calibration) -> Summary:
    return calibration.summary()

"""The sensor gateway: calibration, invalid values and summaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.programs.terminal import Network
from tests.support import Child, Way
from zroute.testing import TestApp


@pytest.fixture
def gateway(example: Callable[[str], Any]) -> Any:
    """Return the program as a module."""
    return example("sensor_gateway")


class Bus:
    """A bus with the values of the test."""

    def __init__(self, *polls: list[tuple[str, int]]) -> None:
        self.polls = list(polls)

    def poll(self) -> list[tuple[str, int]]:
        return self.polls.pop(0) if self.polls else []


def test_readings_are_calibrated_and_nonsense_is_counted(gateway: Any, test_app: Callable[..., TestApp]) -> None:
    """Raw values become degrees on one topic each; impossible values are left out and counted in the summary."""
    bus = Bus([("roof", 8600), ("cellar", 7500)], [("roof", 65535), ("roof", 8700)])
    t = test_app(gateway.app, {gateway.Bus: bus})
    t.advance(1)
    reading = gateway.Reading
    assert t.published("sensors.roof") == [reading("roof", 21.0), reading("roof", 22.0)]
    assert t.published("sensors.cellar") == [reading("cellar", 10.0)]
    t.advance(9)
    assert t.published("summary") == [gateway.Summary(3, 1, 17.67)]
    t.advance(10)
    assert t.published("summary")[1] == gateway.Summary(0, 0, None)


def test_it_runs_as_a_program_and_can_be_watched(way: Way, network: Network) -> None:
    """`zroute tail` shows the messages of `zroute run` over a real socket."""
    bind, connect = way.meeting()
    flags, reader = network.flags("--pub", bind), network.address(connect)
    with (
        Child("-m", "zroute", "run", "examples/sensor_gateway.py", *flags) as program,
        Child("-m", "zroute", "tail", reader, "sensors.>", "-n", "2", "--format", "{topic} {body[sensor]}") as tail,
    ):
        assert tail.end(None) == 0
        assert all(line in ("sensors.roof roof", "sensors.cellar cellar") for line in tail.out)
        assert program.end() == 0

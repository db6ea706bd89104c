"""The lines that an app logs about its endpoints at the start."""

from __future__ import annotations

import logging

import pytest
from twisted.internet.task import Clock

from zroute.endpoints import SIDES, Endpoint, Ends, ResolvedAddresses, Side
from zroute.stats import Stats
from zroute.transport import AppOptions, TransportRequest
from zroute.transports.zeromq import ZmqTransport


class Resolved(ZmqTransport):
    """A transport that has bound port 5555 in place of ``*`` on every side."""

    @property
    def addresses(self) -> ResolvedAddresses:
        """The addresses of all sides."""
        ends = self._ends
        return ResolvedAddresses(
            **{side.name: tuple(each.address.replace("*", "5555") for each in ends.of(side)) for side in SIDES}
        )


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
def test_each_endpoint_has_a_line_and_an_open_one_a_warning(side: Side) -> None:
    """The lines tell what an endpoint is for, its resolved address, and that other hosts can reach it."""
    endpoints = Endpoint("tcp://0.0.0.0:*", bind=True), Endpoint("tcp://h:1", bind=False)
    options = AppOptions("desk", 1 << 20, True, 1 << 20, None)
    ends = Ends(**{side.name: endpoints})
    request = TransportRequest(options, Clock(), ends, Stats(), lambda found: None, lambda *_: None)
    assert list(Resolved(request).summary()) == [
        (logging.INFO, f"desk: {side.verb}, bound to tcp://0.0.0.0:5555"),
        (logging.WARNING, "desk: tcp://0.0.0.0:5555 is reachable from the network, without authentication"),
        (logging.INFO, f"desk: {side.verb}, connects to tcp://h:1"),
    ]

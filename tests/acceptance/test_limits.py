"""Limits that an app sets itself hold for every message that comes over its sockets."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import pytest_twisted

from tests.running import Mailbox, running, subscribed
from tests.support import free_endpoint
from zroute import App


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("wire", "coalesce"), [("tracked", False), ("tracked", True), ("plain", False), ("multipart", False)]
)
async def test_max_message_holds_below_8_kib(wire: Any, coalesce: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A reader that takes 500 bytes counts every larger body as malformed, the tenth of a topic like the first."""
    caplog.set_level(logging.WARNING, "zroute")
    endpoint, box = free_endpoint(), Mailbox[int]()
    writer = App(pub=endpoint, wire=wire, name="writer", coalesce=coalesce)
    reader = App(sub=endpoint, name="reader", max_message=500)
    x = writer.publisher("x", bytes)

    @reader.subscribe("x")
    def handle(body: bytes) -> None:
        box.put(len(body))

    async with running(writer) as service, running(reader):
        await subscribed(service, b"x")
        for _ in range(10):
            for size in (500, 501, 600, 4000, 9000):
                x.publish(bytes(size))
        x.publish(b"the end")
        assert await box.until(11) == [500] * 10 + [7]
        assert reader.stats.malformed == 40
    assert "a body of 501 bytes, over max_message=500" in caplog.text

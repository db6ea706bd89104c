"""Servers whose addresses a host name no longer has: their sockets stay open until their requests have ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from twisted.internet.task import Clock

from zroute.options import MAX_MESSAGE
from zroute.sockets.requests import RequestSockets
from zroute.stats import Stats


def test_servers_that_were_left_share_one_timer() -> None:
    """Each is closed when it has answered; with the last one, and with the app, the timer ends."""
    clock = Clock()
    app: Any = SimpleNamespace(name="app", options={}, max_message=MAX_MESSAGE, context=Mock())
    for ends_with_the_app in (False, True):
        sockets = RequestSockets(clock, app, Stats())
        sockets._client, sockets._is_open = Mock(), True
        servers = [Mock(lane=Mock(sent={b"id": None})) for _ in range(5)]
        for number, server in enumerate(servers):
            sockets._servers[str(number)] = server
            sockets._leave(str(number))
            assert len(clock.getDelayedCalls()) == 1
        clock.advance(1)
        assert len(clock.getDelayedCalls()) == 1
        servers[0].lane.sent.clear()
        clock.advance(1)
        assert [server.close.called for server in servers] == [True] + [False] * 4
        for server in servers[1:]:
            if not ends_with_the_app:
                server.lane.sent.clear()
        if ends_with_the_app:
            sockets.close(0)
        else:
            clock.advance(1)
        assert all(server.close.call_count == 1 for server in servers)
        assert clock.getDelayedCalls() == []

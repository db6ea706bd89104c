"""The time of a request, with the timers of client and server."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from zroute import App, RequestTimeoutError, ServerError
from zroute.testing import TestApp


@pytest.mark.parametrize("timeout", [1.0, 0.0505, 0.0001])
def test_a_request_whose_time_is_over_is_a_timeout(timeout: float) -> None:
    """The server counts whole milliseconds, and may answer that the time is over just before the caller's timer."""
    app, cancelled = App(), []

    @app.reply("waits")
    async def waits() -> None:
        try:
            await Deferred()
        finally:
            cancelled.append(True)

    with TestApp(app) as t:
        with pytest.raises(RequestTimeoutError):
            t.request("waits", timeout=timeout)
        t.advance(0.01)
        assert cancelled == [True]


def test_the_handlers_own_timeout_is_a_failure_of_the_server() -> None:
    """A handler whose own timeout is shorter has failed, and the caller gets its error."""
    app = App()

    @app.reply("waits", timeout=0.5)
    async def waits() -> None:
        await Deferred()

    with TestApp(app, raise_errors=False) as t, pytest.raises(ServerError, match="TimeoutError"):
        t.request("waits", timeout=2.0)

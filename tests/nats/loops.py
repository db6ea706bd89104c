"""Helpers of tests that run on a loop of asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tests.support import PATIENCE


async def until(done: Callable[[], object]) -> None:
    """Let the loop run until ``done()`` is true; for conditions without an event."""
    async with asyncio.timeout(PATIENCE):
        while not done():
            await asyncio.sleep(0.005)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a test on a new asyncio loop."""
    asyncio.run(work)

"""Handlers of lists between processes: the lists joined are the sent messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_run import module
from tests.support import Child, free_endpoint, sized

TOTAL = sized(20_000, 5_000)

SOURCE = f"""
import os
from twisted.internet.defer import Deferred
from zroute import App

app = App(pub=os.environ["ENDPOINT"], overflow="wait")
numbers = app.publisher("numbers", int, coalesce=os.environ["COALESCE"] == "yes")


async def send():
    await numbers.wait_for_subscribers(1, timeout=120)
    for number in range({TOTAL}):
        sent = numbers.publish(number)
        if number % 100 == 99:
            await sent


@app.on_startup
def begin():
    Deferred.fromCoroutine(send())
"""

SINK = f"""
import asyncio, json, os
from zroute import App
from zroute.receiving import table

app = App(sub=os.environ["ENDPOINT"])
lists = []
together, parse_coalesced = 0, table.parse_coalesced


def counted(codec, body):
    global together
    batch = parse_coalesced(codec, body)
    together += batch.many
    return batch


table.parse_coalesced = counted


def take(numbers: list[int]) -> None:
    lists.append(numbers)
    if sum(map(len, lists)) < {TOTAL}:
        return
    from twisted.internet import reactor

    joined = [number for numbers in lists for number in numbers]
    (stats,) = app.stats.routes.values()
    lengths = sorted(map(len, lists))
    outcome = {{"same": joined == list(range({TOTAL})), "shortest": lengths[0], "longest": lengths[-1]}}
    print(json.dumps(outcome | {{"lost": app.stats.lost, "together": together}}), flush=True)
    reactor.callLater(0, reactor.stop)


async def take_slowly(numbers: list[int]) -> None:
    (stats,) = app.stats.routes.values()
    while not lists and stats.queued < 500:  # the first one takes until as many wait as may
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.001)
    take(numbers)


app.add_route(take_slowly if os.environ["SLOW"] == "yes" else take, "numbers", batch=100, queue=500)
"""


def worked(folder: Path, *, coalesce: str, slow: str) -> tuple[dict[str, Any], list[str]]:
    """Return the sink's outcome and its log."""
    settings = {"ENDPOINT": free_endpoint(), "COALESCE": coalesce, "SLOW": slow}
    module(folder, SOURCE, "source")
    module(folder, SINK, "sink")
    command = ("-m", "zroute", "run", "--reactor", "asyncio")
    with (
        Child(*command, "sink", cwd=folder, env=settings) as sink,
        Child(*command, "source", cwd=folder, env=settings) as source,
    ):
        outcome: dict[str, Any] = json.loads(sink.line_with('"same"'))
        assert sink.end(None) == 0
        assert source.end() == 0
    return outcome, sink.err


@pytest.mark.slow
@pytest.mark.parametrize("coalesce", ["yes", "no"])
def test_20000_messages_in_lists_are_what_was_sent_in_order(tmp_path: Path, coalesce: str) -> None:
    """Messages in lists of 1 to 100 arrive once and in order, whether they travel together or alone."""
    outcome, log = worked(tmp_path, coalesce=coalesce, slow="no")
    assert (outcome["same"], outcome["lost"]) == (True, 0)
    assert 1 <= outcome["shortest"] <= outcome["longest"] <= 100
    assert outcome["longest"] > 1
    assert (outcome["together"] > TOTAL // 2) == (coalesce == "yes")
    assert f"handled {TOTAL}" in log[-1]


@pytest.mark.parametrize("coalesce", ["yes", "no"])
def test_a_slow_handler_of_lists_pauses_reading_and_loses_nothing(tmp_path: Path, coalesce: str) -> None:
    """A slow handler fills its queue and pauses reading; no message is lost, and the log names the handler."""
    outcome, log = worked(tmp_path, coalesce=coalesce, slow="yes")
    assert (outcome["same"], outcome["longest"], outcome["lost"]) == (True, 100, 0)
    assert (outcome["together"] > TOTAL // 2) == (coalesce == "yes")
    assert any("take_slowly() at sink.py" in line and "queue full (500 messages)" in line for line in log)

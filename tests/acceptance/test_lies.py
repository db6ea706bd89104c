"""A peer that forges the numbers of another, and a path that drops everything, with real apps and sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chaos.proxy import TroubleProxy
from tests.support import Child, Way

pytestmark = pytest.mark.slow

PUBLISHER = """
import sys, threading
from zroute import App

app = App(pub=sys.argv[1], codec="json", name="honest")
total = count = 0

def publish(many):
    global count
    for _ in range(many):
        count += 1
        app.publish("s.B", count)
    print("published", count, flush=True)

@app.every(0.02)
def work():
    if count < total:
        publish(1)

def listen():
    from twisted.internet import reactor
    for line in sys.stdin:
        reactor.callFromThread(go_on if line.startswith("+") else publish, int(line))

def go_on(many):
    global total
    total += many

@app.on_startup
def begin():
    threading.Thread(target=listen, daemon=True).start()
    print("epoch", f"{app._live.run._publisher.session.epoch:016x}", flush=True)

app.run()
"""

READER = """
import json, sys
from twisted.internet.defer import Deferred
from zroute import App

app = App(sub=sys.argv[1].split(","), codec="json", name="reader")
seen = []

@app.subscribe("s.*")
def handle(number: int) -> None:
    if number > 0:  # the liar's own are below
        seen.append(number)

async def wait():
    await app.ready(int(sys.argv[2]), timeout=120)
    print("ready", flush=True)

@app.on_startup
def begin():
    Deferred.fromCoroutine(wait())

@app.every(0.1)
def tell() -> None:
    stats = app.stats
    print(json.dumps([len(seen), stats.lost, stats.unknown_losses, seen == sorted(set(seen)), stats.peers]), flush=True)

app.run()
tell()
"""


def told(lines: list[str]) -> list[Any]:
    """Return the reader's latest report: seen, lost, unknown losses, in order and once, connections."""
    found = [line for line in lines if line.startswith("[")]
    return list(json.loads(found[-1])) if found else [0, 0, 0, True, 0]


def published(lines: list[str]) -> int:
    """Return the last number that the publisher has published."""
    return int([line for line in lines if line.startswith("published")][-1].split()[1])


@pytest.mark.parametrize("lie", ["ahead", "beats", "joins_as", "goodbyes", "joins_with_name"])
def test_a_lie_heals_and_the_count_is_right_at_the_end(lie: str) -> None:
    """After forged frames in a publisher's name, its messages are handled again, and its losses are exact."""
    honest, lying = Way("address").meeting(), Way("address").meeting()
    with (
        Child("-c", PUBLISHER, honest.bind) as publisher,
        Child("-m", "chaos.liar", f"bind:{lying.bind}") as liar,
    ):
        epoch = publisher.line_with("epoch").split()[1]
        liar.line_with("epoch")
        with Child("-c", READER, f"{honest.connect},{lying.connect}", "2") as reader:
            reader.line_with("ready")
            publisher.write("+300\n")  # only now, so that a slow start leaves as many messages after the lie
            reader.wait_for(lambda lines: told(lines)[0] >= 20)
            liar.write(f"lie {lie} {epoch} {published(publisher.out)} honest@host\n")
            liar.line_with("lied")
            publisher.line_with("published 300")
            reader.wait_for(lambda lines: sum(told(lines)[:2]) >= 300)
            healed = told(reader.out)[0]  # a reader that stands still after the lie may lose most of the first half
            publisher.write("+300\n")
            publisher.line_with("published 600")
            reader.wait_for(lambda lines: sum(told(lines)[:2]) >= 600)
            assert reader.end() == 0
            assert publisher.end() == 0
        seen, lost, unknown, ordered, _ = told(reader.out)
    assert ordered
    assert seen > healed + 150
    assert unknown == 0 or lie == "joins_with_name"  # the invented runs have ended without a goodbye
    assert seen + lost == 600


def test_a_path_that_swallows_everything_is_noticed_on_a_quiet_stream() -> None:
    """An open connection that delivers nothing is noticed and cut, and its losses are counted."""
    meeting = Way("address").meeting()
    proxy = TroubleProxy(int(meeting.bind.rpartition(":")[2]))
    try:
        with (
            Child("-c", PUBLISHER, meeting.bind) as publisher,
            Child("-c", READER, proxy.endpoint, "1") as reader,
        ):
            reader.line_with("ready")
            publisher.write("10\n")
            reader.wait_for(lambda lines: told(lines)[0] == 10)
            proxy.stall()
            publisher.write("500\n")
            reader.wait_for(lambda lines: any("is silent" in line for line in lines), stream="err")
            proxy.reset()
            proxy.flow()
            reader.wait_for(lambda lines: sum(told(lines)[:2]) == 510)
            assert reader.end() == 0
            assert publisher.end() == 0
        assert told(reader.out)[2:4] == [0, True]
    finally:
        proxy.close()

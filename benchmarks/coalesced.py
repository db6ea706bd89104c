"""A coalesced stream: frames of many messages.

A real app publishes bursts, and a real app reads them. The app sends the first message of a burst alone, and the others
in one frame. The rows for a number of messages *a frame* have only such frames, as a publisher with a time window sends
them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import zmq

from benchmarks import workloads
from benchmarks.receive import Counter, StillReactor, by_hand, read_all, reading, zroute_receive
from benchmarks.running import Contestant, Figures, Group, measured
from benchmarks.workloads import BY_HAND, QUOTE, TOPIC, TRACKED, Quote, Scale
from zroute import App
from zroute.endpoints import Endpoint
from zroute.runtime.service import AppService

__all__ = ["COALESCED", "FEW_A_FRAME", "FLOOD", "MANY_A_FRAME", "groups"]

ENDPOINT = "inproc://stream"
BURSTS = (5, 50, 256)
"""Messages published in one turn of the reactor: a slow feed, a busy feed, and one too fast for single frames."""

TURNS = 2_000
"""The highest number of turns: each sends two frames, and 11,000 frames fit between publisher and reader."""

FEW, COALESCED, FLOOD = (f"zroute, coalesced, {burst} a turn" for burst in BURSTS)

FRAMES = (5, 50)
"""Messages in each frame."""

FEW_A_FRAME, MANY_A_FRAME = (f"zroute, coalesced, {many} a frame" for many in FRAMES)


def coalesced(count: int, burst: int) -> Figures:
    """Measure the reading thread per message, with bursts of ``burst`` messages."""
    context: zmq.Context[Any] = zmq.Context()
    app, clock = App(pub=ENDPOINT, codec="json", context=context, coalesce=True), StillReactor()
    publication = app.publisher(TOPIC.decode(), Quote)
    publishing = AppService(app.compile(), clock, pub=(Endpoint(ENDPOINT, bind=True),))
    publishing.startService()
    reader = App(sub=ENDPOINT, codec="json", context=context)
    counter = Counter()
    reader.subscribe("stocks.*")(counter.handler(Quote))
    with reading(reader, clock, ENDPOINT) as sub:
        assert publishing.transport is not None
        assert publishing.transport.pub is not None
        publishing.transport.pub.doRead()  # the publisher answers the marker
        sub.doRead()
        assert reader.stats.joins == 1
        for done in range(0, count, burst):
            for _ in range(min(burst, count - done)):
                publication.publish(QUOTE)
            clock.advance(0)  # the turn ends, in which the burst is sent; the reader, too, has looked at its socket
        clock.advance(0.01)
        assert counter.seen < count, "the reader read while the publisher published: nothing is left to measure"
        figures = measured(partial(read_all, sub, lambda: counter.seen, count), count - counter.seen)
        assert (counter.seen, reader.stats.lost) == (count, 0)
    publishing.transport.pub.close(0)
    context.destroy(linger=0)
    return figures


def groups(scale: Scale) -> list[Group]:
    """Return the group of coalesced streams."""
    quotes = workloads.quotes(scale.count)
    contestants = (
        Contestant(BY_HAND, partial(by_hand, quotes)),
        Contestant(TRACKED, partial(zroute_receive, quotes, "tracked")),
        *(
            Contestant(name, partial(coalesced, min(scale.count, TURNS * burst), burst))
            for name, burst in zip((FEW, COALESCED, FLOOD), BURSTS, strict=True)
        ),
        *(
            Contestant(name, partial(zroute_receive, quotes, "tracked", many=many))
            for name, many in zip((FEW_A_FRAME, MANY_A_FRAME), FRAMES, strict=True)
        ),
    )
    return [Group("coalesced", "receive, JSON quotes that are published many a turn", contestants, BY_HAND)]

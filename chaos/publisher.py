"""A publisher that records its messages, for the chaos suite.

``python -m chaos.publisher ENDPOINTS RECORD SEED OVERFLOW TRAVEL [HISTORY [RATE QUEUE]]``

``TRAVEL`` is ``alone`` or ``together``. Messages that travel ``alone`` have headers of several sizes. Those that travel
``together`` are coalesced and have no headers, which would separate them; all messages of one turn have one topic, so
the order on the wire is the order of the record.

Endpoints are separated by commas. ``HISTORY`` is the number of messages that the publisher keeps for each topic;
without it, none are kept. ``RATE`` is the number of messages per second in a burst, and ``QUEUE`` the length of the
queue for each subscriber. Without them, a burst is as fast as possible, and the queue has the default length. With
them, headers are longer, so that buffers are full after a pause of a subscriber.

Standard input takes ``burst N`` for N messages of random topics, ``each`` for one message of each topic, and ``stop``.
The process prints ``done`` after a burst, and after each message of ``each``. A line of the record is ``topic number``,
written before the message is published.
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from collections import deque
from typing import Any

from chaos.keyed import own
from zroute import App, History, Limits

TOPICS = ("a.x", "a.b.x", "a.b.y", "a.bc", "c.x", "c.y.z", "d")

TURN = 0.002
"""The time in seconds between two turns that publish."""


def main() -> None:
    """Publish on command until the command ``stop``."""
    endpoints, record, seed, overflow, travel, *kept = sys.argv[1:]
    chance, together = random.Random(seed), travel == "together"
    history = History(messages=int(kept[0])) if kept else None
    rate, queue = (float(kept[1]), int(kept[2])) if kept[1:] else (math.inf, None)
    options = {"overflow": overflow, "coalesce": together, "limits": Limits(send_queue=queue) if queue else Limits()}
    app = App(pub=endpoints.split(","), codec="json", name="feed", **options, **own())  # type: ignore[arg-type]
    publications = {topic: app.publisher(topic, int, history=history) for topic in TOPICS}
    written = open(record, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  # open until the process ends
    orders: deque[tuple[int, str | None]] = deque()  # a number of messages, and their topic if it is not random
    alone = max(1, round(min(200, rate * TURN)))  # the number of messages in a turn
    sizes = (0, 4_000, 4_000, 4_000) if queue else (0, 10, 1_500, 4_000)
    number, due = 0, 0.0

    def listen() -> None:
        from twisted.internet import reactor

        run: Any = reactor
        for line in sys.stdin:
            what, *rest = line.split()
            if what == "burst":
                run.callFromThread(orders.append, (int(rest[0]), None))
            elif what == "each":
                run.callFromThread(orders.extend, [(1, topic) for topic in TOPICS])
            else:
                break
        run.callFromThread(run.stop)

    @app.every(TURN)
    async def publish() -> None:
        nonlocal number, due
        if not orders or time.monotonic() < due:
            return
        left, wanted = orders[0]
        count, sent = min(left, chance.choice((1, 20, 200)) if together else alone), []
        due = max(due, time.monotonic() - TURN) + count / rate
        topic = wanted or chance.choice(TOPICS)
        for _ in range(count):
            topic = topic if wanted or together else chance.choice(TOPICS)
            number += 1
            written.write(f"{topic} {number}\n")
            if together:
                sent.append(publications[topic].publish(number))
            else:
                pad = "x" * chance.choice(sizes)
                await publications[topic].publish(number, headers={"pad": pad})
        for each in sent:
            await each
        orders[0] = left - count, wanted
        if left == count:
            orders.popleft()
            print("done", flush=True)

    @app.on_startup
    def begin() -> None:
        run: Any = app._live.run
        print("epoch", f"{run._publisher.session.epoch:016x}", flush=True)
        threading.Thread(target=listen, daemon=True).start()

    app.run()


if __name__ == "__main__":
    main()

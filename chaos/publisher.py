"""A publisher that records its messages, for the chaos suite.

``python -m chaos.publisher ENDPOINT RECORD SEED OVERFLOW TRAVEL [HISTORY]``

``TRAVEL`` is ``alone`` or ``together``. Messages that travel ``alone`` have headers of several sizes. Those that travel
``together`` are coalesced and have no headers, which would separate them; all messages of one turn have one topic, so
the order on the wire is the order of the record.

``HISTORY`` is the number of messages that the publisher keeps for each topic; without it, none are kept.

Standard input takes ``burst N`` and ``stop``. A line of the record is ``topic number``, written before the message is
published.
"""

from __future__ import annotations

import random
import sys
import threading
from collections import deque
from typing import Any

from chaos.keyed import own
from zroute import App, History

TOPICS = ("a.x", "a.b.x", "a.b.y", "a.bc", "c.x", "c.y.z", "d")


def main() -> None:
    """Publish on command until the command ``stop``."""
    endpoint, record, seed, overflow, travel, *kept = sys.argv[1:]
    chance, together = random.Random(seed), travel == "together"
    app = App(pub=endpoint, codec="json", name="feed", overflow=overflow, coalesce=together, **own())  # type: ignore[arg-type]
    history = History(messages=int(kept[0])) if kept else None
    publications = {topic: app.publisher(topic, int, history=history) for topic in TOPICS}
    written = open(record, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  # open until the process ends
    orders: deque[int] = deque()
    number = [0]

    def listen() -> None:
        from twisted.internet import reactor

        run: Any = reactor
        for line in sys.stdin:
            what, *rest = line.split()
            if what == "burst":
                run.callFromThread(orders.append, int(rest[0]))
            else:
                break
        run.callFromThread(run.stop)

    @app.every(0.002)
    async def publish() -> None:
        if not orders:
            return
        count, sent = min(orders[0], chance.choice((1, 20, 200)) if together else 200), []
        topic = chance.choice(TOPICS)
        for _ in range(count):
            topic = topic if together else chance.choice(TOPICS)
            number[0] += 1
            written.write(f"{topic} {number[0]}\n")
            if together:
                sent.append(publications[topic].publish(number[0]))
            else:
                pad = "x" * chance.choice((0, 10, 1500, 4000))
                await publications[topic].publish(number[0], headers={"pad": pad})
        for each in sent:
            await each
        orders[0] -= count
        if not orders[0]:
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

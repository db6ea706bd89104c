"""A subscriber that records its messages, for the chaos suite.

``python -m chaos.subscriber RECORD ENDPOINTS PREFIXES TROUBLE [recover] [since]``

Endpoints and prefixes are separated by commas. ``TROUBLE`` is the behaviour of the handlers:

- ``none``
- ``raises``: one message in 101 raises
- ``slow``: one message in 1,000 blocks for 0.3 s
- ``hangs``: one message in 997 takes 1 s without blocking
- ``waits``: one message in 97 takes 0.02 s without blocking
- ``closes``: the app closes itself after 500 calls

With ``recover``, the app gets lost messages back. With ``since``, its handlers begin with all earlier messages. For
each prefix on standard input, it attaches a handler that begins with them, too.

A line of the record is ``m prefix publisher topic number`` for a message that a handler of this prefix received, or
``g subscription publisher first last`` for a gap.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from functools import partial
from typing import Any

from chaos.keyed import own
from chaos.parent import end_with_parent
from zroute import App, Envelope, Gap, startswith


def main() -> None:
    """Handle and record messages until the process is stopped."""
    record, endpoints, prefixes, trouble, *further = sys.argv[1:]
    app = App(sub=endpoints.split(","), codec="json", name="reader", recover="recover" in further, **own())
    written = open(record, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  # open until the process ends
    totals: Counter[str] = Counter()

    def note(prefix: str, number: int, envelope: Envelope) -> None:
        written.write(f"m {prefix} {envelope.publisher} {envelope.topic} {number}\n")
        totals[f"{prefix} {envelope.publisher}"] += 1

    def plain(prefix: str) -> Any:
        def handle(number: int, envelope: Envelope) -> None:
            note(prefix, number, envelope)
            if trouble == "raises" and number % 101 == 0:
                raise ValueError("one of 101")
            if trouble == "slow" and number % 1000 == 0:
                time.sleep(0.3)
            if trouble == "closes" and totals.total() == 500:
                from twisted.internet import reactor

                reactor.stop()  # type: ignore[attr-defined]

        return handle

    def hanging(prefix: str) -> Any:
        from twisted.internet import reactor
        from twisted.internet.task import deferLater

        async def handle(number: int, envelope: Envelope) -> None:
            note(prefix, number, envelope)
            one_in, seconds = (997, 1.0) if trouble == "hangs" else (97, 0.02)
            if number % one_in == 0:
                await deferLater(reactor, seconds)  # type: ignore[arg-type]

        return handle

    def handler_of(prefix: str) -> Any:
        handler = hanging(prefix) if trouble in ("hangs", "waits") else plain(prefix)
        handler.__name__ = handler.__qualname__ = "on_" + prefix.replace(".", "_")
        return handler

    for prefix in prefixes.split(","):
        app.subscribe(startswith(prefix), since="all" if "since" in further else None)(handler_of(prefix))

    def attach(prefix: str) -> None:
        app.attach(startswith(prefix), handler_of(prefix), since="all")

    @app.on_startup
    def begin() -> None:
        from twisted.internet import reactor

        run: Any = reactor
        end_with_parent(partial(run.callFromThread, attach))

    @app.on_gap
    def gap(gap: Gap) -> None:
        publisher, subscription = gap.publisher, gap.subscription.decode()
        written.write(f"g {subscription} {publisher} {gap.first} {gap.last}\n")
        totals[f"{subscription} {publisher}"] += gap.count

    def tell() -> None:
        run: Any = app._live.run
        tracker = run._accounts._tracker if run else None
        joined = [f"{epoch:016x}" for epoch in tracker.complete] if tracker else []
        print(json.dumps({"totals": totals, "joined": joined, "stats": app.stats.as_dict()}), flush=True)

    app.every(0.1)(tell)
    try:
        app.run()
    finally:
        tell()


if __name__ == "__main__":
    main()

"""A publisher with a steady stream, for the chaos suite.

``python -m chaos.streamer ENDPOINTS RECORD LETTER NAME WIRE PERIOD``

It publishes 1, 2, 3 and so on to ``s.LETTER``, one message each ``PERIOD`` seconds. The line ``go`` on standard input
starts the stream, ``pause`` pauses it, and ``stop`` ends the process. ``WIRE`` is ``tracked`` or ``plain``. A line of
the record is ``topic number``, written before the message is published. The process prints its epoch, its name, and
each connection event of its socket.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from chaos.keyed import own
from zroute import App


def main() -> None:
    """Publish on command until the command ``stop``."""
    endpoints, record, letter, name, wire, period = sys.argv[1:]
    app = App(pub=endpoints.split(","), codec="json", name=name, wire=wire, **own())  # type: ignore[arg-type]
    written = open(record, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  # open until the process ends
    topic, number, flowing = f"s.{letter}", 0, False

    def obey(word: str) -> None:
        nonlocal flowing
        flowing = word == "go"
        print("paused at" if not flowing else "flowing from", number, flush=True)

    def listen() -> None:
        from twisted.internet import reactor

        run: Any = reactor
        for line in sys.stdin:
            if line.strip() == "stop":
                break
            run.callFromThread(obey, line.strip())
        run.callFromThread(run.stop)

    @app.every(float(period))
    def publish() -> None:
        nonlocal number
        if flowing:
            number += 1
            written.write(f"{topic} {number}\n")
            app.publish(topic, number)

    @app.on_startup
    def begin() -> None:
        run: Any = app._live.run
        run.transport.pub.watch(lambda event: print("event", event.name, event.address, flush=True))
        publishing = run._publisher.session
        print("name", getattr(publishing, "_name", ""), flush=True)
        print("epoch", f"{publishing.epoch:016x}" if publishing else "none", flush=True)
        threading.Thread(target=listen, daemon=True).start()

    app.run()


if __name__ == "__main__":
    main()

"""Many readers behind a proxy that is killed under load: what comes back, and how fast.

``python -m chaos.readers --readers 20 --rate 10000`` starts a publisher with a history, a stock proxy, and readers that
recover. It kills the proxy, starts another one after ``--away`` seconds, and prints the figures. With ``--work``, the
handlers block for this time; together with ``--away 0``, which leaves the proxy alone, this measures overload. With
``--no-recover``, the readers only count what they lose.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from typing import Any

from tests.interpreters import PATIENCE, UNMEASURED
from tests.support import Child, free_endpoint

__all__ = ["run"]

PROCESSES = 2
"""The number of processes that share the readers. With one for each, most of the time goes into their switches."""

PUBLISHER = """
import json, sys, time
from twisted.internet.task import deferLater
from zroute import App, History, Limits

ENDPOINT, READERS, TOTAL, RATE, PAD, QUEUE = sys.argv[1], *map(int, sys.argv[2:])
app = App(pub=ENDPOINT, codec="raw", name="feed", limits=Limits(send_queue=QUEUE))
numbers = app.publisher("numbers.{x}", bytes, history=History(messages=200_000, bytes=256 << 20))
pad = bytes(PAD)

async def publish():
    from twisted.internet import reactor
    await numbers.wait_for_subscribers(READERS, timeout=120)
    print("joined", flush=True)
    begun, worst, cpu = time.monotonic(), 0.0, time.process_time()
    for number in range(TOTAL):
        due = begun + number / RATE
        while time.monotonic() < due:  # the timer of 2 ms is a part of the lateness
            await deferLater(reactor, 0.002)
        worst = max(worst, time.monotonic() - due)
        numbers.publish(number.to_bytes(8, "big") + pad, x=str(number % 7))
    took, cpu = time.monotonic() - begun, time.process_time() - cpu
    found = {"begun": begun, "late_ms": round(worst * 1e3, 1), "cpu_share": round(cpu / took, 2)}
    print("sent", json.dumps(found), flush=True)

@app.on_startup
def begin():
    from twisted.internet.defer import Deferred
    Deferred.fromCoroutine(publish())

app.run()
"""

READERS = """
import json, sys
from array import array
from time import monotonic, process_time, sleep
from zroute import App
from zroute.runtime.runner import run

MANY, ENDPOINT, TOTAL, RATE, WORK = int(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:6])
RECOVERS = sys.argv[6] == "recover"

class Reader:
    def __init__(self, name: int) -> None:
        self.app = App(sub=ENDPOINT, codec="raw", name=f"reader-{name}", recover=RECOVERS)
        self.recovered, self.whole_at, self.requests = 0, 0.0, 0
        self.app.every(0.05)(self.watch)
        self.times = times = array("d", bytes(8 * int(TOTAL)))  # when each message was handled
        twice = disordered = 0
        last = -1

        @self.app.subscribe("numbers.{x}")
        def number(body: bytes) -> None:
            nonlocal twice, disordered, last
            at = int.from_bytes(body[:8], "big")
            if at <= last:
                disordered += 1
                twice += times[at] > 0
            last = at
            if WORK:
                sleep(WORK)
            times[at] = monotonic()

        @self.app.on_shutdown
        def end() -> None:
            until, stats = times[0] + TOTAL / RATE, self.app.stats
            delays = sorted(time - number / RATE for number, time in enumerate(times) if 0 < time <= until)
            print(json.dumps({
                "handled": sum(time > 0 for time in times), "lost": stats.lost, "unknown": stats.unknown_losses,
                "recovered": stats.recovered, "twice": twice, "disordered": disordered,
                "requests": self.requests,
                "p50": delays[len(delays) // 2], "p99": delays[len(delays) * 99 // 100], "whole_at": self.whole_at,
            }), flush=True)

    def watch(self) -> None:
        recovered = self.app.stats.recovered
        if recovered > self.recovered:
            self.recovered, self.whole_at = recovered, monotonic()
        if self.times[0] and RECOVERS and monotonic() <= self.times[0] + TOTAL / RATE:
            self.requests = self.app._live.run._accounts._recoveries._session.requests

readers = [Reader(name) for name in range(MANY)]

@readers[0].app.every(0.25)
def tell() -> None:
    stats = [reader.app.stats for reader in readers]
    print(json.dumps({
        "accounted": min(each.routed + each.lost for each in stats), "handled": min(each.routed for each in stats),
        "unknown": sum(each.unknown_losses for each in stats), "cpu": process_time(),
    }), flush=True)

run([reader.app for reader in readers])
"""


def run(
    readers: int, rate: int, seconds: float, *, away: float = 1.0, work: float = 0.0, pad: int = 0, recover: bool = True
) -> dict[str, Any]:
    """Publish at ``rate`` for ``seconds``, kill the proxy in between, and return the figures.

    The proxy is killed when a third of the messages were handled. ``whole_seconds`` is the time from the moment at
    which the next proxy listens until the last reader has handled its last recovered message. ``p50_ms`` and ``p99_ms``
    are the delays of the messages that were handled while the publisher was sending, at the slowest reader;
    ``requests`` are those of this time. Afterwards, a reader that was too slow may work off a backlog.

    Args:
        readers: The number of readers.
        rate: The messages per second.
        seconds: The duration of the stream.
        away: The time in seconds without a proxy; 0 leaves the first proxy alone.
        work: The time in seconds for which a handler blocks.
        pad: The additional size of each message in bytes.
        recover: False for readers that only count their losses.
    """
    back, front, total = free_endpoint(), free_endpoint(), int(rate * seconds)
    processes = min(readers, PROCESSES)
    option = "recover" if recover else "count"
    with ExitStack() as stack:
        proxy = stack.enter_context(_proxy(back, front))
        reading = [
            stack.enter_context(
                Child("-c", READERS, str(many), back, str(total), str(rate), str(work), option, env=UNMEASURED)
            )
            for many in (len(range(at, readers, processes)) for at in range(processes))
        ]
        # With a queue for a tenth of a second, messages of an outage are lost, and do not wait for the next proxy.
        queue = rate // 10 if away else 10_000
        arguments = f"connect:{front}", *map(str, (readers, total, rate, pad, queue))
        publisher = stack.enter_context(Child("-c", PUBLISHER, *arguments, env=UNMEASURED))
        publisher.line_with("joined")
        before = sum(_told(each.out)["cpu"] for each in reading)
        began = time.monotonic()
        if away:
            for each in reading:
                each.wait_for(lambda lines: _told(lines)["handled"] >= total // 3)
            proxy.kill()
            time.sleep(away)  # a part of what is measured
            stack.enter_context(_proxy(back, front))
            began = time.monotonic()
        sent = json.loads(publisher.line_with("sent", patience=PATIENCE + seconds).partition(" ")[2])
        for each in reading:
            each.wait_for(lambda lines: _told(lines)["accounted"] >= total or _told(lines)["unknown"])
        cpu = sum(_told(each.out)["cpu"] for each in reading) - before
        for each in (*reading, publisher):
            assert each.end() == 0, each.err
        found = [json.loads(line) for each in reading for line in each.out if '"whole_at"' in line]
    begun, whole = sent.pop("begun"), max(each.pop("whole_at") for each in found)
    delays = {f"{key}_ms": round(1e3 * (max(each.pop(key) for each in found) - begun), 1) for key in ("p50", "p99")}
    return {
        "readers": readers,
        "sent": readers * total,
        **{key: sum(each[key] for each in found) for key in found[0]},
        "whole_seconds": round(whole - began, 2) if whole else None,
        "cpu_seconds": round(cpu, 1),
        **delays,
        **sent,
    }


def _proxy(back: str, front: str) -> Child:
    child = Child("-m", "chaos.forwarder", f"bind:{back}", f"bind:{front}", env=UNMEASURED)
    child.line_with("forwarding")
    return child


def _told(lines: list[str]) -> dict[str, float]:
    """Return the latest report of a process of readers."""
    latest = next((line for line in reversed(lines) if '"accounted"' in line), None)
    return json.loads(latest) if latest else dict.fromkeys(("accounted", "handled", "unknown", "cpu"), 0.0)


def main() -> int:
    """Run once and print the figures; the exit code is 1 unless each message is handled once in order, or counted."""
    parser = argparse.ArgumentParser(prog="python -m chaos.readers", description=__doc__)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--rate", type=int, default=10_000, help="messages per second (default 10000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of the stream (default 10)")
    parser.add_argument("--away", type=float, default=1.0, help="seconds without a proxy (default 1; 0: no kill)")
    parser.add_argument("--work", type=float, default=0.0, help="seconds for which a handler blocks (default 0)")
    parser.add_argument("--pad", type=int, default=0, help="additional bytes of each message (default 0)")
    parser.add_argument("--no-recover", dest="recover", action="store_false", help="only count losses")
    found = run(**vars(parser.parse_args()))
    print(json.dumps(found), flush=True)
    exact = found["handled"] + found["lost"] == found["sent"] and not found["unknown"]
    return int(not exact or found["twice"] + found["disordered"] > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Count instructions per message with valgrind's callgrind.

Other processes do not disturb this figure. A run that moves 10,000 messages is compared with the same run that moves
none. This takes minutes, so it needs an option.

Callgrind runs ``python -m benchmarks.instructions KIND MESSAGES [TOPICS]``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks import publish, receive, workloads
from benchmarks.children import python
from benchmarks.feeds import Feed, plain_subscriber
from benchmarks.running import THREAD, Contestant, Figures, Group
from benchmarks.workloads import BY_HAND, PLAIN, TRACKED, Scale
from tests.support import ROOT
from zroute import App, Envelope

__all__ = ["INSTRUCTIONS", "MESSAGES", "TOPICS", "absent", "counted", "groups", "measure"]

INSTRUCTIONS = "instructions"
MESSAGES = 10_000
TOPICS = 100
"""The topics of the second group. With one topic only, some caches of CPython never miss."""

PUBLISHED = {"published by hand": BY_HAND, "published plain": PLAIN, "published tracked": TRACKED}
"""The contestants that publish, and the wire of each."""

HISTORIES = {"published": 0, "published with a history": publish.KEPT}
"""The contestants that publish texts of 60 bytes, and the number of messages in the history of each."""

MIDDLEWARE, SCOPED = "one middleware", "a message-scoped resource"
ISOLATE, HEADERS, ENVELOPE = "App(isolate=True)", "messages with headers", "a handler with an Envelope"
AROUND = (TRACKED, MIDDLEWARE, SCOPED, ISOLATE, HEADERS, ENVELOPE)
"""The contestants that read tracked messages; all but the first have one thing more."""


def absent(scale: Scale) -> str | None:
    """Return the reason why instructions are not counted, or None."""
    if not scale.instructions:
        return "only with --instructions: it takes minutes"
    return None if shutil.which("valgrind") else "valgrind is not installed"


def counted(command: Sequence[str]) -> int:
    """Return the instructions that a command executes."""
    with tempfile.TemporaryDirectory() as folder:
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        ran = subprocess.run(
            [*valgrind, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if ran.returncode or not found:
        raise RuntimeError(f"valgrind failed: {ran.stderr[-300:]}")
    return int(found[1])


def _counted(kind: str, read: int, topics: int) -> int:
    return counted(python("instructions", kind, read, topics))


def measure(kind: str, topics: int = 1) -> Figures:
    """Return the instructions per message; the first messages of all topics are not counted."""
    least = max(
        int(kind in PUBLISHED or kind in HISTORIES), topics * (topics > 1)
    )  # a publishing loop needs at least one message
    return {INSTRUCTIONS: (_counted(kind, MESSAGES, topics) - _counted(kind, least, topics)) / (MESSAGES - least)}


def groups(scale: Scale) -> list[Group]:
    """Return the groups for received and published messages, and for what is around a handler."""
    title = f"instructions for a message {{}}, of {MESSAGES:,} JSON quotes"
    return [
        _group(INSTRUCTIONS, title.format("received"), (BY_HAND, PLAIN, TRACKED), scale),
        _group(f"{INSTRUCTIONS}-topics", title.format("received"), (BY_HAND, PLAIN, TRACKED), scale, TOPICS),
        _group(f"{INSTRUCTIONS}-published", title.format("published"), tuple(PUBLISHED), scale),
        _group(
            f"{INSTRUCTIONS}-history",
            f"instructions to publish 60 bytes, {publish.KEPT:,} kept",
            tuple(HISTORIES),
            scale,
        ),
        _group(f"{INSTRUCTIONS}-around", title.format("received, with more around its handler"), AROUND, scale),
    ]


def _group(name: str, title: str, kinds: tuple[str, ...], scale: Scale, topics: int = 1) -> Group:
    made = tuple(Contestant(kind, partial(measure, kind, topics), THREAD, absent(scale)) for kind in kinds)
    title = f"{title}, {topics} topics in turn" if topics > 1 else title
    return Group(name, title, made, kinds[0], main=INSTRUCTIONS, rounds=1)


def run(kind: str, read: int, topics: int = 1) -> None:
    """Publish ``read`` messages, or read that many of ``topics`` topics from a queue of `MESSAGES`."""
    if kind in PUBLISHED:
        wire = PUBLISHED[kind]
        if wire == BY_HAND:
            publish.by_hand(read, "json")
        else:
            publish.zroute_publish(read, "json", "plain" if wire == PLAIN else "tracked")
        return
    if kind in HISTORIES:
        publish.texts(read, 60, kept=HISTORIES[kind])
        return
    work = workloads.quotes(MESSAGES) if topics == 1 else workloads.many_topics(MESSAGES, topics)
    feed = Feed(work)
    if kind == BY_HAND:
        sub = plain_subscriber(feed)
        feed.fill()
        counter = receive.Counter()
        receive.loop(sub, work, [counter.handler()], read)
        assert counter.seen == read
        return
    counter = receive.Counter()
    app = _app(feed, kind, counter)
    with receive.reading(app, receive.StillReactor(), feed.endpoint) as sub_connection:
        if kind == PLAIN:
            feed.fill()
        else:
            feed.fill_counted(headers={"x-tenant": "acme"} if kind == HEADERS else None)
        receive.read_all(sub_connection, lambda: counter.seen, read)
        assert counter.seen >= read


class Session:
    """The resource of a message."""


def _app(feed: Feed, kind: str, counter: receive.Counter) -> App:
    """Return an app that counts quotes, with what ``kind`` has around its handler."""
    app = App(sub=feed.endpoint, codec="json", context=feed.context, isolate=kind == ISOLATE)

    def handler(_quote: workloads.Quote) -> None:
        counter.seen += 1

    def with_envelope(_quote: workloads.Quote, _envelope: Envelope) -> None:
        counter.seen += 1

    def with_session(_quote: workloads.Quote, _session: Session) -> None:
        counter.seen += 1

    if kind == MIDDLEWARE:
        app.middleware(lambda call, route: lambda message: call(message))
    if kind == SCOPED:

        @app.resource(scope="message")
        def session() -> Iterator[Session]:
            yield Session()

    chosen = {ENVELOPE: with_envelope, SCOPED: with_session}.get(kind, handler)
    app.subscribe("stocks.*")(chosen)
    return app


if __name__ == "__main__":
    run(sys.argv[1], *map(int, sys.argv[2:]))
    os._exit(0)  # do not count how sockets close

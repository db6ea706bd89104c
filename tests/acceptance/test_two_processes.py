"""Two processes, each started by ``zroute run``, exchange messages over tcp and ipc, on each wire."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conversation import CODA, PRELUDE
from tests.support import Child, Meeting, Way

SENDER = """
app = App(pub="tcp://127.0.0.1:1", wire={wire!r}, codec={codec!r})
quotes = app.publisher("stocks.{{symbol}}", Quote)
notes = app.publisher("notes", str)
blobs = app.publisher("blobs", bytes)

@app.every(0.02)
def repeat():
    if not told:
        app.publish("sync", 0)

told = []

def send(_):
    told.append(True)
    for number in range({many}):
        quotes.publish(Quote("S%d" % (number % 10), number / 4, number))
    notes.publish("caf\\u00e9", headers={headers!r})
    blobs.publish(bytes(range(256)))
    app.publish("", {{"empty": True}})
    app.publish("stocksandmore.x", 1)
    app.publish("stocks", 1)
    app.publish("stocks.a.b", 1)
    app.publish("end", 0)

@app.on_startup
def listen():
    from twisted.internet import reactor, threads
    import sys
    threads.deferToThread(sys.stdin.readline).addCallback(send)
"""

READER = """
app = App(sub="tcp://127.0.0.1:1", codec={codec!r})

@app.subscribe("stocks.{{symbol}}")
def quote(quote: Quote, symbol: str, envelope: Envelope):
    if quote.volume % 100 == 0:
        say("facts", envelope.topic, envelope.codec, envelope.tracked, envelope.sequence, envelope.publisher,
            envelope.sent_at, envelope.received_at, envelope.headers)
    say("quote", type(quote).__name__, symbol, quote.symbol, quote.price, quote.volume)

@app.subscribe("notes")
def note(text: str, envelope: Envelope):
    say("note", text, envelope.headers)

@app.subscribe("blobs")
def blob(body: bytes):
    say("blob", body.hex())

@app.subscribe("sync")
def sync(envelope: Envelope):
    say("sync", "numbered" if envelope.sequence else "without a number")

@app.subscribe(startswith(""))
def all_topics(topic: Topic):
    if topic not in ("sync", "end") and not topic.startswith("stocks.S"):
        say("topic", topic)
"""

MANY = 3000


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize("wire", ["tracked", "plain", "multipart"])
@pytest.mark.parametrize("way", ["address", "name", "ipv6", "ipc"], indirect=True)
def test_what_one_process_publishes_the_other_handles(way: Way, wire: str, codec: str, tmp_path: Path) -> None:
    """Typed messages, text, bytes and the empty topic arrive unchanged, in order and once each."""
    headers = {"trace": "t-1", "hops": 3} if wire == "tracked" else None
    (tmp_path / "sender.py").write_text(
        PRELUDE + SENDER.format(wire=wire, codec=codec, many=MANY, headers=headers) + CODA[CODA.index("@app.on_shut") :]
    )
    (tmp_path / "reader.py").write_text(
        PRELUDE + READER.format(codec=codec) + CODA[CODA.index('@app.subscribe("end")') :]
    )
    meeting = Meeting(*[f"ipc://{tmp_path}/s"] * 2) if way.name == "ipc" else way.meeting()
    run = ("-m", "zroute", "run", "--app-dir", str(tmp_path))
    with (
        Child(*run, "sender:app", "--pub", meeting.bind) as sender,
        Child(*run, "reader:app", "--sub", meeting.connect) as reader,
    ):
        # On the tracked wire, the first messages may have no number: the publisher has not read the subscription yet.
        reader.line_with('"numbered"' if wire == "tracked" else '["sync"')
        sender.write("go\n")
        reader.line_with('["end"]')
        assert sender.end(signal.SIGTERM) == 0, sender.err
        assert reader.end(signal.SIGTERM) == 0, reader.err
    said = [json.loads(line) for line in reader.out if line.startswith("[")]
    stats = said[-1][1]
    assert [words for words in said if words[0] not in ("sync", "end", "facts", "stats")] == [
        *(["quote", "Quote", f"S{n % 10}", f"S{n % 10}", n / 4, n] for n in range(MANY)),
        ["note", "café", headers or {}],
        ["topic", "notes"],
        ["blob", bytes(range(256)).hex()],
        ["topic", "blobs"],
        ["topic", ""],
        ["topic", "stocksandmore.x"],
        ["topic", "stocks"],
        ["topic", "stocks.a.b"],
    ]
    check_facts([words[1:] for words in said if words[0] == "facts"], wire, codec)
    assert stats["malformed"] == stats["unrouted"] == stats["duplicate"] == stats["lost"] == 0
    assert stats["routed"] == MANY + 6 + sum(words[0] in ("sync", "end") for words in said)
    warnings = [line.partition("WARNING ")[2] for line in reader.err + sender.err if "WARNING" in line]
    assert warnings == [
        "reader: receives all messages of the connected publishers, because of the pattern 'startswith(\"\")'"
    ]


def check_facts(facts: list[list[Any]], wire: str, codec: str) -> None:
    """Check the envelopes of every hundredth quote."""
    assert [topic for topic, *_ in facts] == ["stocks.S0"] * (MANY // 100)
    sequences = [sequence for _, _, _, sequence, *_ in facts]
    for _, number, is_tracked, sequence, publisher, sent_at, received_at, headers in facts:
        assert headers == {}
        if wire == "tracked":
            assert (number, is_tracked) == ({"msgpack": 1, "json": 2}[codec], True)
            assert int(publisher, 16) >= 0
            assert len(publisher) == 16
            assert 0 <= received_at - sent_at < 60
            assert sequence - sequences[0] in range(0, MANY, 100)
        else:
            assert (number, is_tracked, sequence, publisher, sent_at) == (0, False, None, None, None)
    if wire == "tracked":
        assert len({publisher for _, _, _, _, publisher, *_ in facts}) == 1
        assert sequences == list(range(sequences[0], sequences[0] + MANY, 100))


RESTART = """
app = App(pub="tcp://127.0.0.1:1")

@app.every(0.02)
def repeat():
    app.publish("tick.{name}", {{"n": 1}})
"""


def test_a_restarted_publisher_is_heard_again(tmp_path: Path, way: Way) -> None:
    """A subscriber receives the messages of a restarted publisher without a restart of its own."""
    meeting = way.meeting()
    (tmp_path / "reader.py").write_text(
        PRELUDE
        + 'app = App(sub="tcp://127.0.0.1:1")\n@app.subscribe("tick.{name}")\ndef tick(name: str):\n    say(name)\n'
    )
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(PRELUDE + RESTART.format(name=name))
    run = ("-m", "zroute", "run", "--app-dir", str(tmp_path))
    with Child(*run, "reader:app", "--sub", meeting.connect) as reader:
        for name in ("first", "second"):
            with Child(*run, f"{name}:app", "--pub", meeting.bind) as publisher:
                reader.line_with(f'["{name}"]')
                assert publisher.end(signal.SIGTERM) == 0
        assert reader.end(signal.SIGTERM) == 0
    names = [line for line in reader.out if line.startswith("[")]
    assert names == sorted(names)

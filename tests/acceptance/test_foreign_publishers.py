"""Publishers of other libraries, in separate processes, feed handlers over tcp."""

from __future__ import annotations

import json
import signal
from hashlib import sha256
from pathlib import Path

from tests.acceptance.conversation import conversation
from tests.support import Child, Way

QUOTE = b'{"symbol":"AAPL","price":187.23,"volume":1200}'

TYPED = """
app = App(sub="tcp://127.0.0.1:1", codec="json")

@app.subscribe("stocks.{symbol}")
def stock(quote: Quote, symbol: str):
    say("stock", symbol, attrs.asdict(quote))

@app.subscribe("news")
def news(body: str):
    say("news", body)

@app.subscribe("news.*")
def one_level(body: str, topic: Topic):
    say("news.*", topic, body)

@app.subscribe(startswith("ne"))
def prefix(body: str, topic: Topic):
    say("ne", topic, body)

@app.subscribe("weather.NYC", "weather.*", "weather.>")
def weather(body: dict):
    say("weather", body)

@app.subscribe(startswith(""))
def everything(envelope: Envelope):
    if envelope.topic not in ("sync", "end"):
        say("all", envelope.topic)
"""


def test_a_txzmq_publisher_feeds_typed_handlers(tmp_path: Path, way: Way) -> None:
    """Messages of txZMQ reach the matching handlers, typed, in order, and once each."""
    with conversation(tmp_path, TYPED, peer="txzmq_publisher", way=way) as talk:
        talk.send(
            [b"news.breaking", b"b"],
            [b"news.sports", b"s"],
            [b"newsletter", b"l"],
            [b"news.a.b", b"ab"],
            [b"news", b"n"],
            [b"weather.NYC", b'{"c": 3}'],
            [b"stocks.AAPL", QUOTE],
            [b"", b"empty"],
        )
        heard = talk.heard(end=[b"end", b""])
        stats = talk.stats()
    assert heard == [
        ["news.*", "news.breaking", "b"],
        ["ne", "news.breaking", "b"],
        ["all", "news.breaking"],
        ["news.*", "news.sports", "s"],
        ["ne", "news.sports", "s"],
        ["all", "news.sports"],
        ["ne", "newsletter", "l"],
        ["all", "newsletter"],
        ["ne", "news.a.b", "ab"],
        ["all", "news.a.b"],
        ["news", "n"],
        ["ne", "news", "n"],
        ["all", "news"],
        ["weather", {"c": 3}],
        ["all", "weather.NYC"],
        ["stock", "AAPL", {"symbol": "AAPL", "price": 187.23, "volume": 1200}],
        ["all", "stocks.AAPL"],
        ["all", ""],
    ]
    assert stats["received"] == 8
    assert stats["malformed"] == stats["unrouted"] == 0


def test_a_txzmq_subscriber_reads_a_plain_app(tmp_path: Path, way: Way) -> None:
    """A txZMQ subscriber of a plain app gets each tag and message once, in order, with the empty topic."""
    meeting = way.meeting()
    (tmp_path / "sender.py").write_text(
        f"""
from itertools import count
from zroute import App
app = App(pub={meeting.bind!r}, wire="plain", codec="json")
numbers = count()

@app.every(0.01)
def send():
    for topic in ("news.a", "", "stocks.AAPL"):
        app.publish(topic, {{"n": next(numbers)}})
"""
    )
    with (
        Child("-m", "zroute", "run", "sender", "--app-dir", str(tmp_path)) as app,
        Child("-m", "tests.acceptance.peers", "txzmq_subscriber", meeting.connect) as reader,
    ):
        reader.wait_for(lambda lines: len(lines) >= 300)
        assert app.end(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in reader.out]
    first = json.loads(lines[0][1])["n"]
    topics = ("news.a", "", "stocks.AAPL")
    assert lines == [[topics[n % 3], f'{{"n":{n}}}'] for n in range(first, first + len(lines))]


def test_a_two_frame_publisher_is_read(tmp_path: Path, way: Way) -> None:
    """Messages of the form [topic, body], as most other languages send them, are received."""
    with conversation(tmp_path, TYPED, way=way) as talk:
        talk.send([b"stocks.AAPL", QUOTE], [b"news", b"n"], [b"news.x", b"y"], [b"stocks.MSFT", QUOTE])
        heard = [words for words in talk.heard() if words[0] in ("stock", "news")]
    assert [words[:2] for words in heard] == [["stock", "AAPL"], ["news", "n"], ["stock", "MSFT"]]


PARTS = """
app = App(sub="tcp://127.0.0.1:1")

@app.subscribe("rawblock", "many")
def block(body: bytes, envelope: Envelope):
    say(envelope.topic, body.hex(), [part.hex() for part in envelope.frames[2:]])

@app.subscribe(startswith(b"\\xff\\x01"))
def binary(body: bytes, envelope: Envelope):
    say("binary", envelope.topic.wire.hex(), body.hex())
"""


def test_three_and_seven_parts_are_read(tmp_path: Path, way: Way) -> None:
    """In messages of three or seven parts, such as a Bitcoin node's, the extra parts are in the envelope."""
    with conversation(tmp_path, PARTS, way=way) as talk:
        talk.send(
            [b"rawblock", b"\xab\0\xcd", (7).to_bytes(4, "little")],
            [b"many", b"1", b"2", b"3", b"", b"\0", b"6"],
            [b"rawblock", b"", (8).to_bytes(4, "little")],
        )
        heard = talk.heard()
    assert heard == [
        ["rawblock", "ab00cd", ["07000000"]],
        ["many", "31", ["32", "33", "", "00", "36"]],
        ["rawblock", "", ["08000000"]],
    ]


LARGE = """
from hashlib import sha256

app = App(sub="tcp://127.0.0.1:1")

@app.subscribe("image.*")
def image(body: bytes, envelope: Envelope):
    (whole, *rest) = envelope.frames
    say(envelope.topic, len(body), sha256(body).hexdigest(), sha256(whole).hexdigest(), len(rest))
"""


def test_large_messages_among_small_ones_are_read_whole(tmp_path: Path, way: Way) -> None:
    """Images of 100 KB, one in two parts, and words between them arrive whole and in order."""
    bodies = [bytes([number]) * size for number, size in enumerate((100_000, 100_001, 5, 100_002, 100_003, 8_193))]
    sent = [[b"image.%d\0" % number + body] for number, body in enumerate(bodies)]
    sent[3] = [b"image.3", bodies[3]]
    with conversation(tmp_path, LARGE, way=way) as talk:
        talk.send(*sent)
        heard = talk.heard()
    assert heard == [
        [f"image.{number}", len(body), sha256(body).hexdigest(), sha256(parts[0]).hexdigest(), len(parts) - 1]
        for number, (body, parts) in enumerate(zip(bodies, sent, strict=True))
    ]


def test_topics_that_are_no_text_reach_their_prefix(tmp_path: Path, way: Way) -> None:
    """startswith() with bytes receives topics that are not UTF-8, and the handler gets the original bytes."""
    with conversation(tmp_path, PARTS, way=way) as talk:
        talk.send([b"\xff\x01\xfe\0body"], [b"\xff\x01", b"two"], [b"\xff\x02\0no"])
        assert talk.heard() == [["binary", "ff01fe", b"body".hex()], ["binary", "ff01", b"two".hex()]]


def test_pyzmq_logging_is_read(tmp_path: Path, way: Way) -> None:
    """Records of pyzmq's PUBHandler arrive under their level, as text."""
    source = """
app = App(sub="tcp://127.0.0.1:1")

@app.subscribe("pump.{level}")
def record(text: str, level: str):
    say(level, text.strip().rpartition(" - ")[2])
"""
    with conversation(tmp_path, source, peer="logging_publisher", way=way) as talk:
        talk.send([b"too hot"], [b"too cold"])
        assert talk.heard() == [["WARNING", "too hot"], ["WARNING", "too cold"]]

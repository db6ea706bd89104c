"""Line feeds and escape sequences in a peer's texts have no effect on logs and terminals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from tests.pure import tracked
from tests.support import PATIENCE, ROOT, free_endpoint, spans
from zroute.messages.codecs import JSON
from zroute.messages.control import MARKER, pack_statements, parse_marker
from zroute.messages.wire import FIXED, MAGIC, NUL, Kind, pack_head

FORGED = "13:37:00 ERROR   bank: transfer of 1000000 to mallory approved"
HOSTILE = f"x\n{FORGED}\r\n{FORGED}\x1b[2J\x1b]0;mine\x07\x7f\x9b31m\u202e\u2066\u200f\u061c\u2028\u2029\ufeff"
TOPIC = ("bad.x\n" + FORGED + "\r\x1b[2J\x9b31m\u202e\u2028").encode()
BODY = json.dumps(HOSTILE, ensure_ascii=False).encode()
EPOCH = 0xE0

SOURCE = """
import json, logging
from enum import Enum
import attrs
from twisted.internet.defer import Deferred
from zroute import App, NotReadyError

class Colour(Enum):
    RED = "red"

@attrs.frozen
class Name:
    text: str

    def __attrs_post_init__(self):
        raise ValueError(f"no name: {self.text}")

app = App(codec="json", pub="inproc://derived")
out = app.publisher("out.{x}", str)

class Collecting(logging.Handler):
    def emit(self, record):
        print("log " + json.dumps(record.getMessage()), flush=True)

@app.on_startup
def collect():
    logging.getLogger("zroute").addHandler(Collecting())
    Deferred.fromCoroutine(say_ready())

async def say_ready():
    await app.ready(1, timeout=120)
    print("ready", flush=True)

@app.subscribe("bad.{x}")
def decode(colour: Colour, x: str) -> None: ...

@app.subscribe("named.{x}")
def read_name(name: Name, x: str) -> None: ...

@app.subscribe("bad.{x}")
def fail(text: str, x: str) -> None:
    error = ValueError(text)
    error.add_note(text)
    raise ExceptionGroup(text, [error]) from RuntimeError(text)

@app.subscribe("bad.{x}")
@out
def derive(text: str, x: str) -> str:
    return text

@app.on_error(ValueError, ExceptionGroup)
def hook(error, envelope):
    raise LookupError(str(error))

@app.subscribe("good.{x}")
def good(n: int, x: str) -> None: ...

@app.subscribe("end")
async def end() -> None:
    try:
        await app.ready(99, timeout=0.01)
    except NotReadyError as error:
        print("log " + json.dumps(str(error)), flush=True)
    print("end", flush=True)
"""


def messages() -> list[bytes | list[bytes]]:
    """Return messages of a hostile publisher: data on all wires, and invalid messages."""
    headers = {"id": HOSTILE, HOSTILE: HOSTILE}
    return [
        tracked(TOPIC.decode(), body=BODY, codec=JSON.number, headers=headers, epoch=EPOCH + 1),
        TOPIC + NUL + BODY,
        b"named.x" + NUL + b'{"text":' + BODY + b"}",
        [TOPIC, BODY],
        TOPIC + NUL + HOSTILE.encode(),
        TOPIC + NUL + b"\xff\x9b31m\x1b[2J\n",
        TOPIC + b"\xff\x9b31m" + NUL + BODY,
        TOPIC + NUL + MAGIC + HOSTILE.encode(),
        HOSTILE.encode(),
        [TOPIC, *[HOSTILE.encode()] * 20],
    ]


def unprintable(text: str) -> list[str]:
    """Return the lines of ``text`` with characters that control a terminal or hide text."""
    return [line for line in text.split("\n") if not line.isprintable() or line.startswith(FORGED[:8])]


@contextmanager
def publisher() -> Iterator[tuple[zmq.Socket[bytes], str]]:
    """Return an XPUB socket, from which subscriptions can be read, and its address."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVTIMEO, int(PATIENCE * 1000))
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        yield socket, f"tcp://127.0.0.1:{port}"


def subscription(socket: zmq.Socket[bytes], found: Callable[[bytes], bool]) -> bytes:
    """Wait for a subscription, and return its prefix."""
    while True:
        told = socket.recv()
        if told[:1] == b"\1" and found(told[1:]):
            return told[1:]


class Command:
    """A zroute command whose output is read as bytes, so that its line ends stay as they are."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / "stderr"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zroute", *arguments],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.out = b""
        self._alarm = threading.Timer(PATIENCE, self.process.kill)
        self._alarm.start()

    def read_until(self, end: bytes) -> None:
        """Read lines until one contains ``end``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.out += line
            if end in line:
                return
        raise AssertionError(f"no {end!r} in {self.out!r}, and in the log: {self.log.read_text()}")

    def end(self, number: int | None = signal.SIGINT) -> tuple[str, str]:
        """End the command; return its standard output and standard error."""
        if number is not None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        self.out += self.process.stdout.read()
        self.process.wait()
        return self.out.decode(), self.log.read_bytes().decode()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._alarm.cancel()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def answer(socket: zmq.Socket[bytes], marker: bytes, kind: Kind, epoch: int, number: int) -> None:
    """Answer with the number of ``good.``, under a hostile name."""
    assert kind is Kind.JOIN or kind is Kind.GOODBYE
    asked = parse_marker(marker)
    numbers = [(prefix, number if prefix == b"good." else 0) for prefix in asked.prefixes if not asked.is_ping]
    for frame in pack_statements(kind, marker, numbers, epoch=epoch, name=HOSTILE, partial=False, sent_at=1):
        socket.send(frame)


@contextmanager
def answering(
    socket: zmq.Socket[bytes], kind: Kind = Kind.JOIN, number: int = 1, *earlier: bytes
) -> Iterator[list[bytes]]:
    """Answer ``earlier`` markers and each new one until the block ends; return the new ones."""
    markers: list[bytes] = []
    enough = threading.Event()

    def work() -> None:
        for marker in earlier:
            answer(socket, marker, kind, EPOCH, number)
        while not enough.is_set():
            if socket.poll(20) and (told := socket.recv()).startswith(b"\1" + MARKER):
                markers.append(told[1:])
                answer(socket, told[1:], kind, EPOCH, number)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield markers
    finally:
        enough.set()
        thread.join()


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_of_an_app_holds_no_text_of_a_peer_as_it_was_sent(tmp_path: Path, form: str) -> None:
    """Each log line that quotes a peer is printable, and no text of a peer begins a line."""
    (tmp_path / "reader.py").write_text(SOURCE)
    arguments = ("--log-level", "debug", "--log-format", form)
    with publisher() as (socket, address), Command(tmp_path, "run", "reader:app", "--sub", address, *arguments) as app:
        with answering(socket) as markers:
            app.read_until(b"ready\n")
        marker = markers[-1]
        head = pack_head(codec=JSON.number, span=len(b"good."), epoch=EPOCH)
        socket.send(b"good.x" + NUL + FIXED.pack(head, 9, 1) + b"1")
        for message in messages():
            socket.send_multipart([message] if isinstance(message, bytes) else message)
        socket.send(b"end" + NUL)
        app.read_until(b"end\n")
        with answering(socket, Kind.GOODBYE, 12, marker):  # a test that was late is asked again
            app.read_until(b"has ended")
        out, log = app.end()
    said = [json.loads(line.removeprefix("log ")) for line in out.splitlines() if line.startswith("log ")]
    for kind in (
        "has joined",
        "messages of 'good.' from publisher x\\n13:37:00",
        "has ended",
        "losses are not counted (first topic",
        "Invalid enum value 'x\\n13:37",
        "no name: x\\n13:37",
        "fail() at ",
        "failed on 'bad.x\\n13:37",
        "an error hook or fallback, failed",
        "malformed message refused",
        "1 publishers have answered (x\\n13:37:00",
    ):
        assert any(kind in line for line in said), (kind, said)
    assert unprintable("\n".join(said)) == []
    assert len([line for line in said if "\n" in line]) == 0
    assert "Traceback" in log
    assert unprintable(log) == []
    if form == "json":
        assert all(json.loads(line) for line in log.splitlines())


@pytest.mark.parametrize("options", [(), ("--json",), ("--format", "{topic} {body} {headers}"), ("--topics-only",)])
def test_tail_shows_what_a_peer_sends_as_text_of_one_line(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The output of tail is printable in each form."""
    with publisher() as (socket, address), Command(tmp_path, "tail", address, *options) as tail:
        subscription(socket, lambda prefix: not prefix)
        for message in messages():
            socket.send_multipart([message] if isinstance(message, bytes) else message)
        socket.send(b"last.topic" + NUL)
        tail.read_until(b"last.topic")
        out, log = tail.end()
    assert out.count("bad.x\\n13:37:00") >= 6
    assert "malformed message refused" in log
    assert unprintable(out) == unprintable(log) == []


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_top_shows_topics_as_text_of_one_line(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The table and the documents of top keep one line per topic."""
    with publisher() as (socket, address), Command(tmp_path, "top", address, "--interval", "200ms", *options) as top:
        subscription(socket, lambda prefix: not prefix)
        for message in messages():
            socket.send_multipart([message] if isinstance(message, bytes) else message)
        socket.send(b"last.topic" + NUL)
        top.read_until(b"last.topic")
        out, log = top.end()
    assert "bad.x\\n13:37:00" in out
    assert "malformed message refused" in log
    assert unprintable(out) == unprintable(log) == []


def test_pub_names_subscriptions_of_peers_in_one_line(tmp_path: Path) -> None:
    """If a message has no subscribers, the subscriptions that pub lists are printable."""
    endpoint = free_endpoint()
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.set(zmq.LINGER, 0)
        subscriber.subscribe(TOPIC)
        subscriber.connect(endpoint)
        for seconds in spans(3.0):
            with Command(tmp_path, "pub", endpoint, "news", "1", "--wait", f"{seconds:g}s") as pub:
                out, log = pub.end(None)
            if "active subscriptions" in log:
                break
    assert "active subscriptions: 'bad.x\\n13:37:00" in log
    assert unprintable(out) == unprintable(log) == []

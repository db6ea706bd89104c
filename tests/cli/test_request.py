"""`zroute request`, against apps and against a plain REP socket in other processes."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest
import zmq

from tests.cli.terminal import on_terminal
from tests.commands import limited, patient, zroute
from tests.interpreters import run
from tests.support import PATIENCE, Child, free_endpoint, spans
from zroute.messages.requests import parse as parse_frame
from zroute.messages.requests import parse_request
from zroute.messages.wire import parse as parse_message

SERVER = """
import sys
import attrs
from collections.abc import AsyncIterator, Iterator
from twisted.internet.defer import Deferred
from zroute import App, Envelope, RequestRefused

app = App(rep=sys.argv[1])

@attrs.frozen
class Ask:
    size: int

@attrs.frozen
class Price:
    symbol: str
    price: float

@app.on_startup
def started():
    print("started", flush=True)

@app.reply("prices.{symbol}")
def price(ask: Ask, symbol: str) -> Price:
    if symbol == "NONE":
        raise RequestRefused(409, "no such symbol")
    return Price(symbol, 1.5 * ask.size)

@app.reply("echo")
def echo(body: str) -> str:
    return body

@app.reply("bytes")
def raw(body: bytes) -> bytes:
    return body

@app.reply("who")
def who(envelope: Envelope) -> dict:
    return dict(envelope.headers)

@app.reply("nothing")
def nothing() -> None: ...

@app.reply("fails")
def fails():
    raise ValueError("no\\u001b[31m disk")

@app.reply("rows.{number}")
def rows(number: int) -> Iterator[int]:
    yield from range(number)

@app.reply("forever")
async def forever() -> AsyncIterator[int]:
    try:
        yield 1
        await Deferred()
    finally:
        print("closed", flush=True)

@app.reply("waits")
async def waits() -> None:
    print("waits", flush=True)
    try:
        await Deferred()
    finally:
        print("cancelled", flush=True)

app.run()
"""


@contextmanager
def server() -> Iterator[tuple[str, Child]]:
    """The endpoint of an app that answers requests, and its process."""
    endpoint = free_endpoint()
    with Child("-c", SERVER, endpoint) as child:
        child.line_with("started")
        yield endpoint, child


def test_replies_and_failures() -> None:
    """A reply is one line with 0; a failure is its code and text on standard error, with 1."""
    with server() as (endpoint, _):
        for arguments, expected in (
            (("prices.EURUSD", '{"size": 3}'), (0, '{"price": 4.5, "symbol": "EURUSD"}\n', "")),
            (("prices.EURUSD", '{"size": 3}', "--wire", "plain"), (0, '{"price": 4.5, "symbol": "EURUSD"}\n', "")),
            (("prices.EURUSD", '{"size": 3}', "--codec", "msgpack"), (0, '{"price": 4.5, "symbol": "EURUSD"}\n', "")),
            (("echo", "hällo", "--codec", "text"), (0, "hällo\n", "")),
            (("who", "-H", "a=1", "-H", "b=x=y"), (0, '{"a": "1", "b": "x=y"}\n', "")),
            (("nothing",), (0, "null\n", "")),
            (("rows.3", "--stream"), (0, "0\n1\n2\n", "")),
            (("prices.NONE", '{"size": 3}'), (1, "", "zroute: 409: no such symbol\n")),
            (("fails",), (1, "", "zroute: 500: ValueError: no\\u001b[31m disk\n")),
            (("other",), (1, "", "zroute: 404: no handler for 'other'\n")),
        ):
            done = zroute(*patient("request", endpoint, *arguments))
            assert (done.returncode, done.stdout, done.stderr) == expected
        done = zroute(*patient("request", endpoint, "prices.EURUSD", '{"size": "x"}'))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("zroute: 400: ")
        assert "$.size" in done.stderr
        done = zroute(*patient("request", endpoint, "rows.3"))
        assert done.returncode == 1
        assert "request_stream" in done.stderr


def test_the_body_comes_from_standard_input() -> None:
    """With -, the body is all of standard input, and any bytes arrive unchanged."""
    given = bytes(range(256)) * 100
    with server() as (endpoint, _):
        command = patient("request", endpoint, "bytes", "-", "--codec", "raw")
        done = run("-m", "zroute", *command, given=given, text=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.decode() == f"{given!r}\n"


def test_a_long_stream_can_be_cut() -> None:
    """More items than the window arrive in order, and a closed pipe ends the command with 0."""
    with server() as (endpoint, _):
        done = zroute(*patient("request", endpoint, "rows.1000", "--stream"))
        assert (done.returncode, done.stdout.split()) == (0, [str(number) for number in range(1000)])
        done = run("-c", PIPE, endpoint)
        assert done.stdout.splitlines() == ["b'0\\n'", "0"]


PIPE = """
import subprocess, sys
command = [sys.executable, "-m", "zroute", "request", sys.argv[1], "rows.1000000", "--stream"]
child = subprocess.Popen(command, stdout=subprocess.PIPE)
print(child.stdout.readline())
child.stdout.close()
print(child.wait())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_request_at_the_server(number: signal.Signals) -> None:
    """After a signal the handler is cancelled, and the exit code says that there was no reply."""
    with server() as (endpoint, child):
        with Child("-m", "zroute", "request", endpoint, "waits", "--timeout", "1h") as waiting:
            child.line_with("waits")
            assert waiting.end(number) == 128 + number
            child.line_with("cancelled")
        with Child("-m", "zroute", "request", endpoint, "forever", "--stream", "--timeout", "1h") as stream:
            stream.line_with("1")
            assert stream.end(number) == 128 + number
            child.line_with("closed")


def test_no_answer_in_time_is_124() -> None:
    """Without a server, or with one that does not answer in time, the command ends with 124 and says which."""
    endpoint = free_endpoint()
    done = zroute("request", endpoint, "a", "--timeout", "100ms")
    assert (done.returncode, done.stdout) == (124, "")
    assert done.stderr == f"zroute: no server was connected within 0.1 s ({endpoint})\n"
    with server() as (endpoint, child):
        done = limited("no reply arrived within {}", 1, "request", endpoint, "waits", "--timeout", "{}")
        assert (done.returncode, done.stdout) == (124, "")
        assert re.fullmatch(rf"zroute: no reply arrived within \d+ s \({re.escape(endpoint)}\)\n", done.stderr)
        child.line_with("cancelled")


def test_a_name_that_does_not_exist_is_named_as_the_reason() -> None:
    """The command does not only say that no server was connected."""
    done = zroute("request", "tcp://no-such-host.invalid:5555", "a", "--timeout", "5s")
    assert done.returncode == 124
    assert "no server was connected within 5 s (tcp://no-such-host.invalid:5555): " in done.stderr
    assert "host name" in done.stderr


def test_the_empty_topic_is_refused_before_it_is_sent() -> None:
    """As ``app.request`` refuses it: usage, with 2."""
    done = zroute("request", "tcp://127.0.0.1:1", "")
    assert done.returncode == 2
    assert "the topic of a request can't be empty: no handler has an empty topic" in done.stderr


def test_a_server_that_ends_is_a_failure() -> None:
    """If the server disconnects, the command ends at once with 1 and says that it may have handled the request."""
    with server() as (endpoint, child), Child("-m", "zroute", "request", endpoint, "waits", "--timeout", "1h") as ask:
        child.line_with("waits")
        child.process.kill()
        assert ask.end(None) == 1
        assert "disconnected, and may have handled the request" in ask.err[-1]


@contextmanager
def rep() -> Iterator[tuple[str, zmq.Socket[bytes]]]:
    """The endpoint of a plain REP socket, and the socket."""
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.set(zmq.RCVTIMEO, int(PATIENCE * 1000))
        socket.set(zmq.LINGER, 0)
        socket.bind("tcp://127.0.0.1:*")
        yield socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode(), socket


def test_a_plain_rep_gets_topic_and_body() -> None:
    """With --wire plain a REP of any library gets two parts, and answers with a body or with a failure."""
    with rep() as (endpoint, socket):
        for reply, expected in (
            ([b'{"a": 1}'], (0, '{"a": 1}\n', "")),
            ([msgpack.packb([1, None])], (0, "[1, null]\n", "")),
            ([b"text"], (0, "text\n", "")),
            ([b"\xff\x00"], (0, "b'\\xff\\x00'\n", "")),
            ([b"", b"418", b"a teapot"], (1, "", "zroute: 418: a teapot\n")),
            ([b"", b"teapot", b""], (1, "", None)),
            ([b"a", b"b", b"c", b"d"], (1, "", None)),
        ):
            with Child("-m", "zroute", *patient("request", endpoint, "a.b", '{"x": 1}', "--wire", "plain")) as child:
                assert socket.recv_multipart() == [b"a.b", b'{"x":1}']
                socket.send_multipart(reply)
                code, out, err = expected
                assert child.end(None) == code
                assert "".join(f"{line}\n" for line in child.out) == out
                assert err is None or "".join(f"{line}\n" for line in child.err) == err


def test_a_server_that_knows_no_tracked_requests_gives_no_reply() -> None:
    """By default a request is one frame with codec, headers and time, and its reply has to name its id."""
    for limit in spans(2):
        arguments = ("a.b", '{"x": 1}', "-H", "k=v", "--timeout", f"{limit:g}s")
        with rep() as (endpoint, socket), Child("-m", "zroute", "request", endpoint, *arguments) as child:
            while not (asked := socket.poll(50)) and child.process.poll() is None:
                continue
            if not asked:  # its time was over before it was connected
                continue
            (frame,) = socket.recv_multipart()
            seconds, window, tracked = parse_request(parse_frame(frame))
            got = parse_message((tracked,), 0.0)
            assert (got.topic, got.codec, got.headers, window) == ("a.b", 2, {"k": "v"}, 0)
            assert json.loads(got.body) == {"x": 1}
            assert 0 < (seconds or 0) <= limit
            socket.send(b"ok")
            assert child.end(None) == 124
        if any("ask this server with wire='plain'" in line for line in child.err):
            break
    else:
        pytest.fail("no reply arrived in time")


def test_it_binds_for_a_server_that_connects() -> None:
    """With bind:, the command waits at an address for a server."""
    endpoint = free_endpoint()
    with Child("-c", SERVER, f"connect:{endpoint}"):
        done = zroute("request", f"bind:{endpoint}", "echo", "hello", "--codec", "text", "--timeout", "60s")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert f"zroute: bound to {endpoint}, waiting for a server\n" in done.stderr


def test_what_can_not_be_opened_is_5() -> None:
    """An address in use, or one inside another process, ends the command with 5."""
    with rep() as (endpoint, _):
        done = zroute("request", f"bind:{endpoint}", "a")
        assert (done.returncode, "this address is in use" in done.stderr) == (5, True)
    done = zroute("request", "inproc://a", "a")
    assert (done.returncode, "inside its own process" in done.stderr) == (5, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a", "hello"), "--codec text"),
        (("a.*",), "use a topic without wildcards"),
        (("prices.{symbol}",), "use a topic without wildcards, such as 'prices.x'"),
        (("a", "1", "-H", "x"), "'x': expected KEY=VALUE"),
        (("a", "1", "-H", "x=" + "y" * 5000), "the headers have"),
        (("a", "1", "-H", "x=1", "--wire", "plain"), "--header needs the tracked wire"),
        (("a", "1", "--stream", "--wire", "plain"), "--stream needs the tracked wire"),
        (("a", "1", "--timeout", "soon"), "not a duration"),
        ((), "Missing argument 'TOPIC'"),
    ],
)
def test_what_can_not_be_sent_is_a_usage_error(arguments: tuple[str, ...], said: str) -> None:
    """An invalid request is a usage error, and nothing is sent."""
    done = zroute("request", "tcp://127.0.0.1:1", *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_shows_colours(tmp_path: Path) -> None:
    """On a terminal the reply is coloured, and plain with NO_COLOR."""
    with server() as (endpoint, _):
        asked = patient("request", endpoint, "prices.EURUSD", '{"size": 3}')
        coloured, code = on_terminal(*asked, cwd=tmp_path)
        bare, _ = on_terminal(*asked, cwd=tmp_path, NO_COLOR="1")
    assert (code, "\x1b[" in coloured) == (0, True)
    assert bare.strip() == '{"price": 4.5, "symbol": "EURUSD"}'

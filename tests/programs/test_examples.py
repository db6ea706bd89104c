"""Every example runs as its docstring says, over real sockets and on free ports."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from tests.programs.terminal import Network
from tests.support import ROOT, Child, free_port
from zroute.testing import TestApp

EXAMPLES = ROOT / "examples"


def command_of(path: Path) -> list[str]:
    """Return the command line in the docstring of an example."""
    found = re.search(r"^ *(zroute run .*)$", path.read_text(), re.MULTILINE)
    assert found, f"{path} does not say how it is run"
    return shlex.split(found[1])[1:]


def started(folder: Path, name: str, *more: str, env: dict[str, str] | None = None) -> Child:
    """Start an example with ``more`` in place of its last option, so that tests wait for output, not for time."""
    arguments = [*command_of(folder / name)[:-2], *more]
    return Child("-m", "zroute", *arguments, cwd=folder.parent, env=env)


def all_of(*texts: str) -> Callable[[list[str]], bool]:
    """Return a check that each text is in some line."""
    return lambda lines: all(any(text in line for line in lines) for text in texts)


def ended(child: Child) -> None:
    """Stop the example with SIGINT; it must exit with 0, and report neither malformed nor lost messages."""
    assert child.end() == 0, child.err
    assert any("received" in line for line in child.err), child.err
    assert not any(re.search(r"(malformed|lost) [1-9]", line) for line in child.err), child.err


def test_every_example_says_how_it_is_run() -> None:
    """The first lines of an example say what it is and which command runs it."""
    for path in [*EXAMPLES.glob("*.py"), EXAMPLES / "desk" / "__init__.py"]:
        assert re.match(r"run (--app-dir )?examples\b", " ".join(command_of(path))), path
        assert 20 <= len(path.read_text().splitlines()) <= 110 or path.name == "__init__.py", path


@pytest.mark.usefixtures("network")
def test_alerts(folder: Path) -> None:
    """A quote over the limit becomes an alert in another app, and the heartbeat arrives too."""
    with started(folder, "alerts.py") as child:
        child.wait_for(all_of(" x ", "high alert: ", "the desk is well"))
        ended(child)


@pytest.mark.usefixtures("network")
def test_ticker(folder: Path) -> None:
    """Each tick sends quotes and a status, and each reaches the handler of its type."""
    with started(folder, "ticker.py") as child:
        child.wait_for(all_of("AAPL", "MSFT", "ACME", "market open, 3 quotes"))
        ended(child)


@pytest.mark.usefixtures("network")
def test_bars(folder: Path) -> None:
    """Quotes of one second become one bar for each symbol."""
    with started(folder, "bars.py") as child:
        child.wait_for(all_of("bar AAPL", "bar MSFT", "bar ACME"))
        ended(child)


def test_news_desk(folder: Path, network: Network) -> None:
    """Each story reaches only its most specific handler; the fallback receives the rest.

    On NATS, a story without a handler does not arrive, so the fallback receives none.
    """
    with started(folder, "news_desk.py") as child:
        fallback = "no desk for news.local.harbour: New crane arrives"
        expected = {
            "*** VOLCANO WAKES UP ***",
            "news.culture: Opera reopens",
            "Sports: Home side wins",
            "Weather in Oslo: Snow by noon",
            *network.flags(fallback),
        }
        lines = child.wait_for(all_of(*expected))
        ended(child)
        assert set(lines) == expected


@pytest.mark.usefixtures("network")
def test_weather(folder: Path) -> None:
    """One handler receives stamped JSON as objects and all other bodies as bytes."""
    with started(folder, "weather.py") as child:
        child.wait_for(all_of("Oslo: -3.5 °C, 0.", "raw: BERGEN;4;CRC=77"))
        ended(child)


@pytest.mark.usefixtures("network")
def test_desk(folder: Path) -> None:
    """The modules of a package run as one app: fills are published, and an error becomes an alert."""
    with started(folder, "desk/__init__.py") as child:
        child.wait_for(all_of("exchange sees {'order'", "exchange sees {'text': 'order 6 is worth 11400'}"))
        ended(child)


@pytest.mark.parametrize("kind", ["epoll", "asyncio"])
@pytest.mark.usefixtures("network")
def test_quotes_db(folder: Path, kind: str) -> None:
    """Every handled quote is a row in the database, and the report reads the rows."""
    with started(folder, "quotes_db.py", "--reactor", kind) as child:
        child.wait_for(all_of("AAPL", "MSFT", "ACME"))
        ended(child)
    handled = sum(int(found) for line in child.err for found in re.findall(r"handled (\d+)", line))
    with closing(sqlite3.connect(folder.parent / "quotes.db")) as database:
        rows = list(database.execute("SELECT symbol, price, volume FROM quotes"))
    assert handled == len(rows) >= 3
    assert {symbol for symbol, _, _ in rows} == {"AAPL", "MSFT", "ACME"}


class Server:
    """A real HTTP server on a free port that stores POST bodies and answers 202."""

    def __init__(self) -> None:
        self.posted: list[object] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections stay open, as on production servers

            def do_POST(self) -> None:
                server.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(202)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/news"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.mark.parametrize(
    ("name", "kind"), [("webhook", "epoll"), ("webhook", "asyncio"), ("webhook_asyncio", "asyncio")]
)
@pytest.mark.usefixtures("network")
def test_webhooks(folder: Path, name: str, kind: str) -> None:
    """News reaches a real HTTP server, through a Twisted client and through an asyncio client."""
    program = folder / f"{name}.py"
    text = re.sub(r"timeout(=|\()5\b", r"timeout\g<1>100", program.read_text())  # the machine may be busy
    assert text != program.read_text()
    program.write_text(text)
    with (
        closing(Server()) as server,
        started(folder, f"{name}.py", "--reactor", kind, env={"WEBHOOK": server.url}) as child,
    ):
        child.wait_for(lambda lines: lines.count("Volcano wakes up: 202") >= 2)
        ended(child)
    assert server.posted[:2] == [{"text": "Volcano wakes up"}] * 2
    # On a busy machine, the watchdog warns of a slow turn of the reactor, and a client of NATS of a slow server.
    slow = ("blocked the reactor", "is running again", "; trying again")
    warned = [line for line in child.err if not any(text in line for text in slow)]
    assert not [line for line in warned if "ERROR" in line or "WARNING" in line], child.err


@pytest.mark.usefixtures("network")
def test_a_webhook_that_is_down_costs_only_its_message(folder: Path) -> None:
    """While the server is down, the handler fails with the reason; the app continues and stops cleanly."""
    with started(folder, "webhook.py", env={"WEBHOOK": f"http://127.0.0.1:{free_port()}/"}) as child:
        child.wait_for(lambda lines: sum("forward() at" in line for line in lines) >= 2, stream="err")
        assert child.end() == 0, child.err


@pytest.mark.parametrize("kind", ["twisted", "asyncio"])
def test_quotes_db_with_another_database(
    example: Callable[[str], Any], kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The database can be replaced in a test: the handler and the timer run without sockets and files."""
    quotes_db = example("quotes_db")
    quote = quotes_db.Quote("ACME", 9.5, 3)

    class Rows(list[object]):
        async def add(self, quote: object) -> None:
            self.append(quote)

        async def highest(self) -> list[tuple[str, float]]:
            return [("ACME", 9.5)]

    with TestApp(quotes_db.app, {quotes_db.Database: (rows := Rows())}, reactor=kind) as t:
        t.publish("stocks.ACME", quote)
        assert rows == [quote]
        t.advance(0.5)
    assert capsys.readouterr().out == "ACME      9.50 at its highest\n"


@pytest.mark.parametrize("kind", ["twisted", "asyncio"])
def test_webhook_with_another_client(
    example: Callable[[str], Any], kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The HTTP client can be replaced in a test: no request is sent."""
    webhook = example("webhook")

    class Silent:
        async def call(self, text: str) -> int:
            return 204

    with TestApp(webhook.app, {webhook.Webhook: Silent()}, reactor=kind) as t:
        t.publish("news.breaking", "Volcano wakes up")
    assert capsys.readouterr().out == "Volcano wakes up: 204\n"


def test_webhook_asyncio_with_a_transport_of_the_test(
    example: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """httpx itself can run on a transport in memory; a slow answer ends with a timeout."""
    webhook = example("webhook_asyncio")
    httpx = pytest.importorskip("httpx")

    async def answer(request: Any) -> Any:
        if b"slow" in request.content:
            await asyncio.sleep(60)
        return httpx.Response(201)

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    with TestApp(webhook.app, {httpx.AsyncClient: client}, reactor="asyncio") as t:
        t.publish("news.breaking", "Volcano wakes up")
        t.publish("news.breaking", "slow")
        with pytest.raises(TimeoutError):
            t.advance(5)
    assert capsys.readouterr().out == "Volcano wakes up: 201\n"


@pytest.fixture
def publisher() -> Iterator[tuple[zmq.Socket[bytes], str]]:
    """Return a bound PUB socket that does not use zroute, and its address."""
    context = zmq.Context()
    socket = context.socket(zmq.PUB)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    yield socket, f"tcp://127.0.0.1:{port}"
    socket.close(linger=0)
    context.term()


def test_foreign(folder: Path, publisher: tuple[zmq.Socket[bytes], str]) -> None:
    """Every message of a foreign publisher is handled or reported, and the next one is handled."""
    socket, endpoint = publisher
    messages = (
        [b"rawblock", b"\x01\x02", (7).to_bytes(4, "little")],
        [b"\xff\x01AB", b"12345"],
        [b"log.WARNING.disk", b"nearly full\n"],
        [b'metrics.load\0{"cpu": 0.5}'],
        [b"metrics.disk\0" + msgspec.msgpack.encode({"free": 3})],
        [b"log.INFO", b"\xff\xfe"],
        [b"rawblocks", b"?"],
    )
    with started(folder, "foreign.py", "--sub", endpoint) as child:
        child.line_with("connects to", stream="err")
        wanted = all_of(
            "rawblock 7: 0102",
            "instrument ff014142: 5 bytes",
            "WARNING: nearly full",
            "metrics.load: {'cpu': 0.5}",
            "metrics.disk: {'free': 3}",
            "dead letter of 2 part(s) on 'log.INFO'",
            "no handler for 'rawblocks'",
        )

        def sent_and_seen(lines: list[str]) -> bool:
            for message in messages:
                socket.send_multipart(message)
            return wanted(lines)

        child.wait_for(sent_and_seen)
        assert child.end() == 0

"""Every example runs as its docstring says, over real sockets, on ports of its own."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from tests.support import ROOT, Child, free_port

EXAMPLES = ROOT / "examples"
_PORT = re.compile(r"(?<=tcp://127\.0\.0\.1:)\d+")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples in which every port is one that is free here."""
    copy = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    ports: dict[str, str] = {}
    for path in copy.rglob("*.py"):
        path.write_text(_PORT.sub(lambda found: ports.setdefault(found[0], str(free_port())), path.read_text()))
    return copy


def command_of(path: Path) -> list[str]:
    """The command line in the docstring of an example."""
    found = re.search(r"^ *(zroute run .*)$", path.read_text(), re.MULTILINE)
    assert found, f"{path} does not say how it is run"
    return shlex.split(found[1])[1:]


def started(folder: Path, name: str, *more: str) -> Child:
    """The command of an example, with ``more`` in place of its last option: tests wait for output, not for time."""
    arguments = [*command_of(folder / name)[:-2], *more]
    return Child("-m", "zroute", *arguments, cwd=folder.parent)


def all_of(*texts: str) -> Callable[[list[str]], bool]:
    """Whether each text stands in some line."""
    return lambda lines: all(any(text in line for line in lines) for text in texts)


def ended(child: Child) -> None:
    """The example stops at SIGINT with 0 and a summary that knows of no failure of the framework."""
    assert child.end() == 0, child.err
    assert any("received" in line for line in child.err), child.err
    assert not any("malformed 1" in line for line in child.err), child.err


def test_every_example_says_how_it_is_run() -> None:
    """I open an example, and its first lines tell me what it is and the command that runs it."""
    for path in [*EXAMPLES.glob("*.py"), EXAMPLES / "desk" / "__init__.py"]:
        assert command_of(path)[:3] == ["run", "--app-dir", "examples"], path
        assert 20 <= len(path.read_text().splitlines()) <= 60 or path.name == "__init__.py", path


def test_alerts(folder: Path) -> None:
    """A quote over the limit becomes an alert in another app, and the heartbeat arrives beside it."""
    with started(folder, "alerts.py") as child:
        child.wait_for(all_of(" x ", "high alert: ", "the desk is well"))
        ended(child)


def test_ticker(folder: Path) -> None:
    """Each tick brings quotes and a status, each to the handler of its type."""
    with started(folder, "ticker.py") as child:
        child.wait_for(all_of("AAPL", "MSFT", "ACME", "market open, 3 quotes"))
        ended(child)


def test_bars(folder: Path) -> None:
    """Quotes of a second go in, and one bar for each symbol comes out."""
    with started(folder, "bars.py") as child:
        child.wait_for(all_of("bar AAPL", "bar MSFT", "bar ACME"))
        ended(child)


def test_news_desk(folder: Path) -> None:
    """Each story goes to its most specific handler only, and the rest to the fallback."""
    with started(folder, "news_desk.py") as child:
        expected = (
            "*** VOLCANO WAKES UP ***",
            "news.culture: Opera reopens",
            "Sports: Home side wins",
            "Weather in Oslo: Snow by noon",
            "nobody's desk: news.local.harbour: New crane arrives",
        )
        lines = child.wait_for(all_of(*expected))
        ended(child)
        assert set(lines) == set(expected)


def test_weather(folder: Path) -> None:
    """One handler takes stamped JSON as objects, and what is not JSON as bytes."""
    with started(folder, "weather.py") as child:
        child.wait_for(all_of("Oslo: -3.5 °C, 0.", "raw: BERGEN;4;CRC=77"))
        ended(child)


def test_desk(folder: Path) -> None:
    """The modules of a package work as one app: fills are published, and an error becomes an alert."""
    with started(folder, "desk/__init__.py") as child:
        child.wait_for(all_of("exchange sees {'order'", "exchange sees {'text': 'order 6 is worth 11400'}"))
        ended(child)


@pytest.fixture
def publisher() -> Iterator[tuple[zmq.Socket[bytes], str]]:
    """A bound PUB socket of a program that knows nothing of zroute."""
    context = zmq.Context()
    socket = context.socket(zmq.PUB)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    yield socket, f"tcp://127.0.0.1:{port}"
    socket.close(linger=0)
    context.term()


def test_foreign(folder: Path, publisher: tuple[zmq.Socket[bytes], str]) -> None:
    """Whatever a foreign publisher sends is read or reported, and the next message is handled."""
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
            "nobody takes 'rawblocks'",
        )

        def sent_and_seen(lines: list[str]) -> bool:
            for message in messages:
                socket.send_multipart(message)
            return wanted(lines)

        child.wait_for(sent_and_seen)
        assert child.end() == 0

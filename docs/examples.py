"""Record the output of the programs in examples/ as sessions for the documentation.

    python -m docs.examples              record all sessions in docs/sessions/
    python -m docs.examples chat bars    record these sessions

A session is a list of commands, each in its own terminal, which run together on a copy of the examples.
``tests/programs/test_sessions.py`` plays every recorded session again and compares the lines.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs

from tests.support import PATIENCE, ROOT, Child

SESSIONS = Path(__file__).parent / "sessions"
TERMINALS = ("first", "second", "third", "fourth")
LINES = 16
"""The maximum number of lines of a terminal; an ellipsis replaces the rest."""

_PORT = re.compile(r"(?<=127\.0\.0\.1[: ])\d+|(?<=\"tcp:)\d+")
_FOR = re.compile(r" --for \S+$")
_NC = """
import socket, sys, threading, time
while True:
    try: made = socket.create_connection((sys.argv[1], int(sys.argv[2]))); break
    except OSError: time.sleep(0.1)
lines = made.makefile("rw", buffering=1)
threading.Thread(target=lambda: [print(line, end="", flush=True) for line in lines], daemon=True).start()
for line in sys.stdin: lines.write(line); lines.flush()
"""
_CURL = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"
_PROGRAMS = {
    "zroute": ("-m", "zroute"),
    "twistd": ("-c", "from twisted.scripts.twistd import run; run()"),
    "nc": ("-c", _NC),
    "curl": ("-c", _CURL),
}


@attrs.frozen
class Terminal:
    """Commands that are typed into one terminal, one after the other.

    The last command runs during the session, and the lines of ``typed`` are written to it. It stops by itself if
    ``alone`` is True, otherwise by Ctrl-C. If ``goes_on`` is False, all commands end by themselves.
    """

    commands: tuple[str, ...]
    goes_on: bool = True
    alone: bool = False
    typed: tuple[str, ...] = ()


@attrs.frozen
class Session:
    """The terminals of a session in the order of their start, and the texts that a complete session shows."""

    terminals: tuple[Terminal, ...]
    shows: tuple[str, ...] = ()
    needs_http: bool = False


def alone(command: str, *, needs_http: bool = False) -> Session:
    """Return the session of one program that stops by itself."""
    return Session((Terminal((command,), alone=True),), needs_http=needs_http)


def run(command: str) -> Terminal:
    """Return a terminal with one program, until Ctrl-C."""
    return Terminal((command,))


def sends(*commands: str) -> Terminal:
    """Return a terminal with commands that end."""
    return Terminal(commands, goes_on=False)


RUN, TAIL, PUB = "zroute run --app-dir examples", "zroute tail tcp://127.0.0.1", "zroute pub tcp://127.0.0.1"
ALL = {
    "ticker": alone(f"{RUN} ticker:feed ticker:screen --for 10s"),
    "alerts": alone(f"{RUN} alerts:market alerts alerts:pager --for 10s"),
    "news_desk": alone(f"{RUN} news_desk:agency news_desk:desk --for 3s"),
    "weather": alone(f"{RUN} weather:stations weather:office --for 3s"),
    "farm": Session(
        (
            run(f"{RUN} farm:worker"),
            run(f"{RUN} farm:slow"),
            Terminal((f"{RUN} farm:office --for 5s",), alone=True),
        ),
        ("dead    ann: Reject: nothing to compute", "slow    ann: order"),
    ),
    "bars": alone(f"{RUN} ticker:feed bars bars:chart --for 10s"),
    "two_apps": Session(
        (
            run("zroute run examples/two_apps.py:collector examples/two_apps.py:screen"),
            sends(f'{PUB}:5745 hits.home \'{{"user": "ann"}}\' --every 100ms --count 20'),
        ),
        ("home",),
    ),
    "order_book": Session(
        (
            run("zroute run examples/order_book.py:feed"),
            Terminal(("zroute run examples/order_book.py:desk --for 3500ms",), alone=True),
        ),
        ("3 books",),
    ),
    "price_service": Session(
        (
            run(f"{RUN} price_service"),
            Terminal((f"{RUN} price_service:client --for 5s",), alone=True),
            sends("zroute request tcp://127.0.0.1:5773 prices.ACME '{\"size\": 3}'"),
        ),
        ("ACME: 3 cost", "LOST: 409", '"each"'),
    ),
    "most_specific": Session(
        (
            run(f"{RUN} most_specific"),
            sends(
                f'{PUB}:5740 weather.oslo \'{{"timestamp": 1767225600, "data": {{"celsius": -3.5}}}}\' --wire plain',
                f"{PUB}:5740 weather.oslo '4;CRC=77' --wire plain --codec raw",
                f"{PUB}:5740 news.sports.final "
                '\'{"timestamp": 1767225600, "data": {"title": "We won"}}\' --wire plain',
                f'{PUB}:5740 newsletter \'{{"timestamp": 1767225600, "data": [1, 2]}}\' --wire plain',
            ),
        ),
        ("somewhere else",),
    ),
    "foreign": Session(
        (
            run(f"{RUN} foreign --sub tcp://127.0.0.1:28332"),
            sends(
                f"{PUB}:28332 log.WARNING.disk 'nearly full' --codec text --wire multipart",
                f"{PUB}:28332 metrics.load '{{\"cpu\": 0.5}}' --wire multipart",
                f"{PUB}:28332 rawblocks '?' --codec raw --wire multipart",
            ),
        ),
        ("nearly full", "cpu", "rawblocks"),
    ),
    "bridge": Session(
        (
            run(f"{RUN} bridge"),
            run(f"{TAIL}:5742"),
            sends(
                f'{PUB}:5741 temp.kitchen \'{{"celsius": 21.5, "battery": 80}}\' --wire multipart',
                f'{PUB}:5741 temp.kitchen \'{{"celsius": "warm"}}\' --wire multipart',
            ),
        ),
        ("rooms.kitchen.temperature", "dead.unreadable"),
    ),
    "inventory": Session(
        (
            run("zroute run examples/inventory.py"),
            run(f"{TAIL}:5771 'stock.>'"),
            sends("zroute pub connect:tcp://127.0.0.1:5770 orders.bolt 5"),
        ),
        ("stock.bolt",),
    ),
    "quotes_db": alone(f"{RUN} ticker:feed quotes_db --for 10s"),
    "enrich": Session(
        (
            run(f"{RUN} enrich --for 600s"),
            run(f"{TAIL}:5726"),
            sends("zroute pub connect:tcp://127.0.0.1:5725 orders.ada '{\"id\": 7}'"),
        ),
        ("enriched.ada",),
        needs_http=True,
    ),
    "webhook": alone(f"{RUN} news_desk:agency webhook --for 3s", needs_http=True),
    "webhook_asyncio": alone(f"{RUN} news_desk:agency webhook_asyncio --reactor asyncio --for 3s", needs_http=True),
    "desk": alone(f"{RUN} desk.app:exchange desk.app --for 3s"),
    "from_environment": Session(
        (
            Terminal(
                (
                    "export ZROUTE_SUB=tcp://127.0.0.1:5743 ZROUTE_PUB=tcp://127.0.0.1:5744",
                    "export DISK_LIMIT=90 DISK_IGNORE=tmp,scratch",
                    f"{RUN} from_environment",
                )
            ),
            run(f"{TAIL}:5744"),
            sends(f"{PUB}:5743 disks.var '{{\"percent\": 93.5}}'"),
        ),
        ("warnings.var",),
    ),
    "thumbnails": Session(
        (
            run(f"{RUN} thumbnails"),
            run(f"{TAIL}:5747 'progress.*'"),
            Terminal((f"{RUN} thumbnails:cameras --for 5s",), alone=True),
        ),
        ("progress.door", "progress.yard"),
    ),
    "chat": Session(
        (
            run(f"{RUN} chat --for 600s"),
            Terminal(("nc 127.0.0.1 5720",), typed=("/join lobby", "hello")),
        ),
        ("guest1: hello",),
    ),
    "sensor_gateway": Session(
        (run("zroute run examples/sensor_gateway.py"), run(f"{TAIL}:5760 'sensors.>' -n 6")),
        ("sensors.roof", "sensors.cellar"),
    ),
    "alarm": Session(
        (
            run("PYTHONPATH=examples/twistd twistd -ny examples/twistd/alarm.tac"),
            run(f"{TAIL}:5749"),
            sends(f"{PUB}:5748 smoke.kitchen '{{\"density\": 0.3}}'", "curl http://127.0.0.1:8748/"),
        ),
        ("smoke in the kitchen", "ALARM"),
    ),
}
"""The session of each example."""


# -- a stage to play on ----------------------------------------------------------------------------------


class Stage:
    """A copy of the examples in ``folder``; ``port`` maps a port in an example to the port to use."""

    def __init__(self, folder: Path, port: Callable[[str], str] = str) -> None:
        self.folder = folder
        self.port = port
        copy = shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        for path in (*copy.rglob("*.py"), *copy.rglob("*.tac")):
            path.write_text(self.moved(path.read_text()))

    def moved(self, text: str) -> str:
        """Return ``text`` with the ports of this stage."""
        return _PORT.sub(lambda found: self.port(found[0]), text)

    def start(self, command: str, environment: dict[str, str]) -> Child:
        """Start a command of a session."""
        words = shlex.split(self.moved(command))
        environment = dict(environment)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = f"{value}:{ROOT}" if name == "PYTHONPATH" else value
        return Child(*_PROGRAMS[words[0]], *words[1:], cwd=self.folder, env=environment)


class _Service(BaseHTTPRequestHandler):
    """The HTTP service that some examples call. It accepts any POST, and knows the city of each customer."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(202, b"")

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"city": "London"}).encode())

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def http_service(port: int) -> Iterator[None]:
    """Serve HTTP in a thread."""
    with ThreadingHTTPServer(("127.0.0.1", port), _Service) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class Played:
    """A terminal of a running session: its commands, the process of the last one, and all printed lines."""

    def __init__(self, stage: Stage, terminal: Terminal) -> None:
        self.terminal = terminal
        self._stage = stage
        self._environment: dict[str, str] = {}
        self._child: Child | None = None
        self.shown: list[tuple[str, list[str]]] = []
        """Each command with the lines that it has printed since its last start."""

    def start(self, stack: ExitStack, *, endless: bool) -> None:
        """Start the program of the terminal; ``endless`` removes its time limit."""
        for command in self.terminal.commands[:-1]:
            words = shlex.split(self._stage.moved(command))
            self._environment |= dict(word.split("=", 1) for word in words[1:])  # export NAME=VALUE
            self.shown.append((command, []))
        command = self.terminal.commands[-1]
        typed = _FOR.sub("", command) if endless else command
        # On a busy machine, a program may need longer than the default to handle its backlog.
        unhurried = {"ZROUTE_DRAIN_TIMEOUT": "100s"} if endless else {}
        self._child = stack.enter_context(self._stage.start(typed, self._environment | unhurried))
        self.shown.append((command, [] if " twistd " in command else self._child.out))

    def act(self) -> None:
        """Type lines into the running program, or run the commands that end by themselves."""
        if self._child is not None:
            if self._child.process.poll() is None:
                self._child.write("".join(f"{line}\n" for line in self.terminal.typed))
            return
        self.shown = []
        for command in self.terminal.commands:
            with self._stage.start(command, {}) as child:
                child.end(None)
                self.shown.append((command, child.out))

    def end(self, *, alone: bool) -> None:
        """Stop the program as Ctrl-C does, or wait for its end if it stops by itself."""
        if self._child is not None and self._child.end(None if alone else signal.SIGINT) > 0:
            raise RuntimeError("\n".join([f"failed: {self.terminal.commands[-1]}", *self._child.err]))

    @property
    def lines(self) -> list[str]:
        """Everything that the terminal shows, without the commands."""
        return [line for _, lines in self.shown for line in lines]


def play(
    session: Session, stage: Stage, is_complete: Callable[[list[str]], bool], *, pause: float, endless: bool
) -> list[Played]:
    """Run a session until ``is_complete`` returns True for its lines, and return its terminals.

    Args:
        session: The session to run.
        stage: The copy of the examples to run it on.
        is_complete: Takes all lines, and returns True to end the session.
        pause: Seconds to wait after each start, so that a recording runs each command only once. Commands that end by
            themselves are repeated until the session is complete, because a reader may have joined too late.
        endless: Run programs with a time limit until the session is complete.

    Raises:
        TimeoutError: The session was not complete in time.
    """
    with ExitStack() as stack:
        if session.needs_http:
            stack.enter_context(http_service(int(stage.port("8080"))))
        played = [Played(stage, terminal) for terminal in session.terminals]
        for each in played:
            if each.terminal.goes_on:
                each.start(stack, endless=endless)
                time.sleep(pause)
        deadline = time.monotonic() + PATIENCE
        lines: list[str] = []
        while not is_complete(lines):
            if time.monotonic() > deadline:
                raise TimeoutError("\n".join(["the session is not complete:", *lines]))
            for each in played:
                each.act()
            time.sleep(max(pause, 0.5))
            lines = [line for each in played for line in each.lines]
        for each in reversed(played):
            each.end(alone=each.terminal.alone and not endless)
        return played


# -- records ---------------------------------------------------------------------------------------------


def shape(line: str) -> str:
    """Return the part of a line that is the same in each run: numbers, symbols and bars are replaced."""
    line = re.sub(r"\b(ACME|AAPL|MSFT|NVR)\b", "SYMBOL", line)
    return re.sub(r"\s+", " ", re.sub(r"#+", "#", re.sub(r"-?\d+(\.\d+)?", "0", line))).strip()


def shown_by(session: Session) -> Callable[[list[str]], bool]:
    """Return a function that returns True if the lines contain all texts that the session has to show."""
    return lambda lines: all(any(text in line for line in lines) for text in session.shows)


def record(name: str) -> str:
    """Play the session of an example on the ports that it names, and return it as blocks of Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        played = play(ALL[name], stage, shown_by(ALL[name]), pause=1.5, endless=False)
    blocks = []
    for number, each in enumerate(played):
        title = f' title="{TERMINALS[number]} terminal"' if len(played) > 1 else ""
        blocks.append(f"```console{title}\n")
        for command, lines in each.shown:
            typed = each.terminal.typed if command == each.terminal.commands[-1] else ()
            kept = [*typed, *lines]
            blocks.extend(f"{line}\n" for line in (f"$ {command}", *kept[:LINES], *["…"][: len(kept) > LINES]))
        blocks.append("```\n\n")
    return "".join(blocks).rstrip("\n") + "\n"


def main(names: Sequence[str]) -> None:
    """Record the sessions of ``names``, or all of them."""
    SESSIONS.mkdir(exist_ok=True)
    for name in names or ALL:
        (SESSIONS / f"{name}.md").write_text(record(name))
        print(f"recorded {name}")


if __name__ == "__main__":
    main(sys.argv[1:])

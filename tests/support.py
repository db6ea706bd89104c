"""Helpers of the tests: child processes with awaitable output, and free ports."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tests.interpreters import PATIENCE, ROOT, THOROUGH, start


def wire_vectors() -> dict[str, list[dict[str, Any]]]:
    """Return the test vectors of the wire.

    The file contains 64-bit numbers as decimal text, because many parsers of JSON round them. Here they are integers.
    """

    def read(fields: dict[str, Any]) -> dict[str, Any]:
        for name in fields.keys() & {"sequence", "sent_at_ns"}:
            fields[name] = int(fields[name])
        for name in fields.keys() & {"further", "numbers"}:
            fields[name] = [[key, int(number)] for key, number in fields[name]]
        return fields

    found: dict[str, list[dict[str, Any]]] = json.loads(
        (ROOT / "tests" / "data" / "wire-vectors.json").read_text(), object_hook=read
    )
    return found


def sized(thorough: int, quick: int) -> int:
    """Return the number of messages, cycles or examples of a test in the current profile."""
    return thorough if THOROUGH else quick


def spans(first: float) -> Iterator[float]:
    """Yield ``first`` and two longer times in seconds, for the attempts of a test that is about a limit of time.

    A machine that stands still for a moment exceeds a short limit; a fault that never ends, or that grows with the
    limit, exceeds all of them. The test leaves the loop when an attempt was in time.
    """
    yield from (first, 5 * first, 25 * first)


_held: deque[socket.socket] = deque(maxlen=200)
"""The sockets that keep the last chosen ports."""


def hold(host: str, port: int = 0) -> int:
    """Keep the system from giving a port of ``host`` to other tests; return the port. 0 chooses one.

    Tests run in several processes. A port that is only free when it is chosen may belong to another test by the time a
    program of this test binds it, or binds it again. Linux does not choose a port with a bound socket for another
    socket. Programs can still bind the port if both sockets have SO_REUSEADDR, as those of ZeroMQ, Twisted, asyncio and
    nats-server do. Until a program listens, connections to the port are refused.

    Raises:
        OSError: The port is in use.
    """
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if sys.platform == "linux":
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, port))
    except OSError:
        held.close()
        raise
    number = int(held.getsockname()[1])
    if sys.platform == "linux":
        if len(_held) == _held.maxlen:
            _held.popleft().close()
        _held.append(held)
    else:  # other systems would refuse the port to the program
        held.close()
    return number


def free_port(host: str = "127.0.0.1") -> int:
    """Return a free TCP port of ``host``, which no other test gets."""
    return hold(host)


def free_port_of(first: str, *others: str) -> int:
    """Return a TCP port that is free at several addresses of this machine."""
    for _ in range(50):
        port = hold(first)
        with suppress(OSError):
            for host in others:
                hold(host, port)
            return port
    raise AssertionError(f"no port is free at {first}, {', '.join(others)}")


def free_endpoint() -> str:
    """Return a tcp endpoint of a free port."""
    return f"tcp://127.0.0.1:{free_port()}"


class Meeting(NamedTuple):
    """The two endpoints of one free port: one peer binds, the others connect."""

    bind: str
    connect: str


def has_ipv6() -> bool:
    """Return True if this machine has the address ::1."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


class Way:
    """How a peer addresses the other: by "address", by host "name", or by "ipv6" address."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._host = "[::1]" if name == "ipv6" else "127.0.0.1"
        self.wildcard = f"tcp://{self._host}:*"
        """The endpoint to bind if the system chooses the port."""

    def meeting(self) -> Meeting:
        """Return the endpoints of a free port."""
        address = f"tcp://{self._host}:{free_port(self._host.strip('[]'))}"
        return Meeting(address, self.to(address))

    def to(self, address: str) -> str:
        """Return the endpoint to connect to a peer that is bound to ``address``."""
        return address.replace("127.0.0.1", "localhost") if self.name == "name" else address


class Child:
    """A child process of Python whose output lines can be awaited.

    Use it in a ``with`` statement, which kills the process at its end. `tests.interpreters` explains ``fresh``.
    """

    alive: ClassVar[set[Child]] = set()
    """The children of this process that still run."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path | str = ROOT,
        env: Mapping[str, str | None] | None = None,
        fresh: bool = False,
        start_new_session: bool = False,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.process = start(
            *arguments,
            cwd=cwd,
            env={"PYTHONUNBUFFERED": "1", **(env or {})},
            fresh=fresh,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=start_new_session,
            process_group=None if start_new_session else 0,  # its own process group, which may outlive it
            pass_fds=pass_fds,
        )
        self.alive.add(self)
        self.out: list[str] = []
        self.err: list[str] = []
        self._news: queue.Queue[None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterator[str], lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))
            self._news.put(None)
        self._news.put(None)

    def wait_for(
        self, found: Callable[[list[str]], object], *, stream: str = "out", patience: float = PATIENCE
    ) -> list[str]:
        """Wait until ``found`` is true for the lines so far; return the lines.

        Fails with all output after the timeout.
        """
        lines: list[str] = getattr(self, stream)
        deadline = time.monotonic() + patience
        while not found(lines):
            if time.monotonic() > deadline or (self.process.poll() is not None and not self._alive()):
                if found(lines):
                    break
                raise AssertionError(
                    f"the expected lines did not arrive; exit {self.process.poll()}\nout: {self.out}\nerr: {self.err}"
                )
            try:
                self._news.get(timeout=0.5)
            except queue.Empty:
                continue
        return lines

    def line_with(self, text: str, *, stream: str = "out", patience: float = PATIENCE) -> str:
        """Wait for a line that contains ``text`` and return it."""
        lines = self.wait_for(lambda seen: any(text in line for line in seen), stream=stream, patience=patience)
        return next(line for line in lines if text in line)

    def write(self, text: str) -> None:
        """Write to the child's standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self, number: int | None = signal.SIGINT, patience: float = PATIENCE) -> int:
        """Send a signal and return the exit code when all output is read.

        With None as the number, only wait for the end. Fails with all output after the timeout.
        """
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {patience:g} s\nout: {self.out}\nerr: {self.err}") from None
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    def _alive(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)

    def __enter__(self) -> Child:
        return self

    def kill(self) -> None:
        """Kill the child and the processes that it started, which hold its output open."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.wait()
        self.alive.discard(self)
        for reader in self._readers:
            reader.join(30)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


_OWN = os.getpid()


def end_at_once(number: int, _: object) -> None:
    """Handle a signal: kill the children of this process and end by the signal itself."""
    for child in Child.alive if os.getpid() == _OWN else ():  # a fork has no children of its own
        child.kill()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def heed_interrupts() -> None:
    """Do not ignore SIGINT. A shell ignores it in a job in the background, and programs of tests would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def module_file(folder: Path, name: str, source: str) -> Iterator[Path]:
    """Write ``source`` to ``folder/name.py``, which a child process can import."""
    path = folder / f"{name}.py"
    path.write_text(source)
    yield path

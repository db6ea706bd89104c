"""A TCP proxy that cuts, resets, refuses, delays, throttles and stalls its connections."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

_RST = struct.pack("ii", 1, 0)  # SO_LINGER with 0 seconds: close() sends RST


class TroubleProxy:
    """A proxy from a port of its own to ``port`` of the same ``host``.

    Its methods may be called from any thread.

    Args:
        port: The port to connect to.
        host: The address of both ports.
        buffer: The size in bytes of the buffers of each connection, in each direction. Default: None, which lets the
            system choose, so that a connection that stalls holds several megabytes.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", buffer: int | None = None) -> None:
        self._target = port
        self._host = host
        self._buffer = buffer
        self._writers: set[asyncio.StreamWriter] = set()
        self._refusing = False
        self._delay = 0.0
        self._piece = 1 << 16
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait()

    @property
    def endpoint(self) -> str:
        """The endpoint to connect to."""
        return f"tcp://[{self._host}]:{self.port}" if ":" in self._host else f"tcp://{self._host}:{self.port}"

    def cut(self) -> None:
        """Close all connections; accept new ones."""
        self._call(self._close)

    def reset(self) -> None:
        """Reset all connections with RST; data in flight is lost."""
        self._call(lambda: self._close(reset=True))

    def refuse(self) -> None:
        """Close all connections, and new ones at once, until `flow` is called."""

        def change() -> None:
            self._refusing = True
            self._close()

        self._call(change)

    def stall(self) -> None:
        """Forward nothing until `flow` is called; connections stay open."""
        self._call(self._flowing.clear)

    def slow(self, delay: float, piece: int) -> None:
        """Wait ``delay`` seconds before each ``piece`` of bytes."""

        def change() -> None:
            self._delay, self._piece = delay, piece

        self._call(change)

    def flow(self) -> None:
        """Accept connections and forward at full speed again."""

        def change() -> None:
            self._refusing = False
            self._delay, self._piece = 0.0, 1 << 16
            self._flowing.set()

        self._call(change)

    def close(self) -> None:
        """Close all connections and stop."""
        self._call(self._loop.stop)
        self._thread.join(5)

    def _call(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._flowing.set()
        listening = self._socket()
        listening.bind((self._host, 0))
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, sock=listening))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        self._close(reset=True)
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _close(self, *, reset: bool = False) -> None:
        for writer in tuple(self._writers):
            if reset:
                with suppress(OSError):  # already closed by the other end
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            writer.transport.abort() if reset else writer.close()
        self._writers.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.close()
            return
        try:
            there, back = await self._connect()
        except (OSError, asyncio.CancelledError):  # no process listens there, or the proxy stops
            writer.close()
            return
        self._writers |= {writer, back}
        with suppress(asyncio.CancelledError):  # the proxy stops
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer), return_exceptions=True)
        for each in (writer, back):
            self._writers.discard(each)
            each.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connecting = self._socket()
        try:
            connecting.setblocking(False)
            await self._loop.sock_connect(connecting, (self._host, self._target))
            return await asyncio.open_connection(sock=connecting)
        except BaseException:
            connecting.close()
            raise

    def _socket(self) -> socket.socket:
        """Return a new socket; accepted connections have the buffers of the listening one."""
        new = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        if self._buffer is not None:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                new.setsockopt(socket.SOL_SOCKET, option, self._buffer)
        return new

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(self._piece):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

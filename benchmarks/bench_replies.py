"""Compare the CPU of an app's requests with that of a bare DEALER and ROUTER.

Run ``python benchmarks/bench_replies.py [--rounds N] [--count N] [--json FILE]``.

Each contestant is two processes over tcp on this machine, both on asyncio's loop. Messages are typed msgpack in both
directions, and the client awaits each reply in a coroutine. Requests of zroute have a timeout; bare ones have none.
Each round runs all contestants, beginning with another one; the figures are medians of the ratios within a round, and
count the CPU of both processes with libzmq's threads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import attrs
import msgspec

CONTESTANTS = ("bare", "plain", "async")
WINDOW = 64


@attrs.frozen
class Ask:
    """A request."""

    size: int


@attrs.frozen
class Price:
    """A reply."""

    symbol: str
    price: float


def bare(kind: int, got: Callable[[list[bytes]], object]) -> Any:
    """Return a DEALER or ROUTER on asyncio's loop, with the least Python that is correct."""
    import zmq

    socket = zmq.Context.instance().socket(kind)
    loop = asyncio.get_running_loop()
    poked = False

    def look() -> None:
        nonlocal poked
        poked = False
        read()

    def poke() -> None:
        nonlocal poked
        if not poked:
            poked = True
            loop.call_soon(look)

    def read() -> None:
        try:
            for _ in range(256):
                got(socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            if not poked:
                return
        if socket.get(zmq.EVENTS) & zmq.POLLIN:
            poke()

    def send(parts: list[bytes]) -> None:
        socket.send_multipart(parts, zmq.NOBLOCK)
        poke()

    loop.add_reader(socket.FD, read)
    loop.call_soon(poke)
    return socket, send


# -- servers: print their address, and run until their input ends ------------------------------------------


async def serve_bare() -> None:
    """Answer each request with a Price."""
    import zmq

    decode, encode = msgspec.msgpack.Decoder(Ask).decode, msgspec.msgpack.Encoder().encode

    def answer(parts: list[bytes]) -> None:
        send([parts[0], parts[1], b"", encode(Price("EURUSD", 1.25 * decode(parts[4]).size))])

    socket, send = bare(zmq.ROUTER, answer)
    socket.bind("tcp://127.0.0.1:*")
    print(socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode(), flush=True)
    await until_end()


async def serve_app(*, is_async: bool) -> None:
    """Answer each request with a Price, by a handler."""
    from zroute import App

    app = App(rep="tcp://127.0.0.1:*")

    if is_async:

        @app.reply("prices.{symbol}")
        async def price_later(ask: Ask, symbol: str) -> Price:
            return Price(symbol, 1.25 * ask.size)

    else:

        @app.reply("prices.{symbol}")
        def price(ask: Ask, symbol: str) -> Price:
            return Price(symbol, 1.25 * ask.size)

    async with app.running():
        print(app.addresses.rep[0], flush=True)
        await until_end()


async def until_end() -> None:
    """Wait for the end of the input; then print the CPU since the line ``begin``."""
    loop = asyncio.get_running_loop()
    began = 0.0
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line == "begin\n":
            began = time.process_time()
            print("began", flush=True)
        else:
            print(time.process_time() - began, flush=True)


# -- clients -------------------------------------------------------------------------------------------------


async def measure(ask: Callable[[], Awaitable[Any]], total: int, window: int) -> float:
    """Return the seconds of CPU that this process takes for ``total`` requests."""
    left = total

    async def some() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await ask()

    began = time.process_time()
    await asyncio.gather(*(some() for _ in range(window)))
    return time.process_time() - began


async def client(contestant: str, address: str, total: int) -> None:
    """Print for each line of the input, a window, the CPU of ``total`` requests."""
    if contestant == "bare":
        await client_bare(address, total)
        return
    from zroute import App

    app = App(req=address)
    prices = app.requester("prices.{symbol}", Ask, Price, timeout=5.0)
    async with app.running():
        await obey(lambda: prices.request(Ask(3), symbol="EURUSD"), total)


async def client_bare(address: str, total: int) -> None:
    """Send requests through a DEALER."""
    import zmq

    loop = asyncio.get_running_loop()
    decode, encode = msgspec.msgpack.Decoder(Price).decode, msgspec.msgpack.Encoder().encode
    numbers, waiting = count(), dict[bytes, asyncio.Future[Price]]()
    socket, send = bare(zmq.DEALER, lambda parts: waiting.pop(parts[0]).set_result(decode(parts[2])))
    socket.connect(address)

    async def ask() -> Price:
        id = b"%d" % next(numbers)
        future = waiting[id] = loop.create_future()
        send([id, b"", b"prices.EURUSD", encode(Ask(3))])
        return await future

    await obey(ask, total)


async def obey(ask: Callable[[], Awaitable[Any]], total: int) -> None:
    """Measure the windows of the input."""
    loop = asyncio.get_running_loop()
    await measure(ask, 300, 16)
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        window = int(line)
        print(await measure(ask, total if window > 1 else total // 4, window), flush=True)


# -- the comparison ------------------------------------------------------------------------------------------


class Process:
    """A part of a contestant."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def say(self, line: str) -> str:
        """Send a line and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.read()

    def read(self) -> str:
        """Return the next line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def figures(contestant: str, total: int) -> dict[int, float]:
    """Return the microseconds of CPU for a request, of both processes, by window."""
    server = Process("serve", contestant)
    asker = Process("client", contestant, server.read(), str(total))
    asker.read()
    found = {}
    for window in (1, WINDOW):
        server.say("begin")
        spent = float(asker.say(str(window)))
        spent += float(server.say("end"))
        found[window] = spent / (total if window > 1 else total // 4) * 1e6
    asker.end()
    server.end()
    return found


def main() -> None:
    """Run the rounds, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=8_000)
    parser.add_argument("--json")
    chosen = parser.parse_args()
    rounds = []
    for number in range(chosen.rounds):
        order = CONTESTANTS[number % 3 :] + CONTESTANTS[: number % 3]
        rounds.append({contestant: figures(contestant, chosen.count) for contestant in order})
    document: dict[str, dict[str, float]] = {}
    for window in (1, WINDOW):
        for contestant in CONTESTANTS:
            times = [found[contestant][window] for found in rounds]
            ratios = [found[contestant][window] / found["bare"][window] for found in rounds]
            document[f"{contestant}, {window} in flight"] = {
                "CPU us": round(statistics.median(times), 1),
                "ratio": round(statistics.median(ratios), 2),
            }
    for name, figure in document.items():
        print(f"{name:24} {figure['CPU us']:8.1f} us  {figure['ratio']:5.2f}")
    if chosen.json:
        with open(chosen.json, "w") as file:
            json.dump(document, file, indent=2)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve_bare() if sys.argv[2] == "bare" else serve_app(is_async=sys.argv[2] == "async"))
    elif sys.argv[1:2] == ["client"]:
        asyncio.run(client(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    else:
        main()

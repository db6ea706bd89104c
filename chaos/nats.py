"""Losses on NATS: servers are killed, restarted, frozen and retired under load, and subscribers freeze.

Each seed starts one server or a cluster, publishers and subscribers as processes. When all subscribers are ready, the
publishers send numbered messages while one or two faults happen. At the end, each subscriber must have handled or
counted every message: ``lost`` is what is really missing, no message arrives twice, and none overtakes another of its
topic. NATS itself reports none of these losses.

    python -m chaos.nats --seeds 100
    python -m chaos.nats --seeds 20 --public

With ``--public``, subscribers use only the public functions of nats-py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs

from tests.nats.servers import NatsServer, cluster
from tests.support import PATIENCE, ROOT
from zroute import App, Topic
from zroute.nats import client

TOPICS = 8
SERVER_FAULTS = ("restart", "member", "lame_duck", "freeze_server")
FAULTS = (*SERVER_FAULTS, "slow_subscriber")

_SMALL = 'max_pending: 1MB\nwrite_deadline: "1s"\n'
"""A server that soon disconnects a subscriber that does not read."""

SOON = 'lame_duck_duration: "30s"\nlame_duck_grace_period: "100ms"\n'
"""A server that disconnects its clients soon after a signal to stop in lame duck mode."""


class Lines:
    """The lines on standard input, which a parent process writes."""

    async def next(self) -> str:
        """Return the next line; "" at the end."""
        return (await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)).strip()


async def publish(url: str, name: str, size: int) -> None:
    """Publish until the parent says "stop"; print the number of messages of each topic."""
    app, lines, sent, stopped = App(nats=url, name=name), Lines(), defaultdict[str, int](int), asyncio.Event()
    out, body = app.publisher(f"{name}.{{number}}", dict[str, int | str]), "x" * size

    async def send() -> None:
        chosen = random.Random(name)
        while not stopped.is_set():
            for _ in range(10):
                topic = str(chosen.randrange(TOPICS))
                sent[topic] += 1
                out.publish({"n": sent[topic], "body": body}, number=topic)
            await asyncio.sleep(0.004)

    async with app.running():
        print("running", flush=True)
        await lines.next()
        sending = asyncio.create_task(send())
        await lines.next()
        stopped.set()
        await sending
    print(json.dumps({"sent": {f"{name}.{topic}": number for topic, number in sent.items()}}), flush=True)


async def subscribe(url: str, publishers: int) -> None:
    """Receive until the parent says "stop"; print what has arrived and what was counted."""
    app, lines = App(nats=url, name="reader"), Lines()
    got: dict[str, int] = defaultdict(int)
    last: dict[str, int] = defaultdict(int)
    faults: list[str] = []

    @app.subscribe("*.{number}")
    def handle(message: dict[str, int | str], topic: Topic) -> None:
        name, number = str(topic), int(message["n"])
        if number <= last[name]:
            faults.append(f"{name}: {number} after {last[name]}")
        got[name] += 1
        last[name] = number

    async with app.running():
        await app.ready(publishers, timeout=PATIENCE)
        print("ready", flush=True)
        await lines.next()
        stats = app.stats
    report = {"got": got, "lost": stats.lost, "unknown": stats.unknown_losses, "duplicate": stats.duplicate}
    print(json.dumps(report | {"faults": faults, "malformed": stats.malformed}), flush=True)


class Process:
    """An app in a process of its own.

    Args:
        module: The module that is run.
        arguments: The role, and its options.
        log: The file for its log, or None to show the log.
    """

    def __init__(self, module: str, *arguments: object, log: Path | None = None) -> None:
        command = [sys.executable, "-m", module, "--role", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.log = log
        with ExitStack() as files:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if log is None else files.enter_context(log.open("w")),
                text=True,
                env=environment,
                cwd=ROOT,
            )

    def say(self, line: str) -> None:
        """Write a line to the process."""
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def read(self) -> str:
        """Return the next line of the process."""
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line, f"a process has ended early: {self.log and self.log.read_text()}"
        return line

    def end(self) -> None:
        """Kill the process, which may have ended."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            stream.close()


@attrs.frozen
class Found:
    """The result of a seed.

    Attributes:
        faults: the faults that were caused.
        missing: the number of messages that did not arrive, at all subscribers together.
        counted: the number of messages that subscribers counted as lost.
        unknown: the number of unknown losses.
        wrong: what must not be, for each subscriber.
    """

    faults: tuple[str, ...]
    missing: int
    counted: int
    unknown: int
    wrong: list[str]


@contextmanager
def running_servers(folder: Path, size: int, config: str) -> Iterator[list[NatsServer]]:
    """Run a server, or a cluster of servers."""
    if size > 1:
        with cluster(folder, size, config) as servers:
            yield servers
        return
    with NatsServer(folder, config) as server:
        yield [server]


def play(seed: int, *faults: str, public: bool = False) -> Found:
    """Play a seed.

    Args:
        seed: decides the numbers of servers and clients, and the faults and their times.
        faults: the faults, instead of those that the seed chooses.
        public: True if subscribers use only the public functions of nats-py.
    """
    chosen = random.Random(seed)
    kinds = faults or tuple(chosen.choices(FAULTS, k=chosen.choice((1, 1, 2))))
    size = 3 if "member" in kinds or "lame_duck" in kinds else chosen.choice((1, 3))
    # A cluster can lose only one of three servers for good.
    kinds = tuple(kind for at, kind in enumerate(kinds) if kind not in ("member", "lame_duck") or at == 0)
    slow = "slow_subscriber" in kinds
    publishers, subscribers = chosen.choice((1, 2)), chosen.choice((1, 2, 3))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = SOON + (_SMALL if slow else "")
        servers = stack.enter_context(running_servers(Path(folder), size, config))
        urls = [server.url for server in servers]

        def started(*arguments: object) -> Process:
            order = chosen.sample(urls, len(urls))
            process = Process("chaos.nats", *arguments, "--url", ",".join(order))
            stack.callback(process.end)
            return process

        sending = [started("publish", "--name", f"p{at}", "--size", 8_000 if slow else 100) for at in range(publishers)]
        for process in sending:
            process.read()
        way = ["--public"] * public
        reading = [started("subscribe", "--publishers", publishers, *way) for _ in range(subscribers)]
        for process in (*reading, *sending):
            if process in reading:
                process.read()
        for process in sending:
            process.say("go")
        gone: set[NatsServer] = set()
        for kind in kinds:
            time.sleep(chosen.uniform(0.3, 1.0))
            if kind == "slow_subscriber":
                freeze(chosen.choice(reading), 3.5)
            else:
                disturb(kind, chosen, [each for each in servers if each not in gone], gone, 1.5)
        time.sleep(chosen.uniform(1.5, 2.5))
        sent: dict[str, int] = {}
        for process in sending:
            process.say("stop")
        for process in sending:
            sent |= json.loads(process.read())["sent"]
        for process in reading:
            process.say("stop")
        return _judge(tuple(kinds), sent, [json.loads(process.read()) for process in reading])


def disturb(kind: str, chosen: random.Random, servers: list[NatsServer], gone: set[NatsServer], frozen: float) -> None:
    """Cause a fault of a server.

    Args:
        kind: One of `SERVER_FAULTS`.
        chosen: Chooses the server and the times.
        servers: The servers that run.
        gone: The servers that do not return; this function adds to it.
        frozen: The longest time in seconds for which a server is frozen.
    """
    server = chosen.choice(servers)
    match kind:
        case "restart":
            server.kill()
            time.sleep(chosen.uniform(0.0, 0.8))
            server.start()
        case "member":
            server.kill()
            gone.add(server)
        case "lame_duck":
            server.lame_duck()
            gone.add(server)
        case "freeze_server":
            server.freeze()
            time.sleep(chosen.uniform(0.2, frozen))
            server.thaw()


def freeze(process: Process, seconds: float) -> None:
    """Freeze a process."""
    process.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.process.send_signal(signal.SIGCONT)


def _judge(kinds: tuple[str, ...], sent: dict[str, int], reports: list[dict[str, Any]]) -> Found:
    missing = counted = unknown = 0
    wrong = []
    for at, report in enumerate(reports):
        lost = sum(number - report["got"].get(topic, 0) for topic, number in sent.items())
        missing, counted, unknown = missing + lost, counted + report["lost"], unknown + report["unknown"]
        # An unknown loss says that the number is not known; it may then only be too small.
        exact = report["lost"] == lost if not report["unknown"] else report["lost"] <= lost
        if not exact or report["faults"] or report["malformed"]:
            wrong.append(f"subscriber {at}: {lost} missing, {report}")
    return Found(kinds, missing, counted, unknown, wrong)


def main() -> None:
    """Play seeds, or be one of their processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--role", choices=("publish", "subscribe"))
    parser.add_argument("--url")
    parser.add_argument("--name")
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--publishers", type=int, default=1)
    parser.add_argument("--public", action="store_true")
    given = parser.parse_args()
    if given.role == "publish":
        asyncio.run(publish(given.url, given.name, given.size))
    elif given.role == "subscribe":
        if given.public:
            client.missing_names = lambda: ["_ps"]
        asyncio.run(subscribe(given.url, given.publishers))
    else:
        _campaign(range(given.first, given.first + given.seeds), public=given.public)


def _campaign(seeds: range, *, public: bool) -> None:
    failed, missing, unknown = [], 0, 0
    for seed in seeds:
        found = play(seed, public=public)
        print(
            f"seed {seed}: {' and '.join(found.faults)}: {found.missing} missing, {found.counted} counted, "
            f"{found.unknown} unknown losses",
            flush=True,
        )
        for line in found.wrong:
            print(f"  {line}", flush=True)
        failed += [seed] * bool(found.wrong)
        missing, unknown = missing + found.missing, unknown + found.unknown
    print(f"{len(seeds)} seeds, failed {failed}; {missing} messages missing, {unknown} unknown losses")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()

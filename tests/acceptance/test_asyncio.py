"""``zroute run`` with and without ``--reactor asyncio``: zroute's awaitables work in both, asyncio's in the first."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.acceptance.conversation import PRELUDE
from tests.support import PATIENCE, Child, free_port

KINDS = pytest.mark.parametrize("kind", ["epoll", "asyncio"])

BOTH = """
import asyncio
from collections.abc import AsyncIterator

app = App(name="both")
done = app.publisher("done.{what}", str)

class Clock:
    def __init__(self, reactor):
        self.reactor = reactor

    def sleep(self, seconds):
        later = defer.Deferred()
        self.reactor.callLater(seconds, later.callback, None)
        return as_awaitable(later)

def here():
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False

@app.resource
async def clock() -> AsyncIterator[Clock]:
    from twisted.internet import reactor
    clock = Clock(reactor)
    await clock.sleep(0)
    say("resource", here())
    yield clock
    await clock.sleep(0)
    say("closed", here())

@app.on_startup
async def start(clock: Clock):
    await clock.sleep(0)
    await app.publish("early", 1)
    say("on_startup", here())

@app.publisher("tick", every=0.01)
async def tick(clock: Clock) -> int:
    await clock.sleep(0)
    return 1

ticked = []

@app.subscribe("tick")
async def on_tick(number: int, clock: Clock):
    if ticked:
        return
    ticked.append(1)
    say("handler", here())
    await done.publish("published", what="publish")
    async with app.stream("tick", int) as messages:
        say("stream", await anext(messages), await anext(messages))
    await done.publish("go", what="thread")

async def double(number, clock):
    await clock.sleep(0.001)
    return 2 * number

@app.subscribe("done.thread", thread=True)
def in_thread(text: str, clock: Clock):
    say("thread", app.from_thread(double, 21, clock))
    app.from_thread(done.publish, "end", what="end")

@app.subscribe("done.end")
async def end(text: str):
    say("end")

@app.on_shutdown
async def stop(clock: Clock):
    await clock.sleep(0)
    await app.publish("bye", 1)
    say("on_shutdown", here(), app.stats.failed + app.stats.hook_errors + app.stats.publish_errors)
"""


@KINDS
def test_every_awaitable_of_zroute_works_in_a_program_of_each_kind(kind: str, tmp_path: Path) -> None:
    """Resources, hooks, timers, handlers, streams and threads run as tasks under asyncio, else on Deferreds."""
    (tmp_path / "both.py").write_text(PRELUDE + BOTH)
    with Child("-m", "zroute", "run", "--app-dir", str(tmp_path), "both", "--reactor", kind) as child:
        child.line_with('["end"]')
        assert child.end(signal.SIGTERM) == 0, child.err
    task = kind == "asyncio"
    assert [json.loads(line) for line in child.out] == [
        ["resource", task],
        ["on_startup", task],
        ["handler", task],
        ["stream", 1, 1],
        ["thread", 42],
        ["end"],
        ["on_shutdown", task, 0],
        ["closed", task],
    ]
    assert not [line for line in child.err if " INFO " not in line]


ONLY_ASYNCIO = """
import asyncio
from collections.abc import AsyncIterator

app = App(name="echo")

class Line:
    def __init__(self, reader, writer):
        self.reader, self.writer, self.lock = reader, writer, asyncio.Lock()

    async def ask(self, text):
        async with self.lock, asyncio.timeout(PATIENCE):
            self.writer.write(text.encode() + b"\\n")
            await self.writer.drain()
            return (await self.reader.readline()).decode().strip()

@app.resource
async def line() -> AsyncIterator[Line]:
    async def serve(reader, writer):
        while line := await reader.readline():
            await asyncio.sleep(0)
            writer.write(line.upper())
        writer.close()

    async with asyncio.TaskGroup() as group, await asyncio.start_server(serve, "127.0.0.1", PORT):
        ticking = group.create_task(asyncio.sleep(3600))
        line = Line(*await asyncio.open_connection("127.0.0.1", PORT))
        yield line
        line.writer.close()
        await line.writer.wait_closed()
        ticking.cancel()

@app.publisher("words", every=0.01)
async def words():
    for number in range(100):
        async with asyncio.timeout(PATIENCE):
            await asyncio.sleep(0)
        yield f"word {number}"

@app.publisher("said")
@app.subscribe("words")
async def ask(word: str, line: Line) -> str:
    return await line.ask(word)

heard = asyncio.Event()

@app.subscribe("said")
async def show(word: str):
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0.001))
        loud = group.create_task(asyncio.to_thread(str.swapcase, word))
    say(loud.result())
"""


def test_asyncios_own_things_work_in_a_program(tmp_path: Path) -> None:
    """Streams, locks, task groups, timeouts and threads of asyncio work in handlers, timers and resources."""
    source = ONLY_ASYNCIO.replace("PORT", str(free_port())).replace("PATIENCE", str(PATIENCE))
    (tmp_path / "echo.py").write_text(PRELUDE + source)
    with Child("-m", "zroute", "run", "--app-dir", str(tmp_path), "echo", "--reactor", "asyncio") as child:
        child.wait_for(lambda lines: len(lines) >= 20)
        assert child.end() == 0, child.err
    said = [json.loads(line)[0] for line in child.out]
    first = int(said[0].split()[1])
    assert said == [f"word {number}" for number in range(first, first + len(said))]
    assert not [line for line in child.err if " INFO " not in line]


@KINDS
def test_a_handler_that_is_interrupted_does_not_end_the_program(kind: str, tmp_path: Path) -> None:
    """KeyboardInterrupt in an async handler is an error of that handler, and the next message is handled."""
    source = """
app = App(name="interrupted")

@app.publisher("go", every=0.01)
def go() -> int:
    return 1

@app.subscribe("go")
async def handle(number: int):
    say("handled")
    raise KeyboardInterrupt("of mine")
"""
    (tmp_path / "interrupted.py").write_text(PRELUDE + source)
    with Child("-m", "zroute", "run", "--app-dir", str(tmp_path), "interrupted", "--reactor", kind) as child:
        child.wait_for(lambda lines: len(lines) >= 3)
        assert child.end() == 0, child.err
    assert any("handle() at" in line and "KeyboardInterrupt: of mine" in line for line in child.err)

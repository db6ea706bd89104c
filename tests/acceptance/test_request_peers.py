"""Requests with peers that are not zroute: pyzmq's sockets by hand, a device in between, and Node."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.running import running, turns
from tests.support import PATIENCE, Child, free_endpoint
from zroute import App, RequestRefused
from zroute.errors import (
    DecodeError,
    NoHandlerError,
    RequestError,
    RequestRefusedError,
    RequestTimeoutError,
    ServerError,
)
from zroute.messages.requests import MAGIC, request_packer

MILLISECONDS = int(PATIENCE * 1000)


def served() -> App:
    """Return an app that answers requests of plain clients."""
    app = App(rep="tcp://127.0.0.1:*")

    @app.reply("add.{name}")
    def add(numbers: list[int], name: str) -> dict[str, Any]:
        if len(numbers) > 5:
            raise RequestRefused(409, "too many numbers: 6 > 5")
        return {"name": name, "sum": sum(numbers), "of": 12 // len(numbers)}

    @app.reply("wait", max_in_flight=1, queue=1)
    async def wait(number: int) -> int:
        await Deferred()
        return number

    @app.reply("rows")
    def rows() -> Iterator[int]:
        yield from range(3)

    @app.reply("nothing")
    def nothing() -> None: ...

    return app


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[str]:
    """Run an app, and yield its address for requests."""
    async with running(app, drain_timeout=0.1) as service:
        assert service.transport is not None
        yield service.transport._requests.rep[0]


@contextmanager
def opened(kind: int, address: str | None = None) -> Iterator[Any]:
    """Open a socket of pyzmq."""
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVTIMEO, MILLISECONDS)
        if address is not None:
            socket.connect(address)
        yield socket


async def ask(socket: Any, *parts: bytes) -> list[bytes]:
    """Send parts, and return the answer."""
    socket.send_multipart(parts)
    answer: list[bytes] = await deferToThread(socket.recv_multipart)
    return answer


# -- clients ---------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_req_socket_gets_an_answer_to_anything() -> None:
    """Topic and body get a body; everything else an empty part, a code and a text. The REQ is never stuck."""
    async with serving(served()) as address:
        with opened(zmq.REQ, address) as req:
            for _ in range(2):
                assert json.loads((await ask(req, b"add.x", b"[1, 2]"))[0]) == {"name": "x", "sum": 3, "of": 6}
                (packed,) = await ask(req, b"add.x", msgpack.packb([1, 2, 3]))
                assert msgpack.unpackb(packed) == {"name": "x", "sum": 6, "of": 4}
                assert await ask(req, b"nothing", b"") == [b"\xc0"]
                for parts, code, text in (
                    ((b"add.x", b"{"), b"400", b""),
                    ((b"add.x", b'["x"]'), b"400", b"$[0]"),
                    ((b"add.x", b""), b"400", b""),
                    ((b"rows", b""), b"400", b"answers with a stream"),
                    ((b"other", b""), b"404", b"no handler for 'other'"),
                    ((b"add.x", b"[1,1,1,1,1,1]"), b"409", b"too many numbers: 6 > 5"),
                    ((b"add.x", b"[]"), b"500", b"ZeroDivisionError: "),
                    ((b"add.x",), b"400", b"not a request: 1 parts"),
                    ((b"",), b"400", b"not a request: 1 parts"),
                    ((b"", b"x"), b"400", b"not a request: a topic of "),
                    ((b"\xff\xfe", b"x"), b"400", b"not UTF-8"),
                    ((b"x" * 256, b"x"), b"400", b"not a request: a topic of "),
                    ((b"a\0b", b"x"), b"400", b"not a request: a topic of "),
                    ((b"a", b"b", b"c"), b"400", b"not a request: 3 parts"),
                    ((b"a",) * 12, b"400", b"not a request: 12 parts"),
                    ((MAGIC,), b"400", b"not a request: a frame of 3 bytes"),
                    ((b"add.x", b"\xc1ZR\x09" + b"x" * 40), b"400", b"not a request: a tracked header"),
                ):
                    empty, number, reason = await ask(req, *parts)
                    assert (empty, number) == (b"", code), (parts, reason)
                    assert text in reason
                    assert b"Traceback" not in reason


@pytest_twisted.ensureDeferred
async def test_a_req_socket_is_refused_at_once_by_a_full_handler() -> None:
    """While one call runs and one waits, a third gets 503."""
    app = served()
    async with serving(app) as address:
        with opened(zmq.DEALER, address) as first, opened(zmq.REQ, address) as req:
            for id in (b"1", b"2"):
                first.send_multipart([id, b"", b"wait", b"\x01"])
            await turns(lambda: app.stats.requests == 2)
            assert (await ask(req, b"wait", b"\x01"))[:2] == [b"", b"503"]


@pytest_twisted.ensureDeferred
async def test_a_dealer_has_many_requests_in_flight_with_ids_of_its_own() -> None:
    """Any id before the empty part returns with the reply; without an id, replies come too."""
    async with serving(served()) as address:
        with opened(zmq.DEALER, address) as dealer:
            sent = {b"%d" % n if n else b"": n for n in range(1, 50)}
            for id, n in sent.items():
                dealer.send_multipart([id, b"", b"add.x", msgpack.packb([n])])
            while sent:
                id, empty, body = await deferToThread(dealer.recv_multipart)
                assert (empty, msgpack.unpackb(body)["sum"]) == (b"", sent.pop(id))
            assert msgpack.unpackb((await ask(dealer, b"", b"add.x", b"\x91\x07"))[1])["sum"] == 7
            assert (await ask(dealer, b"a", b"b", b"c", b"", b"other", b""))[:5] == [b"a", b"b", b"c", b"", b""]


def device(front: str, back: str, ready: threading.Event, contexts: list[zmq.Context[Any]]) -> None:
    """Run a ROUTER and DEALER device until its context ends."""
    context: zmq.Context[Any] = zmq.Context()
    contexts.append(context)
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.set(zmq.LINGER, 0)
    dealer.set(zmq.LINGER, 0)
    router.bind(front)
    dealer.connect(back)
    ready.set()
    try:
        zmq.proxy(router, dealer)
    except zmq.ContextTerminated:
        router.close()
        dealer.close()


@pytest_twisted.ensureDeferred
async def test_requests_pass_a_device() -> None:
    """Through a ROUTER and a DEALER, REQ clients and zroute's get replies, failures and streams, and can cancel."""
    front, app, ready, contexts = free_endpoint(), served(), threading.Event(), list[zmq.Context[Any]]()
    async with serving(app) as address:
        thread = threading.Thread(target=device, args=(front, address, ready, contexts), daemon=True)
        thread.start()
        assert await deferToThread(ready.wait, PATIENCE)
        try:
            asking = App(req=front)
            async with running(asking):
                with opened(zmq.REQ, front) as req:
                    assert json.loads((await ask(req, b"add.x", b"[1]"))[0])["sum"] == 1
                    assert (await ask(req, b"other", b""))[:2] == [b"", b"404"]
                replies = [asking.request("add.x", [n, 1], dict[str, Any]) for n in range(20)]
                found = await gatherResults([Deferred.fromCoroutine(each) for each in replies])
                assert [each["sum"] for each in found] == list(range(1, 21))
                with pytest.raises(RequestRefusedError, match="too many numbers"):
                    await asking.request("add.x", [1] * 6)
                assert [row async for row in asking.request_stream("rows", None, int)] == [0, 1, 2]
                with pytest.raises(RequestTimeoutError):
                    await asking.request("wait", 1, timeout=0.1)
                await turns(lambda: sum(each.cancelled for each in app.stats.routes.values()) == 1)
        finally:
            await deferToThread(contexts[0].term)
            thread.join(PATIENCE)


# -- servers ---------------------------------------------------------------------------------------------

ANSWERS: dict[bytes, list[bytes]] = {
    b"body": [b"\x05"],
    b"json": [b"[1]"],
    b"empty": [b""],
    b"refused": [b"", b"418", b"a teapot\x1b"],
    b"failed": [b"", b"500", b"ValueError: x"],
    b"unheard": [b"", b"404", b""],
    b"wrong": [b"\xa1x"],
    b"garbage": [b"a", b"b", b"c", b"d"],
    b"code": [b"", b"abc", b"text"],
    b"two": [b"\x05", b"\x06"],
    b"magic": [MAGIC + b"\x01"],
    b"client": [request_packer(1, lambda: 1)(b"i" * 16, b"a", 1, b"", None, 1.0, 0)],
}


def serve(kind: int, endpoint: str, answer: Callable[[Any], None]) -> None:
    """Answer with a socket of this thread; give up if no request comes for a while."""
    with opened(kind) as socket:
        socket.set(zmq.RCVTIMEO, 20_000)
        socket.bind(endpoint)
        with suppress(zmq.Again):
            answer(socket)
        socket.close(1_000)


def rep(socket: Any) -> None:
    """Answer as a REP socket does, until the topic "end"."""
    while True:
        topic, *_ = socket.recv_multipart()
        socket.send_multipart(ANSWERS.get(topic, [b"\xc0"]))
        if topic == b"end":
            return


def router(socket: Any) -> None:
    """Answer as a ROUTER socket does, until the topic "end"."""
    while True:
        peer, id, empty, topic, *_ = socket.recv_multipart()
        if topic == b"twice":
            socket.send_multipart([peer, id, empty, b"\x01"])
        if topic == b"other":  # an answer to an id that is not the client's, and one without its empty part
            socket.send_multipart([peer, b"someone", empty, b"\x01"])
            socket.send_multipart([peer, id, b"not empty", b"\x01"])
            socket.send_multipart([peer, b""])
            socket.send_multipart([peer, b"", MAGIC + b"?"])
        socket.send_multipart([peer, id, empty, *ANSWERS.get(topic, [b"\xc0"])])
        if topic == b"end":
            return


@pytest.mark.parametrize(("kind", "answer"), [(zmq.REP, rep), (zmq.ROUTER, router)], ids=["rep", "router"])
@pytest_twisted.ensureDeferred
async def test_a_plain_server_answers_a_zroute_client(kind: int, answer: Callable[[Any], None]) -> None:
    """Bodies and failures arrive, garbage is an error at once, and the next request works."""
    app = App(req=(endpoint := free_endpoint()), wire="plain")
    running_server = deferToThread(serve, kind, endpoint, answer)
    try:
        async with running(app):
            assert await app.request("body", 1, int) == 5
            assert await app.request("json", {"a": 1}, list[int]) == [1]
            assert await app.request("empty", 1, None) is None
            with pytest.raises(RequestRefusedError) as raised:
                await app.request("refused")
            assert (raised.value.code, raised.value.reason) == (418, "a teapot\\u001b")
            with pytest.raises(ServerError, match="ValueError: x"):
                await app.request("failed")
            with pytest.raises(NoHandlerError):
                await app.request("unheard")
            with pytest.raises(DecodeError):
                await app.request("wrong", 1, int)
            for topic in ("garbage", "code", "two", "magic", "client"):
                with pytest.raises(RequestError, match="the server sent"):
                    await app.request(topic, 1, int)
            for topic in ("twice", "other", "unknown", "end"):
                assert await app.request(topic, 1) in (None, 1)
            assert app._live.client is not None
            assert app._live.client.unanswered == 0
    finally:
        await running_server


# -- Node ------------------------------------------------------------------------------------------------

NODE = """
const zmq = require("zeromq");

async function main(address) {
  const req = new zmq.Request({linger: 0});
  req.connect(address);
  const told = [];
  for (const parts of [
    ["add.node", "[1, 2]"], ["add.node", '["x"]'], ["other", ""], ["add.node", "[1,1,1,1,1,1]"], ["add.node"],
  ]) {
    await req.send(parts);
    told.push((await req.receive()).map(String));
  }
  const dealer = new zmq.Dealer({linger: 0});
  dealer.connect(address);
  for (let n = 0; n < 20; n++) await dealer.send([`id${n}`, "", "add.node", `[${n}]`]);
  const sums = {};
  for (let n = 0; n < 20; n++) {
    const [id, empty, body] = await dealer.receive();
    sums[id] = JSON.parse(body).sum;
  }
  console.log(JSON.stringify({told, sums}));
}

main(process.argv[2]).then(() => process.exit(0));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with Node's package ``zeromq``; skip the test without Node or the package."""
    npm, found = shutil.which("npm"), shutil.which("node")
    if npm is None or found is None:
        pytest.skip("Node is not installed")
    folder = tmp_path_factory.mktemp("node")
    try:
        subprocess.run(
            [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "zeromq@6"],
            cwd=folder, check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        subprocess.run([found, "-e", "require('zeromq')"], cwd=folder, check=True, capture_output=True, timeout=60)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"Node's package zeromq can't be installed: {error}")
    (folder / "client.js").write_text(NODE)
    return folder


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_a_node_client_is_answered(node: Path) -> None:
    """A REQ and a DEALER of Node get JSON replies and failures."""
    async with serving(served()) as address:
        with Child("-c", RUN, str(node), address) as child:
            told = json.loads(await deferToThread(child.line_with, "{"))
            assert await deferToThread(child.end, None) == 0
    replies = told["told"]
    assert json.loads(replies[0][0]) == {"name": "node", "sum": 3, "of": 6}
    assert [each[:2] for each in replies[1:]] == [["", "400"], ["", "404"], ["", "409"], ["", "400"]]
    assert told["sums"] == {f"id{n}": n for n in range(20)}


RUN = "import os, sys; os.chdir(sys.argv[1]); os.execvp('node', ['node', 'client.js', sys.argv[2]])"

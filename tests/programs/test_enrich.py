"""Enriching over HTTP: retries, order and dead letters, in memory and with a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tests.commands import patient
from tests.programs.terminal import Network
from tests.support import Child, Way
from zroute.testing import TestApp


@attrs.frozen
class Response:
    code: int
    body: bytes = b'{"city": "London"}'

    def content(self) -> Deferred[bytes]:
        return succeed(self.body)


class Client:
    """An HTTP client whose answers the test gives, call by call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Deferred[Response]]] = []

    def get(self, url: str) -> Deferred[Response]:
        answer: Deferred[Response] = Deferred()
        self.calls.append((url.rpartition("/")[2], answer))
        return answer


class Desk:
    """The running program with its fake client and clock."""

    def __init__(self, enrich: Any, test_app: Callable[..., TestApp]) -> None:
        self.client, self.clock = Client(), Clock()
        customers = {enrich.Customers: enrich.Customers(self.client, self.clock)}
        self.t = test_app(enrich.app, customers, raise_errors=False)

    def answer(self, call: int, code: int) -> None:
        """Answer the call of that number, and let the app continue."""
        self.client.calls[call][1].callback(Response(code))
        self.t.advance(0)

    def later(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        self.t.advance(0)


def test_a_retry_mends_it(example: Callable[[str], Any], test_app: Callable[..., TestApp]) -> None:
    """An order is enriched if the third call succeeds; two failed calls before it are not reported."""
    enrich = example("enrich")
    desk = Desk(enrich, test_app)
    desk.t.publish("orders.ada", enrich.Order(7))
    for call, code in enumerate((500, 503, 200)):
        desk.answer(call, code)
        desk.later(1.0)
    assert desk.t.published("enriched.ada") == [enrich.Enriched(enrich.Order(7), "London")]
    assert not desk.t.published("dead.>")


def test_what_fails_becomes_a_dead_letter(example: Callable[[str], Any], test_app: Callable[..., TestApp]) -> None:
    """Three failures, a timeout and an invalid body each end as a dead letter with the reason."""
    enrich = example("enrich")
    desk = Desk(enrich, test_app)
    desk.t.publish("orders.ada", enrich.Order(1))
    for call in range(3):
        desk.answer(call, 500)
        desk.later(1.0)
    desk.t.publish("orders.bob", enrich.Order(2))
    for seconds in (5.0, 0.2, 1.0, 1.0):
        desk.later(seconds)
    desk.t.publish("orders.eve", "no order")
    letters = desk.t.published("dead.orders")
    assert [(one.topic, one.why.partition(":")[0]) for one in letters] == [
        ("orders.ada", "LookupError"),
        ("orders.bob", "TimeoutError"),
        ("orders.eve", "DecodeError"),
    ]
    assert not desk.t.published("enriched.*")


def test_order_is_kept_per_customer(example: Callable[[str], Any], test_app: Callable[..., TestApp]) -> None:
    """Orders of one customer run in order; others run beside them, at most twenty at a time."""
    enrich = example("enrich")
    desk = Desk(enrich, test_app)
    names = ["ada", "ada", *(f"c{number}" for number in range(25))]
    for number, name in enumerate(names):
        desk.t.publish(f"orders.{name}", enrich.Order(number))
    assert [name for name, _ in desk.client.calls] == ["ada", *(f"c{number}" for number in range(19))]
    answered = 0
    while answered < len(names):
        desk.answer(answered, 200)
        answered += 1
    assert [one.order.id for one in desk.t.published("enriched.ada")] == [0, 1]
    assert len(desk.t.published("enriched.*")) == len(names)


@pytest.fixture
def service() -> Iterator[str]:
    """Serve HTTP: the first call for each customer fails, and customer "nobody" is unknown."""
    asked: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fails = self.path not in asked or self.path == "/nobody"
            asked.add(self.path)
            body = b"down" if fails else json.dumps({"city": f"home of {self.path[1:]}"}).encode()
            self.send_response(503 if fails else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["epoll", "asyncio"])
def test_with_a_real_service(
    copied: Callable[[str], Path], service: str, kind: str, way: Way, network: Network
) -> None:
    """With a real service, one order is enriched by the second call and one becomes a dead letter."""
    folder, orders, out = copied("enrich"), way.meeting(), way.meeting()
    options = ("--reactor", kind, "--drain-timeout", "100s")
    command = ("-m", "zroute", "run", "--app-dir", str(folder), "enrich", *options)
    flags = network.flags("--sub", f"bind:{orders.bind}", "--pub", out.bind)
    with (
        Child(*command, *flags, env={"CUSTOMERS": service}) as child,
        Child("-m", "zroute", "tail", network.address(out.connect), "enriched.*", "dead.*", "--json") as tail,
    ):
        publishing = ("-m", "zroute", *patient("pub", network.address(f"connect:{orders.connect}")))
        # The first may be sent before tail has joined, or wait so long on a busy machine that its deadline passes.
        for customer, arrives in (("ada", "home of ada"), ("nobody", "503 for customer 'nobody'")):
            with Child(*publishing, f"orders.{customer}", '{"id": 7}', "--every", "1s") as repeating:
                tail.line_with(arrives)
                assert repeating.end() == 0, repeating.err
        assert child.end() == 0, child.err

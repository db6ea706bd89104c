"""The table of combined options of requests: each row is an app that is refused, or that answers a request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred

import zroute
from tests.planning.test_combining import PAGE, REQUESTS
from zroute import App, RequestTimeoutError, ServerError, WithHeaders
from zroute.testing import TestApp

ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split(" | ")[:3])
    for line in PAGE.read_text().splitlines()
    if line.removeprefix("| ").startswith(REQUESTS)
]
_CALL = re.compile(r"`(\w+)\((.*)\)`.*")


def options(cell: str, call: str) -> dict[str, Any]:
    """Return the keywords of a cell for a call such as ``reply``."""
    found = _CALL.fullmatch(cell)
    return eval(f"dict({found[2]})") if found is not None and found[1] == call else {}


class Made:
    """The app of a row.

    Attributes:
        calls: The number of calls of its handler.
        cancelled: The number of its calls that were cancelled.
    """

    def __init__(self, first: str, second: str) -> None:
        self.calls = self.cancelled = 0
        self.fails = 0
        self.given = options(first, "reply")
        self.asked = options(second, "request")
        self.app = App(**options(second, "App"))
        self.publication = self.app.publisher("copy.{key}", int)
        handler = self._handler(first, second)
        if second == "a publisher of the same function":
            handler = self.publication(handler)
        self.app.reply("in.{key}", **self.given)(handler)
        if second in ("a second handler of the pattern", "a handler of a wider pattern"):
            self.app.reply("in.{key}" if second.startswith("a second") else "in.>")(lambda number: -1)
        if second == "`subscribe()` of the same pattern":
            self.app.subscribe("in.{key}")(lambda number: None)

    def _handler(self, first: str, second: str) -> Callable[..., Any]:
        if second == "a generator as handler":

            def numbers(number: int) -> Iterator[int]:
                yield number

            return numbers

        if second == "a result with headers":

            def headed(number: int) -> WithHeaders[int]:
                return WithHeaders(number, {"a": 1})

            return headed

        if "timeout" in self.given and second != "a plain handler":

            async def waits(number: int) -> int:
                self.calls += 1
                try:
                    await Deferred()
                finally:
                    self.cancelled += 1
                return number

            return waits

        def plain(number: int) -> int:
            self.calls += 1
            if self.calls <= self.fails:
                raise ValueError("again")
            return number + 1

        return plain

    def test(self) -> TestApp:
        """Return the test of the app."""
        return TestApp(self.app, raise_errors=False)


@pytest.mark.parametrize(("first", "second", "outcome"), ROWS)
def test_a_row_holds(first: str, second: str, outcome: str) -> None:
    """An error is raised where the row says, and otherwise the request is answered as it says."""
    if (expected := re.fullmatch(r"`(\w+Error)`", outcome)) is None:
        assert outcome in ("works", "interacts")
        CHECKS[first, second](Made(first, second))
        return
    error = getattr(zroute, expected[1])
    if first.startswith("`reply("):
        with pytest.raises(error):
            Made(first, second).app.compile()
    elif second.startswith("`App("):
        with pytest.raises(error):
            raise asked_by_an_app(Made("`reply()`", "any handler").app, first, second)
    else:
        with Made("`reply()`", second).test() as t, pytest.raises(error):
            t.request("in.a", 1, int)


def asked_by_an_app(server: App, first: str, second: str) -> BaseException:
    """Return the error of an app that asks ``server``."""
    client = App(req="tcp://127.0.0.1:5557", sub="tcp://127.0.0.1:5555", **options(second, "App"))

    @client.subscribe("go")
    async def go() -> None:
        if first.startswith("`request_stream("):
            client.request_stream("in.a", 1, int)
        else:
            await client.request("in.a", 1, int, **options(first, "request"))

    with TestApp(client, server, raise_errors=False) as t:
        t.publish("go", None)
        (error,) = t.failures
    return error


# -- what the rows without an error say -------------------------------------------------------------------


def _own_timeout(made: Made) -> None:
    with made.test() as t, pytest.raises(ServerError, match="TimeoutError"):
        t.request("in.a", 1, int, **made.asked)


def _callers_timeout(made: Made) -> None:
    with made.test() as t:
        with pytest.raises(RequestTimeoutError):
            t.request("in.a", 1, int, **made.asked)
        t.advance(0.1)
        assert made.cancelled == 1


def _retried(made: Made) -> None:
    made.fails = 2
    with made.test() as t:
        assert t.request("in.a", 1, int, **made.asked) == 2
        assert made.calls == 3


def _retried_until_the_timeout(made: Made) -> None:
    made.fails = 2
    with made.test() as t:
        with pytest.raises(RequestTimeoutError):
            t.request("in.a", 1, int, **made.asked)
        t.advance(20)
        assert made.calls == 2


def _dead(made: Made) -> None:
    made.fails = 9
    with made.test() as t:
        with pytest.raises(ServerError, match="ValueError: again"):
            t.request("in.a", 1, int, **made.asked)
        assert t.published("dead.a") == [1]


def _published(made: Made) -> None:
    with made.test() as t:
        assert t.request("in.a", 1, int) == 2
        assert t.published("copy.a") == [2]


def _answered(made: Made) -> None:
    with made.test() as t:
        assert t.request("in.a", 1, int) == 2
        t.publish("in.a", 1)
        assert made.calls == 1


def _one_item(made: Made) -> None:
    got: list[int] = []
    client = App(req="tcp://127.0.0.1:5557", sub="tcp://127.0.0.1:5555")

    @client.subscribe("go")
    async def go() -> None:
        got.extend([item async for item in client.request_stream("in.a", 1, int)])

    with TestApp(client, made.app) as t:
        t.publish("go", None)
    assert got == [2]


CHECKS: dict[tuple[str, str], Callable[[Made], None]] = {
    ("`reply(timeout=1.0)`", "`request(timeout=5.0)`"): _own_timeout,
    ("`reply(timeout=5.0)`", "`request(timeout=1.0)`"): _callers_timeout,
    ("`reply(retry=(1, 5))`", "`request(timeout=10.0)`"): _retried,
    ("`reply(retry=(1, 5))`", "`request(timeout=3.0)`"): _retried_until_the_timeout,
    ('`reply(retry=(1,), dead="dead.{key}")`', "`request(timeout=10.0)`"): _dead,
    ("`reply()`", "a publisher of the same function"): _published,
    ("`reply()`", "a handler of a wider pattern"): _answered,
    ("`reply()`", "`subscribe()` of the same pattern"): _answered,
    ("`reply()`", '`App(wire="plain")`'): _answered,
    ("`request_stream()`", "`reply()` with one reply"): _one_item,
}


def test_every_row_without_an_error_has_its_check() -> None:
    """No check is left over, and none is missing."""
    assert {row[:2] for row in ROWS if not row[2].startswith("`")} == set(CHECKS)

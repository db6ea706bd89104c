"""Typical txZMQ programs, run with zroute.txzmq and with txZMQ at each end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support import Child, free_endpoint

LIBRARIES = ("zroute.txzmq", "txzmq")
PAIRS = [("zroute.txzmq", "zroute.txzmq"), ("zroute.txzmq", "txzmq"), ("txzmq", "zroute.txzmq")]
both_sides = pytest.mark.parametrize(("serving", "asking"), PAIRS)


@contextmanager
def program(name: str, library: str, role: str, endpoint: str) -> Iterator[Child]:
    """Run a program until the block ends; it is ready at once, and SIGINT ends it with 0."""
    with Child("-m", f"tests.txzmq.programs.{name}", library, role, endpoint) as child:
        child.line_with("ready")
        yield child
        assert child.end() == 0, child.err
        assert child.err == []


@both_sides
def test_stock_prices_reach_their_subscribers(serving: str, asking: str) -> None:
    """Each handler gets the messages of its prefix, as JSON or raw text."""
    endpoint = free_endpoint()
    with (
        program("stocks", serving, "publisher", f"bind:{endpoint}"),
        program("stocks", asking, "stocks", f"connect:{endpoint}") as stocks,
        program("stocks", asking, "everything", f"connect:{endpoint}") as everything,
    ):
        assert stocks.line_with("AAPL") == "stock stocks.AAPL 190"
        stocks.line_with("MSFT")
        for line in ("apple 190", "stock stocks.MSFT 410", "any news.sports a goal", "weather -3 degrees"):
            assert everything.line_with(line) == line
    assert {line.split()[0] for line in stocks.out} == {"ready", "stock"}


@both_sides
def test_jobs_are_pushed_and_pulled(serving: str, asking: str) -> None:
    """Twenty jobs of two parts arrive once and in order."""
    endpoint = free_endpoint()
    with (
        program("jobs", asking, "worker", f"connect:{endpoint}") as worker,
        program("jobs", serving, "pusher", f"bind:{endpoint}"),
    ):
        worker.line_with("job 19")
    assert worker.out == ["ready", *(f"job {number}" for number in range(20))]


@both_sides
def test_questions_are_answered(serving: str, asking: str) -> None:
    """Twenty concurrent requests get their own replies; one without a reply times out."""
    endpoint = free_endpoint()
    with (
        program("jobs", serving, "server", f"bind:{endpoint}"),
        program("jobs", asking, "client", f"connect:{endpoint}") as client,
    ):
        assert client.line_with("no answer") == "no answer ZmqRequestTimeoutError"
        client.line_with("answer QUESTION 19")
    answers = [line for line in client.out if line.startswith("answer")]
    assert sorted(answers) == sorted(f"answer QUESTION {number}" for number in range(20))


@both_sides
def test_a_router_greets_its_dealers(serving: str, asking: str) -> None:
    """A router sends messages of one and of several parts to dealers by identity."""
    endpoint = free_endpoint()
    with (
        program("jobs", serving, "router", f"bind:{endpoint}"),
        program("jobs", asking, "dealer", f"connect:{endpoint}") as dealer,
    ):
        dealer.line_with("welcome ann again hello")
    assert dealer.out == ["ready", "welcome ann hello", "welcome ann again hello"]

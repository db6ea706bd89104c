"""The price service: an app that answers, and a client that asks for prices and for a stream."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.programs.test_examples import all_of
from tests.support import Child
from zroute import RequestRefusedError
from zroute.testing import TestApp


def test_prices_are_answered_and_refused(example: Callable[[str], Any]) -> None:
    """A known symbol has a price and a history, and another one is refused with its reason."""
    service = example("price_service")
    with TestApp(service.app) as t:
        t.advance(1.0)
        price = t.request("prices.ACME", service.Ask(2), service.Price)
        assert price == service.Price(service.history["ACME"][-1], round(2 * service.history["ACME"][-1], 2))
        with pytest.raises(RequestRefusedError, match="409: no symbol LOST"):
            t.request("prices.LOST", service.Ask(2), service.Price)


def test_the_client_asks_in_turn(example: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The client prints prices with their history, and a refusal as code and reason."""
    service = example("price_service")
    with TestApp(service.app, service.client) as t:
        t.advance(2.0)
        assert [request.topic for request in t.requests("prices.*")] == ["prices.ACME", "prices.NVR", "prices.LOST"]
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("ACME: 3 cost ")
    assert second.startswith("NVR: 3 cost ")
    assert third == "LOST: 409 no symbol LOST"


@pytest.mark.usefixtures("network")
def test_two_processes_ask_and_answer(folder: Any) -> None:
    """Over a socket the client gets prices, histories and a refusal, and both programs end without a failure."""
    arguments = ("-m", "zroute", "run", "--app-dir", "examples")
    with (
        Child(*arguments, "price_service", cwd=folder.parent) as service,
        Child(*arguments, "price_service:client", cwd=folder.parent) as client,
    ):
        client.wait_for(all_of("ACME: 3 cost", "NVR: 3 cost", "LOST: 409 no symbol LOST"))
        assert client.end(signal.SIGINT) == 0, client.err
        assert service.end(signal.SIGINT) == 0, service.err
    assert not [line for line in (*service.err, *client.err) if "ERROR" in line]

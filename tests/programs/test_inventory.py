"""The inventory: a publisher with state that outlives its process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import patient, zroute
from tests.programs.terminal import Network
from tests.support import Child, Way
from zroute.testing import TestApp


@pytest.fixture
def inventory(example: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return the program as a module."""
    monkeypatch.setenv("INVENTORY", str(tmp_path / "stock.json"))
    return example("inventory")


def test_orders_change_levels_which_are_published(inventory: Any, test_app: Callable[..., TestApp]) -> None:
    """Each order publishes the item's level; a request and each minute publish all levels."""
    t = test_app(inventory.app)
    t.publish("orders.bolt", 5)
    t.publish("orders.nut", 250)
    assert t.published("stock.*") == [inventory.Level("bolt", 95), inventory.Level("nut", 0)]
    t.clear()
    t.publish("snapshot", None)
    t.advance(60)
    assert t.published("stock") == [{"bolt": 95, "nut": 0}] * 2


def test_what_is_not_there_can_not_be_sold(inventory: Any, test_app: Callable[..., TestApp]) -> None:
    """A refused order is logged and changes no level."""
    t = test_app(inventory.app)
    t.publish("orders.gear", 1)
    assert t.published("refused") == ["orders.gear: 1 of gear ordered, 0 left"]
    assert t.published("stock.>") == []


def test_levels_survive_a_restart(inventory: Any, tmp_path: Path) -> None:
    """A second run begins with the levels of the first."""
    for left in (97, 94):
        with TestApp(inventory.app) as t:
            t.publish("orders.bolt", 3)
            assert t.published("stock.bolt") == [inventory.Level("bolt", left)]
    assert json.loads((tmp_path / "stock.json").read_text())["bolt"] == 94


@pytest.mark.slow
def test_it_runs_as_a_program(tmp_path: Path, way: Way, network: Network) -> None:
    """Orders arrive over real sockets, and a killed program continues after its restart."""
    orders, stock = way.meeting(), way.meeting()
    flags = network.flags("--sub", f"bind:{orders.bind}", "--pub", stock.bind)
    desk, reader = network.address(f"connect:{orders.connect}"), network.address(stock.connect)
    for left in (95, 90):
        with (
            Child(
                "-m", "zroute", "run", "examples/inventory.py", *flags, env={"INVENTORY": str(tmp_path / "s")}
            ) as shop,
            Child("-m", "zroute", "tail", reader, "stock.bolt", "-n", "1", "--format", "{body[left]}") as tail,
        ):
            shop.line_with(network.address("publishes, bound to"), stream="err")
            while tail.process.poll() is None:  # until tail has connected, it misses the answers
                assert zroute(*patient("pub", desk, "orders.bolt", "0")).returncode == 0
            assert tail.end(None) == 0, tail.err
            assert tail.out == ["100" if left == 95 else "95"]
            assert zroute(*patient("pub", desk, "orders.bolt", "5")).returncode == 0
            while json.loads((tmp_path / "s").read_text())["bolt"] != left:
                assert shop.process.poll() is None
            shop.end(9)

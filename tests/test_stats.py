"""Counters: the identity between them, and the sums over routes."""

from __future__ import annotations

import pytest

from zroute.stats import NOT_COUNTED, RouteStats, Stats, losses


def test_no_message_counter_follows_from_the_others() -> None:
    """No counter is computed from the others, so a missed or double count shows in the sum."""
    stats = Stats()
    stats.received = 10
    assert (stats.routed, stats.unrouted, stats.malformed, stats.duplicate, stats.control) == (0, 0, 0, 0, 0)


def test_sums_go_over_all_routes() -> None:
    """The totals of an app are the sums over its routes."""
    stats = Stats()
    stats.routes["a"] = RouteStats(handled=1, handler_error=2, decode_error=3, in_flight=4)
    stats.routes["b"] = RouteStats(handled=10, handler_error=20, decode_error=30, in_flight=40)
    assert (stats.handled, stats.failed, stats.in_flight) == (11, 55, 44)


def test_all_counters_are_plain_data() -> None:
    """All counters, also those of routes, are plain data for logs and JSON."""
    stats = Stats()
    stats.received, stats.routed, stats.routes["a"] = 2, 1, RouteStats(handled=1)
    found = stats.as_dict()
    assert (found["received"], found["routed"], found["routes"]["a"]["handled"]) == (2, 1, 1)


def test_counters_can_be_read_by_their_old_names() -> None:
    """The old names of counters work until the next version."""
    stats = Stats()
    stats.unknown_losses, stats.send_retries = 3, 4
    assert (stats.unknown_tail, stats.eagain) == (3, 4)


@pytest.mark.parametrize(
    ("counted", "shown"),
    [
        ({}, {"lost": 0}),
        ({"received": 5}, {"lost": NOT_COUNTED}),
        ({"received": 5, "joins": 1}, {"lost": 0}),
        ({"received": 5, "lost": 3}, {"lost": 3}),  # a full queue has dropped the answer to the join
        ({"received": 5, "unknown_losses": 1}, {"lost": 0, "unknown_losses": 1}),
        ({"joins": 1, "recovered": 1, "replayed": 2}, {"lost": 0, "recovered": 1, "replayed": 2}),
    ],
)
def test_losses_are_shown_if_one_was_counted(counted: dict[str, int], shown: dict[str, object]) -> None:
    """The last line says that losses are not counted only if no number has revealed one."""
    stats = Stats()
    for name, number in counted.items():
        setattr(stats, name, number)
    assert losses(stats) == shown

"""Counters: the identity between them, and the sums over routes."""

from __future__ import annotations

from zroute.delivery.stats import RouteStats, Stats


def test_each_received_message_is_counted_in_one_of_four_ways() -> None:
    """received = routed + unrouted + malformed + control."""
    assert Stats(received=10, unrouted=2, malformed=3, control=1).routed == 4


def test_sums_go_over_all_routes() -> None:
    """An app's totals are those of its routes."""
    stats = Stats(
        routes={
            "a": RouteStats(handled=1, handler_error=2, decode_error=3, in_flight=4),
            "b": RouteStats(handled=10, handler_error=20, decode_error=30, in_flight=40),
        }
    )
    assert (stats.handled, stats.failed, stats.in_flight) == (11, 55, 44)


def test_all_counters_are_plain_data() -> None:
    """I can log or serialise every counter, those of routes too."""
    found = Stats(received=2, unrouted=1, routes={"a": RouteStats(handled=1)}).as_dict()
    assert (found["received"], found["routed"], found["routes"]["a"]["handled"]) == (2, 1, 1)

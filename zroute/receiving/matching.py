"""Find the routes of a topic, and the subscription that matched the topic."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from zroute.errors import SignatureError
from zroute.functions import annotated, identity
from zroute.logs import printable
from zroute.messages.recovery import Since
from zroute.messages.schema import describe
from zroute.messages.topics import Pattern, minimal_cover
from zroute.receiving.dispatch import BoundRoute, CompiledRoute
from zroute.receiving.trie import build

__all__ = ["Matcher", "check_since", "recovered_subscriptions", "replayed_subscriptions"]


def recovered_subscriptions(routes: Sequence[CompiledRoute]) -> frozenset[bytes]:
    """Return the subscriptions whose lost messages are recovered.

    A gap belongs to a whole subscription, so all routes that share a subscription must agree.

    Raises:
        SignatureError: A route that recovers shares its subscription with a route that does not.
    """
    if not any(route.options.recover for route in routes):
        return frozenset()
    wanted: dict[bytes, dict[bool, tuple[Pattern, CompiledRoute]]] = {}
    for subscription, sharing in _by_subscription(routes).items():
        for pattern, route in sharing:
            wanted.setdefault(subscription, {}).setdefault(bool(route.options.recover), (pattern, route))
    for both in wanted.values():
        if len(both) > 1:
            (one, recovers), (other, counts) = both[True], both[False]
            raise SignatureError(
                f"{recovers.name} recovers lost messages of {one.text!r}, but {counts.name} "
                f"({counts.route.where}) does not recover those of {other.text!r}. Both share one subscription, whose "
                "messages are numbered together. Fix one of: recover=True for both; recover=False for both; patterns "
                "that begin differently",
                parameter="recover",
                where=recovers.route.where,
            )
    return frozenset(subscription for subscription, both in wanted.items() if True in both)


def replayed_subscriptions(routes: Sequence[CompiledRoute]) -> dict[bytes, Since]:
    """Return the subscriptions with a past, and its beginning; see `check_since`."""
    found: dict[bytes, Since] = {}
    if any(route.options.since for route in routes):
        for subscription, sharing in _by_subscription(routes).items():
            since = next((route.options.since for _, route in sharing if route.options.since), None)
            if since is not None:
                found[subscription] = since
    return found


def check_since(routes: Sequence[CompiledRoute], attached: CompiledRoute | None = None) -> None:
    """Check that the past of each subscription is for all its routes.

    A publisher sends the past of a subscription once, so all routes that share a subscription must agree. A route that
    is attached without ``since`` may share any subscription, and receives the messages from then on.

    Args:
        routes: The routes of an app.
        attached: One of the routes, if it is attached while the app runs. Only this route is then checked.

    Raises:
        SignatureError: A route with ``since`` shares its subscription with a route that differs. An attached route with
            ``since`` shares its subscription with any other route.
    """
    if not any(route.options.since for route in (routes if attached is None else (attached,))):
        return
    for sharing in _by_subscription(routes).values():
        for (one, route), (two, other) in product(sharing, sharing):
            if attached is None and route.options.since not in (None, other.options.since):
                remedy = "the same since= for both; patterns that begin differently"
            elif route is attached and other is not attached:
                remedy = "a pattern that begins differently; no since= for the attached handler"
            else:
                continue
            raise SignatureError(
                f"{route.name} has since= for {one.text!r}, but {other.name} "
                f"({other.route.where}) receives {two.text!r}. Both share one subscription, whose past a publisher "
                f"sends once. Fix one of: {remedy}",
                parameter="since",
                where=route.route.where,
            )


def _by_subscription(routes: Sequence[CompiledRoute]) -> dict[bytes, list[tuple[Pattern, CompiledRoute]]]:
    """Return the patterns and their routes by the subscription that they share."""
    patterns = [(pattern, route) for route in routes for pattern in route.patterns]
    cover = minimal_cover(pattern.subscription for pattern, _ in patterns)
    known, lengths = frozenset(cover), sorted({len(each) for each in cover})
    found: dict[bytes, list[tuple[Pattern, CompiledRoute]]] = {}
    for pattern, route in patterns:
        subscription = next(each for length in lengths if (each := pattern.subscription[:length]) in known)
        found.setdefault(subscription, []).append((pattern, route))
    return found


_NO_ARGUMENTS: Mapping[str, Any] = {}
"""The arguments of all routes whose handlers take no captured segment."""


class Matcher:
    """The patterns of ``routes``, and the ``subscriptions`` that cover the patterns.

    If ``only_first`` is True, messages of a topic are delivered only to the topic's most specific route.
    """

    def __init__(self, routes: Sequence[CompiledRoute], *, only_first: bool) -> None:
        self.patterns: tuple[Pattern, ...] = tuple(pattern for route in routes for pattern in route.patterns)
        self.subscriptions = minimal_cover(pattern.subscription for pattern in self.patterns)
        self.recovered = recovered_subscriptions(routes)
        self.since = replayed_subscriptions(routes)
        self._trie = build((pattern, route) for route in routes for pattern in route.patterns)
        self._subscribed = {each: each for each in self.subscriptions}
        self._lengths = sorted({len(each) for each in self.subscriptions})
        self._only_first = only_first

    def subscription(self, topic: bytes) -> bytes | None:
        """Return the subscription that matches the topic, or None.

        This method tries one look-up per length, because thousands of subscriptions have only a few different lengths.
        All topics of a subscription share the object of its bytes.
        """
        for length in self._lengths:
            found = self._subscribed.get(topic[:length])
            if found is not None:
                return found
        return None

    def without(self, subscriptions: Iterable[bytes]) -> frozenset[bytes]:
        """Return those of ``subscriptions`` that share no topic with the routes."""
        ordered, known = sorted(self._subscribed), self._subscribed

        def shares(each: bytes) -> bool:
            at = bisect_left(ordered, each)
            wider = any(each[:length] in known for length in self._lengths if length <= len(each))
            return wider or (at < len(ordered) and ordered[at].startswith(each))

        return frozenset(each for each in subscriptions if not shares(each))

    def deliveries(self, topic: bytes) -> tuple[BoundRoute, ...]:
        """Return the routes of a topic, the most specific first, each function only once."""
        seen: set[object] = set()
        found = []
        for match in self._trie.match(topic):
            route = match.value
            function = identity(route.route.function)
            if function in seen:
                continue
            arguments: Mapping[str, Any] = _NO_ARGUMENTS
            if route.call.constants.converters:
                converted = route.call.convert(match.captured(topic))
                if converted is None:
                    continue
                arguments = converted
            # Only now: if a segment had the wrong type, another pattern of the function may still match.
            seen.add(function)
            delivery = BoundRoute(route, topic, match.pattern, arguments)
            if route.outlets:  # each result needs them
                delivery.kept = delivery.captures
            found.append(delivery)
            if self._only_first:
                break
        return tuple(found)

    def misfit(self, topic: bytes) -> str:
        """Return a text about a captured segment that has the wrong type for its route.

        The result is "" if no pattern matches the topic.
        """
        for match in self._trie.match(topic):
            captures = match.captured(topic)
            name = match.value.call.unconverted(captures)
            if name is not None:
                segment = printable(captures[name].decode())
                hint = getattr(annotated(match.value.function), "__annotations__", {}).get(name)
                kind = hint if isinstance(hint, str) else describe(hint)
                return f"{match.value.name} has a matching pattern, but {{{name}}} expects {kind}, not {segment!r}"
        return ""

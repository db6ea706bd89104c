"""The sockets of endpoints with a stated form: one SUB socket for each form.

The publishers at these endpoints are foreign programs that do not know markers. The sockets therefore subscribe only to
prefixes of topics, and their messages have no accounts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from twisted.internet.defer import Deferred, gatherResults

from zroute.endpoints import Endpoint, Form
from zroute.messages.topics import Pattern, minimal_cover
from zroute.options import LINGER_ABORT, LINGER_DRAIN
from zroute.sockets.pair import SocketPair
from zroute.transport import TransportRequest

__all__ = ["StatedSockets"]


class StatedSockets:
    """The sockets for all endpoints of an app with a stated form.

    Args:
        request: The request of the run to its transport.
    """

    def __init__(self, request: TransportRequest) -> None:
        self._request = request
        app, forms = request.app, dict[Form, list[Endpoint]]()
        for endpoint in request.ends.sub:
            if endpoint.form is not None:
                forms.setdefault(endpoint.form, []).append(endpoint)
        self._pairs = {
            form: SocketPair(request.reactor, app, subscribe_to=endpoints, publish_to=())
            for form, endpoints in forms.items()
        }
        self._endpoints = forms

    def __bool__(self) -> bool:
        return bool(self._pairs)

    @property
    def pairs(self) -> Sequence[SocketPair]:
        """The sockets."""
        return tuple(self._pairs.values())

    def pair(self, form: Form) -> SocketPair | None:
        """Return the sockets of a form, or None."""
        return self._pairs.get(form)

    def open(self) -> None:
        """Bind and connect all endpoints.

        Raises:
            EndpointError: An endpoint can't be opened. All sockets are closed again.
            SetupError: The package for the compression of bodies is not installed.
        """
        receive, most = self._request.receive_stated, self._request.app.max_message
        try:
            for form, pair in self._pairs.items():
                place = ", ".join(map(str, self._endpoints[form]))
                pair.open(partial(receive, form.parser(most, place)))
        except BaseException:
            self.close(LINGER_ABORT)
            raise

    def listen(self, patterns: Iterable[Pattern]) -> None:
        """Subscribe to the fewest prefixes, or to everything if publishers can't filter."""
        prefixes = minimal_cover(pattern.subscription for pattern in patterns)
        for form, pair in self._pairs.items():
            pair.subscribe(prefixes if form.filters else (b"",) if prefixes else ())

    def leave(self) -> None:
        """Withdraw all subscriptions."""
        for pair in self.pairs:
            pair.subscribe(())

    def pause(self) -> None:
        """Stop reading until `resume`."""
        for pair in self.pairs:
            pair.pause()

    def resume(self) -> None:
        """Start reading again."""
        for pair in self.pairs:
            pair.resume()

    def readable(self) -> bool:
        """Return True if a message is waiting to be read, even while paused."""
        return any(pair.readable() for pair in self.pairs)

    def read(self) -> None:
        """Read some of the waiting messages, even while paused."""
        for pair in self.pairs:
            pair.read()

    def discard(self, most: int) -> int:
        """Discard up to ``most`` waiting parts; return their number."""
        number = 0
        for pair in self.pairs:
            number += pair.discard(most - number)
        return number

    @property
    def peers(self) -> int:
        """The number of connected publishers."""
        return sum(pair.peers for pair in self.pairs)

    def unconnected(self) -> list[str]:
        """Return the endpoints without a connected publisher."""
        return [each for pair in self.pairs for each in pair.unconnected()]

    def summary(self) -> Iterator[tuple[int, str]]:
        """Yield a log line for each form with which publishers can't filter."""
        name = self._request.app.name
        for form, endpoints in self._endpoints.items():
            if not form.filters:
                place = ", ".join(map(str, endpoints))
                yield (
                    logging.INFO,
                    f"{name}: receives all messages from {place} and drops those without a route, because with "
                    f"{form}, a "
                    "publisher can't filter by topic",
                )

    def addresses(self) -> dict[Form | None, Iterator[str]]:
        """Return the resolved addresses of the endpoints of each form, in their order."""
        return {form: iter(pair.subscribed if pair.sub else ()) for form, pair in self._pairs.items()}

    def close(self, linger: int = LINGER_DRAIN) -> Deferred[list[None]]:
        """Close the sockets."""
        return gatherResults([pair.close(linger) for pair in self.pairs])

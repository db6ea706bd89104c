"""Plan: an app as it can run, frozen; and `Live`, the slot that a run fills while it lasts.

A run knows the plan and not the `App`, which stands above it. What an app is at any time, a recipe, and what it is
while it runs are different objects, so a plan can be run again, and another one in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred

from zroute.declarations.limits import Limits
from zroute.declarations.records import Hooks, Route
from zroute.declarations.resources import CompiledResource
from zroute.declarations.signatures import Call
from zroute.endpoints import Endpoint
from zroute.errors import EndpointError, UsageError
from zroute.messages.codecs import Codecs
from zroute.publishing.choices import Choices
from zroute.publishing.publication import CompiledPublication, Emit, Schedule
from zroute.receiving.dispatch import CompiledRoute
from zroute.receiving.table import Dispatch
from zroute.stats import Stats

__all__ = ["Addresses", "CompiledTrigger", "Finishing", "Live", "Parts", "Plan", "Request", "RunningApp"]


@attrs.frozen(eq=False)
class CompiledTrigger:
    """A function that a timer calls or that yields by itself, and the publications that its values go to."""

    name: str
    where: str
    call: Call
    outlets: tuple[CompiledPublication, ...]
    schedule: Schedule | None


@attrs.frozen(eq=False)
class Parts:
    """What was registered, checked and bound: routes, publications and triggers, and the codecs that a frame may name.

    ``resources`` stand in the order in which they open. ``given`` maps types to what a parameter of that
    type gets, and ``hooked`` the hook functions, by `identity`, to what they are given by name.
    """

    routes: tuple[CompiledRoute, ...]
    outlets: tuple[CompiledPublication, ...]
    triggers: tuple[CompiledTrigger, ...]
    resources: tuple[CompiledResource, ...]
    hooked: Mapping[object, Mapping[str, Any]]
    given: Mapping[Any, Any]
    codecs: Codecs


class Finishing(Protocol):
    """What ends with a run, such as a stream."""

    def finish(self) -> None:
        """Nothing more will come."""


class RunningApp(Protocol):
    """One run of an app, as far as the app and what is attached to it use it."""

    def attach(self, route: Route) -> CompiledRoute:
        """Compile ``route`` and swap in a table that has it."""

    def detach(self, route: CompiledRoute) -> None:
        """Swap in a table without ``route``; what it has received is still handled."""

    def discard(self, route: CompiledRoute, unfinished: Deferred[Any] | None) -> None:
        """Drop what waits for ``route``, and a call that is given up; counted and said."""

    def open_stream(self, stream: Finishing) -> None:
        """Call ``stream.finish()`` when nothing more will come."""

    def close_stream(self, stream: Finishing) -> None:
        """``stream`` has been left."""

    def check_process(self, what: str) -> None:
        """Raise ForkedContextError in a forked child."""

    def ready(self, publishers: int | None, timeout: float, *, state: bool) -> Deferred[None]:
        """Fires when publishers have confirmed the subscriptions; with ``state`` also sent what they keep."""

    def from_thread(self, call: Callable[[], Any]) -> Any:
        """Call on the reactor's thread, wait for the result."""


@attrs.define
class Live:
    """What a run of an app fills, and empties at its end: the run, and what `App.publish` sends with.

    ``stats`` are those of the last run, or of this one.
    """

    run: RunningApp | None = None
    emit: Emit | None = None
    stats: Stats = attrs.field(factory=Stats)


@attrs.frozen
class Addresses:
    """Where an app was told to subscribe and to publish.

    ``loop``: without any its publishers feed its own subscribers. ``context``: what ``inproc://`` is shared by.
    """

    sub: tuple[Endpoint, ...]
    pub: tuple[Endpoint, ...]
    loop: bool
    context: Any


@attrs.frozen(eq=False)
class Plan:
    """An app, checked and frozen: all that a run has to know of it. ``where`` is the line of its ``App(…)``."""

    where: str
    choices: Choices
    dispatch: Dispatch
    limits: Limits
    addresses: Addresses
    hooks: Hooks
    parts: Parts
    live: Live

    @property
    def name(self) -> str:
        """The app's, for logs and summaries."""
        return self.choices.name

    def claim(self) -> None:
        """Raises UsageError while the app runs, and ForkedContextError where its parent process runs it."""
        if self.live.run is not None:
            self.live.run.check_process(f"{self} was started")
            raise UsageError(f"{self} runs already: stop its other service first")

    def endpoints(
        self, *, sub: tuple[Endpoint, ...] | None = None, pub: tuple[Endpoint, ...] | None = None
    ) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
        """Where to subscribe and where to publish, with ``sub`` and ``pub`` in place of the app's own.

        Without any it is a loop inside the process. Raises EndpointError when one side has routes and no
        endpoint, and for ``inproc://`` to an app that shares no context with this one.
        """
        parts, own = self.parts, self.addresses
        sub = own.sub if sub is None else sub
        pub = own.pub if pub is None else pub
        if not sub and not pub:
            if not own.loop:
                raise EndpointError(
                    "no endpoints, and loop=False: give App(sub=…) or App(pub=…); `zroute run` also takes --sub and "
                    "--pub (in the environment ZROUTE_SUB and ZROUTE_PUB)",
                    where=self.where,
                )
            inside = f"inproc://zroute-{id(self):x}"
            return (Endpoint(inside, bind=False),), (Endpoint(inside, bind=True),)
        if parts.routes and not sub:
            route = parts.routes[0]
            raise EndpointError(
                f"{route.name} at {route.route.where} subscribes, and the app has no endpoint to subscribe to: "
                "add App(sub='tcp://127.0.0.1:5555'), the address that the publisher binds",
                where=self.where,
            )
        if parts.outlets and not pub:
            publication = parts.outlets[0].publication
            raise EndpointError(
                f"publisher({publication.pattern.text!r}) at {publication.where} has no endpoint to publish at: "
                "add App(pub='tcp://127.0.0.1:5556'), an address that this app binds",
                where=self.where,
            )
        self._check_inproc(sub, pub)
        return sub, pub

    def _check_inproc(self, sub: tuple[Endpoint, ...], pub: tuple[Endpoint, ...]) -> None:
        """libzmq connects ``inproc://`` to what nobody in its context will ever bind, and never says so."""
        bound = {endpoint.address for endpoint in (*sub, *pub) if endpoint.bind}
        for endpoint in (*sub, *pub):
            inside = endpoint.address.startswith("inproc://")
            if inside and endpoint.address not in bound and self.addresses.context.is_private:
                raise EndpointError(
                    f"connects to {endpoint.address}, where nobody can be: inproc:// joins apps that share a context, "
                    "and no app shares this one's; write App(context=other.context), other being the app that binds it",
                    endpoint=str(endpoint),
                    where=self.where,
                )

    def __str__(self) -> str:
        return f"<App {self.name!r} at {self.where}>"


@attrs.frozen(eq=False)
class Request:
    """What one run asks a transport for: to move the messages of ``plan`` from and to these endpoints.

    ``stats`` are the run's. ``found`` is to be called with each `Gap`, `UnknownLoss` and `LostKept`.
    """

    plan: Plan
    reactor: Any
    subscribe_to: tuple[Endpoint, ...]
    publish_to: tuple[Endpoint, ...]
    stats: Stats
    found: Callable[[Any], None]

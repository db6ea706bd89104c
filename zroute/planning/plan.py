"""`Plan`, the compiled form of an app, and `Live`, the state of a run.

A run uses the plan and does not know the `App`. Because plan and state are separate objects, a plan can run several
times in succession.
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
    """A timer function or free-running generator, and the publications of its values.

    ``schedule`` is None for a free-running generator.
    """

    name: str
    where: str
    call: Call
    outlets: tuple[CompiledPublication, ...]
    schedule: Schedule | None


@attrs.frozen(eq=False)
class Parts:
    """The compiled parts of an app.

    Attributes:
        routes: The handlers, in the order of registration.
        outlets: The publications.
        triggers: The timer functions and free-running generators.
        resources: The resources in opening order.
        hooked: For each hook, by `identity` of its function, the arguments that it receives by name.
        given: For each type that is filled by annotation, the object or `Needed`.
        codecs: The codecs that a received frame may name.
    """

    routes: tuple[CompiledRoute, ...]
    outlets: tuple[CompiledPublication, ...]
    triggers: tuple[CompiledTrigger, ...]
    resources: tuple[CompiledResource, ...]
    hooked: Mapping[object, Mapping[str, Any]]
    given: Mapping[Any, Any]
    codecs: Codecs


class Finishing(Protocol):
    """An object that ends with the run, such as a stream."""

    def finish(self) -> None:
        """End the object: it will receive nothing more."""


class RunningApp(Protocol):
    """One run of an app, as `App`, attached routes and streams use it."""

    def attach(self, route: Route) -> CompiledRoute:
        """Compile ``route`` and replace the routing table by one that has it."""

    def detach(self, route: CompiledRoute) -> None:
        """Replace the routing table by one without ``route``.

        Messages that the route has already received are still handled.
        """

    def discard(self, route: CompiledRoute, unfinished: Deferred[Any] | None) -> None:
        """Drop the messages that wait for ``route``, and give up an unfinished call.

        Both are counted and logged.
        """

    def open_stream(self, stream: Finishing) -> None:
        """Call ``stream.finish()`` at the end of the run."""

    def close_stream(self, stream: Finishing) -> None:
        """Forget ``stream``, which the user has left."""

    def check_process(self, what: str) -> None:
        """Raise ForkedContextError in a forked child process."""

    def ready(self, publishers: int | None, timeout: float, *, state: bool) -> Deferred[None]:
        """Return a Deferred that fires when publishers have confirmed the subscriptions.

        With ``state`` it also waits for the messages that the publishers keep.
        """

    def from_thread(self, call: Callable[[], Any]) -> Any:
        """Call ``call`` on the reactor's thread and wait for its result."""


@attrs.define
class Live:
    """The state of an app that exists only during a run.

    Attributes:
        run: The current run; None while the app does not run.
        emit: The function with which `App.publish` sends; None while the app does not run.
        stats: The counters of the current run, or of the last run.
    """

    run: RunningApp | None = None
    emit: Emit | None = None
    stats: Stats = attrs.field(factory=Stats)


@attrs.frozen
class Addresses:
    """The endpoints of an app, as its `App(…)` declares them.

    Attributes:
        sub: The endpoints to subscribe to.
        pub: The endpoints to publish at.
        loop: True if an app without endpoints receives its own messages inside the process.
        context: The ZeroMQ context; apps that share it can meet over ``inproc://``.
    """

    sub: tuple[Endpoint, ...]
    pub: tuple[Endpoint, ...]
    loop: bool
    context: Any


@attrs.frozen(eq=False)
class Plan:
    """A compiled and frozen app: everything that a run needs.

    ``where`` is the line of its ``App(…)``, as ``file:line``.
    """

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
        """The name of the app, for logs and summaries."""
        return self.choices.name

    def claim(self) -> None:
        """Check that the app can start.

        Raises:
            UsageError: The app is already running.
            ForkedContextError: The app was started in the parent process, before a fork.
        """
        if self.live.run is not None:
            self.live.run.check_process(f"{self} was started")
            raise UsageError(f"{self} is already running: stop its other service first")

    def endpoints(
        self, *, sub: tuple[Endpoint, ...] | None = None, pub: tuple[Endpoint, ...] | None = None
    ) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
        """Return the endpoints to subscribe to and to publish at.

        ``sub`` and ``pub`` replace the app's own endpoints. An app without endpoints gets a loop inside the process.

        Raises:
            EndpointError: A side has functions but no endpoint, or ``inproc://`` leads to an app that does not share
                the context.
        """
        parts, own = self.parts, self.addresses
        sub = own.sub if sub is None else sub
        pub = own.pub if pub is None else pub
        if not sub and not pub:
            if not own.loop:
                raise EndpointError(
                    "no endpoints, and loop=False: write App(sub=…) or App(pub=…); `zroute run` also takes --sub and "
                    "--pub (in the environment ZROUTE_SUB and ZROUTE_PUB)",
                    where=self.where,
                )
            # The id of the plan makes the address unique within the context, which several apps may share.
            inside = f"inproc://zroute-{id(self):x}"
            return (Endpoint(inside, bind=False),), (Endpoint(inside, bind=True),)
        if parts.routes and not sub:
            route = parts.routes[0]
            raise EndpointError(
                f"{route.name} at {route.route.where} subscribes, but the app has no endpoint to subscribe to: "
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
        """Raise EndpointError for an ``inproc://`` address that nothing can bind.

        libzmq accepts a connect to an ``inproc://`` address before its bind, and waits forever without an error.
        """
        bound = {endpoint.address for endpoint in (*sub, *pub) if endpoint.bind}
        for endpoint in (*sub, *pub):
            inside = endpoint.address.startswith("inproc://")
            if inside and endpoint.address not in bound and self.addresses.context.is_private:
                raise EndpointError(
                    f"connects to {endpoint.address}, but inproc:// needs a context that both apps share, and no other "
                    "app shares this one: write App(context=other.context), where other is the app that binds it",
                    endpoint=str(endpoint),
                    where=self.where,
                )

    def __str__(self) -> str:
        return f"<App {self.name!r} at {self.where}>"


@attrs.frozen(eq=False)
class Request:
    """The request of one run to its transport.

    Attributes:
        plan: The app.
        reactor: The reactor of the run.
        subscribe_to: The endpoints to receive from.
        publish_to: The endpoints to publish at.
        stats: The counters of the run.
        found: A function that the transport calls with each `Gap`, `UnknownLoss` and `LostKept`.
    """

    plan: Plan
    reactor: Any
    subscribe_to: tuple[Endpoint, ...]
    publish_to: tuple[Endpoint, ...]
    stats: Stats
    found: Callable[[Any], None]

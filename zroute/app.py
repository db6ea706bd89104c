"""App: what a program declares about its publish/subscribe, and the way to run it.

An App is the outermost group of routes, with endpoints and the choices that hold for all of them. It opens
nothing by itself: `App.service` makes what does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, get_args, overload

from zroute.awaiting import as_awaitable
from zroute.declarations.limits import DEFAULT_LIMITS, Limits, check_limits
from zroute.declarations.options import ROUTE_DEFAULTS, RouteOptions, complete, takes
from zroute.declarations.records import Hook, Hooks
from zroute.declarations.routes import Routes, coalescing, make_route, parse_patterns
from zroute.endpoints import Endpoint, parse_endpoints
from zroute.errors import NotRunningError, SetupError, SignatureError
from zroute.functions import local_names, name_of, users_line
from zroute.messages.codecs import Codec, find_codec
from zroute.messages.topics import Pattern, topic_bytes
from zroute.messages.wire import WIRES, Envelope, Wire
from zroute.options import MAX_MESSAGE, STREAM_QUEUE
from zroute.planning.compiler import compile_routes
from zroute.planning.plan import Addresses, Live, Plan, RunningApp
from zroute.publishing.choices import Choices
from zroute.publishing.publication import Coalesce, CompiledPublication, Encode, Overflow, encoder_by_type
from zroute.receiving.events import Gap
from zroute.receiving.table import Dispatch
from zroute.runtime import runner
from zroute.runtime.service import AppService
from zroute.runtime.streams import Attached, Stream
from zroute.sockets.pair import SharedContext
from zroute.stats import Stats

__all__ = ["App"]

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Gapped = TypeVar("Gapped", bound=Callable[Concatenate[Gap, ...], Any])
Unrouted = TypeVar("Unrouted", bound=Callable[Concatenate[Envelope, ...], Any])


class App(Routes):
    """Decorated handlers and publishers over ZeroMQ.

    ``sub`` and ``pub``: an endpoint, or several. ``sub`` connects and ``pub`` binds, unless an endpoint says
    ``bind:`` or ``connect:`` before its address. Without any, the app's publishers feed its own
    subscribers inside the process; ``loop=False`` makes that an EndpointError at the start.

    ``codec``: how bodies are written, and read where their publisher does not say it: "msgpack" (the
    default: compact, and it keeps bytes and types apart), "json", "text", "raw", or a `Codec`.
    ``wire``: "tracked" (the default: codec, sequence, time and headers travel along, for zroute's readers),
    "plain" (``topic NUL body``, as txZMQ) or "multipart" (``[topic, body]``, for peers in any language).
    All three are received, whatever is sent.
    ``dispatch``: "all" matching handlers are called, or only the "most_specific".
    ``overflow``: while the queue of a subscriber is full (10,000 messages) its messages are dropped, which it counts
    ("drop", the default), or ``publish`` raises HighWaterMarkError and sends to nobody ("raise"), or messages wait,
    1,000 of them, each up to 30 s, and ``publish`` returns an awaitable to wait with ("wait"). The last two tie all
    who subscribe to a topic to the slowest of them.
    ``coalesce``: True, or a `Coalesce`: messages of one topic that are published together travel together, unless a
    publisher says otherwise (tracked wire; default False). It can't be combined with ``overflow="raise"``, where each
    message is sent or refused at its own line.
    ``max_message``: bytes of a body, both ways; larger ones are refused where they are published, and from peers
    (default 1 MiB).
    ``limits``: how much peers may ask of this app, as `Limits`.
    ``context``: another app's ``context``, to meet it over ``inproc://``, or a ``zmq.Context``.
    ``name``: for logs and summaries.

    Raises EndpointError, SchemaError (an unknown codec) and SignatureError (another unknown choice).
    """

    def __init__(
        self,
        *,
        sub: str | Iterable[str] = (),
        pub: str | Iterable[str] = (),
        codec: str | Codec = "msgpack",
        wire: Wire = "tracked",
        dispatch: Dispatch = "all",
        overflow: Overflow = "drop",
        coalesce: bool | Coalesce = False,
        max_message: int = MAX_MESSAGE,
        limits: Limits = DEFAULT_LIMITS,
        loop: bool = True,
        context: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.where = users_line()
        self.sub = self._set_up(lambda: parse_endpoints(sub, bind=False))
        self.pub = self._set_up(lambda: parse_endpoints(pub, bind=True))
        self.codec = self._set_up(lambda: find_codec(codec))
        self.wire: Wire = _one_of("wire", wire, WIRES, self.where)
        self.dispatch: Dispatch = _one_of("dispatch", dispatch, get_args(Dispatch), self.where)
        self.overflow: Overflow = _one_of("overflow", overflow, get_args(Overflow), self.where)
        self.coalesce = coalescing(coalesce, self.where)
        if not (isinstance(max_message, int) and max_message > 0):
            raise SignatureError(f"max_message={max_message!r}: a number of bytes, 1 or more", where=self.where)
        self.max_message = max_message
        self.limits = check_limits(limits, self.where)
        self.loop = loop
        self.name = name or "app"
        self.context = context.share() if isinstance(context, SharedContext) else SharedContext(context)
        self._startup: list[Hook] = []
        self._shutdown: list[Hook] = []
        self._fallbacks: list[Hook] = []
        self._gaps: list[Hook] = []
        self._plan: Plan | None = None
        self._live = Live()
        self._encode: Encode = encoder_by_type(None, self.codec)

    def _set_up(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except SetupError as error:
            error.where = self.where
            error.args = (f"{self.where}: {error}",)
            raise

    # -- hooks ----------------------------------------------------------------------------------------

    def on_startup(self, function: F) -> F:
        """Call ``function`` after the sockets are bound and before the first subscription.

        It may publish, take resources by their types, and be ``async``: the app subscribes when it has
        ended. An exception ends the start. Several run one after the other, in the order of registration.
        """
        return self._register(self._startup, function, "on_startup")

    def on_shutdown(self, function: F) -> F:
        """Call ``function`` at a stop, when no message is being handled any more; it may still publish.

        It may be ``async``, and take resources, which are still open. An exception is logged and counted,
        and the stop goes on.
        """
        return self._register(self._shutdown, function, "on_shutdown")

    def on_unrouted(self, function: Unrouted) -> Unrouted:
        """Call ``function`` with the `Envelope` of each message that arrived and that no route takes."""
        return self._register(self._fallbacks, function, "on_unrouted")

    def on_gap(self, function: Gapped) -> Gapped:
        """Call ``function`` with a `Gap` for each loss: its subscription, publisher, first and last missing number.

        It is called before the message behind the gap is handled. Without such a function losses are logged, a few in
        full. What is lost for good stays so: a gap tells when to ask for it by other means. It may be ``async`` and
        take resources.
        """
        return self._register(self._gaps, function, "on_gap")

    async def ready(self, publishers: int | None = None, timeout: float = 10.0, *, state: bool = False) -> None:
        """Wait until publishers have confirmed all subscriptions: what they publish from then on is handled or counted.

        With ``state=True`` wait also for the messages that they keep (``keep="last"``): all have been received, or
        counted as lost. Plain functions have handled them; for others they are called, or wait in the route's queue.

        Args:
            publishers: How many to wait for; by default all that are connected. One that does not track is not waited
                for longer than 2 s.
            timeout: In seconds.
            state: Wait for kept messages as well.

        Raises:
            NotReadyError: The time is over. It says which publishers have answered.
            NotRunningError: The app does not run, or stops.
        """
        if self._live.run is None:
            raise NotRunningError(
                f"ready() while {self.name!r} does not run: await it in on_startup's wake, or from a handler"
            )
        await as_awaitable(self._live.run.ready(publishers, timeout, state=state))

    def _register(self, hooks: list[Hook], function: F, what: str) -> F:
        where = users_line(function)
        self._check_open(what, where)
        if not callable(function):
            raise SignatureError(f"{what} decorates a function, not {function!r}", where=where)
        hooks.append(Hook(function, where, local_names(function)))
        return function

    # -- publishing -----------------------------------------------------------------------------------

    def publish(self, topic: str, message: object, *, headers: Mapping[str, Any] | None = None) -> Awaitable[None]:
        """Publish ``message`` to ``topic``, encoded by its own type in the app's codec.

        For topics known only while running; a `publisher` says its topics and its type in advance. Returns
        an awaitable that may be ignored. Raises TopicError, EncodeError, and NotRunningError, before
        anything is sent. The empty topic may be published; only ``startswith("")`` receives it.
        """
        emit = self._live.emit
        if emit is None:
            raise self._not_running(
                f"publish({topic!r})", "publish from a handler, a timer, or a function under @app.on_startup"
            )
        raw = topic_bytes(topic)
        number, body = self._encode(message)
        return emit(raw, number, body, headers)

    # -- while running --------------------------------------------------------------------------------

    @takes(RouteOptions, ROUTE_DEFAULTS)
    def attach(self, pattern: str | Pattern, function: Callable[..., Any], **options: Unpack[RouteOptions]) -> Attached:
        """Call ``function`` from now on with each message whose topic matches ``pattern``, until it is closed.

        For what comes and goes while the app runs: a room that somebody enters, an instrument that is
        watched for a while. What is known in advance belongs under `subscribe`, which has the same options.
        The app subscribes if its subscriptions did not cover the pattern; a message that its publisher sent
        before it knew of that does not come. Messages to others are not disturbed.

        Routes that are attached under one function name share their counters in ``app.stats.routes``.
        Raises NotRunningError while the app does not run, WrongThreadError outside the reactor's thread, and
        what `subscribe` and `compile` raise.
        """
        chosen = complete("attach", options, ROUTE_DEFAULTS)
        run = self._running(f"attach({pattern!r})", "register what is known in advance with @app.subscribe")
        where = users_line()
        route = make_route(function, parse_patterns((pattern,), where), chosen, where)
        return Attached(run, run.attach(route))

    @overload
    def stream(
        self, pattern: str | Pattern, schema: type[T], *, codec: str | Codec | None = None, queue: int = STREAM_QUEUE
    ) -> Stream[T]: ...

    @overload
    def stream(
        self, pattern: str | Pattern, schema: Any = Any, *, codec: str | Codec | None = None, queue: int = STREAM_QUEUE
    ) -> Stream[Any]: ...

    def stream(
        self, pattern: str | Pattern, schema: Any = Any, *, codec: str | Codec | None = None, queue: int = STREAM_QUEUE
    ) -> Stream[Any]:
        """Messages of topics that match ``pattern``, one after the other, for an ``async for``:

            async with app.stream("rooms.lobby", Said) as messages:
                async for message in messages:
                    print(message.text)

        ``schema`` is the type of the bodies, or `Envelope` for whole messages with their topics. Messages come in
        the order of their arrival, from the ``async with`` on. ``queue`` of them may wait to be taken (default
        100); then the app reads no more until half are taken. A message counts as handled when
        the next one is asked for. The loop ends when the app stops, after what had arrived (in a timer, which a
        stop cancels, at once); what still waits when the block is left is dropped and counted. Works in Deferred
        coroutines and in tasks of asyncio.

        Raises NotRunningError, WrongThreadError and SchemaError when the block is entered.
        """
        where = users_line()
        return Stream(
            lambda: self._running(f"stream({pattern!r})", "open it in a handler or a timer"),
            parse_patterns((pattern,), where),
            schema,
            codec=codec,
            queue=queue,
            where=where,
        )

    @overload
    def from_thread(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    @overload
    def from_thread(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    def from_thread(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call ``function(*args, **kwargs)`` on the reactor's thread, from another one, and return its result.

        What handlers with ``thread=True`` publish with, as in
        ``app.from_thread(alerts.publish, Alert("late"), level="high")``: ZeroMQ's sockets belong to the
        reactor's thread. Waits until the call has ended; an awaitable result is awaited. Raises what the
        function raises, NotRunningError when the app does not run or stops meanwhile, and WrongThreadError on
        the reactor's thread itself, which would wait for ever.
        """
        run = self._running(f"from_thread({name_of(function)})", "call it while the app runs")
        return run.from_thread(partial(function, *args, **kwargs))

    def _running(self, what: str, remedy: str) -> RunningApp:
        if self._live.run is None:
            raise self._not_running(what, remedy)
        return self._live.run

    def _not_running(self, what: str, remedy: str) -> NotRunningError:
        return NotRunningError(f"{what} while {self.name!r} does not run: {remedy}")

    # -- running --------------------------------------------------------------------------------------

    def compile(self) -> Plan:
        """Check and freeze everything; a later registration raises AppFrozenError. Opens nothing.

        Raises SignatureError, SchemaError, DuplicateRouteError, PatternError, with the user's line.
        """
        if self._plan is None:
            startup, shutdown, unrouted, gaps = map(
                tuple[Hook, ...], (self._startup, self._shutdown, self._fallbacks, self._gaps)
            )
            hooks = Hooks(startup, shutdown, unrouted, gaps, tuple(self._errors))
            parts = compile_routes(
                self, given={App: self, type(self): self}, default=self.codec, dispatch=self.dispatch, hooks=hooks
            )
            choices = Choices(self.name, self.codec, self.wire, self.overflow, self.coalesce, self.max_message)
            _check_kept(parts.outlets, self.wire)
            _check_coalescing(parts.outlets, choices, self.where)
            addresses = Addresses(self.sub, self.pub, self.loop, self.context)
            self._plan = Plan(self.where, choices, self.dispatch, self.limits, addresses, hooks, parts, self._live)
            self._freeze(f"App {self.name!r}")
        return self._plan

    @property
    def stats(self) -> Stats:
        """The counters of this run, or of the last one."""
        return self._live.stats

    def endpoints(
        self, *, sub: tuple[Endpoint, ...] | None = None, pub: tuple[Endpoint, ...] | None = None
    ) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
        """Where to subscribe and where to publish, with ``sub`` and ``pub`` in place of the app's own.

        Without any it is a loop inside the process. Raises EndpointError when one side has routes and no
        endpoint, and for ``inproc://`` to an app that shares no context with this one.
        """
        return self.compile().endpoints(sub=sub, pub=pub)

    def service(self, reactor: Any) -> AppService:
        """A Twisted ``IService`` that runs this app on ``reactor``, for any Twisted program to parent.

        Compiles, so that errors of the set-up raise here. Starting it opens the sockets (EndpointError);
        stopping it drains and closes them. A second one may run when the first has stopped.

        Where a resource or ``on_startup`` fails, that is logged, and this service stops; the others of the program
        go on. If it is to end then, its ``started`` tells::

            service.started.addErrback(lambda _: reactor.callWhenRunning(reactor.stop))
        """
        return AppService(self.compile(), reactor)

    def run(self, **options: Any) -> None:
        """Run until SIGINT or SIGTERM, in a script of its own: what ``zroute run`` does, without its flags.

        ``options`` are those of `zroute.runtime.runner.run`. Exits with its code unless that is 0.
        """
        code = runner.run([self], **options)
        if code:
            raise SystemExit(code)

    def __repr__(self) -> str:
        return f"<App {self.name!r} at {self.where}>"


def _one_of(name: str, value: Any, known: tuple[Any, ...], where: str) -> Any:
    if value not in known:
        raise SignatureError(f"{name}={value!r}: one of {', '.join(map(repr, known))}", parameter=name, where=where)
    return value


def _check_kept(outlets: Sequence[CompiledPublication], wire: Wire) -> None:
    for publication in (outlet.publication for outlet in outlets):
        if publication.keep and wire != "tracked":
            raise SignatureError(
                f"keep={publication.keep!r} needs wire='tracked', and this app's is {wire!r}: other wires don't tell "
                "of those who join",
                parameter="keep",
                where=publication.where,
            )


def _check_coalescing(outlets: Sequence[CompiledPublication], choices: Choices, where: str) -> None:
    if choices.overflow != "raise":
        return
    wanting = [outlet.publication.where for outlet in outlets if choices.coalesces(outlet.publication)]
    if choices.coalesce:
        wanting.append(where)
    if wanting:
        raise SignatureError(
            "coalesce with overflow='raise': a message that travels with others is sent later, when its publish "
            "can raise no more; leave one of the two out, or write overflow='wait'",
            parameter="coalesce",
            where=wanting[0],
        )

"""App: the declarations of a program, and its start.

An App is the outermost group of routes, with endpoints and settings for all of them. It opens no socket by itself:
`App.service` and `App.run` do.
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
    """An application of typed message handlers and publishers over ZeroMQ.

    For example:

        app = App(sub="tcp://127.0.0.1:5555", pub="tcp://*:5556")

        @app.subscribe("quotes.{symbol}")
        def on_quote(quote: Quote, symbol: str) -> None:
            print(symbol, quote.bid)

        app.run()

    Args:
        sub: The endpoints to receive from: one or several. They connect unless an endpoint begins with ``bind:``.
            Without ``sub`` and ``pub``, the app's publishers send to its own subscribers inside the process.
        pub: The endpoints to publish to: one or several. They bind unless an endpoint begins with ``connect:``.
        codec: The encoding of message bodies: "msgpack" (default; compact, keeps bytes and types apart), "json",
            "text", "raw", or a `Codec`. Received messages that name their codec are decoded with that one.
        wire: The message format. "tracked" (default) adds codec, sequence number, time and headers, for zroute's
            subscribers. "plain" is ``topic NUL body``, as txZMQ sends it. "multipart" is ``[topic, body]``, for peers
            in any language. An app receives all three formats.
        dispatch: Call "all" matching handlers (default), or only the "most_specific" one.
        overflow: What happens to a message while the queue of a subscriber is full (10,000 messages). "drop" (default)
            drops it for that subscriber, which counts the loss. "raise" makes ``publish`` raise HighWaterMarkError; no
            subscriber receives the message. "wait" queues up to 1,000 messages for up to 30 s each, and ``publish``
            returns an awaitable to wait with. With "raise" and "wait" the slowest subscriber of a topic slows down all.
        coalesce: True or a `Coalesce`: send several messages of one topic in one frame, if they are published together.
            A publisher can override it. Needs the tracked wire, and excludes ``overflow="raise"``. Default False.
        max_message: The largest message body in bytes, sent or received (default 1 MiB). Larger bodies are refused.
        limits: The limits on requests of peers, as `Limits`.
        loop: False raises EndpointError at the start if the app has no endpoints. Default True.
        context: The ``context`` of another app, to connect to it over ``inproc://``, or a ``zmq.Context``.
        name: The name of the app in logs and summaries (default "app").

    Raises:
        EndpointError: An endpoint is invalid.
        SchemaError: The codec is unknown.
        SignatureError: Another argument has an invalid value.
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
            raise SignatureError(
                f"max_message={max_message!r}: expected a number of bytes, 1 or more", where=self.where
            )
        self.max_message = max_message
        self.limits = check_limits(limits, self.where)
        self.loop = loop
        self.name = name or "app"
        # inproc:// connects only sockets of one ZeroMQ context, so apps that use it must share theirs.
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
        except SetupError as error:  # the parsers don't know the user's line
            error.where = self.where
            error.args = (f"{self.where}: {error}",)
            raise

    # -- hooks ----------------------------------------------------------------------------------------

    def on_startup(self, function: F) -> F:
        """Call a function before the app subscribes.

        The sockets are already bound, so the function may publish. It may take resources by their types, and may be
        ``async``: the app subscribes when it has ended. If it raises an error, the app does not start. Several
        functions run one after the other, in the order of registration.

        For example:

            @app.on_startup
            async def load(prices: Prices) -> None:
                await prices.load()

        Raises:
            SignatureError: The decorated object is not a function.
            AppFrozenError: The app is already compiled.
        """
        return self._register(self._startup, function, "on_startup")

    def on_shutdown(self, function: F) -> F:
        """Call a function when the app stops, after the last message is handled.

        It may still publish, may be ``async``, and may take resources, which are still open. An error is logged and
        counted, and the stop continues.

        For example:

            @app.on_shutdown
            def say_goodbye() -> None:
                status.publish(Status("closed"))

        Raises:
            SignatureError: The decorated object is not a function.
            AppFrozenError: The app is already compiled.
        """
        return self._register(self._shutdown, function, "on_shutdown")

    def on_unrouted(self, function: Unrouted) -> Unrouted:
        """Call a function with the `Envelope` of each message that matches no route.

        For example:

            @app.on_unrouted
            def log_topic(envelope: Envelope) -> None:
                print("no route for", envelope.topic)

        Raises:
            SignatureError: The decorated object is not a function.
            AppFrozenError: The app is already compiled.
        """
        return self._register(self._fallbacks, function, "on_unrouted")

    def on_gap(self, function: Gapped) -> Gapped:
        """Call a function with a `Gap` for each loss of messages.

        A `Gap` names the subscription, the publisher, and the first and last missing number. The function is called
        before the message after the gap is handled. It may be ``async`` and may take resources. Without such a
        function, losses are logged. zroute does not send lost messages again: use the function to request them by other
        means.

        For example:

            @app.on_gap
            def reload(gap: Gap) -> None:
                print("lost", gap.first, "to", gap.last)

        Raises:
            SignatureError: The decorated object is not a function.
            AppFrozenError: The app is already compiled.
        """
        return self._register(self._gaps, function, "on_gap")

    async def ready(self, publishers: int | None = None, timeout: float = 10.0, *, state: bool = False) -> None:
        """Wait until publishers have confirmed all subscriptions.

        Each message that they publish afterwards is handled or counted as lost.

        With ``state=True``, also wait for the messages that they retain (``keep="last"``): all are then received, or
        counted as lost. Plain functions have handled them. Other handlers are called with them, or have them in their
        queue.

        Args:
            publishers: The number of publishers to wait for; by default all that are connected. A publisher that does
                not use the tracked wire is waited for at most 2 s.
            timeout: Seconds to wait.
            state: Also wait for retained messages.

        Raises:
            NotReadyError: The timeout has elapsed. The error lists the publishers that have answered.
            NotRunningError: The app is not running, or stops.
        """
        if self._live.run is None:
            raise NotRunningError(
                f"ready() while {self.name!r} does not run: await it in a handler or a timer, after on_startup"
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
        """Publish a message to a topic that is known only at run time.

        The message is encoded by its own type, in the app's codec. For topics that are known in advance use
        `publisher`, which declares topic and type. Only ``startswith("")`` receives the empty topic. If an error is
        raised, nothing is sent.

        Args:
            topic: The topic, without wildcards.
            message: The message body.
            headers: Headers to send with the message (tracked wire only).

        Returns:
            An awaitable that may be ignored. With ``overflow="wait"`` it waits until the message is sent.

        Raises:
            TopicError: The topic can't be published.
            EncodeError: The message can't be encoded without loss.
            HighWaterMarkError: The queue of a subscriber is full (``overflow="raise"``), or 1,000 messages already wait
                (``overflow="wait"``).
            NotRunningError: The app is not running.
            WrongThreadError: The caller is not on the reactor's thread.
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
        """Add a handler while the app runs, until it is closed.

        For example for a chat room that a user enters. Register handlers that are known in advance with `subscribe`,
        which has the same options. The app subscribes if its subscriptions do not cover the pattern. Messages that a
        publisher sends before it receives that subscription are missed. Other handlers are not affected.

        Handlers with the same function name share their counters in ``app.stats.routes``.

        Args:
            pattern: The topics to receive.
            function: The handler.
            options: The options of `subscribe`.

        Returns:
            An `Attached`, which removes the handler when it is closed.

        Raises:
            NotRunningError: The app is not running.
            WrongThreadError: The caller is not on the reactor's thread.
            SignatureError: The function or an option is invalid.
            SchemaError: The type of the body can't be decoded.
            PatternError: The pattern is invalid.
            DuplicateRouteError: The function is already registered for this pattern; with
                ``dispatch="most_specific"``, any function is.
        """
        chosen = complete("attach", options, ROUTE_DEFAULTS)
        run = self._running(f"attach({pattern!r})", "register handlers that are known in advance with @app.subscribe")
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
        """Iterate over the messages of matching topics with ``async for``.

        For example:

            async with app.stream("rooms.lobby", Said) as messages:
                async for message in messages:
                    print(message.text)

        Messages arrive in order, from the ``async with`` on. A message counts as handled when the loop asks for the
        next one. Works in Deferred coroutines and in asyncio tasks.

        The loop ends when the app stops, after the messages that have already arrived. In a timer it ends at once,
        because the stop cancels timers. Messages that still wait when the block is left are dropped and counted.

        Args:
            pattern: The topics to receive.
            schema: The type of the message bodies, or `Envelope` for whole messages with their topics.
            codec: The codec of the bodies, in place of the app's.
            queue: The number of messages that may wait (default 100). When it is reached the app stops reading until
                half of them are taken.

        Raises:
            NotRunningError: The app is not running when the block is entered.
            WrongThreadError: The block is not entered on the reactor's thread.
            SchemaError: The type can't be decoded; raised when the block is entered.
            PatternError: The pattern is invalid; raised by this call.
        """
        where = users_line()
        return Stream(  # a stream may be made before the app runs, and is opened later
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
        """Call a function on the reactor's thread from another thread.

        For handlers with ``thread=True``, since ZeroMQ sockets belong to the reactor's thread:

            app.from_thread(alerts.publish, Alert("late"), level="high")

        Waits until the call has ended. If the function returns an awaitable, that is awaited too.

        Args:
            function: The function to call.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            The result of the function.

        Raises:
            NotRunningError: The app is not running, or stops before the call has ended.
            WrongThreadError: The caller is on the reactor's thread, which would wait for itself.
            Exception: Any error that the function raises.
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
        """Check all declarations, and freeze the app. Opens no socket.

        A registration after that raises AppFrozenError. Each error below names the line of the declaration.

        Returns:
            The plan that runs the app.

        Raises:
            SignatureError: A function or an option is invalid.
            SchemaError: A type can't be encoded or decoded without loss.
            DuplicateRouteError: A function is registered twice for a pattern; with ``dispatch="most_specific"``, two
                functions are registered for a pattern.
            PatternError: A pattern is invalid.
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
        """The counters of the current run, or of the last one."""
        return self._live.stats

    def endpoints(
        self, *, sub: tuple[Endpoint, ...] | None = None, pub: tuple[Endpoint, ...] | None = None
    ) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
        """Return the endpoints to receive from and to publish to.

        Args:
            sub: Endpoints in place of the app's own ``sub``.
            pub: Endpoints in place of the app's own ``pub``.

        Returns:
            Two tuples. Without any endpoints they hold an address inside the process.

        Raises:
            EndpointError: One side has routes but no endpoint, or an ``inproc://`` address is of an app with another
                ``context``.
        """
        return self.compile().endpoints(sub=sub, pub=pub)

    def service(self, reactor: Any) -> AppService:
        """Return a Twisted ``IService`` that runs this app.

        Give it a parent in any Twisted program. Starting the service opens the sockets; an endpoint that can't be
        opened is an EndpointError. Stopping it handles the remaining messages, then closes the sockets. The app can
        have a second service when the first has stopped.

        If a resource or an ``on_startup`` function fails, the error is logged and this service stops. Other services
        continue. To end the program in that case, use the Deferred ``started``:

            service.started.addErrback(lambda _: reactor.callWhenRunning(reactor.stop))

        Args:
            reactor: The Twisted reactor.

        Raises:
            SetupError: The app can't be compiled; see `compile`.
        """
        return AppService(self.compile(), reactor)

    def run(self, **options: Any) -> None:
        """Run the app until SIGINT or SIGTERM, as ``zroute run`` does.

        Args:
            options: The options of `zroute.runtime.runner.run`.

        Raises:
            SystemExit: The app ended with an exit code other than 0.
        """
        code = runner.run([self], **options)
        if code:
            raise SystemExit(code)

    def __repr__(self) -> str:
        return f"<App {self.name!r} at {self.where}>"


def _one_of(name: str, value: Any, known: tuple[Any, ...], where: str) -> Any:
    if value not in known:
        known_values = ", ".join(map(repr, known))
        raise SignatureError(f"{name}={value!r} is unknown: use one of {known_values}", parameter=name, where=where)
    return value


def _check_kept(outlets: Sequence[CompiledPublication], wire: Wire) -> None:
    for publication in (outlet.publication for outlet in outlets):
        if publication.keep and wire != "tracked":
            raise SignatureError(
                f"keep={publication.keep!r} needs wire='tracked', but this app has wire={wire!r}, which does not "
                "report new subscribers: set wire='tracked', or remove keep",
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
            "coalesce can't be combined with overflow='raise': coalesced messages are sent after publish has returned, "
            "so publish can't raise; remove one of the two, or use overflow='wait'",
            parameter="coalesce",
            where=wanting[0],
        )

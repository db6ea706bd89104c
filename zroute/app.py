"""App: the declarations of a program, and its start.

An App is the outermost group of routes, with endpoints and settings for all of them. It does not open sockets itself;
`App.service` and `App.run` do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, get_args, overload

from attrs import evolve
from twisted.internet.defer import Deferred

from zroute.awaiting import as_awaitable
from zroute.declarations.limits import DEFAULT_LIMITS, Limits, check_limits, check_options
from zroute.declarations.options import ROUTE_DEFAULTS, RouteOptions, complete, moved, takes
from zroute.declarations.records import Hook, Hooks
from zroute.declarations.routes import Routes, check_attached, coalescing, make_route
from zroute.declarations.since import SinceOption
from zroute.endpoints import SIDES, Endpoint, EndpointOptions, Ends, ResolvedAddresses, parse_access, parse_ends
from zroute.errors import (
    EncodeError,
    EndpointError,
    NotRunningError,
    SetupError,
    SignatureError,
    TopicError,
    UsageError,
)
from zroute.functions import local_names, name_of, users_line
from zroute.messages.codecs import RAW, Codec, find_codec
from zroute.messages.extras import Extras
from zroute.messages.frames import Frames, stated_form
from zroute.messages.schema import check_types
from zroute.messages.topics import Pattern, topic_bytes
from zroute.messages.wire import WIRES, Envelope, Wire
from zroute.nats.servers import parse_cluster
from zroute.options import DRAIN_TIMEOUT, REQUEST_TIMEOUT, STREAM_QUEUE, NetworkOptions
from zroute.planning.compiler import compile_routes, refuse_dead
from zroute.planning.plan import Addresses, Live, Plan, ReactorKind, RunningApp, check_recovering
from zroute.publishing.choices import Choices
from zroute.publishing.headers import PROPAGATED
from zroute.publishing.publication import Coalesce, CompiledPublication, Encode, Overflow, encoder_by_type
from zroute.receiving.events import Gap
from zroute.receiving.table import Dispatch
from zroute.requests.requester import checked_wait, explain_type, refuse_unknown
from zroute.runtime import collector, runner
from zroute.runtime.on_loop import run_on_loop
from zroute.runtime.runner import check_seconds
from zroute.runtime.service import AppService
from zroute.runtime.streams import Attached, Stream
from zroute.sockets.pair import SharedContext
from zroute.stats import Stats

if TYPE_CHECKING:
    from zroute.requests.client import Client, ReplyStream

__all__ = ["App"]

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Gapped = TypeVar("Gapped", bound=Callable[Concatenate[Gap, ...], Any])
Unrouted = TypeVar("Unrouted", bound=Callable[Concatenate[Envelope, ...], Any])

_NO_OPTIONS: NetworkOptions = {}


class App(Routes):
    """An application of typed message handlers and publishers over ZeroMQ.

    For example:

        app = App(sub="tcp://127.0.0.1:5555", pub="tcp://127.0.0.1:5556")

        @app.subscribe("quotes.{symbol}")
        def on_quote(quote: Quote, symbol: str) -> None:
            print(symbol, quote.bid)

        app.run()

    Args:
        sub: The endpoints to receive from: one or several. An endpoint connects unless it begins with ``bind:``. A
            mapping specifies the form of the messages at each endpoint, as `Frames` or as a name. With "tracked", the
            default, the three formats of zroute are recognised (see ``wire``). With "plain" or "multipart", only this
            format is accepted. If the app has no endpoints on any side, its publishers send to its own subscribers
            inside the process.
        pub: The endpoints to publish to: one or several. An endpoint binds unless it begins with ``connect:``.
        rep: The endpoints to answer requests at: one or several. An endpoint binds unless it begins with ``connect:``.
        req: The endpoints to send requests to: one or several. An endpoint connects unless it begins with ``bind:``.
        jobs: The endpoints to hand out jobs at: one or several. An endpoint binds unless it begins with ``connect:``.
        work: The endpoints to take jobs from: one or several. An endpoint connects unless it begins with ``bind:``.
        keys: The secret file of this app's key, such as ``keys/desk.key_secret``; see ``zroute keys new``. All
            connections over tcp and ipc are then encrypted, and both sides prove their keys (CURVE). An endpoint that
            connects names the key of its peer: ``feed@tcp://feed-1:5555``. Default None: no encryption.
        peers: The directory with the public keys of the peers that may connect. The default with ``keys`` is the folder
            ``peers`` beside the secret file. ``"anyone"`` accepts all keys: the connections are encrypted, but anyone
            can connect.
        insecure: True to bind an address that other hosts can reach, although the app has no keys. Default False.
        codec: The encoding of message bodies: "msgpack" (default; compact, and supports bytes), "json", "text", "raw",
            or a `Codec`. Received messages that name their codec are decoded with that codec.
        types: Types that zroute's codecs do not support, each with two functions: ``types={Path: (str, Path)}``. The
            first function converts a value to plain data (text, numbers, lists, dicts; bytes only in msgpack). The
            second converts plain data back to a value, and may raise any exception for invalid data. Messages and their
            fields may then have these types, in msgpack and JSON, and in your own codecs that are based on these two.
        wire: The message format. "tracked" (default) adds codec, sequence number, time and headers, for zroute's
            subscribers. "plain" is ``topic NUL body``, as txZMQ sends it. "multipart" is ``[topic, body]``, for peers
            in any language. A `Frames` specifies another format. To receive other formats, see ``sub``. Without the
            tracked wire, a request is ``[topic, body]``, for servers in any language.
        dispatch: Call "all" matching handlers (default), or only the "most_specific" one.
        overflow: What happens to a message while the queue of a subscriber is full (10,000 messages). "drop" (default)
            drops it for that subscriber, which counts the loss. "raise" makes ``publish`` raise HighWaterMarkError; no
            subscriber receives the message. "wait" queues up to 1,000 messages for up to 30 s each, and ``publish``
            returns an awaitable that is done when the message is sent. With "raise" and "wait", the slowest subscriber
            of a topic slows down all subscribers of that topic.
        coalesce: True or a `Coalesce`: send several messages of one topic in one frame, if they are published within a
            short time. A publisher can override this option. Coalescing requires the tracked wire, and can't be
            combined with ``overflow="raise"``. Default False.
        propagate_headers: The names of headers that zroute copies from a received message to the messages that its
            handler returns or yields. ``traceparent``, ``tracestate``, ``baggage`` and ``correlation-id`` are always
            copied (tracked wire only).
        isolate: True to handle each message in its own context. If a plain handler sets a context variable, the
            handlers of later messages then do not see the value. Handlers with middleware or message-scoped resources
            are always isolated, and so are ``async`` handlers and handlers in threads. Default False.
        recover: True to get lost messages back from publishers with a ``history``, in order, each once. Messages that
            the history no longer contains count as lost. A handler can override this option. Default False.
        limits: The limits on message size, queues, subscriptions and numeric values, as `Limits`.
        options: Options of libzmq for the app's sockets, by their names in lower case, for example
            ``{"tcp_keepalive_idle": 30, "ipv6": 1}``; see the page "Options and limits".
        nats: The NATS servers to use instead of endpoints: ``"nats://a:4222,nats://b:4222"``, or a list. Topics are
            then subjects of NATS. See the page "Run on NATS". Default None: ZeroMQ.
        nats_creds: The file of credentials for NATS, with a JWT and a seed. Default None.
        reactor: The kind of reactor that the app needs. With "asyncio", ``async`` functions run as asyncio tasks, and
            can await asyncio code. "twisted" means any other reactor, on which ``async`` functions await Deferreds.
            `run`, ``zroute run`` and ``TestApp`` use a reactor of this kind, and refuse any other. Default None: any
            reactor; if none is requested, Twisted's default for the platform.
        separator: The character between the segments of topics and patterns (default "."), for example "/" for topics
            such as ``/camera/front/pose``. With another character than the dot, a dot is ordinary text, and topics may
            begin with the separator. The `Routes` of the app must have the same separator.
        loop: False to raise EndpointError on start if the app has no endpoints. Default True.
        context: The ``context`` of another app, to connect to it over ``inproc://``, or a ``zmq.Context``.
        name: The name of the app in logs and summaries (default "app").

    Raises:
        EndpointError: An endpoint is invalid.
        SchemaError: The codec is unknown, or one of ``types`` is invalid.
        SignatureError: Another argument has an invalid value.
    """

    @moved("max_message", "limits=Limits(max_message=…)")
    def __init__(
        self,
        *,
        sub: str | Iterable[str] | Mapping[str, Frames | Wire] = (),
        pub: str | Iterable[str] = (),
        rep: str | Iterable[str] = (),
        req: str | Iterable[str] = (),
        jobs: str | Iterable[str] = (),
        work: str | Iterable[str] = (),
        keys: str | Path | None = None,
        peers: str | Path | None = None,
        insecure: bool = False,
        codec: str | Codec = "msgpack",
        types: Mapping[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = MappingProxyType({}),
        wire: Wire | Frames = "tracked",
        dispatch: Dispatch = "all",
        overflow: Overflow = "drop",
        coalesce: bool | Coalesce = False,
        propagate_headers: Iterable[str] = (),
        isolate: bool = False,
        recover: bool = False,
        limits: Limits = DEFAULT_LIMITS,
        options: NetworkOptions = _NO_OPTIONS,
        nats: str | Iterable[str] | None = None,
        nats_creds: str | Path | None = None,
        reactor: ReactorKind | None = None,
        separator: str = ".",
        loop: bool = True,
        context: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__(separator=separator)
        self.where = users_line()
        self._ends = self._set_up(
            lambda: evolve(
                _parse_ends(sub, pub=pub, rep=rep, req=req, jobs=jobs, work=work),
                access=parse_access(keys=keys, peers=peers, insecure=insecure),
                nats=parse_cluster(nats, nats_creds),
            )
        )
        if self._ends.nats is not None:
            self._set_up(lambda: _refuse_beside_nats(self._ends))
        self.codec = self._set_up(lambda: find_codec(codec))
        self.wire: Wire | Frames = _checked_wire(wire, self.where)
        if isinstance(wire, Frames):
            self._set_up(lambda: stated_form(wire))
        self.dispatch: Dispatch = _one_of("dispatch", dispatch, get_args(Dispatch), self.where)
        self.overflow: Overflow = _one_of("overflow", overflow, get_args(Overflow), self.where)
        self.coalesce = coalescing(coalesce, self.where)
        self.isolate = isolate
        self.recover: bool = _one_of("recover", recover, (False, True), self.where)
        self.propagate_headers = _names_of_headers(propagate_headers, self.where)
        self.limits = check_limits(limits, self.where)
        self.options = check_options(options, self.where)
        self.reactor: ReactorKind | None = _one_of("reactor", reactor, (None, *get_args(ReactorKind)), self.where)
        self._extras = Extras(self._set_up(lambda: check_types(types)), self.limits.allow_nan)
        self.loop = loop
        self.name = name or "app"
        # inproc:// connects only sockets of one ZeroMQ context, so apps that use it must share a context.
        self.context = context.share() if isinstance(context, SharedContext) else SharedContext(context)
        self._startup: list[Hook] = []
        self._shutdown: list[Hook] = []
        self._fallbacks: list[Hook] = []
        self._gaps: list[Hook] = []
        self._plan: Plan | None = None
        self._live = Live()
        self._encode: Encode = encoder_by_type(None, self.codec, self._extras)

    @property
    def sub(self) -> tuple[Endpoint, ...]:
        """The endpoints to receive from, as declared."""
        return self._ends.sub

    @property
    def pub(self) -> tuple[Endpoint, ...]:
        """The endpoints to publish to, as declared."""
        return self._ends.pub

    def _set_up(self, make: Callable[[], T], where: str | None = None) -> T:
        """Return the result of ``make``; add the line ``where`` to its errors.

        The default is the line of the app.
        """
        try:
            return make()
        except SetupError as error:
            error.locate(where or self.where)  # the parsers don't know the line
            raise

    # -- hooks ----------------------------------------------------------------------------------------

    def on_startup(self, function: F) -> F:
        """Call a function before the app subscribes.

        The sockets are already bound, so the function may publish. It may take resources by their types, and may be
        ``async``. The app subscribes when the function has ended. If it raises an error, the app does not start.
        Several functions run one after the other, in the order of registration.

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

        The function may publish, may be ``async``, and may take resources, which are still open. If it raises an error,
        the error is logged and counted, and the stop continues.

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
        """Call a function with a `Gap` for each gap in the numbers of the messages.

        A `Gap` names the subscription, the publisher, and the first and last missing number. The function is called
        before the message after the gap is handled. It may be ``async`` and may take resources. Without such a
        function, gaps are logged.

        With ``recover``, the function is called only for messages that can't come back any more, and up to a few
        seconds after the gap. Without it, the function can request the messages by other means.

        The function is not called for losses without numbers. zroute only counts and logs them: unknown losses, lost
        kept messages and snapshots, and the part of the past that a handler with ``since`` did not receive.

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

        Each message that these publishers send afterwards is handled or counted as lost.

        With ``state=True``, also wait for the messages that publishers keep (``keep="last"``), for their snapshots, and
        for the past of handlers with ``since``, until all of them are received or counted as lost. Plain functions have
        then handled these messages. Other handlers have been called with them, or have them in their queues.

        Args:
            publishers: The number of publishers to wait for. None (default) waits for all connected publishers. zroute
                waits at most 2 s for a publisher that does not use the tracked wire.
            timeout: The maximum time to wait in seconds.
            state: True to also wait for kept messages, snapshots and the past.

        Raises:
            NotReadyError: The timeout has elapsed. The error lists the publishers that have answered.
            NotRunningError: The app is not running, or stops during the call.
        """
        run = self._running("call ready()", "Await ready() in a handler or a timer, after on_startup")
        await as_awaitable(run.ready(publishers, timeout, state=state))

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

        The message is encoded according to its own type, with the app's codec. For topics that are known in advance,
        use `publisher`, which declares topic and type. Only handlers of ``startswith("")`` receive the empty topic. If
        an error is raised, nothing is sent.

        Args:
            topic: The topic, without wildcards.
            message: The message body.
            headers: Headers to send with the message (tracked wire only).

        Returns:
            An awaitable that may be ignored. With ``overflow="wait"``, it is done when the message is sent.

        Raises:
            TopicError: The topic can't be published.
            EncodeError: The message can't be encoded without loss.
            HighWaterMarkError: The queue of a subscriber is full (``overflow="raise"``), or 1,000 messages already wait
                (``overflow="wait"``).
            NotRunningError: The app is not running.
            UsageError: The app has no endpoint to publish to.
            WrongThreadError: The caller is not on the reactor's thread.
        """
        # None if the app is not running, or if `publish` has middleware; see `_publish_around`.
        emit = self._live.emit
        if emit is None:
            return self._publish_around(topic, message, headers)
        raw = topic_bytes(topic, self.separator)
        number, body = self._encode(message)
        return emit(raw, number, body, headers)

    def _publish_around(self, topic: str, message: object, headers: Mapping[str, Any] | None) -> Awaitable[None]:
        publish = self._live.publish
        if publish is None:
            raise self._not_running(
                f"publish to {topic!r}", "Publish from a handler, a timer, or a function under @app.on_startup"
            )
        return publish(message, headers, topic_bytes(topic, self.separator))

    # -- requests -------------------------------------------------------------------------------------

    @overload
    async def request(
        self,
        topic: str,
        message: object,
        reply: type[T],
        *,
        timeout: float | None = REQUEST_TIMEOUT,
        headers: Mapping[str, Any] | None = None,
    ) -> T: ...

    @overload
    async def request(
        self,
        topic: str,
        message: object = None,
        reply: Any = Any,
        *,
        timeout: float | None = REQUEST_TIMEOUT,
        headers: Mapping[str, Any] | None = None,
    ) -> Any: ...

    async def request(
        self,
        topic: str,
        message: object = None,
        reply: Any = Any,
        *,
        timeout: float | None = REQUEST_TIMEOUT,
        headers: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> Any:
        """Send a request, and return the reply.

        A handler declared with `reply` answers the request, in another app or in this one.

        For requests of one pattern, declare a `requester`, which checks types and can retry. If the coroutine is
        cancelled, the server is informed. Of several servers, the one with the fewest unanswered requests receives the
        request.

        Example:
            ```python
            price = await app.request("prices.EURUSD", Ask(3), Price, timeout=2.0)
            ```

        Args:
            topic: The topic, such as ``prices.EURUSD``.
            message: The message; None for a handler without a body.
            reply: The type of the reply (default: any); None to ignore its value.
            timeout: The seconds to wait (default 10); None for no limit.
            headers: A small map with text keys, for the handler's `Envelope`.

        Returns:
            The reply, decoded as the type ``reply``.

        Raises:
            NoServerError: No server was connected before the timeout.
            NoHandlerError: The server has no handler for the topic.
            BadRequestError: The server could not read the message as the type that its handler declares.
            RequestRefusedError: The handler refused the request.
            ServerError: The handler failed.
            BusyError: The server has no room for the request, or is stopping.
            RequestTimeoutError: No reply arrived in time.
            RequestLostError: The server disconnected after it had received the request.
            DecodeError: The reply can't be decoded as the type ``reply``.
            TopicError: The topic is invalid or empty.
            EncodeError: The message can't be encoded without loss, or is too large.
            NotRunningError: The app is not running.
            EndpointError: The app has no endpoint to send requests to.
            SignatureError: ``timeout`` is not a number of seconds.
        """
        if unknown:
            refuse_unknown("request", unknown)
        client, raw, number, body = self._packed(topic, message, timeout)
        return await client.request(raw, number, body, headers, client.decoder(reply), timeout)

    @overload
    def request_stream(
        self,
        topic: str,
        message: object,
        reply: type[T],
        *,
        timeout: float | None = REQUEST_TIMEOUT,
        headers: Mapping[str, Any] | None = None,
    ) -> ReplyStream[T]: ...

    @overload
    def request_stream(
        self,
        topic: str,
        message: object = None,
        reply: Any = Any,
        *,
        timeout: float | None = REQUEST_TIMEOUT,
        headers: Mapping[str, Any] | None = None,
    ) -> ReplyStream[Any]: ...

    def request_stream(
        self,
        topic: str,
        message: object = None,
        reply: Any = Any,
        *,
        timeout: float | None = REQUEST_TIMEOUT,
        headers: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> ReplyStream[Any]:
        """Send a request, and return its replies as an async iterator.

        The handler yields the replies, at most 128 items ahead of the loop. When the program leaves the loop, the
        handler is closed.

        Example:
            ```python
            async for row in app.request_stream("rows.orders", Query("open"), Row, timeout=10):
                print(row)
            ```

        Args:
            topic: The topic.
            message: The message; None for a handler without a body.
            reply: The type of each reply (default: any).
            timeout: The seconds to wait for each reply (default 10); None for no limit.
            headers: A small map with text keys, for the handler's `Envelope`.

        Returns:
            A `ReplyStream`. The ``async for`` loop raises the errors of `request`.
        """
        if unknown:
            refuse_unknown("request_stream", unknown)
        client, raw, number, body = self._packed(topic, message, timeout)
        return client.stream(raw, number, body, headers, client.decoder(reply), timeout)

    def _packed(self, topic: str, message: object, timeout: float | None) -> tuple[Client, bytes, int, bytes]:
        client = self._live.client
        if client is None:
            self._running(
                f"request {topic!r}", "Send requests in a handler, a timer, or a function under @app.on_startup"
            )
            raise EndpointError(
                f"can't request {topic!r}: {self.name!r} has no endpoint to send requests to. Add the address that the "
                "server binds, as in App(req='tcp://127.0.0.1:5557')",
                where=self.where,
            )
        checked_wait(timeout)
        raw = topic_bytes(topic, self.separator, "app.requester({}, T, Reply).request(message, name=…)")
        if not raw:
            raise TopicError("the topic of a request can't be empty: no handler has an empty topic", topic=topic)
        if message is None:
            return client, raw, RAW.number, b""
        try:
            return (client, raw, *self._encode(message))
        except EncodeError as error:
            explain_type(error, topic, message)
            raise

    # -- while running --------------------------------------------------------------------------------

    @takes(RouteOptions, ROUTE_DEFAULTS)
    def attach(self, pattern: str | Pattern, function: Callable[..., Any], **options: Unpack[RouteOptions]) -> Attached:
        """Add a handler to the running app. To remove it, close the result.

        For example, attach a handler when a user enters a chat room. Register handlers that are known in advance with
        `subscribe`, which has the same options. If the app's subscriptions do not cover the pattern, the app
        subscribes to it. The handler then misses messages that a publisher sends before the new subscription arrives.
        Other handlers are not affected.

        Handlers with the same function name share their counters in ``app.stats.routes``.

        Args:
            pattern: The topics to receive.
            function: The handler.
            options: The options of `subscribe`. With ``since``, no other handler of the app may share the subscription
                when the handler is attached, because all of them would receive the past.

        Returns:
            An `Attached`, which removes the handler when it is closed.

        Raises:
            NotRunningError: The app is not running, or has not opened its endpoints yet.
            EndpointError: The app has no endpoint to subscribe to.
            UsageError: The function needs a resource that was not opened, because all resources that use it were
                replaced. Or with ``since``: another handler of the app shares the subscription.
            WrongThreadError: The caller is not on the reactor's thread.
            ForkedContextError: The process was forked from the one that runs the app.
            SignatureError: The function or an option is invalid. Or with ``since`` or ``recover``: the app has no
                endpoint on the tracked wire.
            SchemaError: The type of the body can't be decoded.
            PatternError: The pattern is invalid.
            DuplicateRouteError: The function is already registered for this pattern, or with
                ``dispatch="most_specific"``, any function is.
        """
        chosen = complete("attach", options, ROUTE_DEFAULTS)
        where = users_line()
        check_attached(pattern, function, where)
        remedy = "Register handlers that are known in advance with @app.subscribe"
        run = self._running(f"call attach({pattern!r})", remedy)
        route = make_route(function, self._parse((pattern,), where), chosen, where)
        return Attached(run, run.attach(route))

    @overload
    def stream(
        self,
        pattern: str | Pattern,
        schema: type[T],
        *,
        codec: str | Codec | None = None,
        queue: int = STREAM_QUEUE,
        since: SinceOption | None = None,
    ) -> Stream[T]: ...

    @overload
    def stream(
        self,
        pattern: str | Pattern,
        schema: Any = Any,
        *,
        codec: str | Codec | None = None,
        queue: int = STREAM_QUEUE,
        since: SinceOption | None = None,
    ) -> Stream[Any]: ...

    def stream(
        self,
        pattern: str | Pattern,
        schema: Any = Any,
        *,
        codec: str | Codec | None = None,
        queue: int = STREAM_QUEUE,
        since: SinceOption | None = None,
    ) -> Stream[Any]:
        """Iterate over the messages of matching topics with ``async for``.

        For example:

            async with app.stream("rooms.lobby", Said) as messages:
                async for message in messages:
                    print(message.text)

        Messages arrive in order, from the start of the ``async with`` block. A message counts as handled when the loop
        asks for the next one. A stream works in coroutines that run as Deferreds and in asyncio tasks.

        When the app stops, the loop ends after the messages that have already arrived. In a timer, the loop ends at
        once, because a stop cancels timers. Messages that are still waiting when the block ends are dropped and
        counted.

        Args:
            pattern: The topics to receive.
            schema: The type of the message bodies, or `Envelope` for whole messages with their topics.
            codec: The codec of the bodies. Default: the app's codec.
            queue: The maximum number of waiting messages (default 100). When the queue is full, the app stops reading
                until the loop has taken half of the messages.
            since: The beginning of the past, as for `subscribe`. No other handler may share the subscription.

        Raises:
            PatternError: The pattern is invalid.
            SignatureError: An option is invalid.

        Entering the block raises:

        - NotRunningError: The app is not running, or has not opened its endpoints yet.
        - EndpointError: The app has no endpoint to subscribe to.
        - UsageError: The stream was already used in another block.
        - WrongThreadError: The caller is not on the reactor's thread.
        - ForkedContextError: The process was forked from the one that runs the app.
        - SignatureError: With ``since`` or ``App(recover=True)``: the app has no endpoint on the tracked wire. With
          ``since``, or if only one of them recovers: another handler of the app shares the subscription.
        - SchemaError: The type can't be decoded.
        - DuplicateRouteError: With ``dispatch="most_specific"``, the pattern has a handler already.
        """
        where = users_line()
        return Stream(  # a stream may be made before the app runs, and is opened later
            lambda: self._running(f"open stream({pattern!r})", "Open streams in a handler or a timer"),
            self._parse((pattern,), where),
            schema,
            codec=codec,
            queue=queue,
            since=since,
            where=where,
        )

    @overload
    def from_thread(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    @overload
    def from_thread(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    def from_thread(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call a function on the reactor's thread from another thread.

        Use it in handlers with ``thread=True``, because ZeroMQ sockets belong to the reactor's thread:

            app.from_thread(alerts.publish, Alert("late"), level="high")

        The method waits until the call has ended. If the function returns an awaitable, it also waits for the result of
        the awaitable.

        Args:
            function: The function to call.
            args: The positional arguments of the call.
            kwargs: The keyword arguments of the call.

        Returns:
            The result of the function.

        Raises:
            NotRunningError: The app is not running, or stops before the call has ended.
            WrongThreadError: The caller is on the reactor's thread, which would wait for itself.
            ForkedContextError: The process was forked from the one that runs the app.
            Exception: Any error that the function raises.
        """
        run = self._running(f"call from_thread({name_of(function)})", "Call from_thread while the app runs")
        return run.from_thread(partial(function, *args, **kwargs))

    def _running(self, what: str, remedy: str) -> RunningApp:
        if self._live.run is None:
            raise self._not_running(what, remedy)
        return self._live.run

    def _not_running(self, what: str, remedy: str) -> NotRunningError:
        if self._live.ended is None:
            return NotRunningError(f"can't {what}: {self.name!r} is not running. {remedy}")
        code = "" if self.exit_code is None else f" (exit code {self.exit_code})"
        return NotRunningError(f"can't {what}: {self.name!r} has stopped{code}. {remedy}")

    # -- running --------------------------------------------------------------------------------------

    def compile(self) -> Plan:
        """Check all declarations, freeze the app, and return its plan.

        No socket is opened. Later registrations raise AppFrozenError. Each of the errors below names the line of the
        declaration.

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
            errors, middleware = tuple(self._errors), tuple(self._middleware)
            hooks = Hooks(startup, shutdown, unrouted, gaps, errors, middleware, self.isolate, self.recover)
            with collector.paused():
                parts = compile_routes(
                    self,
                    given={App: self, type(self): self},
                    default=self.codec,
                    extras=self._extras,
                    dispatch=self.dispatch,
                    hooks=hooks,
                    skipped=self._live.skip,
                )
            propagates = tuple(dict.fromkeys((*PROPAGATED, *self.propagate_headers)))
            choices = Choices(
                self.name, self.codec, self.wire, self.overflow, self.coalesce, self.limits.max_message, propagates
            )
            _check_kept(parts.outlets, self.wire)
            _check_coalescing(parts.outlets, choices, self.where)
            check_recovering(parts.routes, self._ends)
            refuse_dead(parts.handlers, self.wire, parts.queues)
            addresses = Addresses(self._ends, self.loop, self.context, self.options, self.reactor)
            self._plan = Plan(self.where, choices, self.dispatch, self.limits, addresses, hooks, parts, self._live)
            self._freeze(f"App {self.name!r}")
        return self._plan

    @property
    def stats(self) -> Stats:
        """The counters of the current run, or of the last run."""
        return self._live.stats

    @property
    def addresses(self) -> ResolvedAddresses:
        """The addresses of the running app.

        ``addresses.sub``, ``addresses.pub`` and so on are tuples of strings, in the order of the endpoints. A port
        ``*`` is replaced by the port that the system has chosen. For example:

            app = App(pub="tcp://127.0.0.1:*")

            @app.on_startup
            def tell() -> None:
                print("publishing at", app.addresses.pub[0])

        Under `TestApp`, these are the addresses as declared.

        Raises:
            NotRunningError: The app is not running, or has not opened its endpoints yet.
        """
        return self._running("read addresses", "Read addresses in on_startup or later").addresses

    def add_endpoints(
        self,
        *,
        sub: str | Iterable[str] | Mapping[str, Frames | Wire] = (),
        pub: str | Iterable[str] = (),
    ) -> None:
        """Open further endpoints while the app runs.

        Handlers receive from them, and publishers send to them, as if they were in ``App(…)``. The new endpoints belong
        only to this run. If one of them can't be opened, none of them is opened.

        For example:

            @app.subscribe("feeds.{name}")
            def on_feed(address: str) -> None:
                app.add_endpoints(sub=address)

        Args:
            sub: The endpoints to receive from: one or several, as in ``App(sub=…)``.
            pub: The endpoints to publish to.

        Raises:
            NotRunningError: The app is not running, or its sockets are not open.
            EndpointError: An endpoint is invalid, is in use, or already belongs to the app. It is also raised if the
                app was started without an endpoint on that side, so that it has no socket for the new endpoint.
            WrongThreadError: The caller is not on the reactor's thread.
        """
        run = self._running("call add_endpoints()", "Call add_endpoints() while the app runs")
        self._set_up(lambda: run.add_endpoints(_parse_ends(sub, pub=pub)), users_line())

    def remove_endpoints(self, *, sub: str | Iterable[str] = (), pub: str | Iterable[str] = ()) -> Awaitable[None]:
        """Close endpoints while the app runs.

        Messages that have arrived from the publishers at ``sub`` are still handled, for up to a second. Messages that
        these publishers send later do not count as lost. Subscribers at ``pub`` are disconnected, and may lose messages
        that are queued for them. After a restart, the app has the endpoints of ``App(…)`` again.

        Args:
            sub: The endpoints to receive from, as they were opened or as in `addresses`.
            pub: The endpoints to publish to.

        Returns:
            An awaitable that is done when the endpoints are closed. The caller may ignore it.

        Raises:
            NotRunningError: The app is not running, or its sockets are not open.
            EndpointError: The app does not have such an endpoint.
            WrongThreadError: The caller is not on the reactor's thread.
        """
        run = self._running("call remove_endpoints()", "Call remove_endpoints() while the app runs")
        ends = self._set_up(lambda: _parse_ends(sub, pub=pub), users_line())
        return as_awaitable(run.remove_endpoints(ends))

    def endpoints(self, **given: Unpack[EndpointOptions]) -> Ends:
        """Return the endpoints of the app.

        Args:
            given: Endpoints that replace the app's own, as ``sub=…``, ``pub=…`` and so on.

        Returns:
            The endpoints by side, for example ``ends.sub``. If there are no endpoints, the result contains an address
                inside the process.

        Raises:
            EndpointError: One side has routes but no endpoint, or an ``inproc://`` address belongs to an app with
                another ``context``.
        """
        return self.compile().endpoints(**given)

    def service(self, reactor: Any) -> AppService:
        """Return a Twisted ``IService`` that runs this app.

        Add the service to a parent service in any Twisted program. Starting the service opens the sockets, and raises
        EndpointError if an endpoint can't be opened. Stopping it handles the remaining messages, then closes the
        sockets. A second service of the app can run when the first has stopped.

        If a resource or an ``on_startup`` function fails, the error is logged and this service stops. Other services
        continue. To end the program in that case, use the Deferred ``started``:

            service.started.addErrback(lambda _: reactor.callWhenRunning(reactor.stop))

        Args:
            reactor: The Twisted reactor.

        Raises:
            SetupError: The app can't be compiled; see `compile`.
            EndpointError: An endpoint is missing, see `endpoints`; or does not fit the keys of the app.
            UsageError: The app needs another kind of reactor.
        """
        return AppService(self.compile(), reactor)

    @takes(runner.RunOptions, runner.RUN_DEFAULTS)
    def run(self, **options: Unpack[runner.RunOptions]) -> None:
        """Run the app until SIGINT or SIGTERM, like ``zroute run``.

        Args:
            options: The options of `zroute.runtime.runner.run`.

        Raises:
            SetupError: The app can't be compiled; see `compile`.
            UsageError: An option is invalid, the app is already running, or a reactor or asyncio loop prevents the run.
            SystemExit: The app ended with an exit code other than 0.
        """
        code = runner.run([self], **options)
        if code:
            raise SystemExit(code)

    @asynccontextmanager
    async def running(self, *, drain_timeout: float = DRAIN_TIMEOUT) -> AsyncIterator[Self]:
        """Run the app on the running asyncio loop, during an ``async with`` block.

        Use it in an asyncio program, in the lifespan of a web application, or in a notebook:

            async def main() -> None:
                async with app.running():
                    await app.publish("greetings", "hello")

            asyncio.run(main())

        The block begins when the app has subscribed. At the end of the block, the app handles the remaining messages,
        and closes, even if the task is cancelled. ``async`` handlers run as tasks of the loop. zroute does not install
        a reactor or signal handlers, and does not set up logging.

        If the app stops by itself, with `stop` or a SystemExit in a handler, the block continues. `exit_code` then
        contains the code. To wait until the app stops, use `stopped`.

        Args:
            drain_timeout: The maximum time in seconds that the end of the block waits for unfinished handlers
                (default 8). Handlers that take longer are logged and abandoned.

        Yields:
            The app.

        Raises:
            SetupError: The app can't be compiled; see `compile`.
            EndpointError: An endpoint is missing, or can't be opened.
            NotRunningError: The app was stopped before it had started.
            UsageError: No asyncio loop is running, the app is already running, or ``drain_timeout`` is invalid.
            Exception: Any error of a resource or of an ``on_startup`` function.
        """
        check_seconds("drain_timeout", drain_timeout, "running")
        async with run_on_loop(self.compile(), drain_timeout):
            yield self

    async def stopped(self) -> int | None:
        """Wait until the app has stopped, and return its `exit_code`.

        With this method, a program can end together with the app. Do not await it in the app's own functions, because
        the stop waits for these functions.

        For example:

            async with app.running():
                raise SystemExit(await app.stopped())

        Returns:
            The exit code. If the app is not running, the exit code of the last run is returned at once.

        Raises:
            NotRunningError: The app has never been started.
        """
        ended = self._live.ended
        if ended is None:
            remedy = "Await stopped() after the start, as in `async with app.running():`"
            raise self._not_running("call stopped()", remedy)
        waiting: Deferred[None] = Deferred()
        # A Deferred of its own: if this caller is cancelled, other callers of `stopped` still wait for `ended`.
        ended.addCallback(lambda _: waiting.callback(None))
        await as_awaitable(waiting)
        return self.exit_code

    @property
    def exit_code(self) -> int | None:
        """The code of `stop` or of a SystemExit in a function of the app, or None.

        It is the code of the current run, or of the last run.
        """
        return self._live.exit_code

    def stop(self, code: int = 0) -> None:
        """Stop the app with an exit code.

        The app stops as after a signal: it handles the received messages, waits for unfinished handlers, and closes.
        Under ``zroute run`` and `run`, all apps of the process stop, and the process ends with ``code``. If handlers
        are unfinished after the drain timeout, the process ends with 75 instead of 0. If your own program runs the
        `service`, or uses `running`, the program continues, and `exit_code` contains the code.

        `stop` returns at once, and can be called on any thread. ``sys.exit(code)`` in a handler, timer or hook has the
        same effect.

        For example:

            @app.on_error(DatabaseError)
            def give_up(error: DatabaseError, envelope: Envelope) -> None:
                app.stop(3)

        Args:
            code: The exit code, 0 to 255.

        Raises:
            UsageError: ``code`` is not an exit code.
            NotRunningError: The app is not running.
        """
        if not isinstance(code, int) or not 0 <= code <= 255:
            raise UsageError(f"stop({code!r}): expected an exit code from 0 to 255")
        # While the resources close, the run has ended, but a resource may still set the exit code.
        run = self._live.run or self._live.closing
        if run is None:
            raise self._not_running(f"call stop({code})", "Call stop() in a handler, a timer, a hook or a resource")
        run.stop(int(code), f"stop({int(code)}) at {users_line()}")

    def __repr__(self) -> str:
        return f"<App {self.name!r} at {self.where}>"


def _refuse_beside_nats(ends: Ends) -> None:
    """Raise EndpointError if an app with ``nats=`` has endpoints or keys, too."""
    sides = [f"{side.name}=" for side in SIDES if ends.of(side)]
    if sides:
        raise EndpointError(
            f"nats= replaces all endpoints, but the app also has {' and '.join(sides)}: remove nats= and start the app "
            "with zroute run --nats, to run the same app on ZeroMQ and on NATS; or remove the other endpoints"
        )
    if ends.access.keys is not None:
        raise EndpointError(
            "keys= has no effect on NATS, where the accounts of the server decide who may connect: remove keys=, and "
            "set nats_creds= or use tls:// addresses"
        )


def _parse_ends(sub: str | Iterable[str] | Mapping[str, Frames | Wire], **others: str | Iterable[str]) -> Ends:
    """Return the endpoints of all sides.

    If ``sub`` is a mapping, its endpoints have the forms in the mapping.
    """
    ends = parse_ends({"sub": tuple(sub) if isinstance(sub, Mapping) else sub, **others})
    if not isinstance(sub, Mapping):
        return ends
    forms = [stated_form(form) for form in sub.values()]
    return evolve(ends, sub=tuple(evolve(each, form=form) for each, form in zip(ends.sub, forms, strict=True)))


def _checked_wire(wire: Any, where: str) -> Wire | Frames:
    """Return ``wire`` if an app can publish in this format."""
    if not isinstance(wire, Frames):
        known: Wire = _one_of("wire", wire, WIRES, where)
        return known
    problem = wire.problem_of_sending()
    if problem is not None:
        raise SignatureError(f"wire={wire}: {problem}", parameter="wire", where=where)
    return wire


def _one_of(name: str, value: Any, known: tuple[Any, ...], where: str) -> Any:
    if value not in known:
        known_values = ", ".join(map(repr, known))
        raise SignatureError(f"{name}={value!r} is unknown: use one of {known_values}", parameter=name, where=where)
    return value


def _names_of_headers(names: Any, where: str) -> tuple[str, ...]:
    """Return the checked names of ``propagate_headers``."""
    found = None if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
    if found is None or not all(isinstance(name, str) and name for name in found):
        raise SignatureError(
            f"propagate_headers={names!r}: expected the names of headers, as in propagate_headers=('x-tenant',)",
            parameter="propagate_headers",
            where=where,
        )
    return found


def _check_kept(outlets: Sequence[CompiledPublication], wire: Wire | Frames) -> None:
    for publication in (outlet.publication for outlet in outlets):
        if publication.history is not None and wire != "tracked":
            raise SignatureError(
                f"history={publication.history!r} needs wire='tracked', but this app has wire={wire!r}. Only the "
                "tracked wire numbers messages, so only there subscribers can ask for lost ones: set wire='tracked', "
                "or remove history",
                parameter="history",
                where=publication.where,
            )
        if publication.snapshot is not None and wire != "tracked":
            raise SignatureError(
                f"snapshot= needs wire='tracked', but this app has wire={wire!r}. Only the tracked wire reports new "
                "subscribers: set wire='tracked', or remove snapshot",
                parameter="snapshot",
                where=publication.where,
            )
        if publication.keep and wire != "tracked":
            raise SignatureError(
                f"keep={publication.keep!r} needs wire='tracked', but this app has wire={wire!r}. Only the tracked "
                "wire reports new subscribers: set wire='tracked', or remove keep",
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
            "when publish can't raise. Remove one of the two options, or use overflow='wait'",
            parameter="coalesce",
            where=wanting[0],
        )

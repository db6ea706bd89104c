"""`Routes`, a group of handlers and publishers, and its decorators.

A decorator checks its arguments, records the function with the user's line (``file:line``), and returns the function
unchanged. Errors in arguments are raised at that line. Signatures are checked later, when the app is compiled, because
types and groups may be defined after the decorator.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, get_args, overload

from zroute.declarations.bridges import Stack, end_stack, stacked
from zroute.declarations.options import (
    JOB_QUEUE_DEFAULTS,
    NOT_FOR_REPLIES,
    NOT_FOR_WORK,
    PUBLISHER_DEFAULTS,
    REPLY_DEFAULTS,
    ROUTE_DEFAULTS,
    WORK_DEFAULTS,
    JobQueueOptions,
    PublisherOptions,
    ReplyOptions,
    RouteOptions,
    WorkOptions,
    complete,
    refuse,
    takes,
)
from zroute.declarations.records import (
    ErrorHook,
    HandlerOptions,
    Hook,
    Producer,
    Resource,
    ResourceScope,
    Route,
    RouteKind,
)
from zroute.declarations.since import check_since_option, refuse_future
from zroute.declarations.snapshots import check_snapshot
from zroute.errors import AppFrozenError, PatternError, SignatureError
from zroute.functions import (
    generator_of,
    is_coroutine_function,
    is_generator_function,
    local_names,
    name_of,
    users_line,
)
from zroute.messages.codecs import Codec, find_codec
from zroute.messages.topics import SEPARATORS, Pattern, parse, startswith
from zroute.options import (
    BATCH_MAX,
    COALESCED_MAX,
    MAX_IN_FLIGHT,
    REQUEST_TIMEOUT,
    RETRIES_MAX,
    ROUTE_QUEUE,
    THREADS_IN_FLIGHT,
)
from zroute.publishing.history import check_history
from zroute.publishing.publication import Coalesce, Publication, Schedule
from zroute.requests.requester import Requester, checked_wait, is_seconds

if TYPE_CHECKING:
    from zroute.jobs.queue import JobQueue

__all__ = ["Routes", "check_attached", "coalescing", "joined", "make_route", "parse_patterns"]

T = TypeVar("T")
Q = TypeVar("Q")
A = TypeVar("A")
F = TypeVar("F", bound=Callable[..., Any])


class Routes:
    """A group of handlers and publishers that an app or another group can `include`.

    An `App` is the outermost group.

    Example:
        ```python
        desks = Routes("desk.{room}")

        @desks.subscribe("orders")  # the topics desk.{room}.orders
        def on_order(order: Order, room: str) -> None: ...

        app.include(desks)
        ```

    Args:
        prefix: Segments that precede each pattern of the group, joined by the separator. The prefix may contain
            captures.
        separator: The character between the segments of topics (default "."), as in the app that includes the group.

    Raises:
        PatternError: The prefix is not a valid pattern.
        SignatureError: The character can't be used as a separator.
    """

    def __init__(self, prefix: str = "", *, separator: str = ".") -> None:
        self.prefix = prefix
        self.where = users_line()
        self.separator = _checked_separator(separator, self.where)
        if prefix:
            self._parse((prefix,), self.where)
        self._routes: list[Route] = []
        self._resources: list[Resource] = []
        self._publications: list[Publication[Any]] = []
        self._requesters: list[Requester[Any, Any]] = []
        self._job_queues: list[JobQueue[Any]] = []
        self._producers: list[Producer] = []
        self._errors: list[ErrorHook] = []
        self._middleware: list[Hook] = []
        self._publish_middleware: list[Hook] = []
        self._included: list[tuple[str, Routes]] = []
        self._stacks: dict[Stack, None] = {}
        self._frozen_by: str | None = None

    # -- subscribing ----------------------------------------------------------------------------------

    @takes(RouteOptions, ROUTE_DEFAULTS)
    def subscribe(self, *patterns: str | Pattern, **options: Unpack[RouteOptions]) -> Callable[[F], F]:
        """Call the decorated function for each message whose topic matches.

        `add_route` explains the options and does the same without a decorator.

        Example:
            ```python
            @app.subscribe("stocks.{symbol}")
            def on_quote(quote: Quote, symbol: str) -> None: ...
            ```

        Args:
            patterns: One or more patterns with the same captures.
            options: The options of `add_route`.

        Raises:
            PatternError: A pattern is invalid, or the patterns have different captures.
            SchemaError: The codec is unknown.
            SignatureError: The decorated object is not a function, or an option is out of range.
            AppFrozenError: The app is already compiled.
        """
        chosen = complete("subscribe", options, ROUTE_DEFAULTS)
        parsed = self._parse(patterns, users_line())

        def register(function: F) -> F:
            self._add_route(make_route(function, parsed, chosen, users_line(function)))
            return function

        return register

    @takes(RouteOptions, ROUTE_DEFAULTS)
    def add_route(
        self, function: Callable[..., Any], *patterns: str | Pattern, **options: Unpack[RouteOptions]
    ) -> Route:
        """Register ``function`` for ``patterns``, as ``@subscribe`` does.

        If several patterns of ``function`` match a message, the function is called once, for the most specific pattern.
        Errors in the function's signature are raised when the app is compiled.

        ``ordered``, ``max_in_flight`` and ``queue`` concern functions that return before they have finished: ``async``
        functions, functions that return a Deferred, and functions in threads.

        **Batches.** With ``batch`` the function receives lists of messages, and its parameter is a ``list[T]``. Each
        message is decoded as T separately, so an invalid message does not affect the others. Lists are never empty. The
        function is called when a list is full, when no further message is ready to be read, and after 10 ms of
        continuous reading. While a call is unfinished, the next list keeps growing.

        All messages of a list have the same topic if the function has a parameter for the topic or a capture. This also
        holds if its results or dead letters are published to a topic with one of the captures. Otherwise, a list
        contains messages of all topics in order of arrival, and only one list is handled at a time unless
        ``ordered=False``. Counters and ``queue`` count messages; ``max_in_flight`` counts calls. An error counts for
        all messages of its list, and ``on_error`` is called once with the envelope of the first message.

        Example:
            ```python
            app.add_route(store.on_quote, "stocks.{symbol}", max_in_flight=10)
            ```

        Args:
            function: The handler: a plain or ``async`` function, a bound method, or another callable.
            patterns: One or more patterns with the same captures.

        Keyword Args:
            codec: The codec for bodies whose publisher does not name a codec. Default: the app's codec.
            copy: True to decode a separate object for this handler, which may then modify it. By default, handlers with
                the same type share one object.
            thread: True to run a plain, blocking function in the reactor's thread pool. `App.from_thread` explains how
                such a function can publish.
            max_in_flight: The maximum number of unfinished calls at a time (default 100, or 10 with
                ``thread=True``).
            ordered: False to handle messages of the same topic concurrently. By default they are handled one after the
                other; messages of different topics are always handled concurrently.
            queue: The maximum number of waiting messages (default 1,000, or four times ``batch`` if that is more; at
                least ``batch``). When the queue is full, the app logs the route and stops reading from its sockets
                until half of the messages are handled.
            stale_after: The maximum age in seconds (default: no limit). An older message is skipped instead of handled,
                and is counted as ``stale``. The age is measured with the clocks of two hosts, so these clocks must
                differ by much less than this limit. A message with a time in the future is handled and counted under
                ``negative_ages``. Only messages of the tracked wire have a time.
            batch: The maximum number of messages in a list, 1 to 10,000 (default: single messages).
            retry: The delays in seconds before further attempts, at most 20 (default: one attempt). With ``retry=(1, 5,
                30)`` a function that keeps failing is called four times. Between the attempts, later messages of the
                same topic wait too, unless ``ordered=False``. A list is passed again as a whole. There are no further
                attempts after `Reject`, or while the app stops.
            dead: The topic that receives a message if its last attempt fails, or if its body can't be decoded. Write a
                pattern such as ``"dead.{kind}"``, with captures of ``patterns`` only. The prefixes of the group apply.
                The body is unchanged; headers contain the topic, the error and the number of attempts. ``on_error``
                functions are then not called. Requires the tracked wire, and an endpoint to publish to.
            timeout: The maximum duration of a call in seconds (default: no limit), for ``async`` functions and
                ``thread=True``. A call that takes longer fails with TimeoutError. An ``async`` function is cancelled. A
                thread can't be interrupted: the call stays unfinished until the thread ends, and its result is
                discarded.
            recover: True to get lost messages back from publishers with a ``history``; False to count them as lost.
                Default: the app's ``recover``. Handlers that share a subscription must agree: ``a.>`` and ``a.b``.
            since: The beginning of the past: the handler first receives messages that publishers with a ``history``
                sent before this app joined, and then live messages. No message is missing, and none is passed twice.
                ``"all"``: all messages in the histories. ``"last"``: the latest message of the subscription, with the
                others of its frame (``coalesce``). A timedelta: the messages of this time before the join. A datetime
                with a time zone: the messages from this time on, by the publisher's clock. It may be up to a minute in
                the future, because clocks differ. Default: no past. Handlers that share a subscription must agree.

        Raises:
            PatternError: A pattern is invalid, or the patterns have different captures.
            SchemaError: The codec is unknown.
            SignatureError: ``function`` is not a function, an option is out of range, or two options, or an option and
                the function, can't be combined.
            AppFrozenError: The app is already compiled.
        """
        chosen = complete("add_route", options, ROUTE_DEFAULTS)
        where = users_line(function)
        route = make_route(function, self._parse(patterns, where), chosen, where)
        self._add_route(route)
        return route

    def _add_route(self, route: Route) -> None:
        self._check_open(f"{route.kind}({route.patterns[0].text!r})", route.where)
        refuse_future(route.options.since, time.time(), route.where)
        self._routes.append(route)
        stacked(self, route)

    # -- requests -------------------------------------------------------------------------------------

    @takes(ReplyOptions, REPLY_DEFAULTS)
    def reply(self, *patterns: str | Pattern, **options: Unpack[ReplyOptions]) -> Callable[[F], F]:
        """Answer each request whose topic matches, with the result of the function.

        The decorated function takes the same parameters as a function under `subscribe`: the message, captures,
        resources and an `Envelope`. The return value is the reply; None is a reply too. A generator, plain or
        ``async``, answers with a stream of its values, for `App.request_stream`.

        If several patterns match, only the function with the most specific pattern answers. If the queue of the
        function is full, the app refuses further requests at once, and the caller gets BusyError. If the caller no
        longer waits, the app drops a waiting request, and cancels an ``async`` call. Raise `RequestRefused` to refuse a
        request with your own code and text. Any other error reaches the caller as ServerError, with the type and the
        text of the error.

        Example:
            ```python
            @app.reply("prices.{symbol}")
            async def price(ask: Ask, symbol: str, db: Database) -> Price:
                return await db.price(symbol, ask.size)
            ```

        Args:
            patterns: One or more patterns with the same captures.

        Keyword Args:
            codec: The codec for replies, and for requests that do not name a codec (default: the app's codec).
            thread: True to run a plain, blocking function in the reactor's thread pool.
            max_in_flight: The maximum number of unfinished calls at a time (default 100, or 10 with
                ``thread=True``).
            queue: The maximum number of waiting requests (default 1,000).
            retry: The delays in seconds before further attempts, as for `subscribe`. The caller waits during these
                attempts.
            dead: The topic that receives a request if its last attempt fails, as for `subscribe`.
            timeout: The maximum duration of a call in seconds (default: only the caller's timeout).

        Raises:
            PatternError: A pattern is invalid, or the patterns have different captures.
            SchemaError: The codec is unknown.
            SignatureError: The decorated object is not a function, or an option is out of range or can't be used for
                requests.
            AppFrozenError: The app is already compiled.
        """
        refuse("reply", options, NOT_FOR_REPLIES)
        chosen = complete("reply", options, REPLY_DEFAULTS)
        parsed = self._parse(patterns, users_line(), "reply")

        def register(function: F) -> F:
            all_options: RouteOptions = {**ROUTE_DEFAULTS, **chosen}
            self._add_route(make_route(function, parsed, all_options, users_line(function), "reply"))
            return function

        return register

    @overload
    def requester(
        self,
        pattern: str,
        schema: type[Q],
        reply: type[A],
        *,
        codec: str | Codec | None = None,
        timeout: float | None = REQUEST_TIMEOUT,
        retry: Sequence[float] = (),
    ) -> Requester[Q, A]: ...

    @overload
    def requester(
        self,
        pattern: str,
        schema: Any = None,
        reply: Any = Any,
        *,
        codec: str | Codec | None = None,
        timeout: float | None = REQUEST_TIMEOUT,
        retry: Sequence[float] = (),
    ) -> Requester[Any, Any]: ...

    def requester(
        self,
        pattern: str,
        schema: Any = None,
        reply: Any = Any,
        *,
        codec: str | Codec | None = None,
        timeout: float | None = REQUEST_TIMEOUT,
        retry: Sequence[float] = (),
    ) -> Requester[Any, Any]:
        """Return a requester, which sends requests to the topics of one pattern.

        Example:
            ```python
            prices = app.requester("prices.{symbol}", Ask, Price, timeout=2.0, retry=(0.05,))

            @app.subscribe("orders.{symbol}")
            async def on_order(order: Order, symbol: str) -> None:
                price = await prices.request(Ask(order.size), symbol=symbol)
            ```

        Args:
            pattern: The topic, without ``*`` and ``>``. Captures are filled at each request.
            schema: The type of the messages. Without a schema, each message is encoded by its own type.
            reply: The type of the replies (default: any).
            codec: The codec of the messages (default: the app's codec).
            timeout: The maximum time in seconds to wait for a reply, including all attempts (default 10). None sets no
                limit.
            retry: The delays in seconds before further attempts, at most 20 (default: one attempt). The app sends a
                request again if the server was lost or busy. If the server was lost, the request may be handled twice.
                If no server is connected, the request waits until its timeout, so no further attempt follows.

        Raises:
            PatternError: The pattern is invalid, or contains a wildcard.
            SchemaError: The codec is unknown.
            SignatureError: ``timeout`` or ``retry`` is out of range.
            AppFrozenError: The app is already compiled.
        """
        where = users_line()
        self._check_open(f"requester({pattern!r})", where)
        parsed = self._parse((pattern,), where, "requester")[0]
        if not parsed.is_template:
            raise PatternError(
                f"requester({parsed.text!r}) can't send a request to several topics: write a capture such as {{name}} "
                "in place of each wildcard",
                pattern=parsed.text,
                where=where,
            )
        made: Requester[Any, Any] = Requester(
            parsed,
            schema,
            reply,
            find_codec(codec, where) if codec is not None else None,
            checked_wait(timeout, where),
            _checked_retry(retry, None, where),
            where,
        )
        self._requesters.append(made)
        return made

    # -- jobs -----------------------------------------------------------------------------------------

    @takes(WorkOptions, WORK_DEFAULTS)
    def work(self, *patterns: str | Pattern, **options: Unpack[WorkOptions]) -> Callable[[F], F]:
        """Call the decorated function for each job that an owner gives to this worker.

        An owner is an app with a `job_queue`, which distributes its jobs to all of its workers. Parameters, resources
        and middleware work as for `subscribe`. The result of the call decides what happens to the job:

        - If the function returns, the job is done. The return value is ignored, unless the function has a publisher.
        - If the function raises an error, the owner retries the job after the delays in the queue's ``retry``.
        - If the function raises `Reject`, or the body can't be decoded, the owner gives up on the job at once.

        A plain function runs in a thread, because jobs may take a long time, and the worker must continue to send signs
        of life.

        If this worker ends, or is silent for too long, the owner gives the job to another worker. A function may
        therefore be called twice with the same job. Make sure that a second call has no further effect.

        Example:
            ```python
            @app.work("jobs.{kind}", max_in_flight=4)
            def run(job: Resize, kind: str) -> None: ...
            ```

        Args:
            patterns: One or more patterns with the same captures. If the patterns of several handlers match a topic,
                the handler with the most specific pattern gets the job.

        Keyword Args:
            codec: The codec for bodies if the owner does not name a codec. Default: the app's codec.
            thread: False to run a plain function in the reactor's thread. A call must then take less than half of the
                owner's ``silent_after``. Default: True for a plain function.
            max_in_flight: The maximum number of unfinished calls at a time (default 4). The worker also requests the
                same number of further jobs, but at most 16, so that a new job can begin as soon as another ends.
            batch: The maximum number of jobs in a list, 1 to 10,000 (default: single jobs). The parameter is then a
                ``list[T]``. If the call succeeds, all jobs of the list are done. If it fails, each of them fails, and
                the owner retries each job separately.
            timeout: The maximum duration of a call in seconds, as in `add_route`.

        Raises:
            PatternError: A pattern is invalid, or the patterns have different captures.
            SchemaError: The codec is unknown.
            SignatureError: The decorated object is not a function, or an option is out of range or can't be used for
                jobs.
            AppFrozenError: The app is already compiled.
        """
        refuse("work", options, NOT_FOR_WORK)
        chosen = complete("work", options, WORK_DEFAULTS)
        parsed = self._parse(patterns, users_line(), "work")

        def register(function: F) -> F:
            as_route = _as_route_options(chosen, function)
            self._add_route(make_route(function, parsed, as_route, users_line(function), "work"))
            return function

        return register

    @overload
    def job_queue(self, pattern: str, schema: type[T], **options: Unpack[JobQueueOptions]) -> JobQueue[T]: ...

    @overload
    def job_queue(self, pattern: str, schema: Any = None, **options: Unpack[JobQueueOptions]) -> JobQueue[Any]: ...

    @takes(JobQueueOptions, JOB_QUEUE_DEFAULTS)
    def job_queue(self, pattern: str, schema: Any = None, **options: Unpack[JobQueueOptions]) -> JobQueue[Any]:
        """Return a queue of jobs that this app distributes to workers.

        A worker is an app with a handler under `work`. Of all workers with room, the worker that was served least
        recently gets the next job. The app keeps each job until a worker has done it, or until its last attempt has
        failed. If a worker ends, the app gives the worker's jobs to other workers. If a job fails, the app retries the
        job after the delays in ``retry``. If the process of this app is killed, the waiting jobs are lost.

        Example:
            ```python
            resize = app.job_queue("jobs.{kind}", Resize, retry=(1, 5, 30), dead="dead.{kind}")

            await resize.put(Resize("cat.png", 640), kind="resize")
            ```

        Args:
            pattern: The topics of the jobs, without ``*`` and ``>``. Captures are filled at each put.
            schema: The type of the jobs. Default: the type of each job.

        Keyword Args:
            codec: The codec of the jobs. Default: the app's codec.
            retry: The delays in seconds before further attempts, at most 20 (default: one attempt). With
                ``retry=(1, 5, 30)`` a job that keeps failing is tried four times. There are no further attempts after
                `Reject`, or while the app stops.
            dead: The topic that receives a job if its last attempt fails. Write a pattern such as ``"dead.{kind}"``,
                with captures of ``pattern`` only. The body is unchanged; headers contain the topic, the error and the
                number of attempts. Requires the tracked wire, and an endpoint to publish to. Without ``dead``, an
                ``on_error`` function gets a `JobFailedError`.
            waiting: The maximum number of jobs that may wait (default 10,000). If the queue is full, ``put`` waits for
                room.
            silent_after: The seconds without a sign of life after which a worker loses its jobs (default 10). If an app
                has several queues, the smallest value applies to all of them.

        Raises:
            PatternError: ``pattern`` is invalid, or contains a wildcard.
            SchemaError: The codec is unknown.
            SignatureError: An option is out of range.
            AppFrozenError: The app is already compiled.
        """
        chosen = complete("job_queue", options, JOB_QUEUE_DEFAULTS)
        where = users_line()
        self._check_open(f"job_queue({pattern!r})", where)
        parsed = self._parse((pattern,), where, "job_queue")[0]
        if not parsed.is_template:
            raise PatternError(
                f"job_queue({parsed.text!r}) can't put a job to several topics: write a capture such as {{name}} "
                "in place of each wildcard",
                pattern=pattern,
                where=where,
            )
        waiting, silent_after, codec = chosen["waiting"], chosen["silent_after"], chosen["codec"]
        if not (isinstance(waiting, int) and waiting >= 1):
            fault = f"waiting={waiting!r}: expected a number of jobs, 1 or more"
            raise SignatureError(fault, parameter="waiting", where=where)
        if not (is_seconds(silent_after) and silent_after > 0):
            fault = f"silent_after={silent_after!r}: expected a number of seconds, more than 0"
            raise SignatureError(fault, parameter="silent_after", where=where)
        retry = _checked_retry(chosen["retry"], None, where)
        dead = _checked_dead(chosen["dead"], (parsed,), where)
        from zroute.jobs.owner import Settings
        from zroute.jobs.queue import JobQueue  # here, because most apps have no jobs

        settings = Settings(parsed.text, where, retry, waiting, float(silent_after))
        found = find_codec(codec) if codec is not None else None
        queue: JobQueue[Any] = JobQueue(parsed, schema, found, settings, dead, where)
        self._job_queues.append(queue)
        return queue

    # -- resources ------------------------------------------------------------------------------------

    @overload
    def resource(self, function: F, /) -> F: ...

    @overload
    def resource(self, function: None = None, /, *, scope: ResourceScope = "app") -> Callable[[F], F]: ...

    def resource(self, function: Any = None, /, *, scope: ResourceScope = "app") -> Any:
        """Provide an object by its type to handlers and other functions.

        The decorated generator function, plain or ``async``, opens an object, yields it once, and closes it after the
        ``yield``. It may also be decorated with ``contextlib.contextmanager`` or ``asynccontextmanager``. The return
        annotation declares the type. Handlers, timers, publishers, hooks and other resources receive the object in a
        parameter of that type. The parameter may also have a Protocol or base class that only this resource satisfies.

        Resources open in dependency order, before the sockets. They close in reverse order after the last message is
        handled. If a resource fails to open, the app does not start, and the resources that are already open are
        closed.

        With ``scope="message"`` a resource opens when a handler is called with a message, and closes when the handler
        has ended, before its result is published. If the handler raises an error, the error is raised at the ``yield``,
        so the resource can roll back. The resource can't suppress the error. Each attempt of ``retry`` and each list of
        ``batch`` has its own object. Such a resource is opened around the handler. If a middleware takes the resource,
        it is opened around this middleware too. Handlers, their middleware and other resources of a message can take
        it. A plain handler that takes an ``async`` resource of the message is handled like an ``async`` handler.

        Compiling the app raises SignatureError if the type is missing or too general, if two resources yield the same
        type, or if resources depend on each other in a cycle.

        Example:
            ```python
            @app.resource
            def database() -> Iterator[Database]:
                database = Database.open("quotes.db")
                yield database
                database.close()
            ```

        Args:
            function: A generator function that yields once.
            scope: "app" (default) to open it once, or "message" to open it for each message.

        Raises:
            SignatureError: ``function`` is not a generator function, or the scope is unknown.
            AppFrozenError: The app is already compiled.
        """
        if scope not in get_args(ResourceScope):
            raise SignatureError(
                f"scope={scope!r}: expected 'app' or 'message'", parameter="scope", where=users_line(function)
            )
        if function is None:
            return partial(self._add_resource, scope)
        return self._add_resource(scope, function)

    def _add_resource(self, scope: ResourceScope, function: F) -> F:
        where = users_line(function)
        self._check_open("resource", where)
        _check_callable(function, "resource", where)
        opener = generator_of(function)
        if not is_generator_function(opener):
            raise SignatureError(
                f"resource must decorate a generator function, but {name_of(function)} has no yield: open the object, "
                "yield the object once, and then close it",
                where=where,
            )
        self._resources.append(Resource(opener, where, local_names(function), scope))
        return function

    # -- publishing -----------------------------------------------------------------------------------

    @overload
    def publisher(self, pattern: str, schema: type[T], **options: Unpack[PublisherOptions]) -> Publication[T]: ...

    @overload
    def publisher(self, pattern: str, schema: Any = None, **options: Unpack[PublisherOptions]) -> Publication[Any]: ...

    @takes(PublisherOptions, PUBLISHER_DEFAULTS)
    def publisher(self, pattern: str, schema: Any = None, **options: Unpack[PublisherOptions]) -> Publication[Any]:
        """Return a publication, to publish with or to use as a decorator.

        As a decorator it returns the function unchanged and publishes:

        - with ``every``: the result of a call each period, or the next value of a generator, which is created once;
        - without ``every``: the values of a generator, as fast as the app can send them;
        - together with ``subscribe``: the result, or each yielded value, of the handler for each message.

        If the function returns None, nothing is published. A list is published as one message. Compiling the app raises
        SignatureError if the return annotation contradicts ``schema``, and PatternError if nothing fills a capture of
        ``pattern``.

        Example:
            ```python
            alerts = app.publisher("alerts.{level}", str)

            @app.publisher("beat", every=1.0)
            def beat() -> int:
                alerts.publish("alive", level="low")
                return 1
            ```

        Args:
            pattern: The topic, without ``*`` and ``>``. Captures are filled at each publish.
            schema: The type of the messages. Default: the type that the decorated function's return annotation
                declares, or else the type of each message.

        Keyword Args:
            every: The period in seconds between calls of the decorated function (default: no timer).
            codec: The codec of the messages. Default: the app's codec.
            jitter: The random variation of each period as a fraction of the period, 0 to 1 (default 0). Requires
                ``every``.
            initial_delay: The delay in seconds before the first call (default 0); requires ``every``.
            keep: With ``"last"``, a new subscriber receives the latest message of each topic before newer messages of
                that topic. Requires the tracked wire. Up to 100,000 topics are kept, in memory (default None).
            coalesce: True to send messages together in one frame if they have the same topic and are published in the
                same turn of the reactor. This reduces the cost on both sides. `Coalesce` sets the maximum number of
                messages in a frame and the delay (default: the app's ``coalesce``). Handlers still receive single
                messages. Some messages are always sent separately: messages of more than 64,000 bytes, messages with
                headers, and messages on a wire other than "tracked".
            history: A `History`: the latest sent messages, kept in memory for subscribers with ``App(recover=True)``
                that lost some of them. Requires the tracked wire, and a ZeroMQ endpoint (default None).
            snapshot: A plain function that returns the present state of a topic as a message, or None for no state. It
                takes captures of ``pattern`` by name. Each new subscriber receives the state of each topic, and then
                the messages that follow it; also a subscriber that has lost messages for good. Change the state and
                publish the change without an ``await`` in between. Requires the tracked wire, and a ZeroMQ endpoint
                (default None).
            topics: A plain function that returns the captures of each topic with a snapshot, such as ``[{"symbol":
                "ACME"}]``. Requires ``snapshot``. Default: the topics that were published in this run.

        Raises:
            PatternError: ``pattern`` is invalid, or contains a wildcard.
            SchemaError: The codec is unknown.
            SignatureError: An option is out of range, or requires another option.
            AppFrozenError: The app is already compiled.
        """
        chosen = complete("publisher", options, PUBLISHER_DEFAULTS)
        every, codec, keep, coalesce = chosen["every"], chosen["codec"], chosen["keep"], chosen["coalesce"]
        where = users_line()
        self._check_open(f"publisher({pattern!r})", where)
        parsed = self._parse((pattern,), where, "publisher")[0]
        if not parsed.is_template:
            fault = (
                f"pattern {parsed.text!r} matches more than one topic, but a publisher needs one: "
                f"{parsed.single_topic_advice}"
            )
            raise PatternError(fault, pattern=pattern, where=where)
        if keep not in (None, "last"):
            raise SignatureError(f"keep={keep!r}: expected 'last' or None", parameter="keep", where=where)
        schedule = _schedule(every, chosen["jitter"], chosen["initial_delay"], where) if every is not None else None

        def register(publication: Publication[Any], function: Callable[..., Any]) -> None:
            where = users_line(function)
            self._check_open(f"publisher({pattern!r})", where)
            _check_callable(function, "publisher", where)
            names = local_names(function)
            self._producers.append(Producer(function, publication, schedule, where, names))
            stacked(self, self._producers[-1])

        # None means "as the app": the app that includes this group may not exist yet.
        found = find_codec(codec, where) if codec is not None else None
        together = None if coalesce is None else coalescing(coalesce, where)
        history = None if chosen["history"] is None else check_history(chosen["history"], where)
        snapshot = check_snapshot(chosen["snapshot"], chosen["topics"], parsed.captures, where)
        if snapshot is not None and keep is not None:
            raise SignatureError(
                "keep='last' can't be combined with snapshot=: a new subscriber receives the snapshot instead of the "
                "latest message. Remove one of the two options",
                parameter="snapshot",
                where=where,
            )
        publication: Publication[Any] = Publication(parsed, schema, found, schedule, keep, together, where, register)
        publication.register_hook = self._register_hook
        publication.history = history
        publication.snapshot = snapshot
        self._publications.append(publication)
        return publication

    def _register_hook(self, hooks: list[Hook], function: Callable[..., Any]) -> None:
        """Add a function of `Publication.on_subscribers`."""
        where = users_line(function)
        self._check_open("on_subscribers", where)
        _check_callable(function, "on_subscribers", where)
        hooks.append(Hook(function, where, local_names(function)))

    def every(self, period: float, *, jitter: float = 0.0, initial_delay: float = 0.0) -> Callable[[F], F]:
        """Call the decorated function every ``period`` seconds while the app runs.

        The results of the function are ignored. Use `every` for a function that publishes to several topics, or that
        publishes nothing. Calls never overlap: a period that passes during a call is skipped and counted. An exception
        is logged and does not end the schedule.

        Example:
            ```python
            @app.every(60.0)
            def clean_up(database: Database) -> None:
                database.delete_old_rows()
            ```

        Args:
            period: The time in seconds between calls, more than 0.
            jitter: The random variation of each period as a fraction of the period, 0 to 1.
            initial_delay: The delay in seconds before the first call.

        Raises:
            SignatureError: An argument is out of range, or the decorated object is not a function.
            AppFrozenError: The app is already compiled.
        """
        where = users_line()
        schedule = _schedule(period, jitter, initial_delay, where)

        def register(function: F) -> F:
            where = users_line(function)
            self._check_open(f"every({period!r})", where)
            _check_callable(function, "every", where)
            names = local_names(function)
            self._producers.append(Producer(function, None, schedule, where, names))
            return function

        return register

    def middleware(self, function: F) -> F:
        """Call a function around the handlers of this group.

        The decorated function is a factory. It is called once for each route of the group when the app is compiled,
        with ``call`` and the `RouteInfo` of the route. It returns a function ``around(message)``, which calls the
        handler with ``call(message)``. It may also return ``call`` itself to leave this route unchanged, at no cost.

        - The return value of ``around`` is the result of the handler. If the handler has a publisher, it publishes this
          value. ``WithHeaders(call(message), {…})`` adds headers, which override those of the handler.
        - If ``around`` does not call ``call``, the message counts as ``skipped`` in ``app.stats.routes``.
        - ``call`` works only in the context of its message. In a callback of a Deferred, it raises UsageError.
        - An error of ``around`` counts as an error of the handler.
        - Parameters annotated `Topic`, `Envelope` or with the type of a resource are filled as for handlers.
        - For an ``async`` handler (``route.is_async``), ``around`` is ``async`` too, and awaits ``call(message)``.
        - A handler with ``batch`` is surrounded once for each list. A generator handler is surrounded only while the
          generator is created. Streams are not surrounded.

        Each message has its own context: if ``around`` sets a context variable, the handler of this message sees the
        value, but other handlers do not. Middleware that is registered first is outermost. The middleware of an app
        surrounds the middleware of its groups.

        Example:
            ```python
            @app.middleware
            def timed(call, route):
                seconds = HISTOGRAM.labels(route.name)

                def around(message):
                    with seconds.time():
                        return call(message)

                return around
            ```

        Args:
            function: The factory, a plain function with the parameters ``call`` and ``route``.

        Raises:
            SignatureError: ``function`` is not a plain function. Compiling the app raises it if ``around`` is not
                ``async`` for an ``async`` handler, or can't be called with a message.
            AppFrozenError: The app is already compiled.
        """
        return self._add_factory("middleware", self._middleware, function)

    def _add_factory(self, what: str, factories: list[Hook], function: F) -> F:
        where = users_line(function)
        self._check_open(what, where)
        _check_callable(function, what, where)
        if is_coroutine_function(function) or is_generator_function(function):
            inner = "publish" if what == "publish_middleware" else "the handler"
            raise SignatureError(
                f"{name_of(function)} can't be async or a generator: {what} calls {name_of(function)} once to get the "
                f"function around {inner}; write def {name_of(function)[:-2]}(call, route), and return a function",
                where=where,
            )
        factories.append(Hook(function, where, local_names(function)))
        return function

    def publish_middleware(self, function: F) -> F:
        """Call a function around the publishing of each message of this group.

        The decorated function is a factory. It is called once for each publication of the group when the app is
        compiled, with ``call`` and the `RouteInfo` of the publication. It returns a function ``around(message)``, which
        publishes with ``call(message)``. It may also return ``call`` itself to leave this publication unchanged, at no
        cost.

        ``around`` may pass on another message, or ``WithHeaders(message, {…})`` to add headers, which override those of
        ``publish(…, headers=…)`` and of outer middleware. A parameter annotated `Topic` receives the topic, which can't
        be changed. A parameter named ``headers`` receives the headers from ``publish`` and outer middleware, as a
        read-only map. ``publish`` returns the return value of ``around``: the awaitable of ``call``, or None. If
        ``around`` does not call ``call``, the message is not published, and is counted in ``stats.publish_skipped``.
        ``publish`` raises the errors of ``around``. For the results of handlers, timers and generators, zroute logs
        these errors and counts them in ``stats.publish_errors``.

        The middleware of an app also surrounds `App.publish` and the publications of the groups that the app includes.
        Middleware that is registered first is outermost. The middleware of an app surrounds the middleware of its
        groups.

        Example:
            ```python
            @app.publish_middleware
            def stamp(call, route):
                def around(message):
                    return call(WithHeaders(message, {"version": 2}))

                return around
            ```

        Args:
            function: The factory, a plain function with the parameters ``call`` and ``route``.

        Raises:
            SignatureError: ``function`` is not a plain function. Compiling the app raises it if ``around`` is
                ``async``, or can't be called with a message.
            AppFrozenError: The app is already compiled.
        """
        return self._add_factory("publish_middleware", self._publish_middleware, function)

    # -- errors and groups ----------------------------------------------------------------------------

    def on_error(self, *kinds: type[BaseException]) -> Callable[[F], F]:
        """Call the decorated function when a handler of this group fails.

        The arguments are the error and the envelope of the message. Messages that cannot be read are passed too, with a
        `DecodeError` or an `EnvelopeError`. zroute has already counted and logged the error. The function may be
        ``async``.

        The function may have further parameters. A parameter annotated `RouteInfo` receives the route whose handler
        failed. With the annotation ``RouteInfo | None``, the function is also called for an `EnvelopeError`, which has
        no route; the parameter is then None. A parameter named ``attempts`` receives the number of calls of the handler
        with the message: 0 for a message that cannot be read. Parameters for resources are filled by type.

        Only one function is called for an error. It is found in the innermost group that has a function for the
        error's class. Within a group, the function for the most specific class is called.

        Example:
            ```python
            @app.on_error(ValueError)
            def on_bad_value(error: ValueError, envelope: Envelope) -> None:
                rejected.append(envelope.topic)
            ```

        Args:
            kinds: The exception classes. Default: every Exception.

        Raises:
            SignatureError: An argument is not an exception class, or the decorated object is not a function.
            AppFrozenError: The app is already compiled.
        """
        where = users_line()
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise SignatureError(
                    f"on_error got {name_of(kind) if callable(kind) else repr(kind)}: expected exception classes, as "
                    "in @app.on_error(ValueError), or no argument for all exceptions",
                    where=where,
                )

        def register(function: F) -> F:
            where = users_line(function)
            self._check_open("on_error", where)
            _check_callable(function, "on_error", where)
            names = local_names(function)
            self._errors.append(ErrorHook(function, where, names, kinds or (Exception,)))
            return function

        return register

    def include(self, routes: Routes, *, prefix: str = "") -> None:
        """Add the handlers and publishers of ``routes`` to this group.

        Each pattern is preceded by ``prefix`` and the prefix of ``routes``. Functions that are registered in ``routes``
        later are included too, until the app is compiled. A group may be included several times under different
        prefixes.

        Example:
            ```python
            app.include(desks, prefix="london")
            ```

        Args:
            routes: The group to include.
            prefix: Segments that precede each pattern of ``routes``, joined by the separator.

        Raises:
            SignatureError: ``routes`` is not a group, contains this group, or has another separator.
            PatternError: The prefix is not a valid pattern.
            AppFrozenError: The app is already compiled.
        """
        where = users_line()
        self._check_open("include", where)
        if not isinstance(routes, Routes):
            raise SignatureError(f"include({routes!r}): expected a zroute.Routes", where=where)
        if self in routes._groups():
            raise SignatureError("a group can't include itself", where=where)
        if routes.separator != self.separator:
            raise SignatureError(
                f"the group at {routes.where} has separator={routes.separator!r}, but the app or group that includes "
                f"the group has separator={self.separator!r}: write Routes(separator={self.separator!r})",
                parameter="separator",
                where=where,
            )
        if prefix:
            self._parse((prefix,), where)
        self._included.append((prefix, routes))

    @property
    def _holds_anything(self) -> bool:
        """True if a handler, publisher, timer or resource is registered in this group."""
        senders = self._publications or self._requesters or self._job_queues
        return bool(self._routes or senders or self._producers or self._resources)

    def _groups(self) -> Iterator[Routes]:
        yield self
        for _, routes in self._included:
            yield from routes._groups()

    def _walk(
        self, prefix: str = "", errors: tuple[Routes, ...] = ()
    ) -> Iterator[tuple[str, Routes, tuple[Routes, ...]]]:
        """Yield each group with its whole prefix and its chain of groups.

        The chain starts with the group itself and ends with the outermost group.
        """
        here = self.separator.join(part for part in (prefix, self.prefix) if part)
        chain = (self, *errors)
        yield here, self, chain
        for outer, routes in self._included:
            yield from routes._walk(self.separator.join(part for part in (here, outer) if part), chain)

    def _parse(
        self, patterns: tuple[str | Pattern, ...], where: str, decorator: str = "subscribe"
    ) -> tuple[Pattern, ...]:
        return parse_patterns(patterns, where, self.separator, decorator)

    def _freeze(self, by: str) -> None:
        for group in self._groups():
            group._frozen_by = by
            end_stack(group)

    def _check_open(self, what: str, where: str) -> None:
        if self._frozen_by:
            ways = {
                "subscribe": "; or use app.attach while the app runs",
                "publisher": "; or use app.publish(topic, message)",
            }
            raise AppFrozenError(
                f"{what} is too late, because {self._frozen_by} is already compiled: move this call before the start "
                "of the app" + ways.get(what.partition("(")[0], ""),
                where=where,
            )


def make_route(
    function: Callable[..., Any],
    patterns: tuple[Pattern, ...],
    options: RouteOptions,
    where: str,
    kind: RouteKind = "subscribe",
) -> Route:
    """Check the complete ``options`` of a handler and return its record.

    ``kind`` is also the name of the decorator in errors. Raises the errors of `Routes.add_route`.
    """
    _check_callable(function, kind, where)
    codec, queue, stale_after, batch = options["codec"], options["queue"], options["stale_after"], options["batch"]
    if batch is not None:
        _check_batch(batch, queue, where)
    if queue is None:  # with room for only two lists, one could not fill before half of the other is handled
        queue = max(ROUTE_QUEUE, 4 * (batch or 0))
    most = options["max_in_flight"]
    if most is None:
        most = THREADS_IN_FLIGHT if options["thread"] else MAX_IN_FLIGHT
    for name, bound in (("max_in_flight", most), ("queue", queue)):
        if not (isinstance(bound, int) and bound >= 1):
            raise SignatureError(
                f"{name}={bound!r}: expected a number of messages, 1 or more", parameter=name, where=where
            )
    if options["recover"] not in (None, True, False):
        raise SignatureError(
            f"recover={options['recover']!r}: expected True, False or None", parameter="recover", where=where
        )
    if stale_after is not None and not (isinstance(stale_after, int | float) and stale_after > 0):
        text = f"stale_after={stale_after!r}: expected a number of seconds, more than 0"
        raise SignatureError(text, parameter="stale_after", where=where)
    if options["thread"] and (is_coroutine_function(function) or is_generator_function(function)):
        raise SignatureError(
            f"{name_of(function)} is async or a generator, but thread=True is for plain functions that block: "
            "remove thread=True; or remove async and yield",
            parameter="thread",
            where=where,
        )
    since = check_since_option(options["since"], where)
    failing = {
        "retry": _checked_retry(options["retry"], function, where),
        "dead": _checked_dead(options["dead"], patterns, where),
        "timeout": _checked_timeout(options["timeout"], function, where, thread=options["thread"]),
    }
    found = find_codec(codec, where) if codec is not None else None
    checked: dict[str, Any] = {
        **options,
        **failing,
        "codec": found,
        "queue": queue,
        "max_in_flight": most,
        "since": since,
    }
    return Route(function, patterns, HandlerOptions(**checked), where, local_names(function), kind)


def check_attached(pattern: Any, function: Any, where: str) -> None:
    """Raise SignatureError if `App.attach` gets no function or swapped arguments."""
    if callable(function) and not inspect.isclass(function):
        return
    text = f"attach({pattern!r}, {function!r}): "
    if callable(pattern) and not callable(function):
        text = f"attach({name_of(pattern)}, {function!r}): the arguments are swapped; "
    raise SignatureError(
        f"{text}expected a pattern and a function, as in app.attach('rooms.*', on_message)",
        parameter="function",
        where=where,
    )


def _as_route_options(options: WorkOptions, function: Callable[..., Any]) -> RouteOptions:
    """Convert the options of a handler of jobs to the options of a route."""
    thread = options["thread"]
    if thread is None:
        thread = not (is_coroutine_function(function) or is_generator_function(function))
    given: RouteOptions = {
        "codec": options["codec"],
        "thread": thread,
        "max_in_flight": options["max_in_flight"],
        "ordered": False,
        "batch": options["batch"],
        "timeout": options["timeout"],
    }
    return complete("work", given, ROUTE_DEFAULTS)


def joined(prefix: str, pattern: Pattern) -> Pattern:
    """Return the pattern that joins ``prefix`` and ``pattern``.

    The parts are joined by the separator of the pattern.

    Raises:
        PatternError: The result is not a valid pattern.
    """
    if not prefix:
        return pattern
    separator = pattern.separator.decode()
    if pattern.kind == "prefix":
        if not parse(prefix, separator).is_concrete:
            raise PatternError(
                f"{pattern.text} can't follow the prefix {prefix!r}, which contains a wildcard or capture: "
                "write a pattern with '>' instead of startswith; or use a prefix without wildcards and captures",
                pattern=pattern.text,
            )
        return parse(startswith(f"{prefix}{separator}".encode() + (pattern.prefix or b"")), separator)
    return parse(f"{prefix}{separator}{pattern.text}", separator)


_WITHOUT_PATTERN = {
    "publisher": ": write @app.publisher('news.{name}'), with parentheses",
    "requester": ", and can't be used as a decorator: write prices = app.requester('prices.{symbol}', Ask, Price)",
    "job_queue": ", and can't be used as a decorator: write jobs = app.job_queue('jobs.{kind}', Job), and "
    "@app.work('jobs.{kind}') above the function that does the jobs",
}
"""The advice for a call with a function as its first argument, by the name of the method."""


_SENDERS = {
    "requester": "app.requester('prices.{symbol}', Ask, Price)",
    "job_queue": "app.job_queue('resize.{kind}', Resize)",
    "publisher": "app.publisher('alerts.{level}', Alert)",
}
"""Examples for the methods that take a pattern without wildcards, and then a type."""


def _shown(given: object) -> str:
    return given.__name__ if isinstance(given, type) else repr(given)


def parse_patterns(
    patterns: tuple[str | Pattern, ...], where: str, separator: str, decorator: str = "subscribe"
) -> tuple[Pattern, ...]:
    """Parse the patterns of one route.

    ``separator`` is the character between segments. ``decorator`` is the name of the decorator, for errors.

    Raises:
        PatternError: A pattern is missing or invalid, or the patterns have different captures. The error names
            ``where``, the user's line.
    """
    if not patterns:
        text = f"{decorator} needs a pattern, as in @app.{decorator}('news.*')"
        raise PatternError(text, pattern=None, where=where)
    first: Any = patterns[0]
    if callable(first) and not (isinstance(first, type) and decorator in _SENDERS):
        raise PatternError(
            f"{decorator} needs a pattern"
            + _WITHOUT_PATTERN.get(decorator, f": write @app.{decorator}('news.*'), with parentheses"),
            pattern=None,
            where=where,
        )
    if decorator in _SENDERS and not isinstance(first, str | Pattern):
        raise PatternError(
            f"{decorator}({', '.join(map(_shown, patterns))}, …): expected the pattern of the topics as the first "
            f"argument, as in {_SENDERS[decorator]}",
            pattern=None,
            where=where,
        )
    try:
        parsed = tuple(parse(pattern, separator) for pattern in patterns)
    except PatternError as error:
        raise PatternError(str(error), pattern=error.pattern, where=where) from None
    names = set(parsed[0].captures)
    for pattern in parsed[1:]:
        if set(pattern.captures) != names:
            raise PatternError(
                f"the patterns {parsed[0].text!r} and {pattern.text!r} of one route have different captures: "
                "write the same captures in both patterns; or use a decorator for each pattern",
                pattern=pattern.text,
                where=where,
            )
    return parsed


def _checked_separator(separator: Any, where: str) -> str:
    if isinstance(separator, str) and len(separator) == 1 and separator in SEPARATORS:
        return separator
    raise SignatureError(
        f"separator={separator!r}: expected one of the characters {' '.join(SEPARATORS)}",
        parameter="separator",
        where=where,
    )


def _check_batch(batch: Any, queue: Any, where: str) -> None:
    if not (isinstance(batch, int) and not isinstance(batch, bool) and 1 <= batch <= BATCH_MAX):
        fault = f"batch={batch!r}: expected a number of messages, from 1 to {BATCH_MAX:,}"
        raise SignatureError(fault, parameter="batch", where=where)
    if isinstance(queue, int) and batch > queue:
        raise SignatureError(
            f"batch={batch} exceeds queue={queue}, so the queue can't hold a full list: use queue={batch} or more",
            parameter="batch",
            where=where,
        )


def _checked_retry(retry: Any, function: Callable[..., Any] | None, where: str) -> tuple[float, ...]:
    """Return the delays in seconds before further attempts."""
    fault = None
    if not isinstance(retry, tuple | list):
        fault = "expected a tuple of delays in seconds, such as retry=(1, 5, 30)"
    elif len(retry) > RETRIES_MAX:
        fault = f"expected at most {RETRIES_MAX} delays"
    elif not all(is_seconds(delay) and delay >= 0 for delay in retry):
        fault = "expected delays of 0 seconds or more"
    elif retry and function is not None and is_generator_function(function):
        fault = (
            f"{name_of(function)} is a generator, so a further attempt would publish the first values again: catch "
            f"errors inside {name_of(function)}; or remove retry="
        )
    if fault is not None:
        raise SignatureError(f"retry={retry!r}: {fault}", parameter="retry", where=where)
    return tuple(retry)


def _checked_dead(dead: Any, patterns: tuple[Pattern, ...], where: str) -> Pattern | None:
    """Return the pattern of the topics that get messages whose last attempt failed."""
    if dead is None:
        return None
    separator = patterns[0].separator.decode()
    pattern = parse_patterns((dead,), where, separator)[0] if isinstance(dead, str | Pattern) and dead else None
    fault = None
    if pattern is None:
        fault = 'expected a topic for dead letters, such as dead="dead.{kind}"'
    elif pattern.rest is not None:
        fault = (
            f"{{{pattern.rest}+}} captures several segments, but each capture in dead= must be one segment: "
            "write a capture of one segment"
        )
    elif not pattern.is_template:
        fault = (
            "a dead letter is published to one topic, so dead= can't contain a wildcard: use a capture of "
            f"{patterns[0].text!r} instead"
        )
    elif several := {each.rest for each in patterns} & set(pattern.captures):
        fault = f"{{{min(map(str, several))}+}} can be several segments, but each capture in dead= must be one segment"
    elif unknown := set(pattern.captures) - set(patterns[0].captures):
        fault = (
            f"nothing fills {{{min(unknown)}}}, because {patterns[0].text!r} has no such capture: use only captures of "
            "that pattern"
        )
    if fault is not None:
        raise SignatureError(f"dead={dead!r}: {fault}", parameter="dead", where=where)
    return pattern


def _checked_timeout(timeout: Any, function: Callable[..., Any], where: str, *, thread: bool) -> float | None:
    """Return the checked maximum duration of a call in seconds."""
    if timeout is None:
        return None
    fault = None
    if not (is_seconds(timeout) and timeout > 0):
        fault = "expected a number of seconds, more than 0"
    elif not (thread or is_coroutine_function(function)):
        kind = "a generator" if is_generator_function(function) else "a plain function"
        fault = (
            f"{name_of(function)} is {kind}, which can't be interrupted: write an async function; or, for a "
            "function that blocks, use thread=True"
        )
    if fault is not None:
        raise SignatureError(f"timeout={timeout!r}: {fault}", parameter="timeout", where=where)
    return float(timeout)


def _check_callable(function: Any, decorator: str, where: str) -> None:
    if not callable(function):
        raise SignatureError(f"{decorator} decorates a function, not {function!r}", where=where)
    # A class is callable, but as a decorator's target it is almost always a mistake.
    if inspect.isclass(function):
        raise SignatureError(
            f"{decorator} decorates a function, not the class {name_of(function)[:-2]}: register a method of an "
            "instance",
            where=where,
        )


def coalescing(coalesce: Any, where: str) -> Coalesce | Literal[False]:
    """Return the checked value of ``coalesce``: a `Coalesce`, or False.

    Raises:
        SignatureError: The value is not True, False or a `Coalesce` with values in range.
    """
    fault = None
    if not isinstance(coalesce, Coalesce | bool):
        fault = "expected True, False or Coalesce(seconds=…, messages=…)"
    elif isinstance(coalesce, Coalesce) and not (type(coalesce.seconds) in (int, float) and 0 <= coalesce.seconds <= 1):
        fault = "expected 0 to 1 seconds; 0 holds messages for one turn of the reactor"
    elif isinstance(coalesce, Coalesce) and coalesce.messages not in range(2, COALESCED_MAX + 1):
        fault = f"expected 2 to {COALESCED_MAX:,} messages"
    if fault is not None:
        raise SignatureError(f"coalesce={coalesce!r}: {fault}", parameter="coalesce", where=where)
    return Coalesce() if coalesce is True else coalesce


def _schedule(every: float, jitter: float, initial_delay: float, where: str) -> Schedule:
    if not (isinstance(every, int | float) and math.isfinite(every) and every > 0):
        fault = f"every={every!r}: expected a positive number of seconds"
        raise SignatureError(fault, parameter="every", where=where)
    if not 0 <= jitter <= 1:
        fault = f"jitter={jitter!r}: expected a fraction of the period, from 0 to 1"
        raise SignatureError(fault, parameter="jitter", where=where)
    if not (math.isfinite(initial_delay) and initial_delay >= 0):
        fault = f"initial_delay={initial_delay!r}: expected 0 seconds or more"
        raise SignatureError(fault, parameter="initial_delay", where=where)
    return Schedule(float(every), jitter, initial_delay)

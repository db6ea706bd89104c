"""The options of handlers and publishers: their types, defaults and meaning.

Functions accept them as ``**options: Unpack[RouteOptions]``, so type checkers and editors know each keyword. With the
decorator `takes`, ``help()`` and `inspect.signature` list them too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, TypedDict, TypeVar, cast

from zroute.declarations.since import SinceOption
from zroute.errors import SignatureError
from zroute.functions import users_line
from zroute.logs import did_you_mean
from zroute.messages.codecs import Codec
from zroute.options import JOBS_WAITING, SILENT_AFTER, WORK_IN_FLIGHT
from zroute.publishing.history import History
from zroute.publishing.publication import Coalesce, Keep

__all__ = [
    "JOB_QUEUE_DEFAULTS",
    "NOT_FOR_REPLIES",
    "NOT_FOR_WORK",
    "PUBLISHER_DEFAULTS",
    "REPLY_DEFAULTS",
    "ROUTE_DEFAULTS",
    "WORK_DEFAULTS",
    "JobQueueOptions",
    "PublisherOptions",
    "ReplyOptions",
    "RouteOptions",
    "WorkOptions",
    "complete",
    "moved",
    "refuse",
    "takes",
]

F = TypeVar("F", bound=Callable[..., Any])
Options = TypeVar("Options", "RouteOptions", "ReplyOptions", "PublisherOptions", "WorkOptions", "JobQueueOptions")


class RouteOptions(TypedDict, total=False):
    """The options of `Routes.subscribe`, `Routes.add_route` and `App.attach`."""

    codec: str | Codec | None
    """The codec for bodies whose publisher does not name a codec. Default: the app's codec."""
    copy: bool
    """Decode a separate object for this handler, which may then modify it. Default: False, which means that handlers
    share the object.
    """
    thread: bool
    """Run a plain, blocking function in the reactor's thread pool. Default: False."""
    max_in_flight: int | None
    """The maximum number of unfinished calls at a time. Default: 100, or 10 with ``thread=True``."""
    ordered: bool
    """Handle the messages of one topic one after the other. Default: True."""
    queue: int | None
    """The number of waiting messages at which reading pauses. Default: 1,000, or 4 times ``batch`` if that is more."""
    stale_after: float | None
    """The maximum age of a message in seconds. Older messages are skipped and counted as stale. Default: no limit."""
    batch: int | None
    """Pass lists of up to this number of messages, 1 to 10,000. Default: single messages."""
    retry: Sequence[float]
    """Retry a failed call after these delays in seconds, one per retry; at most 20. Default: no retries."""
    dead: str | None
    """The topic, as a publisher's pattern, that receives a message when its last attempt has failed. Default: none."""
    timeout: float | None
    """The seconds after which a call of an ``async`` function, or a call in a thread, fails. Default: no limit."""
    recover: bool | None
    """Get lost messages back from publishers with a history. Default: the app's ``recover``."""
    since: SinceOption | None
    """Receive messages that were sent before the app joined, from publishers with a history. Default: none."""


ROUTE_DEFAULTS: RouteOptions = {
    "codec": None,
    "copy": False,
    "thread": False,
    "max_in_flight": None,
    "ordered": True,
    "queue": None,
    "stale_after": None,
    "batch": None,
    "retry": (),
    "dead": None,
    "timeout": None,
    "recover": None,
    "since": None,
}


class ReplyOptions(TypedDict, total=False):
    """The options of `Routes.reply`."""

    codec: str | Codec | None
    """The codec for replies, and for requests that do not name a codec. Default: the app's codec."""
    thread: bool
    """Run a plain, blocking function in the reactor's thread pool. Default: False."""
    max_in_flight: int | None
    """The maximum number of unfinished calls at a time. Default: 100, or 10 with ``thread=True``."""
    queue: int | None
    """The number of waiting requests at which further requests are refused. Default: 1,000."""
    retry: Sequence[float]
    """Retry a failed call after these delays in seconds, one per retry; at most 20. Default: no retries."""
    dead: str | None
    """The topic, as a publisher's pattern, that receives a request when its last attempt has failed. Default: none."""
    timeout: float | None
    """The seconds after which a call of an ``async`` function, or a call in a thread, fails. Default: no limit."""


REPLY_DEFAULTS: ReplyOptions = {
    "codec": None,
    "thread": False,
    "max_in_flight": None,
    "queue": None,
    "retry": (),
    "dead": None,
    "timeout": None,
}

NOT_FOR_REPLIES = {
    "batch": "each request gets its own reply",
    "stale_after": "a request ends at the timeout of its caller",
    "ordered": "requests of the same topic are always handled concurrently",
    "keep": "a reply is sent to its caller only",
    "recover": "a caller repeats a lost request itself, with retry=(…) of its requester",
    "since": "no publisher has a history of requests",
    "copy": "only one handler receives each request, so no other handler shares the message",
}
"""The options of other handlers that `Routes.reply` refuses, and the reasons."""


class PublisherOptions(TypedDict, total=False):
    """The options of `Routes.publisher`."""

    every: float | None
    """The period in seconds between calls of the decorated function. Default: no timer."""
    codec: str | Codec | None
    """The codec of the messages. Default: the app's codec."""
    jitter: float
    """The random variation of each period as a fraction of the period, 0 to 1; requires ``every``. Default: 0."""
    initial_delay: float
    """The delay in seconds before the first call; requires ``every``. Default: 0."""
    keep: Keep
    """With ``"last"``, a new subscriber receives the latest message of each topic. Default: None."""
    coalesce: bool | Coalesce | None
    """Send messages of one topic together in one frame. Default: the app's ``coalesce``."""
    history: History | None
    """The sent messages to keep for subscribers that lost some of them. Default: none."""
    snapshot: Callable[..., Any] | None
    """A plain function that returns the state of a topic for new subscribers. Default: none."""
    topics: Callable[[], Iterable[Mapping[str, object]]] | None
    """A plain function that returns the captures of each topic with a snapshot. Default: the published topics."""


PUBLISHER_DEFAULTS: PublisherOptions = {
    "every": None,
    "codec": None,
    "jitter": 0.0,
    "initial_delay": 0.0,
    "keep": None,
    "coalesce": None,
    "history": None,
    "snapshot": None,
    "topics": None,
}


class WorkOptions(TypedDict, total=False):
    """The options of `Routes.work`."""

    codec: str | Codec | None
    """The codec for bodies if the owner does not name a codec. Default: the app's codec."""
    thread: bool | None
    """Run the function in the reactor's thread pool. Default: None, which means True for a plain function."""
    max_in_flight: int
    """The maximum number of unfinished calls at a time. Default: 4."""
    batch: int | None
    """Pass lists of up to this number of jobs, 1 to 10,000. Default: single jobs."""
    timeout: float | None
    """The seconds after which a call of an ``async`` function, or a call in a thread, fails. Default: no limit."""


WORK_DEFAULTS: WorkOptions = {
    "codec": None,
    "thread": None,
    "max_in_flight": WORK_IN_FLIGHT,
    "batch": None,
    "timeout": None,
}

NOT_FOR_WORK = {
    "retry": "only the owner of the jobs retries a job, with app.job_queue(…, retry=…)",
    "dead": "only the owner of the jobs publishes dead letters, with app.job_queue(…, dead=…)",
    "ordered": "several workers share the jobs, so jobs have no order",
    "stale_after": "a job has no maximum age",
    "recover": "the owner of a job repeats it if its worker is lost",
    "since": "jobs wait at their owner until a worker takes them",
    "queue": "only the owner of the jobs limits waiting jobs, with app.job_queue(…, waiting=…)",
    "copy": "only one handler receives each job, so no other handler shares the message",
}
"""The options of other handlers that `Routes.work` refuses, and the reasons."""


class JobQueueOptions(TypedDict, total=False):
    """The options of `Routes.job_queue`."""

    codec: str | Codec | None
    """The codec of the jobs. Default: the app's codec."""
    retry: Sequence[float]
    """Retry a failed job after these delays in seconds, one per retry; at most 20. Default: no retries."""
    dead: str | None
    """The topic, as a publisher's pattern, that receives a job when its last attempt has failed. Default: none."""
    waiting: int
    """The maximum number of jobs that may wait for workers. Default: 10,000."""
    silent_after: float
    """The seconds without a sign of life after which a worker loses its jobs. Default: 10."""


JOB_QUEUE_DEFAULTS: JobQueueOptions = {
    "codec": None,
    "retry": (),
    "dead": None,
    "waiting": JOBS_WAITING,
    "silent_after": SILENT_AFTER,
}


NEEDS = {"jitter": "every", "initial_delay": "every"}
"""Maps each option that has no effect alone to the option that it requires."""


def takes(kind: type[Any], defaults: Any) -> Callable[[F], F]:
    """Show the options of ``kind`` in the signature of the decorated function.

    Without this decorator, Python would only show ``**options``. Calls of the function are not affected.
    """

    def show(function: F) -> F:
        signature = inspect.signature(function)
        *others, _ = signature.parameters.values()
        options = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation.__forward_arg__
            )
            for name, annotation in kind.__annotations__.items()
        ]
        function.__signature__ = signature.replace(parameters=[*others, *options])  # type: ignore[attr-defined]
        return function

    return show


_CALLS: Mapping[str, Mapping[str, object]] = {
    "app.subscribe()": ROUTE_DEFAULTS,
    "app.publisher()": PUBLISHER_DEFAULTS,
    "app.job_queue()": JOB_QUEUE_DEFAULTS,
}
"""The options of calls that a user may pass to ``App`` by mistake."""


def moved(name: str, now: str) -> Callable[[F], F]:
    """Raise SignatureError if the removed keyword ``name`` is passed.

    The error shows ``now``, the text to write instead, in which ``…`` is replaced by the value.
    """

    def guard(function: F) -> F:
        @wraps(function)
        def guarded(*args: Any, **options: Any) -> Any:
            if name in options:
                fault = f"{owner}() no longer has the option {name!r}: write {now.replace('…', repr(options[name]))}"
                raise SignatureError(fault, parameter=name, where=users_line())
            wrong = next((each for each in options if each not in known), None)
            if wrong is not None:
                takers = [call for call, options in _CALLS.items() if wrong in options]
                near = f": it is an option of {' and '.join(takers)}." if takers else did_you_mean(wrong, known)
                raise SignatureError(
                    f"{owner}() has no option {wrong!r}{f'{near} The' if near else ': the'} options are "
                    f"{', '.join(known)}",
                    parameter=wrong,
                    where=users_line(),
                )
            return function(*args, **options)

        known = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
        owner = function.__qualname__.partition(".")[0]
        return cast("F", guarded)

    return guard


def refuse(decorator: str, given: Iterable[str], reasons: Mapping[str, str]) -> None:
    """Raise SignatureError for an option that ``decorator`` refuses.

    ``reasons`` contains the refused options, with the reason for each.
    """
    for name in given:
        if name in reasons:
            fault = f"{decorator} does not accept {name}=: {reasons[name]}; remove {name}= from {decorator}"
            raise SignatureError(fault, parameter=name, where=users_line())


def complete(function: str, given: Options, defaults: Options) -> Options:
    """Return all options: those in ``given``, and ``defaults`` for the others.

    Raises:
        TypeError: A name in ``given`` is not an option. The error shows ``function`` as the name of the function.
        SignatureError: An option is set without the option that it requires, see `NEEDS`.
    """
    for name in given:
        if name not in defaults:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}: the options are {', '.join(defaults)}"
            )
    chosen: dict[str, Any] = {**defaults, **given}
    for name in NEEDS.keys() & given.keys():
        needed = NEEDS[name]
        if chosen[name] != defaults[name] and chosen[needed] is None:  # type: ignore[literal-required]
            fault = f"{name}={chosen[name]!r} has no effect without {needed}=: add {needed}=; or remove {name}="
            raise SignatureError(fault, parameter=name, where=users_line())
    return cast("Options", chosen)

"""The interface between an app and a transport: the guide for transport authors.

**Calls.** A run of an app creates its transport first, from a `TransportRequest`; see `zroute.transports.choosing`. It
then calls these methods in the reactor's thread, in this order:

1. `open`, and then `opened`, which may take time. The run sets ``accounts.moved`` before `open`.
2. `sender` and `try_sender`, also for an app that publishes nothing; they return None then. If they return a function,
   `announce` and `make_session` follow.
3. `listen`, and again after each change of the app's patterns.
4. At the stop: `finish`, ``accounts.close``, `leave` and `close`. They are called even if `open` failed or was never
   called, so they must not raise in that state. The function
   that `sender` returned may still be called between `leave` and `close`.

`ready` may be called at any time after `open`. Before the first `listen`, it also waits for that call. `pause` and
`resume` may be called at any time, also twice. `add` and `remove` may be called between `open` and `finish`.

**Receiving.** `open` and later `use` provide a `Receive`. The transport calls it whenever messages can be read:

    receive(recv, more, budget)

It reads up to ``budget`` messages (at most 256) and returns.

- ``recv(1)`` returns the next frame. If there is none, it raises an exception, which ``receive`` passes to the
  transport. ``recv(1, False)`` may return an object that does not copy the bytes: it has a length and slices, and
  ``bytes(frame[a:b])`` works.
- ``more()`` returns True if another frame of the same message follows. Pass the same function, or the same bound
  method, in each call for a socket: ``receive`` identifies the socket by it.

Both are called in the reactor's thread, inside ``receive``, and must not block. A transport that reads in a thread of
its own puts its messages into a queue, and calls ``receive`` by ``reactor.callFromThread``.

Values that a handler sets in context variables must not outlive the read. A transport therefore stores ``base =
copy_context()`` when it is created, and calls ``base.copy().run(receive, recv, more, budget)``.

A frame is ``topic NUL body``; the header of the tracked wire is the start of the body (``docs/reference/wire.md``). A
transport that receives topic and body separately must join them. This costs a fifth of the time of a tracked message,
but the reading loop needs to support only one form. A transport with several sockets calls ``receive`` for the sockets
in rotation. If a message has too many parts, ``receive`` returns early, and reads the remaining parts in the next calls
for the same socket.

**Stated forms.** An endpoint may have a `form`, which specifies the bytes of a message that are topic and body. The
transport reads such endpoints separately, with a parser for each form, and calls another function for their messages:

    parse = form.parser(request.app.max_message, "the endpoints, for errors")
    request.receive_stated(parse, recv, more, budget)

The parser is created in `open`. The publishers are foreign programs: they do not answer markers, and must not receive
any. If ``form.filters`` is False, the transport subscribes to everything.

**The reactor's turn.** ``receive`` may return early. Only an exception of ``recv`` means that all messages have been
read. After one or a few budgets (ZeroMQ's transport: 256 messages or 5 ms) the transport returns to the reactor and
continues in the next turn. Otherwise a flood of messages would stop all timers and other connections. After a `resume`
or a `use`, it calls ``receive`` at least once, even if no message has arrived. A frame that was already read may
contain undelivered messages.

**Calls from inside ``receive``.** Handlers run inside ``receive``. Handlers may therefore call `pause`, `resume`,
`use`, `listen`, `ready` and the functions of `sender` and `try_sender` there. None of these may call ``receive``;
reading must begin in the next turn of the reactor. After `pause`, ``receive`` returns without further messages, and the
transport must not call it again before `resume`. `finish`, `leave` and `close` are never called from inside
``receive``.

**Sending.** `sender` returns a function that never blocks and never waits: it drops the frame for each subscriber whose
queue is full. A transport without a high-water mark may keep every frame instead; its memory is then unlimited, and its
documentation must say so. `try_sender` of such a transport always sends, so an app with ``overflow="wait"`` never
waits, and an app with ``overflow="raise"`` never raises. Without a queue that fills up there is also no backpressure: a
paused subscriber slows down a publisher only if the network does.

**Guarantees.** A transport may deliver messages that match no pattern; the routes drop them. It must deliver each
message once, even if patterns overlap, and keep the order of each publisher. Between `pause` and `resume`, no messages
may be lost except those that publishers drop.

**Accounts.** `Accounts` detects messages that were sent but never arrived. Each transport has its own accounts, because
each network has its own way to inform a publisher about subscriptions. The accounts of ZeroMQ are
`zroute.receiving.session`. A transport without accounts uses `NoAccounts`, and no message is counted as lost.
``accounts.close`` is called after `finish`, when all messages are read and the handlers have finished, and before
``on_shutdown`` functions, `leave` and `close`.

**Numbers.** The publisher numbers the messages of the tracked wire. If `announce` returns True, it does so by
subscriptions, as on ZeroMQ. A network without reports of subscriptions has its own way to tell subscribers the numbers:
`make_session` then returns the `TransportSession` that numbers messages and knows the subscribers.

**Defaults.** A transport may be a subclass of `Transport`. It then inherits `opened`, `confirmed`, `summary`,
`addresses`, `kept`, `states`, `ring`, `try_sender`, `announce`, `make_session`, `count_subscribers`, `add` and
`remove`, with the behaviour of a transport that has no high-water mark, does not know its subscribers, and can't change
its endpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs
from twisted.internet.defer import Deferred, succeed

from zroute.endpoints import Ends, ResolvedAddresses
from zroute.errors import EndpointError
from zroute.messages.coalesced import CoalescedFramer
from zroute.messages.frames import Parse
from zroute.messages.recovery import Since
from zroute.messages.topics import Pattern
from zroute.messages.wire import Framer, Header
from zroute.options import RECEIVED_MAX, SENT_MAX, NetworkOptions
from zroute.stats import Stats

if TYPE_CHECKING:
    from zroute.requests.asked import Asked
    from zroute.requests.client import Client

__all__ = [
    "Account",
    "Accounts",
    "AppOptions",
    "JobOwner",
    "JobWorker",
    "MakeWorker",
    "NoAccounts",
    "OwnerLink",
    "Reader",
    "Receive",
    "ReceiveStated",
    "SendJob",
    "SessionRequest",
    "Transport",
    "TransportRequest",
    "TransportSession",
]

_FIXED = (
    "can't {what} {endpoint}: this transport can't change endpoints during a run. Change the endpoints of the App, and "
    "restart it"
)

Receive = Callable[[Callable[..., Any], Callable[[], int], int], None]
"""A function that reads and delivers up to ``budget`` messages: ``receive(recv, more, budget)``; see above."""

ReceiveStated = Callable[[Parse, Callable[..., Any], Callable[[], int], int], None]
"""Like `Receive`, but for messages of a stated form: ``receive_stated(parse, recv, more, budget)``."""


@attrs.frozen(eq=False)
class AppOptions:
    """The options of an app that concern its transport.

    Attributes:
        name: The name of the app, for log lines.
        max_message: The maximum size of a body in bytes. The routes refuse larger bodies; a transport should refuse
            them before they fill memory. `zroute.options.frame_limit` is the size of the largest frame.
        drops: True if only the function of `Transport.sender` is used (``overflow="drop"``), False if the function of
            `Transport.try_sender` is used.
        max_subscription_bytes: The maximum size in bytes of the active subscriptions of one connection. A transport
            whose publishers do not store subscriptions ignores it.
        context: The ZeroMQ context of the app; other transports ignore it.
        send_queue: The number of frames that may wait for one subscriber.
        receive_queue: The number of messages of one publisher that may wait to be read.
        options: Options of libzmq for the sockets; other transports ignore them.
    """

    name: str
    max_message: int
    drops: bool
    max_subscription_bytes: int
    context: Any
    send_queue: int = SENT_MAX
    receive_queue: int = RECEIVED_MAX
    options: NetworkOptions = attrs.field(factory=NetworkOptions)


@attrs.frozen(eq=False)
class TransportRequest:
    """The request of one run to its transport.

    A transport must honour the endpoints and the ``max_message`` and ``drops`` of the options.

    Attributes:
        app: The options of the app.
        reactor: The reactor of the run.
        ends: The endpoints by side: those to receive from are ``ends.sub``, and those to publish at are ``ends.pub``.
            The transport must bind or connect each endpoint, as the endpoint's ``bind`` says.
        stats: The counters of the run. A transport with accounts adds to ``lost``, ``gaps``, ``unknown_losses``,
            ``epochs``, ``joins``, ``join_retries`` and ``peers``; the run counts everything else.
        found: A function that the accounts call with each `Gap`, `UnknownLoss` and `LostKept`; see
            `zroute.receiving.events`.
        receive_stated: A function that reads the messages of endpoints with a stated form.
    """

    app: AppOptions
    reactor: Any
    ends: Ends
    stats: Stats
    found: Callable[[Any], None]
    receive_stated: ReceiveStated


class Account(Protocol):
    """The messages of one subscription from one publisher.

    Attributes:
        expected: the number of the next message.
    """

    expected: int

    @property
    def prefix(self) -> bytes:
        """The subscription as bytes."""


class Accounts(Protocol):
    """The bookkeeping of received numbers; see `zroute.receiving.session`."""

    moved: Callable[[], None]
    """Called when accounts may belong to former subscriptions; their users then call `account` again."""

    def account(self, epoch: int, topic: bytes, subscription: bytes) -> Account | None:
        """Return the account of a message, or None if the message has no account.

        Args:
            epoch: the 64-bit number of the publisher's run.
            topic: the topic of the message.
            subscription: the subscription of this app that the topic matches.
        """

    def admit(self, account: Any, number: int, many: int = 1) -> bool:
        """Return True if a message with an unexpected number must be delivered.

        Args:
            account: the account that `account` returned.
            number: the number of the message.
            many: the number of messages in the frame; ``number`` is the number of the first one.
        """

    def kept(self, header: Header, marker: bytes, topic: bytes, body: bytes = b"") -> bool:
        """Return True if a kept message must be delivered to this app.

        A publisher sends its kept messages to each subscriber that joins. ``marker`` identifies the subscriber. A frame
        without a topic marks their end.
        """

    def snapshot(self, account: Any, header: Header) -> bool:
        """Return True if a snapshot must be delivered to this app.

        The result is False if a later message was delivered before.
        """

    def recover(
        self, subscriptions: frozenset[bytes], since: Mapping[bytes, Since], replay: Container[bytes] = ()
    ) -> Any:
        """Recover the lost messages of subscriptions from now on, and replay the past.

        Return a `zroute.receiving.recoveries.Recoveries`; None if the app recovers and replays nothing, or the
        transport can't recover messages.

        Args:
            subscriptions: the subscriptions whose lost messages are recovered.
            since: the subscriptions with a past, and its beginning.
            replay: the subscriptions in ``since`` whose past the publishers that have already joined are asked for.
        """

    def untracked(self, topic: bytes) -> None:
        """Handle a message of ``topic`` without a number."""

    def control(self, header: Header, topic: bytes, body: bytes) -> None:
        """Process a control frame. Raises EnvelopeError if it is malformed."""

    def named(self, epoch: int) -> str:
        """Return the name of a publisher for log lines."""

    def close(self) -> None:
        """Report the last losses; no message is read after this call."""


class NoAccounts:
    """The `Accounts` of a transport that finds no losses."""

    moved: Callable[[], None] = staticmethod(lambda: None)

    def account(self, epoch: int, topic: bytes, subscription: bytes) -> None:
        """Return None: no message has an account."""

    def admit(self, account: Any, number: int, many: int = 1) -> bool:
        """Return True: every message is delivered."""
        return True

    def kept(self, header: Header, marker: bytes, topic: bytes, body: bytes = b"") -> bool:
        """Return False: this app never joins, so no kept message is for it."""
        return False

    def snapshot(self, account: Any, header: Header) -> bool:
        """Return True: nothing shows the order of messages."""
        return True

    def recover(
        self, subscriptions: frozenset[bytes], since: Mapping[bytes, Since], replay: Container[bytes] = ()
    ) -> None:
        """Return None: no losses are found, so none are recovered."""

    def untracked(self, topic: bytes) -> None:
        """Ignore the message."""

    def control(self, header: Header, topic: bytes, body: bytes) -> None:
        """Ignore the frame."""

    def named(self, epoch: int) -> str:
        """Return the epoch as text."""
        return f"publisher {epoch:016x}"

    def close(self) -> None:
        """Report no losses."""


@attrs.frozen(eq=False)
class SessionRequest:
    """The request of a publisher for a `TransportSession`.

    Attributes:
        name: Returns the publisher's unique name, which is the same in its next run; empty if it has none.
        clock_ns: Returns the time in nanoseconds since the Unix epoch.
        declared: The patterns of the app's publications.
    """

    name: Callable[[], str]
    clock_ns: Callable[[], int]
    declared: Sequence[Pattern]


class TransportSession(Protocol):
    """The session of a publisher on a transport that does not report subscriptions.

    `zroute.publishing.session.PublisherSession` has the same members, except `full`, `changed`, `check`,
    `carried`, `number` and `wait_for`.

    Attributes:
        epoch: The number of this run of the publisher.
        counters: The counters, with the methods of `zroute.publishing.counters.Counters` that messages need.
        kept: The kept messages: a `zroute.publishing.retained.LastValueCache`.
        full: The reason why a message can't be sent now, for errors.
        changed: Called after each change of the number of subscribers, or None.
    """

    epoch: int
    counters: Any
    kept: Any
    full: str
    changed: Callable[[], None] | None

    def framer(self, clock_ns: Callable[[], int], *, keeps: bool) -> Framer:
        """Return a framer for messages; see `PublisherSession.framer`."""

    def coalesced_framer(self, *, keeps: bool) -> CoalescedFramer:
        """Return a framer for several messages in one frame."""

    def check(self, topic: bytes, body: bytes, headers: Mapping[str, Any] | None) -> None:
        """Check a message that may be sent later.

        Raises:
            TopicError: The network does not deliver the topic.
            EncodeError: The network does not carry the headers, or a message of this size.
        """

    def carried(self, headers: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the headers of a received message that the network carries again.

        They are the headers of dead letters, and those that zroute copies to results.
        """

    def number(self, pattern: Pattern) -> int:
        """Return the number of subscribers to topics of ``pattern``."""

    def wait_for(self, pattern: Pattern, number: int) -> Deferred[None]:
        """Return a Deferred that fires when there are ``number`` subscribers.

        The caller may cancel the Deferred.
        """

    def goodbye(self) -> Deferred[None]:
        """Tell all subscribers that no message follows.

        Return a Deferred that fires when all have confirmed the goodbye. The caller may cancel the Deferred.
        """

    @property
    def unread(self) -> int:
        """The number of subscribers that have not confirmed the goodbye."""


class JobOwner(Protocol):
    """The owner of an app's jobs, as the transport sees it; see `zroute.jobs.owner`.

    Attributes:
        check: Called with the topic, the body and the headers of each new job. A transport that does not carry all
            jobs replaces this function by one that raises TopicError or EncodeError.
        watches_workers: True if a worker without a sign of life loses its jobs. A transport sets False if only the
            transport itself knows whether a worker may have a job.
    """

    check: Callable[[bytes, bytes, Mapping[str, Any] | None], object]
    watches_workers: bool

    def received(self, id: bytes, parts: Sequence[bytes]) -> object:
        """Process a message from the worker ``id``.

        Raises EnvelopeError if it is malformed.
        """

    def probe(self) -> None:
        """Send a message to all workers, to find workers whose connections have ended."""

    def ended(self, id: bytes) -> None:
        """Process the end of the connection to a worker."""

    def returned(self, id: bytes, job_id: bytes) -> None:
        """Let a job wait again, because no worker has received it."""

    def hold(self, topic: bytes) -> None:
        """Send no jobs of a topic until `release`, because no worker accepts it."""

    def release(self, topic: bytes) -> None:
        """Send the jobs of a topic again."""


class JobWorker(Protocol):
    """The worker of one owner, as the transport sees it; see `zroute.jobs.worker`."""

    def connected(self) -> None:
        """Send an offer to the owner over the new connection."""

    def disconnected(self) -> None:
        """Drop the jobs that have not begun."""

    def received(self, parts: Sequence[bytes]) -> None:
        """Process a message of the owner. Raises EnvelopeError if it is malformed."""

    def stop(self) -> Deferred[None]:
        """Accept no more jobs; return a Deferred for the end of the running jobs."""

    def close(self) -> None:
        """Stop all timers."""


SendJob = Callable[[bytes, Sequence[bytes]], object]
"""Sends the parts of a message to a worker, by its identity.

It raises UnknownPeerError if the worker has disconnected.
"""


def _unknown() -> None:
    """Return None, because the transport has no keys."""


@attrs.frozen(eq=False)
class OwnerLink:
    """The connection of a worker to one owner.

    Attributes:
        address: The address of the owner.
        peer: Returns the name of the owner's key; None if it is unknown.
        tell: Sends the parts of a message. Returns False if they can't be sent.
        reconnect: Ends the connection, and connects again.
    """

    address: str
    tell: Callable[[Sequence[bytes]], bool]
    reconnect: Callable[[], object]
    peer: Callable[[], str | None] = _unknown


MakeWorker = Callable[[OwnerLink], JobWorker]
"""Returns the worker of a connection."""


class Reader(Protocol):
    """The receiver of a transport's messages, as seen at the end of reading."""

    @property
    def reads_on(self) -> bool:
        """False after the app has read its maximum number of messages."""

    @property
    def unpacked(self) -> int:
        """The number of undelivered messages of a frame that was read.

        The next ``receive`` begins with them.
        """


class Transport(Protocol):
    """The transport of one run of an app: it sends and receives the messages."""

    @property
    def accounts(self) -> Accounts:
        """The accounts of received messages; the same object for the whole run."""

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`."""

    def open(self, receive: Receive) -> None:
        """Bind and connect all endpoints.

        ``receive`` is called for all messages that arrive after the first `listen`. Raises EndpointError if an endpoint
        can't be bound or connected; all other endpoints are then closed again.
        """

    def opened(self) -> Deferred[None]:
        """Return a Deferred that fires when the transport can send, after `open`.

        The start of the app waits for it. The run cancels the Deferred if the app stops before. It fails with
        EndpointError if the network refuses this app. The default is for a transport that needs no time to open.
        """
        return succeed(None)

    def confirmed(self) -> Deferred[None]:
        """Return a Deferred that fires when a broker has all subscriptions.

        Called after `listen`. The start of the app waits for it, so that a message that any program sends after the
        start arrives. The default is for a transport without a broker, whose subscribers wait with `App.ready`.
        """
        return succeed(None)

    def summary(self) -> Iterable[tuple[int, str]]:
        """Return log lines about the endpoints, each as a `logging` level and a text.

        This method is called after `open`. The default returns no lines.
        """
        return ()

    @property
    def addresses(self) -> ResolvedAddresses | None:
        """The addresses of the open endpoints, with the actual ports.

        The addresses are in the order of the endpoints. If the value is None, which is the default, the run uses the
        addresses of its endpoints unchanged.
        """
        return None

    def add(self, ends: Ends) -> None:
        """Bind or connect further endpoints of an open transport, all or none.

        The patterns of the last `listen` also apply to these endpoints. The run has checked that the endpoints are new.
        The default is for a transport that can't change its endpoints.

        Raises:
            EndpointError: An endpoint can't be opened, or the transport has no socket for it.
        """
        for endpoint in ends:
            raise EndpointError(_FIXED.format(what="add", endpoint=endpoint), endpoint=str(endpoint))

    def remove(self, addresses: ResolvedAddresses) -> Deferred[None]:
        """Close some endpoints of an open transport, named by their `addresses`.

        Messages that have already arrived from these endpoints are read first. Later messages do not count as lost.
        The run has checked that the transport has these endpoints. The Deferred fires when the endpoints are closed.
        The default is for a transport that can't change its endpoints.

        Raises:
            EndpointError: The transport can't close an endpoint.
        """
        for address in addresses:
            raise EndpointError(_FIXED.format(what="remove", endpoint=address), endpoint=address)
        return succeed(None)

    # -- requests

    def open_requests(self, client: Client | None, on_request: Callable[[Asked], object] | None) -> None:
        """Open the endpoints for requests, after `open`.

        A transport sends the requests of ``client`` through lanes; see `zroute.requests.lanes`. From `answer` to
        `close`, it passes each request that arrives to ``on_request`` as an `Asked`. The default is for a transport
        without requests.

        Args:
            client: The requests of the app; None if the app sends no requests.
            on_request: Called with each request of a client; None if the app answers no requests.

        Raises:
            EndpointError: An endpoint can't be opened.
        """
        raise EndpointError("this transport does not support requests: use tcp://, ipc:// or inproc:// for rep and req")

    def answer(self, patterns: Sequence[Pattern]) -> None:
        """Begin to read requests: the app has started.

        ``patterns`` are those of its handlers, for a network on which servers state the topics that they answer.
        """

    # -- receiving

    def listen(self, patterns: Sequence[Pattern]) -> None:
        """Receive messages of these patterns instead of those of the last call."""

    @property
    def publisher(self) -> str | None:
        """The name of the key of all publishers; None if there is none.

        The default is for a transport without keys.
        """
        return None

    def name_peers(self, wanted: bool) -> None:
        """State the name of the peer's key in each frame if ``wanted`` is True.

        This is only needed if the names of publishers differ. Such a frame is a `NamedFrame`. The default is for a
        transport without keys.
        """

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Return a Deferred that fires when publishers know the patterns.

        See `App.ready`. The run cancels the Deferred at a timeout and at a stop. The Deferred must then end, and later
        calls of `ready` must still work. If `listen` was not called yet, the Deferred also waits for the first call.

        Args:
            publishers: the number of publishers to wait for; None waits for all connected publishers.
            state: True to also wait until all kept messages are read.
        """

    def unready(self, *, state: bool) -> str:
        """Return a text that describes which publishers have answered.

        The text is a part of the error for a `ready` that timed out.
        """

    def use(self, receive: Receive) -> None:
        """Pass all messages to another ``receive`` from now on."""

    def pause(self) -> None:
        """Stop reading until `resume`, without losing messages."""

    def resume(self) -> None:
        """Start reading again, in the next turn of the reactor."""

    def finish(self, reader: Reader, left: Callable[[], float]) -> Deferred[int]:
        """Read the messages that were sent before this call, even while paused.

        Reading ends after ``left()`` seconds, or when ``reader.reads_on`` becomes False. The Deferred fires with the
        number of messages that were left unread. No message is read afterwards.
        """

    def leave(self) -> None:
        """Withdraw all subscriptions at the publishers."""

    # -- publishing

    @property
    def bound(self) -> Sequence[str]:
        """The addresses that are bound for publishing, with the actual ports."""

    @property
    def kept(self) -> Container[bytes] | None:
        """The topics with a kept message, if the transport itself sends kept messages.

        The default is None: the publisher must send kept messages to new subscribers.
        """
        return None

    @property
    def states(self) -> Any:
        """The topics with snapshots, if the transport itself sends snapshots.

        The value is a `zroute.testing.transport.States`. The default is None: the publisher must send snapshots to new
        subscribers.
        """
        return None

    def ring(self, history: Any) -> Any:
        """Return a place for the sent frames of a publication with a history.

        It is a `zroute.publishing.history.Ring`. The default is None: the publisher itself sends messages again.
        """
        return None

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Return a function that sends a frame, or None if no endpoint publishes.

        With ``multipart``, the function takes the parts of a message.
        """

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """Return a function that sends a frame only if every subscriber has room.

        The function returns False if a subscriber's queue is full; the frame was then not sent to any subscriber. The
        default is for a transport without a high-water mark: the frame is always sent.
        """
        send = self.sender(multipart=multipart)
        if send is None:
            return None

        def try_send(sent: Any) -> bool:
            send(sent)
            return True

        return try_send

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Report each subscription that arrives (True) or ends (False), by its prefix.

        The result is False, which is the default, if the transport does not know the subscriptions. All messages are
        then numbered in one sequence. A publisher with ``keep``, and a call of ``wait_for_subscribers``, then raise
        EndpointError. There is one exception: if the transport itself sends kept messages to new subscribers (`kept`),
        neither raises an error, and the call returns at once.
        """
        return False

    def make_session(self, request: SessionRequest) -> TransportSession | None:
        """Return the session that numbers messages, if `announce` returns False.

        The default is None: messages are numbered by subscriptions, or in one sequence; see `announce`. On the plain
        wire, the session only knows the subscribers.
        """
        return None

    def count_subscribers(self, changed: Callable[[], None]) -> Callable[[Pattern], int] | None:
        """Return a function that counts the subscribers to topics of a pattern.

        A transport calls ``changed`` after each change of the number. The default returns None: the run then counts the
        subscriptions that `announce` reports.
        """
        return None

    # -- jobs

    def hand_out(self, owner: JobOwner) -> SendJob:
        """Open the endpoints of ``ends.jobs`` for the owner of the app's jobs.

        This method is called once, after `open`, if the app has job queues. It returns the function that sends messages
        to workers. The default is for a transport without jobs.

        Raises:
            EndpointError: An endpoint can't be opened.
        """
        raise EndpointError(f"{type(self).__name__} does not support jobs: use ZeroMQ endpoints")

    def take_jobs(self, make: MakeWorker) -> None:
        """Connect to the endpoints of ``ends.work``, and take jobs there.

        This method is called once, after `open`, if the app has handlers of jobs. ``make`` is called for each owner.
        The default is for a transport without jobs.

        Raises:
            EndpointError: An endpoint can't be opened.
        """
        raise EndpointError(f"{type(self).__name__} does not support jobs: use ZeroMQ endpoints")

    @property
    def workers(self) -> Sequence[JobWorker]:
        """The workers that `take_jobs` has made. The default returns none."""
        return ()

    def close(self) -> Deferred[None]:
        """Close all endpoints.

        The Deferred fires when all messages are sent or dropped.
        """

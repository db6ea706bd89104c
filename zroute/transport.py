"""The interface between an app and a transport: the guide for transport authors.

**Calls.** A run of an app creates its transport first, from a `zroute.planning.plan.Request`; see
`zroute.runtime.run.Environment`. It then calls these methods in the reactor's thread, in this order:

1. `open`. ``accounts.moved`` is set before.
2. `sender` and `try_sender`, also for an app that publishes nothing; they return None then. If they return a function,
   `announce` follows.
3. `listen`, and again after each change of the app's patterns.
4. At the stop: `finish`, `leave` and `close`. They are called even if `open` failed or was never called, so they must
   not raise in that state.

**Receiving.** `open` and later `use` provide a `Receive`. The transport calls it whenever messages can be read:

    receive(recv, more, budget)

It reads up to ``budget`` messages (at most 256) and returns.

- ``recv(1)`` returns the next frame. It raises if there is none; that exception leaves ``receive`` and returns to the
  transport. ``recv(1, False)`` may return an object that does not copy the bytes.
- ``more()`` returns True if another frame of the same message follows.

A frame is ``topic NUL body``; the header of the tracked wire is the start of the body (``docs/reference/wire.md``). A
transport that receives topic and body separately must join them. This costs a fifth of the time of a tracked message,
but the reading loop needs only one form. A transport with several sockets calls ``receive`` for each of them in turn. A
message of several parts is always read to its end.

**Guarantees.** A transport may deliver messages that no pattern asked for; the routes drop them. It must deliver each
message once, even if patterns overlap, and keep the order of each publisher. Between `pause` and `resume` it must lose
only what its publishers drop.

**Accounts.** `Accounts` finds messages that were sent and never arrived. Each transport brings its own, because each
network has its own way to tell a publisher about subscriptions. ZeroMQ's is `zroute.receiving.session`. A transport
without accounts returns None from `Accounts.account`; then no message is counted as lost.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from zroute.messages.topics import Pattern
from zroute.messages.wire import Header

__all__ = ["Account", "Accounts", "Reader", "Receive", "Transport"]

Receive = Callable[[Callable[..., Any], Callable[[], int], int], None]
"""A function that reads and delivers up to ``budget`` messages: ``receive(recv, more, budget)``; see above."""


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
    """Called when returned accounts may belong to former subscriptions; the caller then asks for them again."""

    def account(self, epoch: int, topic: bytes, subscription: bytes) -> Account | None:
        """Return the account of a message, or None if it has none.

        Args:
            epoch: the 64-bit number of the publisher's run.
            topic: the topic of the message.
            subscription: the subscription of this app that it matched.
        """

    def admit(self, account: Any, number: int, many: int = 1) -> bool:
        """Return True if a message that was not expected next is to be delivered.

        Args:
            account: the account that `account` returned.
            number: the number of the message.
            many: the number of messages in its frame; ``number`` is that of the first.
        """

    def kept(self, header: Header, marker: bytes, topic: bytes) -> bool:
        """Return True if a kept message is to be delivered to this app.

        A publisher sends its kept messages to each subscriber that joins. ``marker`` shows which subscriber a message
        is for.
        """

    def untracked(self, topic: bytes) -> None:
        """Note a message of ``topic`` that carries no number."""

    def control(self, header: Header, topic: bytes, body: bytes) -> None:
        """Process a control frame. Raises EnvelopeError if it is malformed."""

    def named(self, epoch: int) -> str:
        """Return the name of a publisher for log lines."""

    def close(self) -> None:
        """Report the last losses; no message is read after this call."""


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

        ``receive`` gets all messages that arrive after the first `listen`. Raises EndpointError if an endpoint can't be
        bound or connected; then all others are closed again.
        """

    def summary(self) -> Iterable[tuple[int, str]]:
        """Return log lines about the endpoints, each as a `logging` level and a text.

        It is called after `open`.
        """

    # -- receiving

    def listen(self, patterns: Sequence[Pattern]) -> None:
        """Receive messages of these patterns, in place of the patterns of the last call."""

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Return a Deferred that fires when publishers know the patterns.

        See `App.ready`.

        Args:
            publishers: the number of publishers to wait for; None waits for all connected publishers.
            state: True to wait also until all kept messages are read.
        """

    def unready(self, *, state: bool) -> str:
        """Return which publishers have answered and which have not.

        The text is a part of the error for a `ready` that timed out.
        """

    def use(self, receive: Receive) -> None:
        """Give all messages to another ``receive`` from now on."""

    def pause(self) -> None:
        """Stop reading until `resume`, without losing messages."""

    def resume(self) -> None:
        """Start reading again."""

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
        """The topics with a kept message, if the transport itself sends these.

        The value is None if the publisher must send them to new subscribers.
        """

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Return a function that sends a frame, or None if no endpoint publishes.

        With ``multipart``, the function takes the parts of a message.
        """

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """Return a function that sends a frame only if every subscriber has room.

        The function returns False if a subscriber's queue is full. Then the frame was sent to no subscriber.
        """

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Report each subscription that arrives (True) or ends (False), by its prefix.

        The result is False if the transport does not know the subscriptions. Then all messages are numbered in one
        sequence, and the app can't wait for subscribers. A publisher with ``keep`` is refused, unless the transport
        itself sends kept messages (`kept`).
        """

    def close(self) -> Deferred[None]:
        """Close all endpoints.

        The Deferred fires when all messages are sent or dropped.
        """

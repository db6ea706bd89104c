"""The seam between an app and what moves its messages: all that the author of another transport has to know.

A run of an app makes its transport first (see `zroute.runtime.run.Environment`), from a `zroute.planning.plan.Request`,
and then calls it from the reactor's thread: `open`; `sender` and `try_sender`, also of an app that publishes nothing
(they return None then), and `announce` if they gave something; `listen` for the first time and again with each change
of its patterns; at the stop `finish`, `leave` and `close`, also if `open` failed or was never called, so they must not
raise then. ``accounts.moved`` is set before `open`.

**Receiving.** The transport calls what `open` (and later `use`) gave it, a `Receive`, whenever messages can be read:
``receive(recv, more, budget)`` takes up to ``budget`` messages (256 at the most) and returns. ``recv(1)`` gives the
next frame or raises, which ends the call and comes back to the transport; ``recv(1, False)`` may give what need not be
copied. ``more()`` says whether the frame that was read last has another behind it. A frame is laid out as
``docs/reference/wire.md`` says: ``topic NUL body``, with the header of the tracked wire at the body's beginning. A
transport that has topics apart from bodies joins them: that costs a fifth of a tracked message, and keeps one loop. One
with several sockets calls ``receive`` for each of them in turn; a message of several parts is read to its end at once.

It may give messages that were not asked for: the routes drop them. It must give a message once, whatever patterns
overlap, keep the order of each publisher, and lose nothing between `pause` and `resume` but what its publishers drop.

**Accounts.** What was sent and has not come is found by `Accounts`, which the transport brings: each network has its
own way to tell a publisher what is subscribed. On ZeroMQ that is `zroute.receiving.session`. A transport without one
answers None to `Accounts.account`: then nothing is counted as lost.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from zroute.messages.topics import Pattern
from zroute.messages.wire import Header

__all__ = ["Account", "Accounts", "Reader", "Receive", "Transport"]

Receive = Callable[[Callable[..., Any], Callable[[], int], int], None]
"""Reads and delivers up to ``budget`` messages: ``receive(recv, more, budget)``, as described above."""


class Account(Protocol):
    """What a subscription received of one publisher: ``expected`` is the number that comes next."""

    expected: int

    @property
    def prefix(self) -> bytes:
        """The subscription."""


class Accounts(Protocol):
    """Who keeps account of what publishers with numbers sent: see `zroute.receiving.session`."""

    moved: Callable[[], None]
    """Called when accounts that were asked for may be those of subscriptions before: to be asked for again."""

    def account(self, epoch: int, topic: bytes, subscription: bytes) -> Account | None:
        """That of a message of ``topic``, which came by a subscription of ours, at one publisher; None without one."""

    def admit(self, account: Any, number: int, many: int = 1) -> bool:
        """Of a message that was not the expected one, or the first of many: whether it is to be delivered."""

    def kept(self, header: Header, marker: bytes, topic: bytes) -> bool:
        """Whether a message that a publisher kept for a subscriber that joined is to be delivered here."""

    def untracked(self, topic: bytes) -> None:
        """A message that no numbers came with."""

    def control(self, header: Header, topic: bytes, body: bytes) -> None:
        """A frame that carries no message. Raises EnvelopeError."""

    def named(self, epoch: int) -> str:
        """How log lines call a publisher."""

    def close(self) -> None:
        """Tell the last findings: nothing is read any more."""


class Reader(Protocol):
    """Whom the transport gives messages to, as far as the end of reading is concerned."""

    @property
    def reads_on(self) -> bool:
        """False once as many messages as wanted were read."""

    @property
    def unpacked(self) -> int:
        """How many messages are left of a frame that was read: the next ``receive`` begins with them."""


class Transport(Protocol):
    """What moves the messages of one run of an app, from and to its endpoints."""

    @property
    def accounts(self) -> Accounts:
        """Those of what is received; the same in the whole life of the transport."""

    @property
    def is_open(self) -> bool:
        """Between `open` and `close`."""

    def open(self, receive: Receive) -> None:
        """Bind and connect; what comes from the first `listen` on goes to ``receive``.

        Raises EndpointError, and leaves nothing open then.
        """

    def summary(self) -> Iterable[tuple[int, str]]:
        """Log lines about where it is connected, after ``open``: their levels (of `logging`) and texts."""

    # -- receiving

    def listen(self, patterns: Sequence[Pattern]) -> None:
        """Receive what matches these, and no longer what matches only those before."""

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Fires when this number of publishers (None: all that are connected) know the patterns; see `App.ready`."""

    def unready(self, *, state: bool) -> str:
        """Who has answered and who has not, for the error of a ``ready`` whose time is over."""

    def use(self, receive: Receive) -> None:
        """Give what is received from now on to another ``receive``."""

    def pause(self) -> None:
        """Read no more until `resume`, and lose nothing."""

    def resume(self) -> None:
        """Read again."""

    def finish(self, reader: Reader, left: Callable[[], float]) -> Deferred[int]:
        """Read what was sent before now, also past `pause`, within ``left()`` seconds; how many messages were left.

        Reading ends then, and with it when ``reader`` does not read on.
        """

    def leave(self) -> None:
        """Tell publishers that nothing is wanted any more."""

    # -- publishing

    @property
    def bound(self) -> Sequence[str]:
        """The addresses that are bound to publish at, as they were resolved."""

    @property
    def kept(self) -> Container[bytes] | None:
        """Topics of which a message is kept, if the transport gives those to joiners by itself; else None."""

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """What sends a frame, or with ``multipart`` the parts of a message; None if there is nowhere to publish at."""

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """What sends, or returns False while a subscriber has no room, and has sent it to no subscriber then."""

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Tell from now on of each subscription that comes (True) or goes, by its prefix; False if that is not known.

        Where it is not, messages are numbered in one row, subscribers can't be waited for, and a publisher with
        ``keep`` is refused, unless the transport gives kept messages by itself (``kept``).
        """

    def close(self) -> Deferred[None]:
        """Close; fires when all has been sent or given up."""

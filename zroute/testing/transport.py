"""An in-memory `zroute.transport.Transport` for the apps of one test."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

import attrs
from attrs import evolve
from twisted.internet.defer import Deferred, succeed

from zroute.clock import TICK, Clock
from zroute.endpoints import SIDES, Ends, Form, ResolvedAddresses, parse_endpoint
from zroute.errors import EnvelopeError, UsageError
from zroute.messages.control import BEATS
from zroute.messages.frames import Parse
from zroute.messages.recovery import Since, SinceMode
from zroute.messages.topics import Pattern, matches, minimal_cover
from zroute.messages.wire import MAGIC, NUL, RecoveredFrame, ReplayedFrame, pack_kept, parse_header
from zroute.options import READ_BUDGET
from zroute.planning.plan import Plan
from zroute.publishing.history import History, Ring, sent_at
from zroute.publishing.snapshots import Made, Snapshots
from zroute.receiving.events import Gap
from zroute.receiving.session import SubscriberSession
from zroute.requests.asked import Asked
from zroute.requests.client import Client
from zroute.testing.jobs import JobBus
from zroute.testing.requests import RequestBus
from zroute.transport import JobOwner, JobWorker, MakeWorker, Reader, Receive, SendJob, Transport, TransportRequest

__all__ = ["Bus", "MemoryTransport"]

_log = logging.getLogger("zroute")

_PAUSED = 0.005
"""The virtual time in seconds between two checks whether all waiting messages have been read."""


class _NothingLeftError(Exception):
    """Raised when a `Receive` call has read all messages, like EAGAIN of a socket."""


@attrs.define(eq=False)
class _Outside:
    """A message from outside.

    Attributes:
        parsed: returns the message; with a form, parsed into topic and body.
        takers: the number of apps that may still have a handler for the message.
    """

    parsed: Callable[[], tuple[bytes, ...]]
    takers: int = 0


@attrs.define(eq=False)
class _Losses:
    """The next ``left`` messages whose topics match a pattern are lost.

    ``where`` is the line of the test (``file:line``) that loses them, and ``many`` is ``left`` at the beginning.
    ``noticed`` is True if an app subscribes to one of the messages that were lost so far.
    """

    pattern: Pattern
    left: int
    where: str
    many: int = attrs.field(init=False, default=attrs.Factory(lambda self: self.left, takes_self=True))
    noticed: bool = attrs.field(init=False, default=False)

    def __str__(self) -> str:
        """Return the reason why no app could notice a loss."""
        fault = "no message with a matching topic was published after it"
        if matching := self.many - self.left:
            fault = f"no app subscribes to the {matching} matching messages that were published after it"
        return (
            f"lose({self.many}, {self.pattern.text!r}) at {self.where} lost nothing: {fault}. Check the pattern, "
            "and call lose before the messages are published"
        )


class Bus:
    """Connects the apps of a test, and keeps the order of messages.

    An app receives the messages of the other apps. An app receives its own messages in two cases: if it has no
    endpoints, or if it subscribes to an address to which it publishes. When an app subscribes, it also receives the
    messages that the other apps keep (``keep="last"``), and with ``since`` the messages in their histories.

    Attributes:
        sent: all published messages, with the plan of the publishing app.
        unheard: the messages from outside that no handler and no `on_unrouted` function receives.
        requests: the requests of the apps.
        jobs: the connections between owners of jobs and workers.
        wall: returns the time in seconds since the Unix epoch.
    """

    def __init__(self) -> None:
        self.wall: Callable[[], float] = lambda: 0.0
        self.sent: list[tuple[Plan | None, tuple[bytes, ...]]] = []
        self.unheard: list[tuple[bytes, ...]] = []
        self._members: list[MemoryTransport] = []
        self._losses: list[_Losses] = []
        self.requests = RequestBus()
        self.jobs = JobBus()

    def lose(self, many: int, pattern: Pattern, where: str) -> None:
        """Lose the next messages whose topics match a pattern; see `_Losses`."""
        self._losses.append(_Losses(pattern, many, where))

    def check_losses(self) -> None:
        """Raise UsageError if a call of `lose` lost nothing that an app subscribes to."""
        for each in self._losses:
            if not each.noticed:
                raise UsageError(str(each))

    def note_losses(self, error: BaseException) -> None:
        """Add a note to the error of a test for each useless call of `lose`."""
        for each in self._losses:
            if not each.noticed:
                error.add_note(str(each))

    def _loses(self, frames: tuple[bytes, ...]) -> _Losses | None:
        """Return what loses a message on its way to all members, or None."""
        topic = frames[0].partition(NUL)[0]
        found = next((each for each in self._losses if each.left and matches(each.pattern, topic) is not None), None)
        if found is not None:
            found.left -= 1
        return found

    def join(self, member: MemoryTransport) -> None:
        """Deliver messages to ``member`` from now on."""
        self._members.append(member)

    def leave(self, member: MemoryTransport) -> None:
        """Stop delivering messages to ``member``."""
        if member in self._members:
            self._members.remove(member)

    def publish(self, sender: MemoryTransport, frames: tuple[bytes, ...]) -> None:
        """Deliver a message from an app to all members that are connected to it."""
        self.sent.append((sender.plan, frames))
        sender.keep(frames)  # before the delivery, so that a member that joins now receives it
        losses = self._loses(frames) if self._losses else None
        for member in self._members:
            if not member.hears(sender):
                continue
            if losses is None:
                member.arrive(frames, member.form_of(sender), None, sender)
            else:
                losses.noticed |= member.lose(sender, frames)

    def joined(self, member: MemoryTransport, before: tuple[bytes, ...], past: Mapping[bytes, Since]) -> None:
        """Deliver the past and the kept messages of new subscriptions to ``member``.

        The member already has the kept messages of the subscriptions ``before``. ``past`` contains the subscriptions
        with a past, and its beginning.
        """
        senders = [sender for sender in self._members if member.hears(sender)]
        earlier = [
            frame
            for sender in senders
            for subscription, since in past.items()
            for frame in sender.past(subscription, since, int(self.wall() * 1e9))
        ]
        member.replay(earlier)
        replayed = set(earlier)
        kept = [each for sender in senders for each in sender.kept.items()]
        new = [
            (topic, rest) for topic, rest in kept if not topic.startswith(before) and topic + NUL + rest not in replayed
        ]
        if new:
            member.give(new)
        for sender in senders:
            member.give_states(sender.states.epoch, sender.states.make(before, member.subscriptions))

    def number(self, sender: MemoryTransport, pattern: Pattern) -> int:
        """Return the number of members that subscribe to a pattern of ``sender``."""
        return sum(member.hears(sender) and member.wants(pattern) for member in self._members)

    def changed(self) -> None:
        """Handle the beginning or end of a member's subscription."""
        # A copy, because a function that hears of subscribers may stop an app.
        for member in tuple(self._members):
            member.subscribers_changed()

    def receive(self, frames: tuple[bytes, ...], form: Form | None = None) -> None:
        """Deliver a message from outside to all members that subscribe to it."""
        self._arrive([(member, form) for member in self._members], frames)

    def receive_at(self, endpoint: str | None, frames: tuple[bytes, ...]) -> None:
        """Deliver a message in the form that each member declares for an endpoint.

        Raises:
            UsageError: No app receives from the endpoint, or the form of the message is unclear.
        """
        forms = [(member, member.stated_form(endpoint)) for member in self._members]
        met = [(member, *form) for member, form in forms if form]
        if not met:
            known = ", ".join(each for member in self._members for each in member.endpoints)
            raise UsageError(
                f"receive(endpoint={endpoint!r}): no app receives from this endpoint; the endpoints of the apps are "
                f"{known or 'none'}"
            )
        self._arrive(met, frames)

    def _arrive(self, met: Sequence[tuple[MemoryTransport, Form | None]], frames: tuple[bytes, ...]) -> None:
        losses = self._loses(frames) if self._losses else None
        if losses is not None:
            for member, _ in met:
                losses.noticed |= member.lose(None, frames)
            return
        outside = _Outside(partial(met[0][0].parsed, frames, met[0][1]) if met else lambda: frames)
        outside.takers = sum([member.arrive(frames, form, outside) for member, form in met])
        if not outside.takers:
            self.unheard.append(outside.parsed())

    def unrouted(self, outside: _Outside) -> None:
        """Record that an app has no handler for a message from outside."""
        outside.takers -= 1
        if not outside.takers:
            self.unheard.append(outside.parsed())


class States:
    """The topics of an app for which it makes snapshots.

    Attributes:
        snapshots: The snapshots; None if no publication has any.
        epoch: The 64-bit number of this run of the app.
    """

    def __init__(self) -> None:
        self.snapshots: Snapshots | None = None
        self.epoch = 0
        self._topics: dict[bytes, None] = {}

    def add(self, topic: bytes) -> None:
        """Add a topic."""
        self._topics[topic] = None

    def discard(self, topic: bytes) -> None:
        """Remove a topic."""
        del self._topics[topic]

    def make(self, before: tuple[bytes, ...], wanted: tuple[bytes, ...]) -> Iterator[tuple[bytes, Made]]:
        """Yield the snapshots of the ``wanted`` subscriptions that are not in ``before``."""
        if self.snapshots is None:
            return
        number = self.snapshots.next_refresh()
        while not self.snapshots.refresh(number)[1]:
            pass
        for topic in sorted(self._topics):
            if topic.startswith(wanted) and not topic.startswith(before):
                made, _ = self.snapshots.make(topic)
                if isinstance(made, Made):
                    yield topic, made


def _sequence(frame: bytes) -> int:
    """Return the number of a message in the one series of its publisher."""
    return parse_header(frame.partition(NUL)[2]).sequence


class _Accounts(SubscriberSession):
    """The accounts of an app in a test, which leave the past to the transport.

    Attributes:
        past: The subscriptions whose past the app has not received yet, and its beginning.
    """

    past: Mapping[bytes, Since] = {}

    def recover(
        self, subscriptions: frozenset[bytes], since: Mapping[bytes, Since], replay: Container[bytes] = ()
    ) -> Any:
        """See `zroute.transport.Accounts`."""
        self.past = {subscription: begin for subscription, begin in since.items() if subscription in replay}
        return super().recover(subscriptions, {})


class MemoryTransport:
    """The transport of one app in a test.

    ``plan`` is recorded with each message that the app publishes.
    """

    bound: tuple[str, ...] = ()

    # The defaults: queues here have no limit, and there are no connections or subscriptions to report.
    summary = Transport.summary
    try_sender = Transport.try_sender
    announce = Transport.announce
    opened = Transport.opened
    confirmed = Transport.confirmed
    make_session = Transport.make_session
    addresses = Transport.addresses

    def __init__(self, request: TransportRequest, bus: Bus, reactor: Clock, plan: Plan | None = None) -> None:
        self.plan = plan
        self._request = request
        self.accounts = _Accounts(request.reactor, request.stats, _log, request.app.name, request.found)
        self._bus = bus
        self._reactor = reactor
        self._context = copy_context()
        self._receive: Receive | None = None
        self._subscriptions: tuple[bytes, ...] = ()
        self._inbox: deque[tuple[Form | None, tuple[bytes, ...], _Outside | None] | Callable[[], None]] = deque()
        self._lost: dict[MemoryTransport | None, dict[bytes, list[tuple[bytes, ...]]]] = {}
        self._current: _Outside | None = None  # the message that was read last
        self._unrouted = request.stats.unrouted
        self._parsers: dict[Form, Parse] = {}
        self._form: Form | None = None  # the form of the messages that are being read
        self._parts: deque[bytes] = deque()
        self._paused = False
        self._woken = False
        self._listening = False
        self.kept: dict[bytes, bytes] = {}
        self._rings: list[Ring] = []
        self._ticked = 0.0  # the time of the last tick of the histories
        self.states = States()
        self.subscribers_changed: Callable[[], None] = lambda: None
        self._answer: Callable[[], None] = lambda: None

    def open(self, receive: Receive) -> None:
        """See `zroute.transport.Transport`, also for the methods below."""
        self._receive = receive
        self._bus.join(self)

    # -- requests

    def open_requests(self, client: Client | None, on_request: Callable[[Asked], object] | None) -> None:
        """Connect the requests of this app and of the other apps."""
        self._answer = self._bus.requests.join(self, client, on_request, self._request.stats)

    def answer(self, patterns: Sequence[Pattern]) -> None:
        """Start to receive requests."""
        self._answer()

    @property
    def req(self) -> frozenset[str]:
        """The addresses to which the app sends requests."""
        return frozenset(each.address for each in self._request.ends.req)

    @property
    def rep(self) -> frozenset[str]:
        """The addresses at which the app answers requests."""
        return frozenset(each.address for each in self._request.ends.rep)

    # -- jobs

    def hand_out(self, owner: JobOwner) -> SendJob:
        """Connect the owner of the app's jobs to the workers of the other apps."""
        return self._bus.jobs.hand_out(self, owner, self._reactor, self.plan)

    def take_jobs(self, make: MakeWorker) -> None:
        """Take jobs from the other apps.

        The app also takes its own jobs if it hands out jobs at an address at which it works.
        """
        owned = {endpoint.address for endpoint in self._request.ends.jobs}
        loops = any(endpoint.address in owned for endpoint in self._request.ends.work)
        self._bus.jobs.take_jobs(self, make, self._reactor, loops=loops)

    @property
    def workers(self) -> Sequence[JobWorker]:
        """The workers for all owners."""
        return self._bus.jobs.workers(self)

    def add(self, ends: Ends) -> None:
        """Add endpoints, which determine the apps that are connected to each other."""
        self._request = evolve(self._request, ends=self._request.ends + ends)

    def remove(self, addresses: ResolvedAddresses) -> Deferred[None]:
        """Remove endpoints. Waiting messages are still read."""
        ends, left = self._request.ends, {}
        for side in SIDES:
            left[side.name] = tuple(each for each in ends.of(side) if each.address not in addresses.of(side))
        self._request = evolve(self._request, ends=ends.with_sides(left))
        return succeed(None)

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`."""
        return self._receive is not None

    def ring(self, history: History) -> Ring:
        """Return the kept frames of a publication.

        The other apps get them without requests.
        """
        ring = Ring(history)
        self._rings.append(ring)
        return ring

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Return a function that passes frames to the bus, or None without endpoints."""
        if not self._request.ends.pub:
            return None
        return lambda sent: self._bus.publish(self, sent if multipart else (sent,))

    def listen(self, patterns: Iterable[Pattern]) -> None:
        """Receive messages with the patterns' prefixes, and the matching kept messages."""
        before, self._listening = self._subscriptions, True
        self._subscriptions = minimal_cover(pattern.subscription for pattern in patterns)
        past, self.accounts.past = self.accounts.past, {}
        self._bus.joined(self, before, past)
        self._bus.changed()

    def count_subscribers(self, changed: Callable[[], None]) -> Callable[[Pattern], int]:
        """Count the apps of the test that subscribe."""
        self.subscribers_changed = changed
        return lambda pattern: self._bus.number(self, pattern)

    def wants(self, pattern: Pattern) -> bool:
        """Return True if the app subscribes to some topic of ``pattern``."""
        prefix, whole = pattern.subscription, not pattern.captures
        return any(prefix.startswith(each) or (not whole and each.startswith(prefix)) for each in self._subscriptions)

    publisher = None

    def name_peers(self, wanted: bool) -> None:
        """Do nothing, because the messages of a test state their peers."""

    def leave(self) -> None:
        """Receive no more messages."""
        self._subscriptions = ()
        self._bus.changed()

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Return a Deferred that fires at once; with ``state``, when the inbox is empty.

        Kept messages are put into the inbox when the app subscribes, so all kept messages have been read when the inbox
        is empty.
        """
        done = self._listening and not state
        return succeed(None) if done else Deferred.fromCoroutine(self._ready(state=state))

    async def _ready(self, *, state: bool) -> None:
        await self._turn()
        while not self._listening or (state and self._inbox):
            await self._turn(_PAUSED)

    def unready(self, *, state: bool) -> str:
        """Return why the app is not ready: some kept messages are not read yet."""
        return "the app has not read all kept messages yet"

    def _turn(self, seconds: float = 0.0) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self._reactor.callLater(seconds, turn.callback, None)
        return turn

    def hears(self, sender: MemoryTransport) -> bool:
        """Return True if this app would be connected to ``sender``."""
        return self is not sender or self._request.ends.hears_itself

    def keep(self, frames: tuple[bytes, ...]) -> None:
        """Keep a message for apps that subscribe later.

        It is kept as the latest of its topic if the header requests this.
        """
        topic, _, rest = frames[0].partition(NUL)
        self._tick()  # before the publisher appends the message to its history
        if self.plan is not None and self.plan.choices.wire != "tracked":
            return
        if rest.startswith(MAGIC) and parse_header(rest).keeps:
            self.kept[topic] = rest

    def _tick(self) -> None:
        """Enforce the bounds of the histories, as the ticks of a publisher do.

        Only two ticks until now change anything: the first one after the latest messages, and the last one.
        """
        last = self._reactor.seconds() // TICK * TICK
        if last > self._ticked:
            for ring in self._rings:
                ring.trim(self._ticked + TICK)
                ring.trim(last)
            self._ticked = last

    def history(self, subscription: bytes) -> list[bytes]:
        """Return the messages of a subscription that the histories of the app contain."""
        self._tick()
        found: list[bytes] = []
        for ring in self._rings:
            ring.seal()  # as for a request
            found += [frame for block in ring.blocks for frame in block.frames if frame.startswith(subscription)]
        return sorted(found, key=_sequence) if len(self._rings) > 1 else found

    def past(self, subscription: bytes, since: Since, now: int) -> list[bytes]:
        """Return the messages of a subscription in the histories of the app.

        ``now`` is in nanoseconds since the Unix epoch.
        """
        found = self.history(subscription)
        if since.mode is SinceMode.ALL:
            return found
        if since.mode is SinceMode.LAST:
            return found[-since.value :]
        begin = since.value if since.mode is SinceMode.TIME else now - since.value
        return [frame for frame in found if sent_at(frame) >= begin]

    def replay(self, past: Collection[bytes]) -> None:
        """Put messages of the past into the inbox."""
        self._inbox.extend((None, (ReplayedFrame.of(frame, frame),), None) for frame in past)
        self._request.stats.replayed += len(past)
        if past:
            self._wake()

    def give(self, kept: Iterable[tuple[bytes, bytes]]) -> None:
        """Put kept messages into the inbox, as their publishers would send them.

        ``kept`` contains, for each message, the topic and the header with the body. All messages answer one join.
        """
        marker = self.accounts.make_marker()
        for topic, rest in kept:
            if topic.startswith(self._subscriptions):
                header = parse_header(rest)
                body, headers, at = rest[header.size :], header.headers, header.sent_at
                frame = pack_kept(marker, 1, topic, header.codec, body, headers, epoch=header.epoch, sent_at=at)
                self._inbox.append((None, (frame,), None))
        self._wake()

    def give_states(self, epoch: int, made: Iterable[tuple[bytes, Made]]) -> None:
        """Put snapshots of the publisher ``epoch`` into the inbox."""
        found = list(made)
        marker = self.accounts.make_marker() if found else b""
        for topic, each in found:
            message = topic, each.codec, each.body, None
            frame = pack_kept(marker, 1, *message, epoch=epoch, sent_at=each.sent_at, numbers=())
            self._inbox.append((None, (frame,), None))
            self._wake()

    @property
    def subscriptions(self) -> tuple[bytes, ...]:
        """The prefixes that the app receives."""
        return self._subscriptions

    def use(self, receive: Receive) -> None:
        """Pass all messages to another ``receive`` from now on."""
        self._receive = receive

    @property
    def endpoints(self) -> list[str]:
        """The endpoints from which the app receives messages."""
        return [str(endpoint) for endpoint in self._request.ends.sub]

    def form_of(self, sender: MemoryTransport) -> Form | None:
        """Return the form of the endpoint between this app and another app.

        Without such an endpoint, return the form that all endpoints have in common, or None.
        """
        addresses = {endpoint.address for endpoint in sender._request.ends.pub}
        own = self._request.ends.sub
        forms = {each.form for each in own if each.address in addresses} or {each.form for each in own}
        return forms.pop() if len(forms) == 1 else None

    def stated_form(self, endpoint: str | None) -> tuple[Form | None] | None:
        """Return the form of messages from an endpoint, in a tuple.

        The result is None if the app does not receive from this endpoint.

        Raises:
            UsageError: No endpoint is given, but the app declares several forms.
        """
        own = self._request.ends.sub
        if endpoint is not None:
            address = parse_endpoint(endpoint, bind=False).address
            return next(((each.form,) for each in own if each.address == address), None)
        forms = {each.form for each in own}
        if len(forms) > 1:
            stated = ", ".join(f"{each.form or 'tracked'} at {each.address}" for each in own)
            raise UsageError(
                f"{self._request.app.name!r} declares several message forms ({stated}): pass the endpoint of the "
                "message, as in "
                f"receive(…, endpoint={own[0].address!r})"
            )
        return (forms.pop() if forms else None,)

    def _parser(self, form: Form) -> Parse:
        if form not in self._parsers:
            place = [str(each) for each in self._request.ends.sub if each.form == form]
            self._parsers[form] = form.parser(self._request.app.max_message, ", ".join(place) or "a recording")
        return self._parsers[form]

    def parsed(self, frames: tuple[bytes, ...], form: Form | None) -> tuple[bytes, ...]:
        """Return a message; if ``form`` is set, parse it into topic and body."""
        if form is None:
            return frames
        try:
            return self._parser(form)(frames)
        except EnvelopeError as error:
            return error.frames

    def lose(self, sender: MemoryTransport | None, frames: tuple[bytes, ...]) -> bool:
        """Lose a message of ``sender``, or of the test.

        The loss is found with the next message of its subscription, or after half a second. Return True if the app
        subscribes to the message.
        """
        subscription = next((each for each in self._subscriptions if frames[0].startswith(each)), None)
        if subscription is None:
            return False
        self._lost.setdefault(sender, {}).setdefault(subscription, []).append(frames)
        self._reactor.callLater(BEATS[0], self._find, sender, subscription)
        return True

    def _find(self, sender: MemoryTransport | None, subscription: bytes) -> None:
        """Find the losses of a subscription.

        Their places are before the messages that arrive from now on.
        """
        lost = self._lost.get(sender, {}).pop(subscription, ())
        if lost:
            self._inbox.append(partial(self._judge_losses, sender, subscription, lost))
            self._wake()

    def _judge_losses(
        self, sender: MemoryTransport | None, subscription: bytes, lost: Sequence[tuple[bytes, ...]]
    ) -> None:
        """Recover the lost messages that are in a history; report the others."""
        found: list[tuple[None, tuple[bytes, ...], None] | Callable[[], None]] = []
        gone: list[tuple[bytes, ...]] = []
        history = set[bytes]()
        if sender is not None and self.accounts.recovers_losses(subscription):
            history.update(sender.history(subscription))
        for frames in lost:
            if frames[0] not in history:
                gone.append(frames)
                continue
            if gone:
                found.append(partial(self._report, subscription, gone))
                gone = []
            found.append((None, (RecoveredFrame.of(frames[0], frames[0]),), None))
            self._request.stats.recovered += 1
        if gone:
            found.append(partial(self._report, subscription, gone))
            if sender is not None:
                # Not now: the message that shows the loss is already part of the state.
                self._reactor.callLater(0, self._give_states_of, sender, subscription)
        self._inbox.extendleft(reversed(found))

    def _report(self, subscription: bytes, lost: Sequence[tuple[bytes, ...]]) -> None:
        """Count lost messages, and call the app's functions."""
        rest = lost[-1][0].partition(NUL)[2]
        if not rest.startswith(MAGIC):
            return  # no number shows this loss
        header = parse_header(rest)
        self._request.stats.gaps += 1
        self._request.stats.lost += len(lost)
        last = header.sequence
        self._request.found(Gap(subscription, header.epoch, last - len(lost) + 1, last))

    def _give_states_of(self, sender: MemoryTransport, subscription: bytes) -> None:
        self.give_states(sender.states.epoch, sender.states.make((), (subscription,)))

    def arrive(
        self,
        frames: tuple[bytes, ...],
        form: Form | None,
        outside: _Outside | None = None,
        sender: MemoryTransport | None = None,
    ) -> bool:
        """Accept a message if the app subscribes to it; return True if it does."""
        if self._lost.get(sender):
            for subscription in [each for each in self._lost[sender] if frames[0].startswith(each)]:
                self._find(sender, subscription)
        filters = form is None or form.filters
        heard = frames[0].startswith(self._subscriptions) if filters else bool(self._subscriptions)
        if heard:
            self._inbox.append((form, frames, outside))
            self._wake()
        return heard

    def pause(self) -> None:
        """Stop reading; messages wait in the inbox."""
        self._paused = True

    def resume(self) -> None:
        """Start reading again, in the next turn of the reactor."""
        self._paused = False
        self._wake()

    def finish(self, reader: Reader, left: Callable[[], float]) -> Deferred[int]:
        """Read all messages in the inbox."""
        while reader.reads_on and (self._inbox or reader.unpacked):
            self._read()
        self.pause()
        return succeed(0)

    def _read(self) -> None:
        """Read all messages in the inbox, unless a handler pauses reading."""
        self._paused = False
        while self._receive is not None and not self._paused:
            while not self._parts and self._inbox and callable(found := self._inbox[0]):
                self._inbox.popleft()
                found()
            if self._inbox and not self._parts:
                self._form = self._inbox[0][0]  # type: ignore[index]  # no report
            receive = self._receive
            if self._form is not None:
                receive = partial(self._request.receive_stated, self._parser(self._form))
            try:
                self._context.copy().run(receive, self._recv, self._more, READ_BUDGET)
            except _NothingLeftError:
                if not self._inbox and self._form is None:
                    break
                self._form = None
            finally:
                self._judge()

    def _judge(self) -> None:
        """Tell the bus if the message that was read last has no handler."""
        unrouted, self._unrouted = self._request.stats.unrouted - self._unrouted, self._request.stats.unrouted
        if unrouted and self._current is not None and not (self.plan and self.plan.hooks.unrouted):
            self._bus.unrouted(self._current)
        self._current = None

    def close(self) -> Deferred[None]:
        """Leave the bus at once."""
        self._bus.leave(self)
        self._bus.requests.leave(self)
        self._bus.jobs.leave(self)
        self._receive = None
        self._bus.changed()
        return succeed(None)

    def _wake(self) -> None:
        if not self._woken and not self._paused:
            self._woken = True
            self._reactor.callLater(0, self._woken_up)

    def _woken_up(self) -> None:
        self._woken = False
        if not self._paused:
            self._read()

    def _recv(self, _flags: int, _copy: bool = True) -> bytes:
        if not self._parts:
            # Messages of another form need another parser, so this read ends before them.
            if not self._inbox or callable(first := self._inbox[0]) or first[0] != self._form:
                raise _NothingLeftError
            # The message before this one has been routed or not by now.
            self._judge()
            self._inbox.popleft()
            _, frames, self._current = first
            self._parts.extend(frames)
        return self._parts.popleft()

    def _more(self) -> int:
        return len(self._parts)

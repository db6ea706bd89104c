"""The rules of recovery: a state machine over the model of `test_recovery`, and mutants of the rules."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.receiving.test_recovery import NEVER, PREFIXES, TOPICS, Network, checked, heal, play
from tests.support import sized
from zroute.messages.wire import Kind
from zroute.receiving import stream_recovery
from zroute.receiving.recovery_session import RecoverySession
from zroute.receiving.stream_recovery import Arrival, StreamRecovery


class Recovering(RuleBasedStateMachine):
    """A publisher and a subscriber, with a network between them that loses and doubles frames."""

    net: Network
    at = 0
    suffices = True

    @initialize(chance=st.randoms(use_true_random=False), suffices=st.booleans())
    def begin(self, chance: random.Random, suffices: bool) -> None:
        self.net, self.suffices = Network(chance, suffices=suffices), suffices

    @rule(topic=st.sampled_from(TOPICS), many=st.integers(1, 4))
    def publish(self, topic: bytes, many: int) -> None:
        self.net.publisher.publish(topic, many)

    @rule(prefix=st.sampled_from(PREFIXES))
    def keep(self, prefix: bytes) -> None:
        self.net.publisher.keep(prefix)

    @rule()
    def join(self) -> None:
        self.net.publisher.state(Kind.JOIN)

    @rule(seconds=st.sampled_from((0.05, 0.5)))
    def disconnect(self, seconds: float) -> None:
        self.net.down_until = self.net.now + seconds

    @precondition(lambda self: not self.suffices)
    @rule()
    def restart(self) -> None:
        self.net.restart()

    @rule(turns=st.integers(1, 60))
    def run_on(self, turns: int) -> None:
        for _ in range(turns):
            self.net.step(self.at)
            self.at += 1

    def teardown(self) -> None:
        if hasattr(self, "net"):
            heal(self.net, self.at)
            checked(self.net, self.at, suffices=self.suffices)


def test_any_sequence_of_events_is_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without limits of time, nothing is lost that a history has; messages arrive once, in order, and losses add up."""
    monkeypatch.setattr(stream_recovery, "TRIES", NEVER)
    monkeypatch.setattr(stream_recovery, "_SECOND", NEVER)
    given = settings(max_examples=sized(300, 40), stateful_step_count=40, deadline=None)
    run_state_machine_as_test(Recovering, settings=given)


# -- mutants -----------------------------------------------------------------------------------------------

_fill, _arrive, _pop, _end = StreamRecovery.fill, StreamRecovery.arrive, StreamRecovery.pop, StreamRecovery.end


def _fill_again(self: StreamRecovery, arrival: Arrival) -> bool:
    """Accept a message that was not missing."""
    if self.missing.first is None or _fill(self, arrival):
        return self.missing.first is not None
    self._put(arrival.first, arrival.last, arrival)
    self._release()
    return True


def _arrive_at_once(self: StreamRecovery, arrival: Arrival, now: float) -> None:
    """Deliver a message before those that are missing."""
    self._hold.take(arrival.size)
    self.ready.append(stream_recovery.Ready(arrival.first, arrival.last, arrival, arrival.size))


def _arrive_or_drop(self: StreamRecovery, arrival: Arrival, now: float) -> None:
    """Drop a message for which there is no room."""
    if self._hold.has_room(arrival.size):
        _arrive(self, arrival, now)


def _pop_only(self: StreamRecovery) -> Any:
    """Keep the room of a delivered message."""
    return self.ready.popleft()


def _forget(self: StreamRecovery, *given: object) -> None:
    """End without counting what is missing."""
    self.missing.clear()
    _end(self)


def _lose_nothing(self: StreamRecovery, lost: Iterable[object]) -> bool:
    """Ignore that the publisher has no more messages of some ranges."""
    return bool(tuple(lost))


MUTANTS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "a message that arrives twice is delivered twice": (StreamRecovery, "fill", _fill_again),
    "later messages do not wait": (StreamRecovery, "arrive", _arrive_at_once),
    "a message without room is not missing": (StreamRecovery, "arrive", _arrive_or_drop),
    "room is not given back": (StreamRecovery, "pop", _pop_only),
    "an end counts nothing": (StreamRecovery, "end", _forget),
    "what the publisher has no more is not counted": (StreamRecovery, "_lose", _lose_nothing),
    "a goodbye does not wait": (RecoverySession, "recovers", lambda self, epoch: False),
    "nothing is asked for": (RecoverySession, "ask", lambda self, now: None),
}
"""Changes of the code that break a rule: a class, and its changed method."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_finds_a_broken_rule(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule is needed: without it, messages are lost, come twice, pass others, or are not counted."""
    monkeypatch.setattr(stream_recovery, "TRIES", NEVER)
    monkeypatch.setattr(stream_recovery, "_SECOND", NEVER)
    owner, name, changed = MUTANTS[mutant]
    monkeypatch.setattr(owner, name, changed)
    with pytest.raises(AssertionError):
        _play_many()


def _play_many() -> None:
    for seed in range(60):
        play(seed, suffices=bool(seed % 2))

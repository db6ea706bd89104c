"""Deadlines that share one timer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from zroute.clock import Deadline, Deadlines

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 40)),
        st.tuples(st.just("cancel"), st.integers(0, 400)),
        st.tuples(st.just("advance"), st.integers(0, 10)),
    ),
    max_size=400,
)


@given(ACTIONS)
def test_each_deadline_passes_once_at_its_time_unless_it_is_cancelled(actions: list[tuple[str, int]]) -> None:
    """Each deadline calls once, at its time; a cancelled one does not, and there is one timer at most."""
    clock = Clock()
    deadlines = Deadlines(clock)
    passed: dict[int, float] = {}
    due: dict[int, float] = {}
    made: list[Deadline] = []

    def end(number: int) -> None:
        passed[number] = clock.seconds()
        if number % 3 == 0:  # a call may add a deadline, which must not delay the others
            add(30)

    def add(seconds: int) -> None:
        number = len(made)
        due[number] = clock.seconds() + seconds
        made.append(deadlines.add(seconds, number, end))

    for action, value in actions:
        if action == "add":
            add(value)
        elif action == "cancel" and made:
            number = value % len(made)
            deadlines.cancel(made[number])
            if number not in passed:
                due.pop(number, None)
        elif action == "advance":
            for _ in range(value):  # in steps of one second: a clock of tests makes each step's calls at its end
                clock.advance(1)
        assert len(clock.getDelayedCalls()) <= 1
        assert all(due[number] == at for number, at in passed.items())
        assert len(deadlines) == len(due) - len(passed)
    clock.pump([1] * 80)
    assert {number for number, at in due.items() if at <= clock.seconds()} == set(passed)
    deadlines.close()
    assert not clock.getDelayedCalls()
    assert len(deadlines) == 0


def test_cancelled_deadlines_take_no_memory_for_long() -> None:
    """Of 10,000 deadlines that are cancelled at once, few are kept until their time."""
    clock = Clock()
    deadlines = Deadlines(clock)
    for _ in range(10_000):
        deadlines.cancel(deadlines.add(60, None, print))
    assert len(deadlines) == 0
    assert len(deadlines._heap) < 300

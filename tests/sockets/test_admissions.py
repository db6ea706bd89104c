"""Admissions count for the limit of a key until its connections are known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zroute.sockets.admissions import Admissions


def test_a_known_connection_takes_one_admission_away() -> None:
    """Only an admission of the same key goes."""
    admissions = Admissions()
    for name in ("alice", "bob", "alice"):
        admissions.add(name, 5.0)
    admissions.known("alice")
    admissions.known("carol")
    assert (admissions.of("alice"), admissions.of("bob"), admissions.of("carol"), len(admissions)) == (1, 1, 0, 2)


def test_there_are_never_more_admissions_than_connections() -> None:
    """The oldest go first."""
    admissions = Admissions()
    for name in ("alice", "bob", "bob"):
        admissions.add(name, 5.0)
    admissions.trim(2, 0, 1.0)
    assert (admissions.of("alice"), admissions.of("bob")) == (0, 2)
    admissions.trim(0, 0, 9.0)
    assert len(admissions) == 0


def test_a_connection_in_its_handshake_counts_only_for_a_young_admission() -> None:
    """A stranger that is in its handshake does not keep an admission for ever."""
    admissions = Admissions()
    admissions.add("alice", 5.0)
    admissions.trim(0, 1, 5.0)
    assert admissions.of("alice") == 1
    admissions.trim(0, 1, 5.1)
    assert admissions.of("alice") == 0


EVENTS = st.lists(st.tuples(st.sampled_from(["come", "name", "leave"]), st.integers(0, 2), st.integers(0, 9)))


@given(EVENTS)
def test_a_key_has_at_most_its_limit_and_one_for_each_other_connection(events: list[tuple[str, int, int]]) -> None:
    """Keys come, become known and leave in any order; a key has few connections above its limit of 4."""
    admissions, silent, known = Admissions(), [0, 0, 0], [0, 0, 0]
    now = most_of_others = 0
    for what, key, pick in events:
        now += pick == 0
        admissions.trim(sum(silent), 0, now)
        if what == "come" and known[key] + admissions.of(str(key)) < 4:
            admissions.add(str(key), now + 5.0)
            silent[key] += 1
        elif what == "name" and silent[key]:
            admissions.known(str(key))
            silent[key] -= 1
            known[key] += 1
        elif what == "leave":
            among = silent if pick % 2 else known
            among[key] -= bool(among[key])
        most_of_others = max(most_of_others, sum(silent) + sum(known) - silent[0] - known[0])
        assert silent[0] + known[0] <= 4 + most_of_others

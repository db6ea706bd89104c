"""A small share of the chaos suite, for the test command.

`python -m chaos` runs more of it: see docs/explanation/delivery.md.
"""

from __future__ import annotations

import pytest
import pytest_twisted

from chaos import asking, jobs, joins, lives, nats, nats_jobs, nonsense, readers, wakeups
from chaos.bystanders import Bystanders
from chaos.keyed import drawn
from chaos.scenario import Scenario
from chaos.whole_recovery import WholeRecovery
from tests.running import reactor
from tests.support import sized, spans

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("seed", "keys"), [(4, False), (8, True), (7, True), (19, False), (132, True)][: sized(5, 2)])
def test_what_is_lost_in_trouble_is_counted_exactly(seed: int, keys: bool) -> None:
    """When peers and connections break, every message is handled or counted, and no process hangs."""
    Scenario(seed, keys=keys).play()


@pytest.mark.parametrize(
    ("topology", "trouble", "keys"),
    [
        ("proxy", "kill_forwarder", False),
        ("several", "cut", True),
        ("bound", "refuse", False),
        ("proxies", "kill_forwarder", True),
        ("mixed", "kill_forwarder", False),
    ][: sized(5, 1)],
)
def test_nothing_is_lost_if_the_histories_suffice(topology: str, trouble: str, keys: bool) -> None:
    """When publishers live and keep their messages, each message is handled once and in order."""
    for _ in range(3):
        found = WholeRecovery(5, keys=keys, topology=topology, trouble=trouble, troubles=1).play()
        # A publisher that connects keeps what is queued for a subscriber that is away.
        recovered = found["recovered"] > 0 or topology == "bound"
        assert found["missing"] == found["lost"]
        assert found["gave up"] or not found["lost"]
        # On a busy machine, the trouble may come after the stream, or a publisher answer too late.
        if recovered and not found["gave up"]:
            break
    assert recovered
    assert found["gave up"] == 0


def test_the_seed_decides_about_keys_and_nothing_else_changes() -> None:
    """A third of the seeds use keys, and the choice takes no number from the generator of the seed."""
    assert 300 < sum(map(drawn, range(1_000))) < 370
    chosen = []
    for keys in (False, True):
        scenario = Nothing(5, keys=keys)
        scenario.play()
        assert bool(scenario.ring) == keys
        chosen.append(scenario.chance.random())
    assert chosen[0] == chosen[1]


class Nothing(Scenario):
    """A scenario without processes."""

    def perform(self) -> None:
        pass

    def judge(self) -> None:
        pass


@pytest.mark.parametrize("kind", wakeups.REACTORS)
def test_no_wake_up_is_missed(kind: str) -> None:
    """On each reactor, messages arrive after thousands of sends, answers and pauses: no wake-up is missed."""
    operations = sized(20_000, 4_000)
    found = wakeups.run(kind, operations, seed=2)
    assert found["missed"] == []
    assert found["handled"] > 0.75 * operations


def test_strangers_end_no_job_and_reach_no_handler() -> None:
    """After each lot of invalid messages all jobs are done, and no handler gets invalid data."""
    found = jobs.play(sized(50_000, 3_000), seed=3)
    assert found["jobs"]["done"] + found["jobs"]["failed"] == found["jobs"]["put"]
    assert found["refused"] > 1_000


def test_nonsense_is_counted_once_and_reaches_no_handler() -> None:
    """Each broken frame is counted once and reaches no handler; the good message after it is handled."""
    frames = sized(20_000, 5_000)
    found = nonsense.play(frames, seed=3)
    assert found["malformed"] > 0.15 * frames
    assert found["control"] > 0.05 * frames
    assert found["routed"] > 0.15 * frames
    assert found["frames to the publisher"] > 0.05 * frames


@pytest.mark.parametrize("keys", [False, True])
def test_broken_requests_and_replies_are_answered_and_reach_no_handler(keys: bool) -> None:
    """Broken frames of clients and servers call no handler with invalid data, and every request has one end."""
    frames = sized(40_000, 10_000)
    found = asking.play(frames, seed=3, keys=keys)
    assert found["keys"] == keys
    assert found["bad"] > 0.3 * found["requests"]
    assert found["answers"] > 0.5 * found["requests"]
    assert sum(found["ended"].values()) > 50
    assert found["faults"] == []


@pytest.mark.parametrize(
    ("seed", "topology", "trouble"),
    [(1, "bound", "lie_beside"), (20, "several", "lie_in_place")][: sized(2, 1)],
)
def test_a_liar_with_an_unknown_key_is_not_heard(seed: int, topology: str, trouble: str) -> None:
    """A liar whose key no process knows disturbs no publisher, whether it connects or takes A's place."""
    play = Bystanders(seed, keys=True, topology=topology, trouble=trouble, watched=5.0, steady=True)
    play.play()
    assert play.strange


@pytest.mark.parametrize(
    ("seed", "topology", "trouble", "host"),
    [
        (1, "several", "kill_and_stay_away", "localhost"),
        (2, "bound", "freeze", "127.0.0.1"),
        (3, "proxies", "kill_and_stay_away", "127.0.0.1"),
        (4, "several", "kill_and_replace", "127.0.0.1"),
    ][: sized(4, 1)],
)
def test_bystanders_of_trouble_keep_every_message(seed: int, topology: str, trouble: str, host: str) -> None:
    """When publisher A dies, freezes or is replaced, publisher B loses no message and no connection."""
    Bystanders(seed, topology=topology, trouble=trouble, host=host, watched=10.0, steady=True).play()


def test_readers_behind_a_killed_proxy_get_everything() -> None:
    """When a proxy dies and another one takes its place, each of several readers gets all messages, once, in order."""
    for seconds in spans(4.0):
        found = readers.run(sized(6, 3), 1_000, seconds)
        assert found["handled"] == found["sent"]
        assert (found["lost"], found["unknown"], found["twice"], found["disordered"]) == (0, 0, 0, 0)
        if found["recovered"]:  # else the stream ended before the busy machine killed the proxy
            break
    assert found["recovered"] > 0


@pytest_twisted.ensureDeferred
async def test_who_is_ready_misses_nothing() -> None:
    """A reader that joins a running stream sees every topic without a gap once it is ready."""
    found = await joins.play(reactor, sized(60, 12), together=3)
    assert (found["joins"], found["incomplete"]) == (sized(60, 12), 0)


@pytest_twisted.ensureDeferred
async def test_apps_that_come_and_go_leave_nothing() -> None:
    """After many starts, joins, messages and stops of apps, no object and no memory is left."""
    before, after = await lives.lives(reactor, sized(60, 20))
    assert after.descriptors <= before.descriptors
    assert (after.threads, after.readers) == (before.threads, before.readers)
    assert after.memory - before.memory < 4_000


@pytest.mark.parametrize("fault", nats.FAULTS)
def test_what_nats_loses_is_counted_exactly(fault: str) -> None:
    """When NATS servers die, freeze or retire, or a subscriber freezes, each message is handled or counted."""
    found = nats.play(nats.FAULTS.index(fault), fault)
    assert found.wrong == []
    assert found.counted == found.missing or found.unknown


@pytest.mark.slow
@pytest.mark.parametrize("fault", nats_jobs.FAULTS)
def test_the_outcome_of_each_job_on_nats_is_known(fault: str) -> None:
    """When servers, owners or workers die, freeze or stop, no job is done twice, and none is lost silently."""
    found = nats_jobs.play(nats_jobs.FAULTS.index(fault), fault)
    assert found.wrong == []
    assert found.put > 0

"""`zroute bench`, with real processes for its two ends."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.cli.terminal import on_terminal
from tests.commands import zroute
from tests.support import Child, free_endpoint, spans
from zroute import App
from zroute.cli.bench import _table, _verdict
from zroute.cli.latencies import Latencies
from zroute.cli.measuring import _FIRST, Load, Order, Report, Workload, _awaited, _Subscriber, padding


def bench(*arguments: str) -> Child:
    """Start ``zroute bench`` and return it while it runs."""
    return Child("-m", "zroute", "bench", *arguments)


STEADY = {"rate": 2000.0, "size": 64, "seconds": 3600.0}


def end_of(**order: Any) -> Child:
    """Start one end as the command does, as a process that the test controls."""
    return Child("-m", "zroute.cli.measuring", json.dumps({"bind": order["role"] == "pub", "wait": 30.0} | order))


def told(child: Child, what: str) -> Any:
    """Return the latest report of this kind from an end."""
    child.wait_for(lambda lines: any(f'"{what}"' in line for line in lines))
    return next(json.loads(line)[what] for line in reversed(child.out) if f'"{what}"' in line)


def wait_for_messages(child: Child, number: int) -> None:
    """Wait until this end has sent or received this number of messages."""
    child.wait_for(
        lambda lines: any(json.loads(line).get("progress", {}).get("messages", 0) >= number for line in lines)
    )


# -- both ends ----------------------------------------------------------------------------------------------


def test_bench_alone_measures_this_machine() -> None:
    """`zroute bench` shows rates, CPU time, latencies and a correct sum; a pipe gets no bar."""
    done = zroute("bench", "--for", "500ms")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[2:6]] == ["", "messages/s", "MB/s", "CPU/message"]
    assert lines[7].split() == ["latency", "p50", "p90", "p99", "p99.9", "max"]
    assert lines[0].endswith("as fast as possible")
    sent, received, lost = (
        int(part.replace(",", "")) for part in lines[-1].split(": ")[1].replace("=", "+").split("+")
    )
    assert lines[-1].startswith("sent = received + lost: ")
    assert sent == received > 0
    assert lost == 0


def test_a_rate_that_is_not_reached_is_told() -> None:
    """The result says so if the publisher does not reach an impossible rate."""
    done = zroute("bench", "--rate", "1000000000", "--for", "300ms")
    assert done.returncode == 0, done.stderr
    assert "The publisher did not reach the requested rate: " in done.stdout


@pytest.mark.parametrize("how", [("--count", "5", "--rate", "1"), ("--for", "5s", "--rate", "1")])
def test_a_measurement_ends_at_the_last_message(how: tuple[str, ...]) -> None:
    """The measured time of a few messages has no pause after the last one; messages may be late."""
    done = zroute("bench", *how, "--json")
    assert done.returncode == 0, done.stderr
    publisher = json.loads(done.stdout)["publisher"]
    assert publisher["seconds"] - publisher["behind"] < publisher["messages"] - 0.5


def test_a_rate_that_is_reached_is_not_complained_of() -> None:
    """Five messages have four intervals, so these four seconds are what was requested."""
    workload = {"rate": 1.0, "size": 128, "count": 5, "seconds": None}
    publisher = {"sent": 5, "seconds": 4.01, "cpu": 1.0, "workload": workload, "host": "a", "behind": 0.0}
    result = {"publisher": publisher, "sent": 5, "received": 5, "lost": 0, "before_join": 0, "host": "a"}
    result |= {"holds": True, "complete": True, "interrupted": False, "seconds": 4.0, "cpu": 1.0, "early": 0}
    result |= {"latency_us": {"p50": 1.5}}
    assert "did not reach" not in _table(result)
    assert "did not reach" in _table(result | {"publisher": publisher | {"seconds": 4.5}})


def test_a_rate_beyond_all_numbers_is_one_that_is_not_reached() -> None:
    """An extremely high rate causes no traceback."""
    done = zroute("bench", "--rate", "1e308", "--for", "300ms")
    assert done.returncode == 0, done.stderr
    assert "The publisher did not reach the requested rate: " in done.stdout


def test_a_publisher_that_was_late_is_told(tmp_path: Path) -> None:
    """A line shows how late a publisher was that was stopped for a moment."""
    for seconds in spans(3.0):
        endpoint, load = f"ipc://{tmp_path}/{seconds:g}", {"rate": 1000.0, "size": 128, "count": int(1000 * seconds)}
        with (
            end_of(role="sub", address=endpoint, alone=True) as subscriber,
            end_of(role="pub", address=endpoint, workload=load) as publisher,
        ):
            wait_for_messages(publisher, 200)
            publisher.process.send_signal(signal.SIGSTOP)
            wait_for_messages(subscriber, 200)
            Event().wait(0.3)  # the least delay, less the time until the next message was due
            publisher.process.send_signal(signal.SIGCONT)
            result = told(subscriber, "result")
            assert publisher.end(None) == subscriber.end(None) == 0
        if result["publisher"]["behind"] > 0.25:  # else, it had sent all messages before it was stopped
            break
    assert result["publisher"]["behind"] > 0.25
    result["publisher"]["seconds"] = seconds  # a busy machine may need longer, and the line would then be another
    assert "The publisher sent up to " in _table(result | {"interrupted": False})


def test_json_has_the_figures_that_were_asked_for() -> None:
    """--json has exact numbers of the load that the options describe."""
    done = zroute("bench", "--json", "--rate", "2000", "--count", "500", "--size", "1000")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["rate"], document["size"]) == (2000, 1000)
    assert (document["sent"], document["received"], document["lost"]) == (500, 500, 0)
    assert document["holds"]
    assert document["complete"]
    latencies = list(document["latency_us"].values())
    assert latencies == sorted(latencies)
    for end in ("publisher", "subscriber"):
        measured = document[end]
        assert measured["messages"] == 500
        rate = 499 / measured["seconds"]
        assert measured["messages_per_second"] == pytest.approx(rate, rel=0.001)
        assert measured["bytes_per_second"] == pytest.approx(1000 * rate, rel=0.001)
        assert measured["cpu_us_per_message"] > 0


def test_one_message_is_no_rate() -> None:
    """A single message has no rate: the result shows a dash, and nothing divides by zero."""
    done = zroute("bench", "--count", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[3].split() == ["messages/s", "-", "-"]
    assert done.stdout.endswith("sent = received + lost: 1 = 1 + 0\n")


def test_it_measures_over_the_endpoint_i_give(tmp_path: Path) -> None:
    """A given endpoint is used, for example to measure another transport."""
    done = zroute("bench", f"ipc://{tmp_path}/s", "-n", "1000")
    assert (done.returncode, "1,000 = 1,000 + 0" in done.stdout) == (0, True), done.stderr


def test_an_endpoint_that_is_taken_ends_it_with_5() -> None:
    """If the endpoint is in use, the command ends with 5 and does not wait for the other end."""
    endpoint = free_endpoint()
    with Child("-m", "zroute", "pub", endpoint, "t", "1", "--wait", "1h") as other:
        other.line_with("waiting for", stream="err")
        done = zroute("bench", endpoint)
    assert (done.returncode, "in use" in done.stderr) == (5, True), done.stderr


def test_a_terminal_has_a_bar_and_ctrl_c_ends_it_early(tmp_path: Path) -> None:
    """A terminal shows a bar; Ctrl-C ends the measurement, and the figures and the sum follow."""
    shown, code = on_terminal("bench", "--for", "1h", cwd=tmp_path, until="messages, 0 lost")
    assert code == 0
    assert "0%" in shown
    assert "sent = received + lost: " in shown
    assert "CPU/message" in shown
    assert "Traceback" not in shown


# -- one end each -------------------------------------------------------------------------------------------


def test_two_terminals_measure_what_is_between_them() -> None:
    """The two ends can start in any order; the subscriber shows all figures."""
    endpoint = free_endpoint()
    with bench("--sub", endpoint) as subscriber:
        subscriber.line_with("waiting for zroute bench --pub", stream="err")
        with bench("--pub", endpoint, "--count", "2000", "--json") as publisher:
            assert publisher.end(None) == 0
            document = json.loads("".join(publisher.out))
        assert subscriber.end(None) == 0
    assert document["sent"] == document["publisher"]["messages"] == 2000
    assert subscriber.out[0].startswith("2,000 messages of 128 bytes")
    assert subscriber.out[-1] == "sent = received + lost: 2,000 = 2,000 + 0"


def test_a_subscriber_that_is_ended_counts_up_to_its_last_message(tmp_path: Path) -> None:
    """After Ctrl-C the subscriber shows its result, and the publisher ends early too."""
    endpoint = free_endpoint()
    with bench("--pub", endpoint, "--rate", "500", "--for", "1h") as publisher:
        publisher.line_with("waiting for zroute bench --sub", stream="err")
        shown, code = on_terminal("bench", "--sub", endpoint, cwd=tmp_path, until="messages, 0 lost")
        assert publisher.end(None) == 1
    assert code == 0
    assert "Messages after the last received message are not counted" in shown
    assert "sent = received + lost: " in shown
    assert "the subscriber disconnected before the end" in publisher.err[-1]


def test_a_subscriber_that_comes_late_says_what_was_before() -> None:
    """A late subscriber compares only messages sent after it has joined."""
    with end_of(role="pub", address="tcp://127.0.0.1:*", workload=STEADY) as publisher:
        endpoint = told(publisher, "open")
        with end_of(role="sub", address=endpoint, alone=True) as first:
            wait_for_messages(first, 500)
            with end_of(role="sub", address=endpoint) as second:
                wait_for_messages(second, 500)
                assert publisher.process.stdin is not None
                publisher.process.stdin.close()
                assert [first.end(None), second.end(None), publisher.end(None)] == [0, 0, 0]
        whole, part = told(first, "result"), told(second, "result")
    assert whole["holds"]
    assert part["holds"]
    assert whole["before_join"] == 0
    assert part["before_join"] >= 500
    assert part["sent"] + part["before_join"] == whole["sent"] == told(publisher, "result")["publisher"]["sent"]


def test_what_is_lost_at_a_full_queue_is_in_the_sum() -> None:
    """A subscriber that was stopped while queues overflowed counts exactly the lost messages."""
    with end_of(
        role="pub", address="tcp://127.0.0.1:*", workload={"rate": 1e6, "size": 1000, "seconds": 3600.0}
    ) as publisher:
        with end_of(role="sub", address=told(publisher, "open"), alone=True) as subscriber:
            wait_for_messages(subscriber, 1)
            subscriber.process.send_signal(signal.SIGSTOP)
            wait_for_messages(publisher, told(publisher, "progress")["messages"] + 75_000)
            subscriber.process.send_signal(signal.SIGCONT)
            wait_for_messages(subscriber, told(subscriber, "progress")["messages"] + 1)
            assert publisher.process.stdin is not None
            publisher.process.stdin.close()
            assert [subscriber.end(None), publisher.end(None)] == [0, 0]
        result = told(subscriber, "result")
    sent = told(publisher, "result")["publisher"]["sent"]
    assert result["sent"] == sent == result["received"] + result["lost"]
    assert result["lost"] > 0
    assert result["holds"]


PROXY = """
import zmq
context = zmq.Context()
sockets = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
for socket in sockets:
    socket.bind("tcp://127.0.0.1:*")
    print(socket.get_string(zmq.LAST_ENDPOINT), flush=True)
zmq.proxy(*sockets)
"""


def test_both_ends_meet_at_a_proxy() -> None:
    """Two ends meet at a proxy, and the sum includes messages that the proxy drops."""
    with Child("-c", PROXY) as proxy:
        front, back = proxy.wait_for(lambda lines: len(lines) == 2)
        done = zroute("bench", "--pub", f"connect:{front}", "--sub", back, "--rate", "2000", "-n", "500")
    assert (done.returncode, "sent = received + lost: 500 = " in done.stdout) == (0, True), done.stderr


def test_who_opens_a_port_to_the_network_is_told() -> None:
    """A bind to all interfaces is refused, and reported with --insecure, as in every command that binds."""
    assert zroute("bench", "tcp://*:*", "-n", "1").returncode == 5
    done = zroute("bench", "tcp://*:*", "-n", "1", "--insecure")
    assert (done.returncode, "is reachable from the network" in done.stderr) == (0, True), done.stderr


@pytest.mark.parametrize("end", [(), ("--pub",), ("--sub",)], ids=str)
@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1"])
def test_an_endpoint_is_judged_after_its_bind(end: tuple[str, ...], host: str) -> None:
    """A host that this machine does not have is an error of the bind, and no remark precedes it."""
    done = zroute("bench", *end, f"bind:tcp://{host}:5555", "--insecure")
    (said,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (5, "")
    assert said.startswith(f"zroute: can't bind tcp://{host}:5555: this machine does not have this address")
    assert "or 127.0.0.1" in said


@pytest.mark.parametrize(
    ("end", "text"), [("--pub", "no subscriber connected within"), ("--sub", "no publisher answered")]
)
def test_an_end_that_stays_alone_ends_with_124(end: str, text: str) -> None:
    """An end without the other one ends with 124 after --wait."""
    done = zroute("bench", end, free_endpoint(), "--wait", "300ms")
    assert (done.returncode, text in done.stderr, done.stdout) == (124, True, ""), done.stderr


def test_ctrl_c_before_the_other_end_has_come_is_no_fault() -> None:
    """Ctrl-C before the first message is reported, with exit 0."""
    with bench("--sub", free_endpoint()) as child:
        child.line_with("waiting for", stream="err")
        assert child.end() == 0
        assert child.err[-1] == "zroute: the measurement stopped before the first message"


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    """Two signals end the command even if its peer does not respond."""
    endpoint = free_endpoint()
    with bench("--pub", endpoint, "--rate", "1000", "--for", "1h") as publisher:
        with end_of(role="sub", address=endpoint) as subscriber:
            wait_for_messages(subscriber, 1)
            subscriber.process.send_signal(signal.SIGSTOP)
            while publisher.process.poll() is None:
                publisher.process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):  # signals in quick succession count as one
                    publisher.process.wait(0.3)
        # A further Ctrl-C, after Python has restored the default action, ends the process by the signal itself.
        assert publisher.end(None) in (130, -signal.SIGINT)


def test_a_publisher_that_is_killed_is_not_waited_for_for_ever() -> None:
    """After kill -9 of the publisher, the sum covers received messages, and the exit code is 1."""
    for wait in spans(1.5):
        with (
            end_of(role="pub", address="tcp://127.0.0.1:*", workload=STEADY) as publisher,
            end_of(role="sub", address=told(publisher, "open"), alone=True, wait=wait) as subscriber,
        ):
            subscriber.wait_for(
                lambda lines: any('"progress"' in line for line in lines) or subscriber.process.poll() is not None
            )
            publisher.end(signal.SIGKILL)
            code = subscriber.end(None)
        if code == 1:  # else the publisher stood still for too long before it was killed
            break
    assert code == 1
    result = told(subscriber, "result")
    assert not result["complete"]
    assert result["holds"]
    assert "has sent nothing for" in told(subscriber, "say")


def test_the_ends_do_not_outlive_the_command() -> None:
    """After kill -9 of the command, its ends do not continue to send."""
    endpoint = free_endpoint()
    with end_of(role="sub", address=endpoint) as subscriber:
        with bench("--pub", endpoint, "--rate", "1000", "--for", "1h") as publisher:
            wait_for_messages(subscriber, 100)
            publisher.process.kill()
            assert subscriber.end(None) == 0
        assert told(subscriber, "result")["complete"]


def test_a_load_that_is_over_before_the_app_is_ready_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    """A load that ends before the app is ready has a complete result."""
    end = _Subscriber(Order("sub", "tcp://127.0.0.1:1", False, 30.0, alone=True), Clock())
    end.app.ready = lambda *_: _awaited(Deferred())  # type: ignore[method-assign]  # no publisher confirms it
    measuring = Deferred.fromCoroutine(end.measure())
    end._on_load(Load(_FIRST, 1, b""))
    end._on_report(Report(1, 1.0, True, 0.0, 0.0, Workload(), "here", 0.0))
    assert measuring.called
    assert json.loads(capsys.readouterr().out)["result"]["holds"]


# -- what is refused, and the parts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("tcp://127.0.0.1:1", "--pub", "tcp://127.0.0.1:1"), "can't be combined with --pub or --sub"),
        (("--sub", "tcp://127.0.0.1:1", "--rate", "5"), "are options of the publisher"),
        (("connect:tcp://127.0.0.1:1",), "--pub and --sub"),
        (("inproc://a",), "inside one process"),
        (("--for", "0"), "no time"),
        (("--rate", "0"), "--rate"),
        (("--size", "1000000"), "add --rate"),
        (("--size", "10"), "--size"),
        (("--rate", "inf"), "--rate"),
        (("--rate", "nan"), "--rate"),
    ],
)
def test_what_can_not_be_measured_is_a_usage_error(arguments: tuple[str, ...], text: str) -> None:
    """A usage error says what to write instead."""
    done = zroute("bench", *arguments)
    assert (done.returncode, text in done.stderr) == (2, True), done.stderr


def test_a_sum_that_does_not_hold_is_shouted_and_is_exit_code_1() -> None:
    """If a message is neither received nor counted as lost, the result says so, with exit code 1."""
    workload = {"rate": None, "size": 128, "count": None, "seconds": 1.0}
    publisher = {"sent": 9, "seconds": 1.0, "cpu": 1.0, "workload": workload, "host": "a", "behind": 0.0}
    result: dict[str, Any] = {
        "publisher": publisher,
        "sent": 9,
        "received": 7,
        "lost": 1,
        "before_join": 0,
        "host": "b",
    }
    result |= {"holds": False, "complete": True, "interrupted": False, "seconds": 1.0, "cpu": 1.0, "early": 3}
    result |= {"latency_us": {"p50": 1.5, "max": 2_500_000.0}}
    table = _table(result)
    assert "does NOT hold: 9 is not 7 + 1 = 8" in table
    assert _verdict(result) == 1
    assert _verdict(result | {"holds": True}) == 0
    assert _verdict(result | {"holds": True, "complete": False}) == 1
    assert "The latency compares the clocks of two hosts: a and b." in table
    assert "3 messages seem to have arrived before they were sent" in table
    assert "2.5 s" in table


def test_percentiles_are_those_of_a_sorted_list() -> None:
    """Percentiles are within 1.1 % of the exact ones."""
    random.seed(6)
    values = [int(random.lognormvariate(12, 3)) + 1 for _ in range(20_000)]
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    values.sort()
    for part in (0.0, 0.001, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = values[max(int(part * len(values)) - 1, 0)]
        assert latencies.at(part) == pytest.approx(exact, rel=0.012), part
    assert latencies.told()["max"] == round(values[-1] / 1000, 1)
    latencies.add(-5)
    assert (latencies.early, latencies.at(0.0), len(latencies)) == (1, 0.0, 20_001)
    assert Latencies().at(0.5) == 0.0


@pytest.mark.parametrize("size", [64, 128, 296, 297, 298, 1000, 65_536, 1_000_000])
def test_a_body_has_the_size_that_was_asked_for(size: int) -> None:
    """A body has the requested size, or one byte less where msgpack's length field grows."""
    fill, actual = padding(App(), size)
    assert size - 2 <= actual <= size
    assert len(fill) < size

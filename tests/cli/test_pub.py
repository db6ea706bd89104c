"""`zroute pub`, with subscribers in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from tests.commands import zroute
from tests.interpreters import run
from tests.support import PATIENCE, ROOT, Child, free_endpoint, spans
from zroute.messages.wire import Envelope, parse


def listener(endpoint: str, prefix: str = "", pause: int = 0, heartbeat: int = 0) -> Child:
    """Start a subscriber that prints the messages it receives, and wait until it has subscribed."""
    child = Child("-m", "tests.cli.listener", endpoint, prefix, str(pause), str(heartbeat))
    child.line_with("ready")
    return child


def received(child: Child, number: int) -> list[tuple[bytes, ...]]:
    """Wait for this number of messages, and return their frames."""
    lines = child.wait_for(lambda seen: len(seen) > number)  # the first line is "ready"
    return [tuple(bytes.fromhex(part) for part in line.split(" ")[1:]) for line in lines[1:]]


def piped(given: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end, with ``given`` as its standard input."""
    return run("-m", "zroute", *arguments, given=given, text=False)


def drained(reader: zmq.Socket[bytes], pub: Child) -> int:
    """Read until the publisher has ended, and return the number of messages."""
    number = 0
    while pub.process.poll() is None:
        while reader.poll(50):
            reader.recv()
            number += 1
    return number


def envelope(frames: tuple[bytes, ...]) -> Envelope:
    """Return the message as a zroute subscriber decodes it."""
    return parse(frames, 0.0)


def test_a_json_message_arrives_with_its_headers() -> None:
    """A message from the shell has codec, time and headers, like that of an app."""
    endpoint = free_endpoint()
    with listener(endpoint, "news.") as child:
        done = zroute("pub", endpoint, "news.a", '{"price": 1.5}', "-H", "trace=x=1", "-H", "who=me")
        (frames,) = received(child, 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "zroute: sent 1 message\n" in done.stderr
    got = envelope(frames)
    assert (got.topic, json.loads(got.body), got.codec) == ("news.a", {"price": 1.5}, 2)
    assert got.headers == {"trace": "x=1", "who": "me"}
    assert abs((got.sent_at or 0) - time.time()) < 60


def test_a_topic_with_slashes_is_checked_by_them() -> None:
    """With --separator / a topic may begin with a slash, have a dot anywhere, and has no empty level."""
    endpoint = free_endpoint()
    with listener(endpoint, "/a/") as child:
        done = zroute("pub", endpoint, "/a/.b.", "1", "--separator", "/")
        (frames,) = received(child, 1)
    assert (done.returncode, envelope(frames).topic) == (0, "/a/.b.")
    done = zroute("pub", endpoint, "/a//b", "1", "--separator", "/")
    assert done.returncode == 2
    assert "two slashes in a row" in done.stderr


READER = """
import sys
from zroute import App

app = App(sub=sys.argv[1], name=sys.argv[2])

@app.subscribe(sys.argv[2] + ".>")
def handle(body):
    print(body, flush=True)

app.run()
"""


def test_the_summary_of_a_reader_counts_exactly() -> None:
    """An app joins `zroute pub`, counts 0 lost messages, and receives a goodbye."""
    endpoint = free_endpoint()
    with Child("-c", READER, endpoint, "news") as reader, Child("-c", READER, endpoint, "other") as other:
        for child in (reader, other):
            child.line_with("connects to", stream="err")
        assert zroute("pub", endpoint, "news.a", "1", "--count", "300").returncode == 0
        assert zroute("pub", endpoint, "news.b", "2", "--every", "1ms", "--count", "20").returncode == 0
        reader.wait_for(lambda lines: len(lines) == 320)
        attempts = 0
        for wait in spans(3):  # each reader reconnects when its pause is over
            attempts += 1
            unreached = zroute("pub", endpoint, "unheard.a", "1", "--wait", f"{wait:g}s")
            assert unreached.returncode == 124
            live = unreached.stderr.partition("active subscriptions: ")[2].strip().split(", ")
            if "'news.'" in live:
                break
        assert {"'news.'"} <= {*live} <= {"'news.'", "'other.'"}, unreached.stderr
        assert (reader.end(), other.end()) == (0, 0)
    assert reader.err[-1].endswith("received 320, handled 320, failed 0, unrouted 0, malformed 0, lost 0")
    assert other.err[-1].endswith("received 0, handled 0, failed 0, unrouted 0, malformed 0, lost 0")
    ended = [
        line for line in reader.err if "has ended, all its messages since the join were received or counted" in line
    ]
    assert 3 <= len(ended) <= 2 + attempts


@pytest.mark.parametrize("wire", ["tracked", "plain", "multipart"])
@pytest.mark.parametrize(
    ("codec", "given", "body"),
    [
        ("json", '{"a": [1, "ä"]}', '{"a":[1,"ä"]}'.encode()),
        ("msgpack", '{"a": [1, null]}', msgpack.packb({"a": [1, None]})),
        ("text", "hällo {", "hällo {".encode()),
        ("raw", "hello", b"hello"),
    ],
)
def test_every_codec_on_every_wire(wire: str, codec: str, given: str, body: bytes) -> None:
    """JSON text is encoded by the codec, text and raw are unchanged, in the frames of each wire."""
    endpoint = free_endpoint()
    with listener(endpoint) as child:
        done = zroute("pub", endpoint, "a", given, "--wire", wire, "--codec", codec)
        (frames,) = received(child, 1)
    assert done.returncode == 0, done.stderr
    assert envelope(frames).body == body
    assert envelope(frames).tracked == (wire == "tracked")
    assert wire == "tracked" or frames == {"plain": (b"a\0" + body,), "multipart": (b"a", body)}[wire]


def test_bytes_go_through_standard_input() -> None:
    """A body of any bytes can be piped, and arrives unchanged."""
    endpoint, given = free_endpoint(), bytes(range(256)) * 1000
    for last in ((), ("-",)):
        with listener(endpoint) as child:
            done = piped(given, "pub", endpoint, "a", *last, "--codec", "raw")
            (frames,) = received(child, 1)
        assert done.returncode == 0, done.stderr
        assert envelope(frames).body == given


def test_each_line_is_a_message() -> None:
    """--lines sends one message per line, in order, also if the last newline is missing."""
    endpoint = free_endpoint()
    with listener(endpoint) as child:
        given = "\n".join(json.dumps({"n": number}) for number in range(3000)).encode()
        done = piped(given, "pub", endpoint, "a", "--lines")
        got = [envelope(frames) for frames in received(child, 3000)]
    assert (done.returncode, b"sent 3000 messages" in done.stderr) == (0, True), done.stderr
    assert [json.loads(item.body)["n"] for item in got] == list(range(3000))


def test_lines_are_sent_as_they_come_and_a_signal_ends_that() -> None:
    """--lines sends each line when it arrives; Ctrl-C ends the command with 0."""
    endpoint = free_endpoint()
    with listener(endpoint) as child, Child("-m", "zroute", "pub", endpoint, "a", "--lines") as pub:
        for number in range(1, 4):
            pub.write(f"{number}\n")
            assert envelope(received(child, number)[-1]).body == str(number).encode()
        assert pub.end(signal.SIGINT) == 0
        assert "zroute: sent 3 messages" in pub.err


def test_a_line_that_is_no_json_is_told_by_its_number() -> None:
    """Lines before an invalid one are sent; the error names its number, to continue there."""
    endpoint = free_endpoint()
    with listener(endpoint) as child:
        done = piped(b'1\n2\n{"a": oops}\n4\n', "pub", endpoint, "a", "--lines")
        assert len(received(child, 2)) == 2
    assert done.returncode == 2
    assert b"sent 2 messages" in done.stderr
    assert b"line 3 of standard input is not JSON: Expecting value at line 1, column 7" in done.stderr


def test_count_and_every() -> None:
    """--count 3 --every 100ms sends three messages with pauses of 0.1 s."""
    endpoint = free_endpoint()
    with listener(endpoint) as child:
        done = zroute("pub", endpoint, "a", "1", "--count", "3", "--every", "100ms")
        times = [envelope(frames).sent_at or 0 for frames in received(child, 3)]
    assert done.returncode == 0
    assert times[1] - times[0] > 0.09
    assert times[2] - times[0] > 0.19


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_every_without_count_goes_on_until_a_signal(number: signal.Signals) -> None:
    """--every without --count sends until a signal, and ends with 0 and a count."""
    endpoint = free_endpoint()
    with listener(endpoint) as child, Child("-m", "zroute", "pub", endpoint, "a", "1", "--every", "10ms") as pub:
        received(child, 5)
        assert pub.end(number) == 0
        count = int(pub.err[-1].split()[2])
        assert len(received(child, count)) == count, "what was sent has arrived"


def test_a_subscriber_that_subscribes_to_too_much_is_cut_and_the_others_are_sent_everything() -> None:
    """A subscriber with over 1 MiB of prefixes is cut and logged; the command continues."""
    endpoint = free_endpoint()
    pub = Child("-m", "zroute", "pub", endpoint, "a", "1", "--every", "10ms")
    with zmq.Context() as context, context.socket(zmq.XSUB) as flood, listener(endpoint) as child, pub:
        received(child, 1)
        flood.set(zmq.SNDHWM, 0)
        flood.set(zmq.LINGER, 0)
        flood.connect(endpoint)
        for number in range(2_500):
            flood.send(b"\1" + b"%06d" % number * 80)
        line = pub.line_with("closed the connection", stream="err")
        assert "max_subscription_bytes=1,048,576" in line
        assert "Limits" not in line
        flood.disconnect(endpoint)
        received(child, len(child.out) + 10)
        assert pub.end(signal.SIGTERM) == 0
        count = int(pub.err[-1].split()[2])
        assert len(received(child, count)) == count


def test_timeout_ends_it_as_one_signal_does() -> None:
    """The two quick signals of timeout(1) count as one: subscribers still read everything."""
    for _ in range(3):  # the signals are not quick if this program stands still between them
        endpoint = free_endpoint()
        with listener(endpoint) as child, Child("-m", "zroute", "pub", endpoint, "a", "1", "--every", "10ms") as pub:
            received(child, 2)
            for _ in range(2):  # without a poll of the process between them, which takes time on a busy machine
                os.kill(pub.process.pid, signal.SIGTERM)
            code = pub.end(None)
        if code == 0:
            break
    assert code == 0
    assert "zroute: sent " in pub.err[-1]


def test_nobody_came() -> None:
    """Without a subscriber to the topic, the command ends with 124 and shows other subscriptions."""
    endpoint = free_endpoint()
    with listener(endpoint, "other.") as child:
        child.line_with("ready")
        for wait in spans(3):
            done = zroute("pub", endpoint, "news", "1", "--wait", f"{wait:g}s")
            if "'other.'" in done.stderr:
                break
    assert done.returncode == 124
    waited = f"nothing was sent: waited {wait:g} s for a subscriber to 'news'; active subscriptions: 'other.'"
    assert waited in done.stderr
    assert "sent 1" not in done.stderr
    unreached = zroute("pub", "connect:tcp://127.0.0.1:1", "news", "1", "--wait", "50ms")
    assert (unreached.returncode, "active subscriptions: none" in unreached.stderr) == (124, True)


def test_wait_0_sends_at_once_and_says_that_nobody_heard_it() -> None:
    """--wait 0 sends without a subscriber, and the last line counts that message."""
    done = zroute("pub", free_endpoint(), "news", "1", "--wait", "0")
    assert done.returncode == 0
    assert "sent 1 message, 1 of them to topics without a subscriber" in done.stderr


def test_it_connects_to_a_subscriber_that_binds() -> None:
    """With connect:, the command connects to a subscriber that binds."""
    endpoint = free_endpoint()
    with listener(f"bind:{endpoint}") as child:
        done = zroute("pub", f"connect:{endpoint}", "a", "1")
        assert envelope(received(child, 1)[0]).body == b"1"
    assert done.returncode == 0


def test_another_kind_of_socket_is_named_in_the_words_of_the_command() -> None:
    """A warning about the socket at the other end names the command and its argument."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as wrong:
        wrong.bind("tcp://127.0.0.1:*")
        endpoint = wrong.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        with Child("-m", "zroute", "pub", f"connect:{endpoint}", "a", "1", "--wait", "60s") as child:
            line = child.line_with("socket has an incompatible type", stream="err")
            assert f"zroute pub: {endpoint}: " in line
            assert line.endswith("XPUB expects SUB or XSUB; check ENDPOINT")


def test_a_slow_subscriber_reads_all_before_the_end() -> None:
    """The command waits at its end for a slow subscriber that sends frequent PINGs.

    After a PING to a closed connection, the system would reset it and discard the messages in transit.
    """
    endpoint = free_endpoint()
    with listener(endpoint, "", 4, heartbeat=100) as child:
        given = b"\n".join(b"%d" % number for number in range(20_000)) + b"\n"
        done = piped(given, "pub", endpoint, "a", "--lines", "--codec", "text")
        assert done.returncode == 0, done.stderr
        end = zroute("pub", endpoint, "end", "1")
        assert end.returncode == 0, end.stderr
        child.end(None)
        assert len(child.out) == 1 + 20_000 + 1


@pytest.mark.parametrize("binds", [False, True], ids=["it connects", "it binds"])
@pytest.mark.parametrize("messages", [600, 20_000], ids=["at the end", "in the middle"])
def test_a_subscriber_whose_heartbeat_cuts_the_connection_has_lost_messages(messages: int, binds: bool) -> None:
    """A subscriber that its own heartbeat disconnects loses messages: a line says so, with 75."""
    endpoint = free_endpoint()
    with zmq.Context() as context, context.socket(zmq.SUB) as reader, reader.get_monitor_socket() as monitor:
        for option, value in ((zmq.HEARTBEAT_IVL, 50), (zmq.HEARTBEAT_TIMEOUT, 100), (zmq.RCVHWM, 10)):
            reader.set(option, value)
        reader.subscribe(b"")
        (reader.bind if binds else reader.connect)(endpoint)
        to, body = ("connect:" if binds else "") + endpoint, json.dumps("x" * 10_000)
        with Child("-m", "zroute", "pub", to, "a", body, "--count", str(messages)) as pub:
            assert reader.poll(PATIENCE * 1000)  # on a busy machine, a connection may be cut before the first message
            while monitor.poll(0):
                recv_monitor_message(monitor)
            while not monitor.poll(50) or recv_monitor_message(monitor)["event"] != zmq.Event.DISCONNECTED:
                reader.get(zmq.EVENTS)  # libzmq sends subscriptions during our calls
            got = drained(reader, pub)
            assert got < messages
            assert pub.end(None) == 75, pub.err
            # On a busy machine, the heartbeat may cut more than one connection.
            said = r"[1-9]\d* subscribers? reset the connection before reading all messages, reconnected"
            assert re.search(said, pub.err[-1]), pub.err


def test_a_subscriber_that_ends_with_messages_unread_is_not_missed() -> None:
    """A subscriber that ends with unread messages, like `zroute tail -n 1`, is not a loss."""
    endpoint = free_endpoint()
    with zmq.Context() as context, context.socket(zmq.SUB) as reader:
        reader.set(zmq.RCVHWM, 10)
        reader.subscribe(b"")
        reader.connect(endpoint)
        with Child("-m", "zroute", "pub", endpoint, "a", json.dumps("x" * 10_000), "--count", "600") as pub:
            reader.recv()
            pub.line_with("waiting for subscribers to read the remaining messages", stream="err")
            reader.close(0)
            assert pub.end(None) == 0, pub.err
            assert pub.err[-1] == "zroute: sent 600 messages"


def test_a_second_signal_ends_at_once() -> None:
    """A second Ctrl-C ends the command with 130 while a subscriber does not read."""
    endpoint = free_endpoint()
    with (
        listener(endpoint, "", 1) as child,
        Child("-m", "zroute", "pub", endpoint, "a", json.dumps("x" * 1000), "--every", "0") as pub,
    ):
        child.wait_for(lambda seen: len(seen) > 1)
        child.process.send_signal(signal.SIGSTOP)
        pub.line_with("reads slowly or not at all", stream="err")
        pub.process.send_signal(signal.SIGINT)
        pub.line_with("waiting for subscribers to read", stream="err")
        assert pub.end(signal.SIGINT) == 130


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a", '{"a": }'), 'Expecting value at line 1, column 7\n\n  {"a": }\n        ^\n'),
        (("a", "hello"), "--codec text"),
        (("a", "[1,\n 2"), "line 2, column 3"),
        (("a", " " * 100 + "x"), "column 101"),
        (("a", "[" * 100_000), "can't be sent"),
        (("a", "123456789012345678901234567890"), "exceeds 64 bits"),
        (("a", "NaN"), "not finite"),
        (("a", '"\\ud800"'), "can't be sent"),
        (("a", "1", "-H", "x"), "'x': expected KEY=VALUE"),
        (("a", "1", "-H", "x=1", "-H", "x=2"), "given twice"),
        (("a", "1", "-H", "x=1", "--wire", "plain"), "needs the tracked wire"),
        (("a", "1", "-H", "x=" + "y" * 5000), "the headers have"),
        (("a b", "1"), "white space"),
        (("a.*", "1"), "use a topic without wildcards"),
        (("a", "1", "--lines"), "omit BODY and --count"),
        (("a", "--lines", "--count", "2"), "omit BODY and --count"),
        (("a", "1", "--every", "soon"), "not a duration"),
        (("a", "1", "--codec", "pickle"), "pickle"),
    ],
)
def test_what_can_not_be_sent_is_a_usage_error(arguments: tuple[str, ...], said: str) -> None:
    """An invalid message is a usage error, before the command waits for a subscriber."""
    done = zroute("pub", free_endpoint(), *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_standard_input_that_can_not_be_sent() -> None:
    """Standard input that is not text, looks tracked or is too large is a usage error."""
    endpoint = free_endpoint()
    for given, arguments, said in (
        (b"ab\xff", ("--codec", "text"), b"(invalid byte at position 2): send bytes with --codec raw"),
        (b"\xc1ZR", ("--codec", "raw", "--wire", "plain"), b"wire='tracked'"),
        (
            bytes(1024 * 1024 + 1),
            ("--codec", "raw"),
            b"is encoded to 1048577 bytes, but apps accept at most 1048576",
        ),
        (bytes(17 * 1024 * 1024), ("--codec", "raw"), b"more than 16777216 bytes"),
    ):
        done = piped(given, "pub", endpoint, "a", *arguments)
        assert done.returncode == 2
        assert said in done.stderr


def test_an_endpoint_in_use_is_5() -> None:
    """A port in use gives one line and exit 5."""
    endpoint = free_endpoint()
    with Child("-m", "zroute", "pub", endpoint, "a", "1", "--wait", "1h") as other:
        other.line_with("bound to", stream="err")
        done = zroute("pub", endpoint, "a", "1")
        assert (done.returncode, done.stderr.count("\n")) == (5, 1)
        assert "this address is in use" in done.stderr
        assert other.end(signal.SIGTERM) == 0


def test_a_port_of_the_systems_choice_and_an_open_one_are_told() -> None:
    """The command prints its address, and refuses one that is open to the network, or warns with --insecure."""
    assert zroute("pub", "tcp://*:*", "a", "1", "--wait", "10ms").returncode == 5
    done = zroute("pub", "tcp://*:*", "a", "1", "--wait", "10ms", "--insecure")
    assert "is reachable from the network, without authentication" in done.stderr
    assert "bound to tcp://0.0.0.0:" in done.stderr


def test_help_loads_neither_zeromq_nor_twisted(tmp_path: Path) -> None:
    """The help of commands that send imports none of the large modules."""
    for name in ("pub", "request", "replay"):
        program = (
            "import sys\nfrom zroute.cli import main\n"
            f"try:\n    main(['{name}', '--help'])\nexcept SystemExit:\n    pass\n"
            "print('heavy:', sorted({'zmq', 'twisted', 'rich'} & {name.partition('.')[0] for name in sys.modules}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr

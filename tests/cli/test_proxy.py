"""`zroute proxy`, with publishers and subscribers in processes of their own."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import zmq

from tests.commands import zroute
from tests.support import Child, free_endpoint, free_port


def forwarding(*arguments: str) -> Child:
    """Start `zroute proxy`, and wait until it forwards."""
    child = Child("-m", "zroute", "proxy", *arguments)
    child.line_with("for subscribers", stream="err")
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_message_passes_and_the_last_line_counts_it(number: signal.Signals) -> None:
    """A message of `zroute pub` reaches `zroute tail`; a signal ends the proxy with 0 and its counters."""
    front, back = free_endpoint(), free_endpoint()
    with forwarding(front, back) as proxy, Child("-m", "zroute", "tail", back, "-n", "3") as tail:
        done = zroute("pub", f"connect:{front}", "news.a", "1", "--count", "3")
        assert done.returncode == 0, done.stderr
        assert tail.end(None) == 0
        assert [line.split(maxsplit=1)[1] for line in tail.out] == ["news.a 1"] * 3
        assert "shown 3" in tail.err[-1]
        assert proxy.end(number) == 0, proxy.err
        opened = [line.split("zroute proxy: ")[1] for line in proxy.err[:2]]
        assert opened == [f"for publishers, bound to {front}", f"for subscribers, bound to {back}"]
        last = proxy.err[-1].split("zroute proxy: ")[1]
        counted = dict(part.rsplit(" ", 1) for part in last.split(", "))
        assert list(counted) == ["frames", "bytes", "subscriptions"]
        assert int(counted["frames"]) >= 3
        assert int(counted["bytes"]) > 30
        assert int(counted["subscriptions"]) >= 2


def test_two_proxies_in_a_row() -> None:
    """A proxy whose FRONT begins with connect: forwards what another one sends, and logs its connection."""
    front, between, back = free_endpoint(), free_endpoint(), free_endpoint()
    with (
        forwarding(front, between) as first,
        forwarding(f"connect:{between}", back) as second,
        Child("-m", "zroute", "tail", back, "-n", "1") as tail,
    ):
        second.line_with(f"zroute proxy: connected to {between}", stream="err")
        assert zroute("pub", f"connect:{front}", "news.a", "1").returncode == 0
        assert tail.end(None) == 0
        assert second.end() == 0
        assert first.end() == 0


def test_an_endpoint_that_cannot_be_opened_is_5() -> None:
    """An address in use, and one inside another process, end the command with 5 and the reason."""
    with zmq.Context() as context, context.socket(zmq.PUB) as taken:
        taken.bind("tcp://127.0.0.1:*")
        address = taken.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        for arguments in ((address, free_endpoint()), (free_endpoint(), address)):
            done = zroute("proxy", *arguments)
            assert (done.returncode, done.stdout) == (5, "")
            assert f"can't bind {address}: this address is in use" in done.stderr
    done = zroute("proxy", "inproc://a", free_endpoint())
    assert done.returncode == 5
    assert "inproc://a can only be reached inside its own process" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("tcp://127.0.0.1:5559",), "Missing argument 'BACK'"),
        (("tcp://127.0.0.1:5559", "nonsense"), "has no transport"),
        (("tcp://127.0.0.1:5559", "tcp://127.0.0.1:5559"), "FRONT and BACK are both tcp://127.0.0.1:5559"),
        (("tcp://127.0.0.1:5559", "tcp://127.0.0.1:5560", "--send-queue", "0"), "--send-queue"),
        (("tcp://127.0.0.1:5559", "tcp://127.0.0.1:5560", "--ipc-mode", "888"), "expected three octal digits"),
        (("tcp://127.0.0.1:5559", "tcp://127.0.0.1:5560", "--ipc-mode", "7777"), "expected three octal digits"),
    ],
)
def test_a_usage_error_says_what_is_wrong(arguments: tuple[str, ...], reason: str) -> None:
    """Wrong arguments are a usage error."""
    done = zroute("proxy", *arguments)
    assert done.returncode == 2
    assert reason in done.stderr


@pytest.mark.parametrize(("arguments", "mode"), [((), 0o600), (("--ipc-mode", "660"), 0o660)])
def test_ipc_paths_have_the_mode_of_the_option(tmp_path: Path, arguments: tuple[str, ...], mode: int) -> None:
    """Both ends have the mode from the command line, or 0600."""
    paths = tmp_path / "front", tmp_path / "back"
    with forwarding(*(f"ipc://{path}" for path in paths), *arguments):
        assert [path.stat().st_mode & 0o777 for path in paths] == [mode, mode]


def test_an_address_open_to_the_network_is_a_warning_and_json_has_the_counters() -> None:
    """An address that other hosts reach is warned about; in JSON the counters are fields of the last line."""
    with forwarding(f"tcp://0.0.0.0:{free_port()}", free_endpoint(), "--insecure", "--log-format", "json") as proxy:
        assert proxy.end() == 0
    lines = [json.loads(line) for line in proxy.err]
    (warning,) = (line["message"] for line in lines if line["level"] == "warning")
    assert warning.endswith("is reachable from the network, without authentication")
    assert {name: lines[-1][name] for name in ("frames", "bytes", "subscriptions")} == {
        "frames": 0,
        "bytes": 0,
        "subscriptions": 0,
    }


def test_a_second_signal_ends_at_once() -> None:
    """While a stopped subscriber reads nothing, the first signal waits for it, and a second one ends with 128 + n."""
    for _ in range(3):  # if this program stands still, the proxy may not wait long enough
        if (code := _ended_by_a_second_signal()) == 130:
            break
    assert code == 130


def _ended_by_a_second_signal() -> int:
    """Return the exit code of a proxy that gets a second signal while it waits for a subscriber."""
    front, back = free_endpoint(), free_endpoint()
    with forwarding(front, back, "--log-level", "debug") as proxy, zmq.Context() as context:
        subscriber, publisher = context.socket(zmq.SUB), context.socket(zmq.XPUB)
        subscriber.set(zmq.RCVHWM, 1)
        subscriber.set(zmq.RCVBUF, 4096)
        subscriber.set(zmq.LINGER, 0)
        publisher.set(zmq.LINGER, 0)
        publisher.set(zmq.SNDHWM, 0)
        subscriber.connect(back)
        subscriber.subscribe(b"")
        publisher.connect(front)
        assert publisher.recv() == b"\1"
        for _ in range(2000):
            publisher.send(bytes(10_000))
        publisher.send(b"last")
        proxy.process.send_signal(signal.SIGTERM)
        proxy.line_with("zroute proxy: frames", stream="err")
        while proxy.process.poll() is None:  # signals of the first 0.2 s count as one
            proxy.process.send_signal(signal.SIGINT)
            publisher.poll(10)
        subscriber.close()
        publisher.close()
        return int(proxy.process.returncode)


def test_a_publisher_of_too_large_messages_is_cut_and_connected_again() -> None:
    """A publisher with a frame over --max-message is cut and named; one below it passes."""
    front, back = free_endpoint(), free_endpoint()
    with (
        zmq.Context() as context,
        context.socket(zmq.XPUB) as publisher,
        forwarding(f"connect:{front}", back, "--max-message", "200000") as proxy,
        Child("-m", "zroute", "tail", back, "--topics-only", "-n", "2") as tail,
    ):
        publisher.set(zmq.LINGER, 0)
        publisher.bind(front)
        while publisher.recv() != b"\1":
            pass
        publisher.send(b"small\0" + bytes(150_000))
        tail.line_with("small")
        publisher.send(b"large\0" + bytes(300_000))
        proxy.line_with("connection closed: the peer sent a frame", stream="err")
        proxy.line_with("increase --max-message 200000 here, or send smaller messages from the peer", stream="err")
        while tail.process.poll() is None:  # until the proxy has connected and subscribed again
            publisher.send(b"again\0")
            publisher.poll(10)
        assert tail.end(None) == 0
        assert tail.out == ["small", "again"]
        assert proxy.end() == 0


def test_the_message_is_the_same_behind_the_proxy() -> None:
    """A message of several parts passes unchanged."""
    front, back = free_endpoint(), free_endpoint()
    with forwarding(front, back), zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        subscriber = context.socket(zmq.SUB)
        publisher.connect(front)
        subscriber.connect(back)
        subscriber.subscribe(b"a")
        assert publisher.recv() == b"\1a"
        publisher.send_multipart([b"a", b"", b"\0\xff"])
        assert subscriber.recv_multipart() == [b"a", b"", b"\0\xff"]
        subscriber.close()

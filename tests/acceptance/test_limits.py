"""The limits of an app hold for every message from its sockets."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import pytest_twisted
import zmq

from tests.running import Mailbox, running, subscribed
from tests.support import Child, free_endpoint
from zroute import App, Limits


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("wire", "coalesce"), [("tracked", False), ("tracked", True), ("plain", False), ("multipart", False)]
)
async def test_max_message_holds_below_8_kib(wire: Any, coalesce: bool, caplog: pytest.LogCaptureFixture) -> None:
    """With max_message=500 every larger body is malformed, on each wire and for each message of a topic."""
    caplog.set_level(logging.WARNING, "zroute")
    endpoint, box = free_endpoint(), Mailbox[int]()
    writer = App(pub=endpoint, wire=wire, name="writer", coalesce=coalesce)
    reader = App(sub=endpoint, name="reader", limits=Limits(max_message=500))
    x = writer.publisher("x", bytes)

    @reader.subscribe("x")
    def handle(body: bytes) -> None:
        box.put(len(body))

    async with running(writer) as service, running(reader):
        await subscribed(service, b"x")
        for _ in range(10):
            for size in (500, 501, 600, 4000, 9000):
                x.publish(bytes(size))
        x.publish(b"the end")
        assert await box.until(11) == [500] * 10 + [7]
        assert reader.stats.malformed == 40
    assert "a body of 501 bytes; expected at most max_message=500" in caplog.text


OPTIONS: Any = {
    "tcp_keepalive_idle": 22,
    "tcp_keepalive_intvl": 23,
    "ipv6": 1,
    "sndbuf": 24_000,
    "rcvbuf": 25_000,
    "handshake_ivl": 2600,
    "reconnect_ivl": 270,
}


@pytest_twisted.ensureDeferred
async def test_queues_and_options_reach_both_sockets_and_messages_pass() -> None:
    """`limits` and `options` set libzmq's options of the sockets of an app, which still counts exactly."""
    box = Mailbox[int]()
    limits = Limits(max_message=100_000, send_queue=7, receive_queue=3)
    endpoint = free_endpoint()
    app = App(sub=endpoint, pub=endpoint, limits=limits, options=OPTIONS)

    @app.subscribe("x")
    def handle(number: int) -> None:
        box.put(number)

    async with running(app) as service:
        sub, pub = service.transport.sub, service.transport.pub
        for name, value in OPTIONS.items():
            option = getattr(zmq.SocketOption, name.upper())
            assert (sub._socket.get(option), pub._socket.get(option)) == (value, value)
        assert (sub._socket.get(zmq.RCVHWM), pub._socket.get(zmq.SNDHWM)) == (3, 7)
        assert (sub._socket.get(zmq.SNDHWM), pub._socket.get(zmq.RCVHWM)) == (0, 1)
        assert sub._socket.get(zmq.MAXMSGSIZE) > 100_000
        await app.ready()
        for number in range(3):
            app.publish("x", number)
        assert await box.until(3) == [0, 1, 2]
    assert app.stats.lost == 0


SLOW = """
import resource, sys, time
from zroute import App, Limits

limits = Limits(max_message=1_000_000, send_queue=2, receive_queue=2)
def rss():
    with open("/proc/self/statm") as statm:
        return int(int(statm.read().split()[1]) * resource.getpagesize() / 1e6)
"""

VIEWER = (
    SLOW
    + """
app = App(sub=sys.argv[1], limits=limits)
before = rss()

@app.subscribe("cam.front")
def draw(picture: bytes) -> None:
    print("rss", len(picture), rss() - before, app.stats.lost, flush=True)
    sys.stdin.readline()  # draws until the test has seen the publisher go on

app.run()
"""
)

CAMERA = (
    SLOW
    + """
app = App(pub=sys.argv[1], limits=limits)
pictures = app.publisher("cam.front", bytes)
before, number = rss(), 0

@app.every(0.005)
def shoot() -> None:
    global number
    number += 1
    pictures.publish(bytes(900_000))
    if number % 100 == 0:
        print("rss", number, rss() - before, flush=True)

app.run()
"""
)


def test_a_slow_viewer_of_pictures_does_not_fill_memory() -> None:
    """A viewer draws one picture while 400 MB of them are published: neither process grows by more than 60 MB."""
    endpoint = free_endpoint()
    with Child("-c", VIEWER, endpoint) as viewer, Child("-c", CAMERA, endpoint) as camera:
        assert viewer.line_with("rss").split()[1] == "900000"
        begun = int(camera.line_with("rss").split()[1])
        growth = int(camera.line_with(f"rss {begun + 400} ").split()[2])
        viewer.write("\n")
        second = viewer.wait_for(lambda lines: len(lines) > 1)[1]
        assert growth < 60
        assert int(second.split()[2]) < 60

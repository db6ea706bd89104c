"""A test keeps the port that it chooses, so that no other test takes it, and Ctrl+C ends programs of each run."""

from __future__ import annotations

import signal
import socket
import sys

import pytest
import zmq

from tests.support import Child, free_port, heed_interrupts


def bind(port: int) -> None:
    """Bind a socket as a program that shares its port with no other."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems would refuse the port to the program itself")
def test_a_free_port_is_kept_for_the_programs_of_its_test() -> None:
    """A program binds the port twice; the system gives it to no other socket, and refuses connections meanwhile."""
    port = free_port()
    for _ in range(2):
        with pytest.raises(OSError, match="in use"):
            bind(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with zmq.Context() as context, context.socket(zmq.PUB) as first, context.socket(zmq.PUB) as second:
            first.bind(f"tcp://127.0.0.1:{port}")
            with pytest.raises(zmq.ZMQError, match="in use"):
                second.bind(f"tcp://127.0.0.1:{port}")
            socket.create_connection(("127.0.0.1", port)).close()


def test_programs_of_a_run_in_the_background_end_on_ctrl_c() -> None:
    """A shell ignores SIGINT in such a run, and programs would inherit that."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        heed_interrupts()
        with Child("-c", "import signal; print(signal.getsignal(2) is signal.SIG_IGN)", fresh=True) as child:
            assert child.end(None) == 0
            assert child.out == ["False"]
    finally:
        signal.signal(signal.SIGINT, before)

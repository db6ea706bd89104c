"""The mode of a bound ipc socket: its owner only, or as ``ipc_mode`` says, whatever the umask is."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
import zmq

from tests.interpreters import UNMEASURED
from tests.running import reactor, running
from tests.sockets.life import KINDS
from tests.sockets.opened import Sockets, bound
from tests.support import PATIENCE, Child
from zroute import App
from zroute.endpoints import Endpoint, parse_endpoint
from zroute.errors import EndpointError
from zroute.options import MAX_MESSAGE, SENT_MAX
from zroute.sockets import ipc
from zroute.sockets.lossless import LosslessPubConnection, _returned
from zroute.sockets.proxy import Proxy
from zroute.txzmq import ZmqEndpoint, ZmqFactory, ZmqPubConnection

STRANGER = 65534


@pytest.fixture(params=[0o000, 0o022, 0o277], ids=["umask 000", "umask 022", "umask 277"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """A umask of the process, which no bind may change."""
    before = os.umask(request.param)
    try:
        yield request.param
        assert os.umask(before) == request.param
    finally:
        os.umask(before)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may search."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))  # the folders above ``tmp_path`` are private
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def mode(path: Path | str) -> int:
    """Return the permissions of the socket at ``path``."""
    found = os.lstat(path).st_mode
    assert stat.S_ISSOCK(found)
    return stat.S_IMODE(found)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_connection_binds_for_its_owner(
    sockets: Sockets, tmp_path: Path, umask: int, kind: str
) -> None:
    """The socket file has the mode 0600, or exactly that of the option, wider or narrower than the umask."""
    sockets.make(KINDS[kind]).open(f"bind:ipc://{tmp_path}/default")
    assert mode(tmp_path / "default") == 0o600
    for wanted in (0o660, 0o666, 0o200, 0o777):
        path = tmp_path / oct(wanted)
        sockets.make(KINDS[kind], ipc_mode=wanted).open(f"bind:ipc://{path}")
        assert mode(path) == wanted


@pytest_twisted.ensureDeferred
async def test_each_bind_of_a_connection_has_the_mode(sockets: Sockets, tmp_path: Path) -> None:
    """A second bind, a replaced socket and a bind after an unbind have the mode too."""
    push = sockets.make(KINDS["PUSH"], ipc_mode=0o640)
    for path in (tmp_path / "a", tmp_path / "b"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        push.open(f"ipc://{path}")
        assert mode(path) == 0o640
    push.unbind(f"ipc://{tmp_path}/a")
    push.open(f"ipc://{tmp_path}/a")
    assert mode(tmp_path / "a") == 0o640


@pytest_twisted.ensureDeferred
async def test_a_wildcard_has_a_private_folder_and_the_mode(sockets: Sockets, umask: int) -> None:
    """libzmq's folder for ``ipc://*`` can be entered by its owner only, and the socket has the mode."""
    path = Path(bound(sockets.pub(), "ipc://*").removeprefix("ipc://"))
    assert mode(path) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


class Creating:
    """A stand-in for a socket, which records the mode of its file between the bind and the call of chmod."""

    def __init__(self) -> None:
        self.created: list[int] = []

    def bind(self, address: str) -> None:
        """Create a socket file, as libzmq does."""
        self.path = address.removeprefix("ipc://")
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(self.path)
        self.created.append(mode(self.path))

    def get(self, option: int) -> bytes:
        """Return the address."""
        assert option == zmq.SocketOption.LAST_ENDPOINT
        return f"ipc://{self.path}\0".encode()


@pytest.mark.parametrize("wanted", [0o600, 0o660, 0o666, 0o000])
def test_a_socket_is_never_open_to_more_users_than_its_mode_says(tmp_path: Path, umask: int, wanted: int) -> None:
    """From its creation on, the file gives no rights to others that its mode does not give."""
    made = Creating()
    ipc.bind(cast("Any", made), f"ipc://{tmp_path}/s", wanted)
    assert [created & 0o077 for created in made.created] == [0]
    assert mode(tmp_path / "s") == wanted


def test_binds_of_two_threads_leave_the_umask_as_it_was(tmp_path: Path, umask: int) -> None:
    """A bind of another thread waits until the first one has restored the umask."""
    both, ended = threading.Event(), threading.Event()

    class Second(Creating):
        """Binds during the first bind, if nothing prevents it, and ends after it."""

        def bind(self, address: str) -> None:
            super().bind(address)
            both.set()
            assert ended.wait(PATIENCE)

    def bind_second() -> None:
        ipc.bind(cast("Any", Second()), f"ipc://{tmp_path}/second/s")

    other = threading.Thread(target=bind_second)

    class First(Creating):
        """Gives the second bind time to begin; with the lock, it can't."""

        def bind(self, address: str) -> None:
            super().bind(address)
            other.start()
            both.wait(0.2)

    (tmp_path / "second").mkdir(mode=0o700)
    (tmp_path / "second").chmod(0o700)
    ipc.bind(cast("Any", First()), f"ipc://{tmp_path}/s")
    ended.set()
    other.join()
    assert os.umask(umask) == umask


@pytest_twisted.ensureDeferred
async def test_a_socket_that_can_not_get_its_mode_is_not_bound(
    sockets: Sockets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system refuses the mode, opening fails with the reason, and no program can connect."""

    def refuse(path: str, mode: int) -> None:
        raise OSError(errno.EPERM, "no")

    with monkeypatch.context() as patch:
        patch.setattr(ipc.os, "chmod", refuse)
        publisher = sockets.pub()
        with pytest.raises(EndpointError, match=rf"can't bind ipc://{tmp_path}/s: .*Operation not permitted"):
            publisher.open(parse_endpoint(f"ipc://{tmp_path}/s", bind=True))
    assert publisher.endpoints == []
    publisher.open(parse_endpoint(f"ipc://{tmp_path}/s", bind=True))  # the name is free again


def sides(folder: Path) -> dict[str, Any]:
    """Return the endpoints of an app that binds a path for each side."""
    return {name: f"bind:ipc://{folder}/{name}" for name in ("sub", "pub", "rep", "req", "jobs", "work")}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("wanted", [None, 0o660])
async def test_all_sockets_of_an_app_have_its_mode(tmp_path: Path, umask: int, wanted: int | None) -> None:
    """The paths of all sides, and an endpoint that is added later, have the mode of the app."""
    app = App(**sides(tmp_path), **({} if wanted is None else {"options": {"ipc_mode": wanted}}))
    app.subscribe("a")(lambda body: None)
    app.reply("b")(lambda body: None)
    app.work("c")(lambda body: None)
    app.publisher("d", int)
    app.requester("e", int, int)
    app.job_queue("f", int)
    async with running(app):
        app.add_endpoints(sub=f"bind:ipc://{tmp_path}/later")
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["jobs", "later", "pub", "rep", "req", "sub", "work"]
        assert {mode(tmp_path / name) for name in names} == {wanted or 0o600}


@pytest_twisted.ensureDeferred
async def test_the_sockets_of_tools_are_for_their_owner(tmp_path: Path) -> None:
    """A proxy and a lossless publisher bind with the mode 0600, and txZMQ's connections with that of the umask."""
    umask = os.umask(0o027)
    proxy = Proxy(reactor, "proxy", print, max_message=MAX_MESSAGE, send_queue=SENT_MAX)
    front, back = Endpoint(f"ipc://{tmp_path}/front", bind=True), Endpoint(f"ipc://{tmp_path}/back", bind=True)
    proxy.open(front, back)
    lossless = LosslessPubConnection(reactor)
    lossless.open(f"bind:ipc://{tmp_path}/lossless")
    factory = ZmqFactory()
    ZmqPubConnection(factory, ZmqEndpoint("bind", f"ipc://{tmp_path}/txzmq"))
    os.umask(umask)
    try:
        found = {path.name: mode(path) for path in tmp_path.iterdir()}
    finally:
        factory.shutdown()
        await proxy.close()
        await lossless.finish(0)
    assert found == {**dict.fromkeys(("front", "back", "lossless"), 0o600), "txzmq": 0o750}


def test_a_lossless_publisher_that_listens_again_keeps_the_mode(tmp_path: Path, umask: int) -> None:
    """The socket that waits for subscribers that reconnect has the same mode."""
    assert _returned([Endpoint(f"ipc://{tmp_path}/s", bind=True)], ["host"], 0o640) == 0
    assert mode(tmp_path / "s") == 0o640


CONNECTS = """
import os, socket, sys
os.setgroups([])
os.setgid({user})
os.setuid({user})
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as made:
        print(os.path.basename(path), made.connect_ex(path), flush=True)
"""

READS = """
import os, sys
from zroute import App
app = App(name="reader")
@app.subscribe("a")
def on_a(body: int) -> None: pass
@app.on_startup
def drop_privileges():  # after the imports of a run, since the other user may be unable to read this checkout
    os.setgroups([])
    os.setgid({user})
    os.setuid({user})
    app.add_endpoints(sub="connect:" + sys.argv[1])
app.run()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest_twisted.ensureDeferred
async def test_another_user_connects_only_if_the_mode_lets_him(sockets: Sockets, public: Path) -> None:
    """A process of another user is refused by the system at 0600 and 0660, and connects at 0666."""
    modes = {"default": None, "group": 0o660, "all": 0o666}
    for name, wanted in modes.items():
        given = {} if wanted is None else {"ipc_mode": wanted}
        sockets.make(KINDS["PUSH"], **given).open(f"ipc://{public}/{name}")
    with Child("-c", CONNECTS.format(user=STRANGER), *(f"{public}/{name}" for name in modes)) as child:
        assert child.end(None) == 0, child.err
        assert child.out == [f"default {errno.EACCES}", f"group {errno.EACCES}", "all 0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest_twisted.ensureDeferred
async def test_a_user_who_may_not_connect_is_told_what_to_do(sockets: Sockets, public: Path) -> None:
    """The subscriber's log names the missing permission, and the option that gives it."""
    sockets.make(KINDS["PUB"]).open(f"ipc://{public}/feed")
    # UNMEASURED, since the other user can't write a file of results here.
    with Child("-c", READS.format(user=STRANGER), f"ipc://{public}/feed", env=UNMEASURED) as child:
        line = child.line_with("this user may not connect to the socket", stream="err")
        assert f"reader: no answer from ipc://{public}/feed for 3 s: this user may not connect to the socket" in line
        assert "it belongs to uid 0, has the mode 0600, and this process runs as uid 65534. Run both" in line
        assert "set options={'ipc_mode': 0o660} in the app that binds it" in line
        assert "WARNING" in line


def test_a_path_without_a_socket_has_its_own_reason(tmp_path: Path) -> None:
    """A missing path and an abstract name are not reported as a missing permission."""
    from zroute.sockets.connection_log import _at_path

    assert _at_path(f"ipc://{tmp_path}/none") == _at_path("ipc://@none") == "no program listens at this path"

"""A signal ends every waiting command, even if another thread receives it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.cli.feeding import feed
from tests.support import PATIENCE, Child, free_endpoint

# Python runs signal handlers in the main thread. A signal that another thread receives does not wake it, and neither
# does one that arrives just before the main thread sleeps. This program causes the first case each time. The command
# line is appended.
ELSEWHERE = """
import os, signal, sys, threading

def send():
    os.read(int(os.environ["GO"]), 1)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

threading.Thread(target=send, daemon=True).start()
sys.argv[0] = "zroute"
from zroute.__main__ import main
main()
"""

APP = """
from zroute import App
app = App(pub="tcp://127.0.0.1:*")
app.publisher("a", dict)

@app.on_startup
def begin():
    print("started", flush=True)
"""

COMMANDS = {
    "run": ("run", "quiet"),
    "run --reload": ("run", "quiet", "--reload"),
    "tail": ("tail", "{publisher}"),
    "top": ("top", "{publisher}", "--json"),
    "record": ("record", "{publisher}", "{folder}/recording"),
    "pub": ("pub", "{free}", "a", "1", "--wait", "600"),
    "request": ("request", "bind:{free}", "a", "--timeout", "600"),
    "bench": ("bench", "--pub", "{free}", "--wait", "600"),
}


def falls_asleep(process: int) -> None:
    """Wait until the main thread sleeps and uses no CPU time."""
    deadline, before, same = time.monotonic() + PATIENCE, "", 0
    while same < 5:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        fields = Path(f"/proc/{process}/task/{process}/stat").read_text().rpartition(")")[2].split()
        now = " ".join((fields[0], fields[11], fields[12]))
        before, same = now, same + 1 if now == before and fields[0] == "S" else 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_wakes_a_main_thread_that_sleeps(command: str, tmp_path: Path) -> None:
    """No command misses a Ctrl-C that arrives just before it waits."""
    (tmp_path / "quiet.py").write_text(APP)
    reading, writing = os.pipe()
    with feed() as publisher:
        words = {"publisher": publisher.endpoint, "folder": str(tmp_path), "free": free_endpoint()}
        arguments = [argument.format(**words) for argument in COMMANDS[command]]
        environment = {"GO": str(reading), "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
        with Child("-c", ELSEWHERE, *arguments, env=environment, pass_fds=(reading,)) as child:
            if command.startswith("run"):
                child.line_with("started")
            else:
                child.line_with("", stream="err")
            falls_asleep(child.process.pid)
            os.write(writing, b"!")
            assert child.end(None) == (130 if command == "request" else 0), child.err
    os.close(reading)
    os.close(writing)


# Sends Ctrl-C during an import, at a known place. The first module is the user's, the others are zroute's.
AT_AN_IMPORT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv[0] = "zroute"
from zroute.__main__ import main
main()
"""

IMPORTED = {
    ("run", "quiet"): (
        "zroute.cli",
        "click",
        "zroute.cli.run",
        "zroute.runtime.runner",
        "quiet",
        "twisted.internet.reactor",
    ),
    ("run", "quiet", "--reload"): ("zroute.cli.reload",),
    ("check", "quiet"): ("zroute.cli.check", "quiet", "zmq"),
    ("routes", "quiet"): ("quiet",),
    ("info",): ("zroute.cli.info",),
    ("pub", "tcp://127.0.0.1:9", "a", "1"): ("zroute.cli.pub", "zroute.cli.sending", "twisted.internet.reactor"),
    ("request", "tcp://127.0.0.1:9", "a"): ("zroute.cli.request", "zroute.cli.asking", "twisted.internet.reactor"),
    ("tail", "tcp://127.0.0.1:9"): ("zroute.cli.tail", "zmq", "twisted.internet.reactor"),
    ("top", "tcp://127.0.0.1:9"): ("zroute.cli.top",),
    ("record", "tcp://127.0.0.1:9", "recording"): ("zroute.cli.record",),
    ("bench",): ("zroute.cli.bench",),
}


@pytest.mark.parametrize(
    ("command", "at"), [(command, at) for command, names in IMPORTED.items() for at in names], ids=str
)
def test_ctrl_c_while_a_module_is_imported_ends_quietly(command: tuple[str, ...], at: str, tmp_path: Path) -> None:
    """Ctrl-C during any import ends a command with 130 and no traceback."""
    (tmp_path / "quiet.py").write_text(APP)
    environment = {"AT": at, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    with Child("-c", AT_AN_IMPORT, *command, fresh=True, cwd=tmp_path, env=environment) as child:
        assert child.end(None) == 130, (child.out, child.err)
        assert len(child.err) <= 1
        assert "Traceback" not in "".join(child.err)

"""`zroute check`, `zroute info` and `zroute completion`, which open no socket."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_run import module
from tests.commands import zroute
from tests.support import PATIENCE, ROOT
from zroute.endpoints import SIDES

GOOD = """
from zroute import App
print("imported")
app = App(sub="tcp://127.0.0.1:1", pub="tcp://127.0.0.1:2")

@app.publisher("b", int)
@app.subscribe("a")
def on_a(message: int) -> int: return message
"""


def test_an_app_that_would_start_is_fine(tmp_path: Path) -> None:
    """A valid app gets one line and exit 0; prints of its module go to standard error."""
    done = zroute("check", "quotes", "quotes:app", cwd=module(tmp_path, GOOD))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{target} is fine: routes 1, publications 1, timers and generators 0, resources 0"
        for target in ("quotes", "quotes:app")
    ]


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("import nothing_of_that_name", 3, "can't be loaded"),
        ("app = 1", 3, "not a zroute App"),
        ("import sys\ndef create_app(): sys.exit('no configuration')", 3, "no configuration"),
        (GOOD + "@app.subscribe('a.')\ndef two(x: int): ...\n", 4, "quotes.py:"),
        (GOOD + "@app.subscribe('c')\ndef two(x: int, y: int): ...\n", 4, "parameters 'x' and 'y'"),
        (
            GOOD
            + "from typing import Iterator\nclass A: ...\n@app.resource\ndef a(b: 'App2') -> Iterator[A]: yield A()\n",
            4,
            "App2",
        ),
        (GOOD + "@app.publisher('c', bytes, every=1.0)\ndef two() -> int: ...\n", 4, "two() returns int"),
        (GOOD + "@app.publisher('c.{d}', every=1.0)\ndef two() -> int: ...\n", 4, "nothing fills {d}"),
        (
            GOOD + "def timed(f): return lambda *a: f(*a)\n@app.subscribe('{x}')\n@timed\ndef two(x: int): ...\n",
            4,
            "hides the parameters of two(x)",
        ),
        ("from zroute import App\napp = App()\n", 4, "quotes.py:2: nothing is registered in quotes"),
        (
            GOOD + "from zroute import Routes\nlost = Routes()\n@lost.subscribe('a')\ndef two(): ...\n",
            4,
            "py:10: no app",
        ),
        (
            "from zroute import App\napp = App(pub='tcp://127.0.0.1:2')\n@app.subscribe('a')\ndef a(): ...\n",
            5,
            "App(sub=",
        ),
    ],
)
def test_a_fault_is_said_with_the_exit_code_of_its_kind(tmp_path: Path, source: str, code: int, says: str) -> None:
    """Each kind of fault has its exit code, which is also that of zroute run."""
    done = zroute("check", "quotes", cwd=module(tmp_path, source))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert done.stdout == ""


SHARED = """
from zroute import App
app = App(sub="tcp://127.0.0.1:1")

@app.subscribe("orders.>", {})
def on_order(amount: int) -> None: ...

@app.subscribe(">", {})
def on_all(amount: int) -> None: ...
"""


@pytest.mark.parametrize(
    ("one", "other", "remedy"),
    [("recover=True", "", "recover=True for both"), ("since='all'", "since='last'", "the same since= for both")],
)
@pytest.mark.parametrize("command", ["check", "routes", "run"])
def test_handlers_that_disagree_are_told_alike(tmp_path: Path, command: str, one: str, other: str, remedy: str) -> None:
    """Each command that compiles the app prints the text alone, and ends with 4."""
    done = zroute(command, "quotes", cwd=module(tmp_path, SHARED.format(one, other)))
    assert done.returncode == 4, done.stderr
    assert re.fullmatch(rf"zroute: quotes\.py:\d+: on_order\(\) .*{remedy}.*\n", done.stderr)


GROUP = """
from zroute import Routes
routes = Routes()

@routes.subscribe("a")
def on_a(message: int) -> None: ...
class Order: ...
"""
START = "from zroute import App, Routes\napp = App()\n@app.on_startup\ndef begin(): ...\n"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from orders import routes\n", "routes"),
        ("from orders import routes as orders\n", "orders"),
        ("import orders\n", "orders.routes"),
        ("import orders as o\n", "o.routes"),
        (
            "from orders import routes\nouter = Routes()\nouter.include(routes)\n@outer.every(1)\ndef t(): ...\n",
            "outer",
        ),
        ("from orders import routes\n@routes.every(1)\ndef tick(): ...\nprint(routes.prefix)\n", "routes"),
    ],
)
def test_routes_that_no_app_includes_are_told(tmp_path: Path, source: str, name: str) -> None:
    """For an imported group that no app includes, the error has its place, name and remedy."""
    module(tmp_path, GROUP, "orders")
    done = zroute("check", "quotes", cwd=module(tmp_path, START + source))
    assert done.returncode == 4, done.stdout
    assert re.search(
        rf"(orders|quotes)\.py:\d+: no app includes the Routes object '{name}': write app\.include\({name}\)",
        done.stderr,
    )
    assert done.stderr.count("no app includes") == 1


@pytest.mark.parametrize(
    "source",
    [
        "from orders import routes\napp.include(routes)\n",
        "import orders\nouter = Routes()\nouter.include(orders.routes)\napp.include(outer)\n",
        "from orders import routes\nother = App()\nother.include(routes)\n",
        "import orders, elsewhere\n",
        "from orders import routes\nif not __debug__: app.include(routes)\n",
        "from orders import routes\ndef create_other():\n    other = App()\n    other.include(routes)\n",
        "from orders import routes\ngroups = [routes]\n",
        "from orders import routes\n__all__ = ['app', 'routes']\n",
        "import orders\ndef later(order: orders.Order): ...\n",
        "from orders import Order\n",
        "empty = Routes()\n",
    ],
)
def test_routes_that_may_be_included_elsewhere_are_no_fault(tmp_path: Path, source: str) -> None:
    """A group that is included under a condition, by another app or in any other way is accepted."""
    module(tmp_path, GROUP, "orders")
    module(
        tmp_path, "import orders\nfrom zroute import App\nother = App()\nother.include(orders.routes)\n", "elsewhere"
    )
    done = zroute("check", "quotes", cwd=module(tmp_path, START + source))
    assert done.returncode == 0, done.stderr


def test_apps_that_are_checked_together_share_their_routes(tmp_path: Path) -> None:
    """A group that another app includes is accepted only if both apps are checked together."""
    source = "from orders import routes\nfrom zroute import App\ndef create_app():\n    app = App()\n"
    module(tmp_path, GROUP, "orders")
    module(tmp_path, source + "    app.every(1)(print)\n    return app\n", "one")
    module(tmp_path, source + "    app.include(routes)\n    return app\n", "two")
    assert "no app includes the Routes object 'routes'" in zroute("check", "one", cwd=tmp_path).stderr
    done = zroute("check", "one", "two", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "source",
    [
        START,
        "from zroute import App\napp = App()\nalerts = app.publisher('alerts', str)\n",
        "from zroute import App\napp = App()\n@app.every(1)\ndef tick(): ...\n",
        "from orders import routes\nfrom zroute import App\napp = App()\napp.include(routes)\n",
    ],
)
def test_an_app_with_anything_registered_may_do_something(tmp_path: Path, source: str) -> None:
    """An app with only a start function, a publisher, a timer or a group is accepted."""
    module(tmp_path, GROUP, "orders")
    done = zroute("check", "quotes", cwd=module(tmp_path, source))
    assert done.returncode == 0, done.stderr


def test_endpoints_that_zroute_run_would_be_given_are_given_here_too(tmp_path: Path) -> None:
    """Endpoints may come from options and variables, as for zroute run."""
    source = "from zroute import App\napp = App(loop=False)\n@app.publisher('b')\n@app.subscribe('a')\ndef a(): ...\n"
    folder = module(tmp_path, source)
    done = zroute("check", "quotes", cwd=folder)
    assert done.returncode == 5
    assert "or give endpoints to `zroute run` with --sub, --pub, --rep, --req, --jobs and --work" in done.stderr
    done = zroute("check", "quotes", cwd=folder, ZROUTE_SUB="tcp://127.0.0.1:1")
    assert done.returncode == 5
    assert "publisher('b') at quotes.py:3 has no endpoint" in done.stderr
    done = zroute("check", "quotes", "--pub", "tcp://127.0.0.1:2", cwd=folder, ZROUTE_SUB="tcp://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    done = zroute("check", "quotes", "quotes:app", cwd=folder, ZROUTE_SUB="tcp://127.0.0.1:1")
    assert done.returncode == 2
    assert "--sub can't be used with several apps" in done.stderr
    variables = {side.variable: "tcp://127.0.0.1:1" for side in SIDES}
    done = zroute("check", "quotes", "quotes:app", cwd=folder, **variables)
    flags = "--sub and --pub and --rep and --req and --jobs and --work"
    assert f"{flags} can't be used with several apps" in done.stderr


def test_all_apps_are_checked_and_the_first_fault_counts(tmp_path: Path) -> None:
    """All apps are checked, also after a fault."""
    module(tmp_path, "app = 1", "third")
    module(tmp_path, "from zroute import App\napp = App()\n@app.subscribe('a')\ndef a(x, y): ...\n", "second")
    done = zroute("check", "quotes", "second", "third", cwd=module(tmp_path, GOOD))
    assert done.returncode == 4
    assert "quotes is fine" in done.stdout
    assert "second.py:" in done.stderr
    assert "third:app is a int" in done.stderr


def test_ctrl_c_ends_the_whole_check(tmp_path: Path) -> None:
    """Ctrl-C while the first app is imported ends the command, with 130."""
    module(tmp_path, "raise KeyboardInterrupt", "first")
    done = zroute("check", "first", "quotes", cwd=module(tmp_path, GOOD))
    assert (done.returncode, done.stdout) == (130, "")


def test_info_tells_what_a_report_needs() -> None:
    """`zroute info` shows the versions of zroute and its dependencies, also as JSON."""
    done = zroute("info")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names[:5] == ["zroute", "Python", "executable", "platform", "libzmq"]
    rows = json.loads(zroute("info", "--json").stdout)
    assert set(rows) == set(names)
    assert rows["Python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert {"select", "asyncio"} <= set(rows["reactors"])
    assert rows["default_reactor"] in rows["reactors"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_for_completion_are_printed(shell: str) -> None:
    """There is a completion script for each shell, which calls zroute."""
    done = zroute("completion", shell)
    assert done.returncode == 0
    assert f"_ZROUTE_COMPLETE={shell}_complete" in done.stdout


def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    """A real bash completes commands, options and their values."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    (tmp_path / "zroute").write_text(f'#!/bin/sh\nexec {sys.executable} -m zroute "$@"\n')
    (tmp_path / "zroute").chmod(0o755)
    script = """
eval "$(zroute completion bash)"
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _zroute_completion zroute; echo "${COMPREPLY[@]}"; }
try zroute re
try zroute run --re
try zroute run --reactor a
try zroute completion ""
"""
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([bash, "-c", script], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines() == [
        "request record replay",
        "--rep --req --reactor --reload",
        "asyncio",
        "bash zsh fish",
    ], done.stderr


@pytest.mark.parametrize(
    ("typed", "kind"), [("zroute run qu", "file"), ("zroute check a qu", "file"), ("zroute run --app-dir qu", "dir")]
)
def test_names_of_files_are_left_to_the_shell(typed: str, kind: str) -> None:
    """The argument of `zroute run` completes to files, and --app-dir to folders."""
    program = "from zroute.cli import main; main(prog_name='zroute')"
    variables = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_ZROUTE_COMPLETE": "bash_complete"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.strip() == f"{kind},qu", done.stderr

"""``App(reactor=…)``: the reactor that an app needs is the one that it gets, or the run is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.task import Clock

from tests.cli.test_run import module
from tests.commands import zroute
from tests.support import Child
from zroute import App, UsageError

HEAD = """
import asyncio, sys
from zroute import App

def kind():
    from twisted.internet import reactor
    return type(reactor).__module__.removeprefix("twisted.internet.")
"""

SLEEPS = """
app = App(OPTIONS)

@app.publisher("x", every=0.02)
def tick() -> int:
    return 1

@app.subscribe("x")
async def on(n: int):
    AWAIT
    print(kind(), flush=True)
    app.stop()
"""

ASYNCIO = HEAD + SLEEPS.replace("OPTIONS", "reactor='asyncio'").replace("AWAIT", "await asyncio.sleep(0.01)")
DEFERREDS = HEAD + SLEEPS.replace("OPTIONS", "reactor='twisted'").replace(
    "AWAIT", "from twisted.internet import reactor, task; await task.deferLater(reactor, 0.01)"
)


@pytest.mark.parametrize("flags", [(), ("--reactor", "asyncio"), ("--uvloop",)])
def test_zroute_run_obeys_an_app_that_needs_asyncio(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """An app whose handlers await asyncio needs no flag, and agrees with a flag that says the same."""
    with Child("-m", "zroute", "run", "mine", *flags, cwd=module(tmp_path, ASYNCIO, "mine")) as child:
        assert child.end(None) == 0, child.err
        assert set(child.out) == {"asyncioreactor"}


def test_zroute_run_gives_other_apps_what_the_platform_has(tmp_path: Path) -> None:
    """An app for Deferreds, and one that does not say, get Twisted's choice, also together."""
    folder = module(tmp_path, DEFERREDS, "mine")
    module(tmp_path, HEAD + "app = App()\n@app.on_startup\ndef on(): print(kind(), flush=True)", "other")
    with Child("-m", "zroute", "run", "mine", "other", cwd=folder) as child:
        assert child.end(None) == 0, child.err
        assert len(child.out) >= 2
        assert "asyncioreactor" not in child.out


def test_app_run_obeys_too(tmp_path: Path) -> None:
    """A script needs no option of run()."""
    with Child("-c", ASYNCIO + "\napp.run()") as child:
        assert child.end(None) == 0, child.err
        assert set(child.out) == {"asyncioreactor"}


NEEDS_ASYNCIO = "needs reactor='asyncio', but the requested reactor is 'poll': remove one of the two"
REFUSED = {
    "a flag": (("mine", "--reactor", "poll"), NEEDS_ASYNCIO),
    "a flag for Deferreds": (
        ("deferreds", "--uvloop"),
        "needs reactor='twisted', but the requested reactor is 'asyncio'",
    ),
    "two apps": (("mine", "deferreds"), "run these apps in separate processes"),
    "an import": (("early",), "Import the reactor inside a function"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_another_reactor_is_refused(tmp_path: Path, how: str) -> None:
    """A flag, a second app or an import that contradicts an app ends the command with 2 before anything starts."""
    arguments, says = REFUSED[how]
    module(tmp_path, ASYNCIO, "mine")
    module(tmp_path, DEFERREDS, "deferreds")
    module(tmp_path, "from twisted.internet import selectreactor; selectreactor.install()\n" + ASYNCIO, "early")
    done = zroute("run", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert done.stdout == ""
    if "flag" not in how:
        checked = zroute("check", *arguments, cwd=tmp_path)
        assert checked.returncode == 2
        assert says in " ".join(checked.stderr.split())


def test_zroute_check_tells_the_reactor_that_an_app_needs(tmp_path: Path) -> None:
    """The line of an app names it."""
    done = zroute("check", "mine", cwd=module(tmp_path, ASYNCIO, "mine"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(", resources 0, needs reactor 'asyncio'\n")


def test_a_service_refuses_another_reactor() -> None:
    """An app in a Twisted program is refused on a reactor on which its handlers would fail."""
    app = App(reactor="asyncio")
    with pytest.raises(UsageError, match="needs reactor='asyncio', but the given reactor is not asyncio's"):
        app.service(Clock())
    other = App(reactor="twisted")
    reactor = AsyncioSelectorReactor.__new__(AsyncioSelectorReactor)
    with pytest.raises(UsageError, match="needs reactor='twisted', but the given reactor is asyncio's"):
        other.service(reactor)

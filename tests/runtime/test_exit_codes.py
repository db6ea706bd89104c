"""Exit codes that an app asks for: ``app.stop(code)`` and SystemExit in its functions."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail

from tests.cli.test_run import module, zroute
from tests.support import Child
from zroute import App, Envelope, Gap, NotRunningError, UsageError
from zroute.testing import TestApp

HEAD = """
import sys, threading
from collections.abc import AsyncIterator, Iterator
from twisted.internet import defer
from zroute import App
from zroute.awaiting import as_awaitable
app = App()
class Db: ...
@app.publisher("go", every=0.02)
def tick() -> int: return 1
def once(code):
    if not ended:
        ended.append(code)
        sys.exit(code)
ended = []
@app.on_shutdown
def closing(): print("closed", flush=True)
"""

PLACES = {
    "plain": "@app.subscribe('go')\ndef on(n: int): sys.exit(CODE)",
    "async": "@app.subscribe('go')\nasync def on(n: int): sys.exit(CODE)",
    "deferred": "@app.subscribe('go')\ndef on(n: int): return defer.execute(sys.exit, CODE)",
    "batch": "@app.subscribe('go', batch=3)\ndef on(n: list[int]): sys.exit(CODE)",
    "unordered": "@app.subscribe('go', ordered=False, max_in_flight=2)\nasync def on(n: int): sys.exit(CODE)",
    "generator": "@app.publisher('out')\n@app.subscribe('go')\ndef on(n: int) -> Iterator[int]:\n    yield 1\n"
    "    sys.exit(CODE)",
    "thread": "@app.subscribe('go', thread=True)\ndef on(n: int): sys.exit(CODE)",
    "timer": "@app.every(0.01)\ndef on(): sys.exit(CODE)",
    "async timer": "@app.every(0.01)\nasync def on(): sys.exit(CODE)",
    "generator timer": "@app.publisher('out', every=0.01)\ndef on() -> Iterator[int]:\n    yield 1\n    sys.exit(CODE)",
    "producer": "@app.publisher('out')\ndef on() -> Iterator[int]:\n    yield 1\n    sys.exit(CODE)",
    "async producer": "@app.publisher('out')\nasync def on() -> AsyncIterator[int]:\n    yield 1\n    sys.exit(CODE)",
    "on_error": "@app.subscribe('go')\ndef bad(n: int): raise ValueError\n@app.on_error()\ndef on(error, envelope):"
    " sys.exit(CODE)",
    "async on_error": "@app.subscribe('go')\ndef bad(n: int): raise ValueError\n@app.on_error()\n"
    "async def on(error, envelope): sys.exit(CODE)",
    "on_shutdown": "@app.every(0.01)\ndef on(): app.stop()\n@app.on_shutdown\ndef last(): sys.exit(CODE)",
    "resource": "@app.every(0.01)\ndef on(db: Db): app.stop()\n@app.resource\ndef db() -> Iterator[Db]:\n"
    "    yield Db()\n    sys.exit(CODE)",
    "async resource": "@app.every(0.01)\ndef on(db: Db): app.stop()\n@app.resource\n"
    "async def db() -> AsyncIterator[Db]:\n    yield Db()\n    sys.exit(CODE)",
    "middleware": "@app.middleware\ndef mw(call, route):\n    return lambda message: sys.exit(CODE)\n"
    "@app.subscribe('go')\ndef on(n: int): ...",
    "resource of a message": "@app.resource(scope='message')\ndef db() -> Iterator[Db]:\n    yield Db()\n"
    "    sys.exit(CODE)\n@app.subscribe('go')\ndef on(n: int, db: Db): ...",
    "publish middleware": "@app.publish_middleware\ndef mw(call, route):\n    return lambda message: sys.exit(CODE)",
    "async publish middleware": "async def later(): sys.exit(CODE)\n@app.publish_middleware\ndef mw(call, route):\n"
    "    return lambda message: later()",
    "publish middleware around a result": "@app.publish_middleware\ndef mw(call, route):\n"
    "    return (lambda message: sys.exit(CODE)) if route.name == 'out' else call\n"
    "@app.publisher('out', int)\n@app.subscribe('go')\ndef on(n: int): return n",
    "snapshot": "app.publisher('book', int, snapshot=lambda: sys.exit(CODE))\n@app.subscribe('book')\n"
    "def on(n: int): ...",
    "topics": "app.publisher('book.{b}', int, snapshot=lambda: 1, topics=lambda: sys.exit(CODE))\n"
    "@app.subscribe('book.{b}')\ndef on(n: int, b: str): ...",
    "stop in a resource": "@app.every(0.01)\ndef on(db: Db): app.stop()\n@app.resource\ndef db() -> Iterator[Db]:\n"
    "    yield Db()\n    app.stop(CODE)",
    "stop in an async resource": "@app.every(0.01)\ndef on(db: Db): app.stop()\n@app.resource\n"
    "async def db() -> AsyncIterator[Db]:\n    yield Db()\n    app.stop(CODE)",
    "stop": "@app.subscribe('go')\ndef on(n: int): app.stop(CODE)",
    "stop in a thread": "@app.subscribe('go', thread=True)\ndef on(n: int): app.stop(CODE)",
    "stop in on_startup": "@app.on_startup\ndef on(): app.stop(CODE)",
    "stop twice": "@app.every(0.01)\ndef on():\n    app.stop(CODE)\n    app.stop(4)\n    app.stop(0)",
    "stop after a signal": "@app.every(0.01)\ndef on(): app.stop()\n@app.on_shutdown\ndef last(): app.stop(CODE)",
}


@pytest.mark.parametrize(
    ("place", "reactor"),
    [*((place, "epoll") for place in PLACES), *((place, "asyncio") for place in PLACES if "async" in place)],
)
def test_the_process_ends_with_the_code(tmp_path: Path, place: str, reactor: str) -> None:
    """sys.exit(3) and app.stop(3) in each kind of function end the process with 3, after the drain and the hooks."""
    folder = module(tmp_path, HEAD + PLACES[place].replace("CODE", "3"))
    done = zroute("run", "quotes", "--for", "100s", "--reactor", reactor, cwd=folder)
    assert (done.returncode, done.stdout) == (3, "closed\n"), done.stderr
    assert "Traceback" not in done.stderr or "on_error" in place
    assert "SystemExit" not in done.stderr


@pytest.mark.parametrize(
    ("code", "returned", "logged"),
    [("None", 0, "exits with code 0"), ("0", 0, "exits with code 0"), ("'no\\nroom'", 1, r"ERROR   on() at ")],
)
def test_other_codes_are_those_of_python(tmp_path: Path, code: str, returned: int, logged: str) -> None:
    """None gives 0; a text is logged, in one line, and gives 1."""
    done = zroute("run", "quotes", "--for", "100s", cwd=module(tmp_path, HEAD + PLACES["plain"].replace("CODE", code)))
    assert (done.returncode, done.stdout) == (returned, "closed\n"), done.stderr
    assert logged in done.stderr
    assert ("no\\nroom" in done.stderr) == (returned == 1)


@pytest.mark.parametrize(("code", "returned"), [(0, 75), (3, 3), (5, 5)])
def test_an_incomplete_drain_changes_only_the_code_0(tmp_path: Path, code: int, returned: int) -> None:
    """A nonzero code wins over 75 of an incomplete drain; the log names the unfinished handlers in any case."""
    source = (
        f"@app.subscribe('go')\nasync def on(n: int):\n    app.stop({code})\n    await as_awaitable(defer.Deferred())"
    )
    done = zroute("run", "quotes", "--drain-timeout", "0.1", cwd=module(tmp_path, HEAD + source))
    assert done.returncode == returned, done.stderr
    assert "abandoned after the drain timeout: on()" in done.stderr
    assert "INFO    quotes: received" in done.stderr


@pytest.mark.parametrize(("code", "returned"), [("3", 3), ("'no room'", 1), ("None", 0)])
@pytest.mark.parametrize("place", ["@app.on_startup\ndef on(): ", "@app.resource\ndef on() -> Iterator[Db]: yield "])
def test_an_exit_during_the_start_has_its_code(tmp_path: Path, place: str, code: str, returned: int) -> None:
    """SystemExit in on_startup or an opening resource ends the process with its code."""
    done = zroute("run", "quotes", cwd=module(tmp_path, HEAD + f"{place}sys.exit({code})"))
    assert done.returncode == returned, done.stderr
    assert f"did not start: {'no room' if returned == 1 else f'SystemExit with code {returned}'}" in done.stderr


def test_run_in_a_script_raises_the_code_as_system_exit() -> None:
    """app.run() raises SystemExit with the code of app.stop, after all resources are closed."""
    source = HEAD + PLACES["stop"].replace("CODE", "3")
    tail = "\ntry: app.run()\nexcept SystemExit as end: print('code', end.code, flush=True)\n"
    with Child("-c", source + tail) as child:
        assert child.end(None) == 0
        assert child.out == ["closed", "code 3"]


def test_all_apps_of_the_process_stop(tmp_path: Path) -> None:
    """One app's exit stops the others, too."""
    source = HEAD + PLACES["stop"].replace("CODE", "3") + "\nother = App()\nother.every(60)(lambda: None)\n"
    source += "other.on_shutdown(lambda: print('closed', flush=True))\n"
    done = zroute("run", "quotes:app", "quotes:other", cwd=module(tmp_path, source))
    assert (done.returncode, done.stdout) == (3, "closed\nclosed\n"), done.stderr


IN_A_PROGRAM = """
from twisted.internet import reactor
service = app.service(reactor)
def look():
    if service.running: reactor.callLater(0.01, look)
    else: service.stopService().addCallback(lambda _: (print("code", service.exit_code, flush=True), reactor.stop()))
service.startService()
reactor.callLater(0, look)
reactor.run()
"""


@pytest.mark.parametrize("place", ["plain", "stop", "stop in a thread", "producer", "timer"])
def test_in_a_program_of_the_user_only_the_app_stops(place: str) -> None:
    """With the service in a Twisted program, the program goes on, and finds the code."""
    with Child("-c", HEAD + PLACES[place].replace("CODE", "3") + IN_A_PROGRAM) as child:
        assert child.end(None) == 0
        assert child.out == ["closed", "code 3"]


# -- in tests --------------------------------------------------------------------------------------------


class Db:
    """A resource."""


@pytest.mark.parametrize("reactor", ["twisted", "asyncio"])
@pytest.mark.parametrize("kind", ["plain", "async", "thread", "deferred"])
def test_system_exit_leaves_publish_of_a_test(kind: str, reactor: Any) -> None:
    """TestApp raises the SystemExit of a handler once; the app has stopped, and its message is handled."""
    app = App()

    def plain(n: int) -> None:
        raise SystemExit(3)

    async def later(n: int) -> None:
        raise SystemExit(3)

    def deferred(n: int) -> Deferred[None]:
        return fail(SystemExit(3))

    function: Any = {"async": later, "deferred": deferred}.get(kind, plain)
    app.subscribe("x", thread=kind == "thread")(function)
    with TestApp(app, reactor=reactor) as t:
        with pytest.raises(SystemExit) as end:
            t.publish("x", 1, 2, 3)
        assert (end.value.code, t.exit_code, app.stats.handled, app.stats.failed) == (3, 3, 3, 0)
        with pytest.raises(NotRunningError):
            app.stop()


def test_stop_in_a_test_stops_the_app_without_an_error() -> None:
    """TestApp tells the code of app.stop, and handlers finish."""
    app, got = App(), []

    @app.subscribe("x")
    def handle(n: int) -> None:
        app.stop(n)
        got.append(n)

    with TestApp(app) as t:
        assert t.exit_code is None
        t.publish("x", 4)
        assert (got, t.exit_code) == ([4], 4)
    with TestApp(app) as t:
        t.publish("x", 0)
        assert t.exit_code == 0
    with TestApp(app) as t:
        assert t.exit_code is None


def test_a_keyboard_interrupt_leaves_a_test_even_if_errors_are_collected() -> None:
    """Ctrl-C in a handler is a failed handler to the app, and always reaches the test runner."""
    app = App()

    @app.subscribe("x")
    def handle(n: int) -> None:
        raise KeyboardInterrupt

    with TestApp(app, raise_errors=False) as t:
        with pytest.raises(KeyboardInterrupt):
            t.publish("x", 1)
        assert (app.stats.failed, t.exit_code) == (1, None)


@pytest.mark.parametrize("register", ["on_gap", "on_unrouted", "on_error", "on_shutdown", "resource"])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("error", "code", "failures"), [(SystemExit(3), 3, 0), (RuntimeError(), None, 1)], ids=str)
def test_system_exit_in_a_hook_is_no_failed_hook(
    register: str, is_async: bool, error: BaseException, code: int | None, failures: int
) -> None:
    """A hook may end the app, which is not counted as an error; any other error of a hook is."""
    app = App()
    found: list[Any] = []

    def hook(*_: object) -> None:
        found.append(1)
        raise error

    async def later(*_: object) -> None:
        hook()

    def opened() -> Iterator[Db]:
        yield Db()
        hook()

    async def opened_later() -> AsyncIterator[Db]:
        yield Db()
        hook()

    def one(event: Envelope | Gap) -> Any:
        return later() if is_async else hook()

    def none() -> Any:
        return later() if is_async else hook()

    def error_hook(error: BaseException, envelope: Envelope) -> Any:
        return later() if is_async else hook()

    @app.subscribe("x.>")
    def handle(n: int) -> None:
        raise ValueError

    chosen: dict[str, Any] = {"on_shutdown": none, "resource": opened_later if is_async else opened}
    if register == "on_error":
        app.on_error()(error_hook)
    else:
        getattr(app, register)(chosen.get(register, one))
    raised = pytest.raises(SystemExit) if code else nullcontext()
    with TestApp(app, raise_errors=bool(code) and register not in ("on_shutdown", "resource")) as t:
        if register == "on_error":
            with raised:
                t.publish("x.a", 1)
        elif register == "on_unrouted":
            with raised:
                t.receive(b"x.\x00\x01")
        elif register == "on_gap":
            (service,) = t._services
            t._do(lambda: service._run._found(Gap(b"x", 1, 1, 2)))  # type: ignore[union-attr]
            with raised:
                t.advance(0)
    assert (found, t.exit_code, app.stats.hook_errors) == ([1], code, failures)


def test_stop_refuses_what_is_no_exit_code_and_an_app_that_does_not_run() -> None:
    """stop() names the range of codes, and says where to call it."""
    app = App(name="desk")
    with pytest.raises(
        NotRunningError, match=r"can't call stop\(3\): 'desk' is not running\. Call stop\(\) in a handler"
    ):
        app.stop(3)
    with TestApp(app) as t:
        app.stop(3)
        t.advance(0)
        with pytest.raises(
            NotRunningError, match=r"can't publish to 'a': 'desk' has stopped \(exit code 3\)\. Publish from"
        ):
            app.publish("a", 1)
    for wrong in (-1, 256, "3", 1.0, None):
        with pytest.raises(UsageError, match="expected an exit code from 0 to 255"):
            app.stop(wrong)  # type: ignore[arg-type]


def test_stop_may_be_called_on_any_thread() -> None:
    """A thread of the user's own may stop the app."""
    app = App()

    @app.every(1.0)
    def tick() -> None:
        thread = threading.Thread(target=app.stop, args=(3,))
        thread.start()
        thread.join()

    with TestApp(app) as t:
        t.advance(0)
        assert t.exit_code == 3

"""The house: who may import whom, what loads when, and how short the way of a message is."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import pytest
import zmq
from twisted.internet.task import Clock

from tests.pure import Wired, plain, tracked
from tests.support import ROOT
from zroute import App, Topic
from zroute.sockets.pubsub import SubConnection

ORDER = [
    "codegen",
    "escapes",
    "errors",
    "options",
    "limits",
    "endpoints",
    "messages.topics",
    "messages.schema",
    "messages.checks",
    "messages.conformance",
    "messages.structuring",
    "messages.codecs",
    "messages.bodies",
    "messages.wire",
    "messages.control",
    "messages.batches",
    "recordings",
    "delivery.stats",
    "delivery.flow",
    "delivery.budget",
    "delivery.reports",
    "delivery.ordered",
    "delivery.counting",
    "delivery.findings",
    "delivery.hearing",
    "delivery.accounts",
    "delivery.tracking",
    "routing.trie",
    "routing.raw",
    "routing.wrappers",
    "routing.parameters",
    "routing.results",
    "routing.publications",
    "routing.routes",
    "routing.resources",
    "routing.lists",
    "routing.deliver",
    "routing.batches",
    "routing.entries",
    "routing.table",
    "routing.compiler",
    "awaiting",
    "outbox",
    "pacing",
    "kept",
    "coalescing",
    "ticking",
    "clock",
    "joins",
    "mending",
    "asking",
    "audience",
    "instances",
    "producers",
    "gathering",
    "unfinished",
    "outcomes",
    "sockets.events",
    "sockets.links",
    "sockets.descriptors",
    "sockets.names",
    "sockets.budgets",
    "sockets.refusals",
    "sockets.origins",
    "sockets.ipc",
    "sockets.connection",
    "sockets.connection_log",
    "sockets.persistent",
    "sockets.parts",
    "sockets.pipeline",
    "sockets.router_dealer",
    "sockets.reqrep",
    "sockets.pubsub",
    "sockets.service",
    "sockets.lossless",
    "sockets.transport",
    "txzmq.compat",
    "txzmq.factory",
    "txzmq.connection",
    "txzmq.pubsub",
    "txzmq.pushpull",
    "txzmq.req_rep",
    "txzmq.router_dealer",
    "txzmq",
    "resources",
    "attached",
    "app",
    "outgoing",
    "run",
    "service",
    "testing.reactor",
    "testing.transport",
    "testing",
    "pytest_plugin",
    "logs",
    "watchdog",
    "signals",
    "runner",
    "cli",
    "__main__",
]
"""The modules from the top down: each imports only what stands above it."""

FUNCTIONS, FILES, FRAMES = 5, 4, 3
"""What one message may cost: zroute functions called, files they are in, zroute frames above a plain handler.
Whoever adds a layer has to change a number here."""

PACKAGE = ROOT / "zroute"


@attrs.frozen
class Quote:
    symbol: str
    price: float


def place(module: str) -> int:
    """Where a module stands in the order (a package's parts stand where it does); at the end if nowhere."""
    for number, name in enumerate(ORDER):
        if module == name or module.startswith(f"{name}."):
            return number
    return len(ORDER)


def modules() -> dict[str, Path]:
    """All modules of zroute by dotted name, without those that are only a package's docstring."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("__init__", "messages", "delivery", "routing", "sockets"):
            found[name] = path
    return found


def is_for_types_only(node: ast.AST) -> bool:
    """``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(tree: ast.AST, *, nested: bool) -> set[str]:
    """Dotted names that are imported at run time; ``nested`` counts those inside functions too."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if is_for_types_only(node):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "zroute imports by full names"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif nested or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found |= imports(node, nested=nested)
    return found


def own(names: set[str]) -> set[str]:
    """Those of ``names`` that are modules of zroute, without the package's name."""
    known = {*modules(), "messages", "delivery", "routing", "sockets"}
    return {name.removeprefix("zroute.") for name in names} & known - {"messages", "delivery", "routing", "sockets"}


def parsed(name: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(modules()[name].read_text())


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_what_stands_above_it(name: str) -> None:
    """I can read the house from the top down; nothing points back up, so nothing goes in circles."""
    imported = own(imports(parsed(name), nested=False)) - {name}
    below = {other for other in imported if place(other) > place(name)}
    beside = {other for other in imported if place(other) == place(name)} if not name.startswith("cli") else set()
    assert not below | beside


def test_the_folders_that_only_hold_modules_hold_no_code() -> None:
    """A wing's __init__ is its docstring."""
    for wing in ("messages", "delivery", "routing", "sockets"):
        assert len(ast.parse((PACKAGE / wing / "__init__.py").read_text()).body) == 1


@pytest.mark.parametrize("name", [name for name in modules() if place(name) < place("sockets.events")])
def test_nothing_above_the_sockets_knows_zeromq(name: str) -> None:
    """The core can be used and tested without a socket."""
    assert not {module for module in imports(parsed(name), nested=True) if module.split(".")[0] == "zmq"}


@pytest.mark.parametrize("name", [name for name in modules() if name != "runner"])
def test_only_the_runner_touches_the_global_reactor(name: str) -> None:
    """Everything else takes the reactor as an argument, so that any Twisted program can embed it.

    The default of a ZmqFactory is the global one, as it is txZMQ's, and is looked up when it is asked for.
    """
    assert "twisted.internet.reactor" not in imports(parsed(name), nested=True)


@pytest.mark.parametrize("name", [name for name in modules() if place(name) < place("awaiting")])
def test_the_pure_wings_know_no_twisted(name: str) -> None:
    """What travels, who gets it and what is counted are plain Python."""
    assert not {module for module in imports(parsed(name), nested=True) if module.split(".")[0] == "twisted"}


def test_every_module_has_its_place() -> None:
    """The order above is that of the house as it stands: whoever adds a module says where it belongs."""
    assert not {name for name in modules() if place(name) == len(ORDER)}
    assert not {name for name in ORDER if not any(m == name or m.startswith(f"{name}.") for m in modules())}


# -- what loads when -------------------------------------------------------------------------------------


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after ``statement``."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import zroute", "import zroute.errors", "from zroute import TopicError", "dir(__import__('zroute'))"]
)
def test_importing_zroute_alone_loads_neither_zeromq_nor_twisted(statement: str) -> None:
    """Whoever needs only an error or --help does not wait for a framework."""
    assert not loaded_after(statement) & {"zmq", "twisted", "msgspec", "attrs"}


def test_an_app_loads_what_it_needs_when_it_is_named() -> None:
    """The names are there when they are used, and a name that is not there says so."""
    assert {"zmq", "twisted"} <= loaded_after("from zroute import App")
    import zroute

    with pytest.raises(AttributeError, match="has no attribute 'Nope'"):
        zroute.Nope  # noqa: B018  # the access is what is tested
    assert set(zroute.__all__) <= set(dir(zroute))


def test_every_public_name_is_there_and_listed_once() -> None:
    """All that __all__ promises can be imported, and each has one home."""
    import zroute

    assert sorted(zroute._HOME) == sorted(zroute.__all__)
    for name in zroute.__all__:
        assert getattr(zroute, name).__module__ == zroute._HOME[name]


# -- the way of a message --------------------------------------------------------------------------------


def counted(frame: FrameType, calls: list[tuple[str, str]]) -> None:
    """Note a call, if it is one of zroute's functions."""
    code = frame.f_code
    if code.co_filename.startswith((str(PACKAGE), "<zroute")):
        calls.append((code.co_filename, code.co_name))


class Ledger:
    """A resource."""


LEDGER = Ledger()


@pytest.mark.parametrize("frame", [plain, tracked])
@pytest.mark.parametrize("with_resource", [False, True])
def test_a_message_takes_few_steps_to_its_handler(frame: Any, with_resource: bool) -> None:
    """From the reactor's doRead to my function: at most 5 functions in 4 files, 3 of them above my function.

    A resource costs no step more: it is bound to the function when the app starts.
    """
    app, got = App(), []

    def above() -> int:
        count, here = 0, sys._getframe(1)
        while here is not None:
            count += here.f_code.co_filename.startswith((str(PACKAGE), "<zroute"))
            here = here.f_back
        return count

    @app.resource
    def ledger() -> Iterator[Ledger]:
        yield LEDGER

    def handle(message: Quote, x: str) -> None:
        got.append(above())

    def handle_with_resource(message: Quote, x: str, ledger: Ledger) -> None:
        assert ledger is LEDGER
        got.append(above())

    app.subscribe("a.{x}")(handle_with_resource if with_resource else handle)
    clock, context, wired = Clock(), zmq.Context(), Wired(app, {Ledger: LEDGER})
    clock.addReader = clock.removeReader = lambda reader: None  # type: ignore[attr-defined]
    publisher = context.socket(zmq.XPUB)
    connection = SubConnection(clock, list, context=context)
    connection.drain = wired.table.drain
    calls: list[tuple[str, str]] = []

    def receive() -> None:
        publisher.send(frame("a.b", {"symbol": "A", "price": 1.0}))
        arrived = len(got) + 1
        assert connection._socket.poll(10_000)
        sys.setprofile(lambda where, event, _: counted(where, calls) if event == "call" else None)
        try:
            connection.doRead()
        finally:
            sys.setprofile(None)
        assert len(got) == arrived

    try:
        publisher.bind("inproc://steps")
        connection._socket.connect("inproc://steps")
        connection.subscribe(b"a.")
        assert publisher.poll(10_000)
        publisher.recv()
        clock.advance(0)
        receive()  # the first of a topic goes the long way
        calls.clear()
        receive()
    finally:
        connection.close(0)
        publisher.close(0)
        context.term()
    functions = sorted({f"{Path(file).name}:{name}" for file, name in calls})
    files = sorted({file for file, _ in calls})
    report = f"{len(calls)} calls of {functions}, in {len(files)} files, {got[-1]} frames above the handler"
    assert len(calls) <= FUNCTIONS, report
    assert len(files) <= FILES, report
    assert got[-1] <= FRAMES, report
    assert got[-1] >= 1, report


def test_a_resource_is_bound_by_a_partial() -> None:
    """What a closure calls for each message is the function itself with its constants, in C: no frame of zroute's."""
    app = App()

    @app.resource
    def ledger() -> Iterator[Ledger]:
        yield LEDGER

    @app.subscribe("a.{x}")
    def handle(message: Quote, x: str, ledger: Ledger) -> None: ...

    call = app.compile().routes[0].call.supply({Ledger: LEDGER})
    bound = call.bind({"x": "b"}, Topic("a.b"))
    assert isinstance(bound, partial)
    assert bound.func is handle
    assert bound.keywords == {"x": "b", "ledger": LEDGER}

"""Laws of the code: allowed imports, lazy loading, and steps per message."""

from __future__ import annotations

import ast
import subprocess
import symtable
import sys
from collections.abc import Iterator
from functools import cache, partial
from graphlib import TopologicalSorter
from importlib import import_module
from inspect import isclass, signature
from pathlib import Path
from types import FrameType
from typing import Any, TypeGuard

import attrs
import pytest
import zmq
from twisted.internet.task import Clock

from tests.publishing.joined import ADDRESS, joined
from tests.pure import Wired, plain, tracked
from tests.support import PATIENCE, ROOT
from zroute import App
from zroute.sockets.pubsub import SubConnection

LAW = {
    "ground": "",
    "messages": "ground",
    "publishing": "ground messages transport",
    "jobs": "ground messages transport publishing",
    "declarations": "ground messages publishing jobs requests",
    "receiving": "ground messages transport publishing declarations jobs requests",
    "planning": "ground messages publishing declarations receiving jobs requests nats",
    "requests": "ground messages publishing",
    "transport": "ground messages requests",
    "sockets": "ground transport requests",
    "txzmq": "ground sockets requests",
    "transports": "ground messages receiving requests sockets transport nats",
    "nats": "ground messages publishing receiving requests transport",
    "runtime": "ground messages publishing jobs declarations receiving planning requests transport transports",
    "app": "ground messages publishing declarations receiving planning requests sockets runtime nats",
    "testing": "ground messages declarations publishing jobs receiving planning requests transport runtime app",
    "pytest_plugin": "testing",
    "cli": "ground messages publishing declarations receiving planning requests transport sockets runtime app testing "
    "nats",
    "__main__": "ground runtime cli",
}
"""The rooms that each room may import from, at any time. A room is a folder or a stand-alone module; the ground is
all other stand-alone modules, which serve every room.
"""

LOOSE = 16
"""The highest number of stand-alone modules: the ground, and the few that join the rooms."""

FUNCTIONS, FILES, FRAMES = 5, 4, 3
"""The highest cost of a received message: zroute functions called, files of these functions, and zroute frames
above a plain handler. A new layer has to change one of these numbers.
"""

FUNCTIONS_OUT, FILES_OUT = 1, 1
FUNCTIONS_KEPT, FILES_KEPT = 4, 3
"""The highest cost of a published message, down to the socket, without and with ``keep="last"``."""

PARAMETERS = 8
"""The highest number of constructor parameters. A class that needs more is two classes, or takes its state."""

MORE_PARAMETERS = {
    "zroute.app.App": "public: each is an option, given by keyword",
    "zroute.declarations.records.HandlerOptions": "each is an option of a handler, given by keyword",
    "zroute.stats.RouteStats": "public: each is a counter, and all begin at zero",
    "zroute.stats.JobStats": "public: each is a counter, and all begin at zero",
    "zroute.nats.client.ClientOptions": "each is an option of a connection, given by keyword",
    "zroute.messages.wire.Envelope": "public: users make one to call a hook of theirs in a test",
}
"""The classes with more parameters, and the reason for each."""

PACKAGE = ROOT / "zroute"


@attrs.frozen
class Quote:
    symbol: str
    price: float


@cache
def modules() -> dict[str, Path]:
    """Return all modules of zroute by dotted name, without the package, which loads its names on first use."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            found[name] = path
    return found


def room(module: str) -> str:
    """Return the room of a module."""
    first = module.split(".")[0]
    return first if first in LAW else "ground"


@cache
def imports(tree: ast.AST) -> frozenset[str]:
    """Return the dotted names that a module imports: at once, inside functions, or for types only."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "zroute imports by full names"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return frozenset(found)


@cache
def own(name: str) -> set[str]:
    """Return the modules of zroute that a module imports, without itself and without folders."""
    known = {each for each, path in modules().items() if path.name != "__init__.py" or len(parsed(each).body) > 1}
    return {each.removeprefix("zroute.") for each in imports(parsed(name))} & known - {name}


@cache
def parsed(name: str) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse(modules()[name].read_text())


def importers(module: str, but: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> list[str]:
    """Return the modules of all rooms ``but`` some, or ``only`` of some, that import a module or a part of it."""
    return [
        name
        for name in modules()
        if room(name) not in but
        and (not only or room(name) in only)
        and any(each == module or each.startswith(f"{module}.") for each in imports(parsed(name)))
    ]


def test_a_module_imports_only_from_the_rooms_below() -> None:
    """A module imports only from the rooms below its own."""
    assert not [name for name in modules() if "zroute" in imports(parsed(name))], "zroute imports by full names"
    allowed = {name: {name, *below.split()} for name, below in LAW.items()}
    wrong = {(name, other) for name in modules() for other in own(name) if room(other) not in allowed[room(name)]}
    assert not wrong


def test_the_two_ends_of_the_tracked_wire_share_only_the_protocol() -> None:
    """The modules that find losses import nothing from publishing: the protocol is in messages."""
    receiving = {"tracker", "accounts", "hearing", "session", "events"}
    wrong = {(end, name) for end in receiving for name in own(f"receiving.{end}") if room(name) == "publishing"}
    assert not wrong


def test_no_import_goes_in_a_circle() -> None:
    """No chain of imports leads back to the module where it began."""
    assert list(TopologicalSorter({name: own(name) for name in modules()}).static_order())


def test_few_modules_stand_alone() -> None:
    """A module that concerns only one room is in that room."""
    alone = [name for name, path in modules().items() if path.parent == PACKAGE]
    assert len(alone) <= LOOSE, alone


def test_the_folders_that_only_hold_modules_hold_no_code() -> None:
    """The ``__init__`` of a folder contains only its docstring."""
    for wing in (
        "messages",
        "publishing",
        "jobs",
        "declarations",
        "receiving",
        "planning",
        "runtime",
        "sockets",
        "nats",
        "transports",
    ):
        assert len(parsed(wing).body) == 1


def test_only_the_sockets_know_zeromq() -> None:
    """The core can be used and tested without a socket."""
    assert importers("zmq", but=("sockets", "txzmq", "runtime", "cli")) == []


def test_one_module_knows_nats_py() -> None:
    """The private names of nats-py concern one module; all others can be read without them."""
    assert importers("nats") + importers("nkeys") == ["nats.links"] * 2


def test_only_the_runner_touches_the_global_reactor() -> None:
    """All other code takes the reactor as an argument, so any Twisted program can embed it.

    A ZmqFactory uses the global reactor by default, as txZMQ's does, and looks it up on first use.
    """
    assert importers("twisted.internet.reactor") == ["runtime.runner"]


def test_what_is_planned_before_a_run_knows_no_twisted() -> None:
    """Messages and declarations are plain Python, without Twisted."""
    assert importers("twisted", only=("messages", "declarations")) == []


# -- what loads when -------------------------------------------------------------------------------------


def loaded_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after ``statement``."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import zroute", "import zroute.errors", "from zroute import TopicError", "dir(__import__('zroute'))"]
)
def test_importing_zroute_alone_loads_neither_zeromq_nor_twisted(statement: str) -> None:
    """Importing an error, or printing --help, loads neither ZeroMQ nor Twisted."""
    assert not loaded_after(statement) & {"zmq", "twisted", "msgspec", "attrs"}


def test_an_app_loads_what_it_needs_when_it_is_named() -> None:
    """A public name is loaded on first use, and an unknown name raises AttributeError."""
    assert {"zmq", "twisted"} <= loaded_after("from zroute import App")
    import zroute

    with pytest.raises(AttributeError, match="has no attribute 'Nope'"):
        zroute.Nope  # noqa: B018  # the access is under test
    assert set(zroute.__all__) <= set(dir(zroute))


def test_every_public_name_is_there_for_programs_and_for_type_checkers() -> None:
    """All names in ``__all__`` can be imported, and a type checker reads the same names."""
    import zroute

    for name in zroute.__all__:
        assert getattr(zroute, name).__module__ == zroute._HOME[name]
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = [(node.module, alias) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.asname == alias.name for _, alias in imported), "only `X as X` is a public name to a checker"
    assert {alias.name: home for home, alias in imported} == zroute._HOME


def test_what_others_import_of_a_module_is_in_its_all() -> None:
    """The ``__all__`` of a module lists the names that other modules import from it."""
    known = modules()
    offered = {
        home: {
            element.value
            for listed in parsed(home).body
            if isinstance(listed, ast.Assign) and ast.unparse(listed.targets[0]) == "__all__"
            for element in ast.walk(listed.value)
            if isinstance(element, ast.Constant)
        }
        for home in known
    }
    for name in known:
        for node in ast.walk(parsed(name)):
            home = str(node.module).removeprefix("zroute.") if isinstance(node, ast.ImportFrom) else None
            if home in known:
                names = {alias.name for alias in node.names if f"{home}.{alias.name}" not in known}
                assert names <= offered[home], f"{name} imports names that are not in __all__ of {home}"


def test_every_private_name_of_a_module_is_used() -> None:
    """A name with a leading underscore that a module assigns is also read there."""
    unused = []
    for name in modules():
        tree = parsed(name)
        assigned = [each for each in tree.body if isinstance(each, ast.Assign | ast.AnnAssign)]
        stored = {node.id for each in assigned for node in ast.walk(each) if is_private(node, ast.Store)}
        loaded = {node.id for node in ast.walk(tree) if is_private(node, ast.Load)}
        unused += [f"{name}.{each}" for each in sorted(stored - loaded)]
    assert unused == []


def is_private(node: ast.AST, context: type[ast.expr_context]) -> TypeGuard[ast.Name]:
    """Return True if a node stores or loads a name with one leading underscore."""
    return isinstance(node, ast.Name) and isinstance(node.ctx, context) and node.id.strip("_") == node.id[1:] != ""


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="only Python 3.11 lists comprehensions in its symbol table")
def test_a_comprehension_takes_no_name_that_its_function_only_hands_on() -> None:
    """CPython 3.12 and 3.13.0 lose the variable of an outer function if a comprehension between it and the inner
    function that reads it uses the name again: the inner function then raises NameError.
    """
    folders = ("zroute", "tests", "examples", "docs", "chaos", "benchmarks")
    found = [
        f"{path.relative_to(ROOT)}: {function} {name!r}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for function, name in lost_names(path.read_text())
    ]
    assert found == []


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="only Python 3.11 lists comprehensions in its symbol table")
def test_a_lost_name_is_found() -> None:
    """The check above finds the fault in the smallest program that has it."""
    program = "def outer(name):\n def middle():\n  def inner(): return name\n  return [name for name in ()]\n"
    assert lost_names(program) == [("middle", "name")]
    assert lost_names(program.replace("for name", "for other")) == []


def lost_names(source: str) -> list[tuple[str, str]]:
    """Return the functions that have a comprehension over a name of an outer function, each with the name."""
    tables = [symtable.symtable(source, "source", "exec")]
    found = []
    for table in tables:
        tables.extend(table.get_children())
        if isinstance(table, symtable.Function):
            inlined = [
                child for child in table.get_children() if child.get_name() in ("listcomp", "dictcomp", "setcomp")
            ]
            own = {name for child in inlined for name in child.get_identifiers() if child.lookup(name).is_assigned()}
            found.extend((table.get_name(), name) for name in table.get_frees() if name in own)
    return found


def test_the_tests_load_no_trial() -> None:
    """No test imports Twisted's trial, as `twisted.internet.testing` does.

    With trial loaded, pytest reads Twisted's version from its metadata before each test, which takes a millisecond.
    """
    assert "twisted.trial.unittest" not in sys.modules


# -- how large a class may be ----------------------------------------------------------------------------


def test_no_constructor_takes_more_than_eight_parameters() -> None:
    """No constructor takes more than eight parameters; an outdated exception has to be removed."""
    many = set()
    for module in map(import_module, (f"zroute.{name}" for name in modules())):
        for name, made in vars(module).items():
            if isclass(made) and made.__module__ == module.__name__ and "__init__" in vars(made):
                _, *taken = signature(vars(made)["__init__"]).parameters
                if len(taken) > PARAMETERS:
                    many.add(f"{module.__name__}.{name}")
    assert many == MORE_PARAMETERS.keys()


# -- the way of a message --------------------------------------------------------------------------------


def counted(frame: FrameType, calls: list[tuple[str, str]]) -> None:
    """Append a call to ``calls`` if the function is zroute's or was generated for it."""
    code = frame.f_code
    if code.co_filename.startswith((str(PACKAGE), "<")) and not code.co_filename.startswith("<frozen"):
        calls.append((code.co_filename, code.co_name))


class Ledger:
    """A resource."""


LEDGER = Ledger()


@pytest.mark.parametrize("frame", [plain, tracked])
@pytest.mark.parametrize("with_resource", [False, True])
def test_a_message_takes_few_steps_to_its_handler(frame: Any, with_resource: bool) -> None:
    """From the reactor's doRead to a handler: at most 5 functions in 4 files, 3 frames above the handler.

    A resource adds no step: it is bound to the function when the app starts.
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
    connection.receive = wired.table.receive
    calls: list[tuple[str, str]] = []

    def receive() -> None:
        publisher.send(frame("a.b", {"symbol": "A", "price": 1.0}))
        arrived = len(got) + 1
        assert connection._socket.poll(PATIENCE * 1000)
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
        assert publisher.poll(PATIENCE * 1000)
        publisher.recv()
        clock.advance(0)
        receive()  # the first message of a topic takes the slow path
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


@pytest.mark.parametrize("options", [{}, {"keep": "last"}])
@pytest.mark.parametrize("pattern", ["quotes", "quotes.{symbol}"])
@pytest.mark.parametrize("beside", [{}, {"keep": "last"}, {"coalesce": True}])
def test_a_message_takes_few_steps_to_the_socket(pattern: str, options: dict[str, Any], beside: dict[str, Any]) -> None:
    """From the call to the socket's send: one function, or at most 4 in 3 files for a kept message.

    Options of other publishers in the app add no step.
    """
    app = App(pub=ADDRESS, codec="json", context=(context := zmq.Context()))
    publication = app.publisher(pattern, Quote, **options)
    other = app.publisher("orders.{symbol}", Quote, **beside)
    quote = Quote("A", 1.0)
    calls: list[tuple[str, str]] = []
    with joined(app, context) as run:
        other.publish(quote)
        publication.publish(quote)  # the first message of a topic takes the slow path
        publication.publish(quote)  # this one finds the counters of its topic
        run.read()
        sys.setprofile(lambda frame, event, _: counted(frame, calls) if event == "call" else None)
        try:
            publication.publish(quote)
        finally:
            sys.setprofile(None)
        (got,) = run.read()
        assert got.messages == [{"symbol": "A", "price": 1.0}]
        assert got.header.sequence == 4
        assert run.kept.get(got.topic) == (got.messages[0] if options else None)
    functions = sorted({f"{Path(file).name}:{name}" for file, name in calls})
    files = sorted({file for file, _ in calls})
    report = f"{len(calls)} calls of {functions}, in {len(files)} files"
    assert 0 < len(calls) <= (FUNCTIONS_KEPT if options else FUNCTIONS_OUT), report
    assert len(files) <= (FILES_KEPT if options else FILES_OUT), report


def test_a_resource_is_bound_by_a_partial() -> None:
    """A resource is bound by a partial in C, which adds no Python frame to a call."""
    app = App()

    @app.resource
    def ledger() -> Iterator[Ledger]:
        yield LEDGER

    @app.subscribe("a.{x}")
    def handle(message: Quote, x: str, ledger: Ledger) -> None: ...

    call = app.compile().parts.routes[0].call.supply({Ledger: LEDGER})
    bound = call.bind({"x": "b"}, b"a.b")
    assert isinstance(bound, partial)
    assert bound.func is handle
    assert bound.keywords == {"x": "b", "ledger": LEDGER}


@pytest.mark.parametrize("folder", ["benchmarks", "chaos"])
def test_each_program_beside_the_tests_can_be_imported(folder: str) -> None:
    """Every program outside the tests can be imported."""
    for path in sorted((ROOT / folder).glob("[!_]*.py")):
        import_module(f"{folder}.{path.stem}")

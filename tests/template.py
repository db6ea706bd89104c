"""A process that has imported zroute: the quick profile forks it for each Python program that a test starts.

``python tests/template.py SOCKET`` reads requests from the file descriptor SOCKET, as `tests.interpreters` sends them.
A fork costs a tenth of a new interpreter, which would import the same modules again. The template imports no module
of the tests, installs no reactor and opens no ZeroMQ context, so a fork is as an interpreter that has just started.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import importlib
import io
import json
import os
import runpy
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib.machinery import BuiltinImporter, SourceFileLoader
from types import ModuleType, TracebackType
from typing import Any

MODULES = (
    "twisted.internet.asyncioreactor",
    "twisted.internet.epollreactor",
    "twisted.internet.selectreactor",
    "twisted.internet.threads",
    "zroute.app",
    "zroute.cli.check",
    "zroute.cli.pub",
    "zroute.cli.run",
    "zroute.cli.tail",
    "zroute.testing",
)
_OWN = len(os.environ["PYTHONPATH"].split(os.pathsep)) + 1
_INSTALLED = sys.path[_OWN:]
"""The entries of sys.path that do not depend on the program or on PYTHONPATH."""


def main(descriptor: int) -> None:
    """Serve until the socket is closed; in a fork, run the program of the request."""
    # A test may write two programs to one file within a second, and Python would run the compiled first one twice.
    sys.dont_write_bytecode = True
    spared: list[Any] = []
    spared.append(spared)  # a cycle that the garbage collector may not see is never freed
    atexit.register(spare, spared)
    for name in MODULES:
        importlib.import_module(name)
    spared += [name for name in sys.modules if name not in ("__main__", "builtins", "sys")]
    gc.collect()
    gc.freeze()
    if request := serve(socket.socket(fileno=descriptor)):
        program = prepare(**request)
        try:
            program()
        except BaseException:
            sys.excepthook = partial(tell, sys.excepthook)
            raise


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Answer each request, with the id of a new process or with what waitpid() returns; return a fork's request."""
    lines = requests.makefile("rw")
    while True:
        mark, streams, _, _ = socket.recv_fds(requests, 1, 3)
        if not mark:
            return None
        request: dict[str, Any] = json.loads(lines.readline())
        if not streams:
            print(json.dumps(os.waitpid(request["process"], os.WNOHANG)), file=lines, flush=True)
        elif not os.fork():
            separate(streams, **request.pop("group"))
            print(os.getpid(), file=lines, flush=True)
            lines.detach()
            requests.close()
            return request
        for stream in streams:
            os.close(stream)


def separate(streams: Iterable[int], session: bool, group: int) -> None:
    """Take over the standard streams; lead a session, or join a process group unless it is negative."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if session:
        os.setsid()
    if group >= 0:
        os.setpgid(0, group)


def prepare(arguments: list[str], folder: str, environment: dict[str, str]) -> Callable[[], object]:
    """Return the program that ``python ARGUMENTS`` would run, as a function, after setting all that it can see."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv[1:] = arguments
    open_streams(unbuffered=bool(environment.get("PYTHONUNBUFFERED")))
    module = sys.modules["__main__"] = ModuleType("__main__")
    scope = vars(module)
    scope.update(__annotations__={}, __builtins__=builtins, __loader__=BuiltinImporter)
    kind, *rest = arguments
    if kind == "-m":
        name, *sys.argv[1:] = rest
        sys.argv[0], first = kind, os.getcwd()
        program: Callable[[], object] = partial(runpy._run_module_as_main, name)  # type: ignore[attr-defined]
    elif kind == "-c":
        source, *sys.argv[1:] = rest
        sys.argv[0], first = kind, ""
        program = partial(execute, source, "<string>", scope)
    else:
        sys.argv[:] = arguments
        path = os.path.abspath(kind)
        first = os.path.dirname(os.path.realpath(path))
        loader = SourceFileLoader("__main__", path)
        scope.update(__file__=path, __cached__=None, __loader__=loader)
        program = partial(execute, loader.get_data(path), path, scope)
    listed = environment.get("PYTHONPATH")
    sys.path[:] = dict.fromkeys((*map(os.path.abspath, listed.split(os.pathsep) if listed else ()), *_INSTALLED))
    sys.path.insert(0, first)
    return program


def open_streams(unbuffered: bool) -> None:
    """Open the standard streams as an interpreter does that starts with, or without, PYTHONUNBUFFERED."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        old, mode = getattr(sys, name), "w" if descriptor else "r"
        raw = open(descriptor, f"{mode}b", 0 if descriptor and unbuffered else -1, closefd=False)  # noqa: SIM115
        by_line = not unbuffered and (raw.isatty() or name == "stderr")
        stream = io.TextIOWrapper(raw, old.encoding, old.errors, line_buffering=by_line, write_through=unbuffered)
        stream.mode, getattr(raw, "raw", raw).name = mode, f"<{name}>"
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def execute(source: str | bytes, file: str, scope: dict[str, Any]) -> None:
    """Run ``source`` in ``scope``, without the compiler flags of this module."""
    exec(compile(source, file, "exec", dont_inherit=True), scope)


def spare(names: list[Any]) -> None:
    """Keep the template's modules from being taken apart at the end of a fork, which would be most of its work."""
    names += [sys.modules.pop(name, None) for name in names[1:]]


def tell(hook: Callable[..., object], kind: type, error: BaseException, trace: TracebackType | None) -> None:
    """Call the program's ``hook`` for the error that ends it; its traceback begins in the program."""
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    hook(kind, error.with_traceback(trace), trace)


if __name__ == "__main__":
    main(int(sys.argv[1]))

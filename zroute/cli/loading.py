"""From ``module:app`` to App objects, and good answers when that fails.

What was looked for, where, and what is there instead, in one or two lines; a module that fails in its own
import shows the user's frames only.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import click

from zroute.errors import EndpointError, SetupError
from zroute.functions import PACKAGE

if TYPE_CHECKING:
    from zroute.app import App

__all__ = [
    "EXIT_CANT_LOAD",
    "EXIT_ENDPOINT",
    "EXIT_INTERRUPTED",
    "EXIT_INVALID",
    "fail",
    "fail_of_setup",
    "find",
    "load",
]

EXIT_CANT_LOAD = 3
EXIT_INVALID = 4
EXIT_ENDPOINT = 5
EXIT_INTERRUPTED = 130  # 128 + SIGINT, before there was anything to drain

_DEFAULT_NAMES = ("app", "create_app")

_NOT_THE_USERS = (
    "<frozen importlib",
    str(Path(importlib.__file__).parent) + os.sep,
    PACKAGE,
)
"""How the file names of frames begin that the user has nothing to do with."""


def load(target: str, *, app_dir: str, factory: bool) -> App:
    """The App that ``target`` names: see `find`."""
    return find(target, app_dir=app_dir, factory=factory)[0]


def find(target: str, *, app_dir: str, factory: bool) -> tuple[App, ModuleType]:
    """The App that ``target`` names, and its module.

    A target is ``module:name``, or a ``module`` with an ``app`` or a ``create_app``.
    ``app_dir`` is put first where modules are looked for. The path of a file may stand for its module, and
    is then relative to ``app_dir``. ``factory`` says that the name is a function that
    returns the App. Ends the program with exit code 3, 4 or 5 and a text when there is none.
    """
    name, _, attribute = target.partition(":")
    folder = Path(app_dir).resolve()
    if not folder.is_dir():
        fail(EXIT_CANT_LOAD, f"--app-dir {app_dir!r} is no directory")
    _look_in(folder)
    if name.endswith(".py") or "/" in name:
        name, folder = _module_of(folder / name)
        _look_in(folder)
    if not all(name.split(".")):
        fail(EXIT_CANT_LOAD, f"{target!r} names no module: write MODULE:APP, such as 'quotes:app'")
    try:
        module = _import(name, folder)
        return _found(module, attribute, factory), module
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None


def _was_interrupted(error: BaseException | None) -> bool:
    """Return True if Ctrl-C has led to ``error``, which the user's code may have made of it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == EXIT_INTERRUPTED):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _module_of(path: Path) -> tuple[str, Path]:
    """The dotted name of the module in this file or folder, and the folder that it is imported from.

    A file in a package is named with it, so that its relative imports work.
    """
    path = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).resolve()
    if not path.is_file():
        fail(EXIT_CANT_LOAD, f"no file {path}")
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        parts, folder = [folder.name, *parts], folder.parent
    return ".".join(parts).removesuffix(".__init__"), folder


def _import(name: str, folder: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            there = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
            modules = f"; there are {', '.join(there[:8])}" if there else ""
            fail(EXIT_CANT_LOAD, f"no module {error.name!r} in {folder} or where Python looks{modules}")
        _show_user_frames(error, name)
    except SetupError as error:
        fail_of_setup(error)
    except BaseException as error:
        _show_user_frames(error, name)


def _found(module: ModuleType, attribute: str, factory: bool) -> App:
    names = (attribute,) if attribute else _DEFAULT_NAMES
    name = next((name for name in names if hasattr(module, name)), None)
    if name is None:
        looked = " or ".join(map(repr, names))
        where = f"module {module.__name__!r} ({_place(module)})"
        fail(EXIT_CANT_LOAD, f"{where} has no {looked}; {_apps_in(module)}")
    value = getattr(module, name)
    if factory or (not attribute and name == "create_app"):
        value = _called(value, name, module)
    from zroute.app import App

    if value is None:
        fail(EXIT_CANT_LOAD, f"{module.__name__}:{name} is None: a factory has to return its App")
    if not isinstance(value, App):
        what = f"{module.__name__}:{name}"
        call = "; if it is a function that returns one, add --factory" if callable(value) else ""
        fail(EXIT_CANT_LOAD, f"{what} is a {type(value).__name__}, not a zroute App{call}; {_apps_in(module)}")
    if value.name == "app":
        value.name = module.__name__ if name in _DEFAULT_NAMES else f"{module.__name__}:{name}"
    return value


def _place(module: ModuleType) -> str:
    """Where a module is, also one that is no file: a folder without __init__.py, or a part of Python."""
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "a part of Python")


def _called(value: object, name: str, module: ModuleType) -> object:
    if not callable(value):
        fail(
            EXIT_CANT_LOAD,
            f"{module.__name__}:{name} is a {type(value).__name__}, which can't be called: drop --factory",
        )
    try:
        result: object = value()
    except SetupError as error:
        fail_of_setup(error)
    except (Exception, SystemExit) as error:
        _show_user_frames(error, module.__name__)
    return result


def _apps_in(module: ModuleType) -> str:
    from zroute.app import App

    apps = [name for name, value in vars(module).items() if isinstance(value, App)]
    return f"its App objects: {', '.join(apps)}" if apps else "it has no App objects"


def fail_of_setup(error: SetupError) -> NoReturn:
    """One line: 5 for endpoints, 4 for everything else that the app's author wrote."""
    fail(EXIT_ENDPOINT if isinstance(error, EndpointError) else EXIT_INVALID, str(error))


def _show_user_frames(error: BaseException, name: str) -> NoReturn:
    """The traceback without the frames of zroute and of Python's import machinery; none after Ctrl-C."""
    if _was_interrupted(error):
        raise SystemExit(EXIT_INTERRUPTED)
    report = traceback.TracebackException.from_exception(error)
    _hide_other_frames(report)
    click.echo("".join(report.format()).rstrip(), err=True)
    fail(EXIT_CANT_LOAD, f"{name!r} can't be loaded: its own code failed, as shown above")


def _hide_other_frames(report: traceback.TracebackException) -> None:
    """Also in the errors that led to this one."""
    report.stack[:] = [frame for frame in report.stack if not frame.filename.startswith(_NOT_THE_USERS)]
    for before in (report.__cause__, report.__context__):
        if before is not None:
            _hide_other_frames(before)


def fail(code: int, text: str) -> NoReturn:
    """Say what is wrong, on standard error, and end with ``code``."""
    click.echo(f"zroute: {text}", err=True)
    raise SystemExit(code)

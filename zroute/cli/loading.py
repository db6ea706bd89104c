"""Load the App objects that a command names, as in ``module:app``.

If an app can't be loaded, one or two lines report what zroute looked for, where, and what it found instead. If the
import of a module fails, the traceback shows only frames of the user's own code.
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
from zroute.runtime.exit_codes import EXIT_CANT_LOAD, EXIT_ENDPOINT, EXIT_INTERRUPTED, EXIT_INVALID

if TYPE_CHECKING:
    from zroute.app import App

__all__ = [
    "fail",
    "fail_of_setup",
    "find",
    "load",
]

_DEFAULT_NAMES = ("app", "create_app")

_NOT_THE_USERS = (
    "<frozen importlib",
    str(Path(importlib.__file__).parent) + os.sep,
    PACKAGE,
)
"""The path prefixes of frames that do not belong to user code: zroute and Python's import system."""


def load(target: str, *, app_dir: str, factory: bool) -> App:
    """Return the App that ``target`` names; see `find`."""
    return find(target, app_dir=app_dir, factory=factory)[0]


def find(target: str, *, app_dir: str, factory: bool) -> tuple[App, ModuleType]:
    """Return the App that ``target`` names, and its module.

    An App with the default name ``app`` gets the name of its module, so that the log lines of several apps can be
    distinguished.

    Args:
        target: ``module:name``, or a ``module`` that contains ``app`` or ``create_app``. The module may also be given
            by the path of its file or package folder, relative to ``app_dir``.
        app_dir: The folder in which Python looks for modules first. The function adds this folder to `sys.path`.
        factory: True if the name is a function that returns the App.

    Raises:
        SystemExit: An error was printed on standard error. 3: the app can't be found or imported. 4: its routes are
            invalid. 5: an endpoint is invalid. 130: Ctrl-C interrupted the import.
    """
    name, _, attribute = target.partition(":")
    folder = Path(app_dir).resolve()
    if not folder.is_dir():
        fail(EXIT_CANT_LOAD, f"--app-dir {app_dir!r} is not a directory")
    _look_in(folder)
    if name.endswith(".py") or "/" in name:
        name, folder = _module_of(folder / name)
        _look_in(folder)
    if not all(name.split(".")):
        fail(EXIT_CANT_LOAD, f"{target!r} does not name a module: write MODULE:APP, for example 'quotes:app'")
    try:
        module = _import(name, folder)
        return _found(module, attribute, factory), module
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None


def _was_interrupted(error: BaseException | None) -> bool:
    """Return True if Ctrl-C caused ``error``.

    The user's code may have caught the KeyboardInterrupt and raised another error, so the whole chain of causes
    is searched.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == EXIT_INTERRUPTED):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def _look_in(folder: Path) -> None:
    """Make Python look for modules in ``folder`` first."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _module_of(path: Path) -> tuple[str, Path]:
    """Return the dotted name of the module at ``path``, and its import folder.

    The module name of a file in a package includes the package, so that relative imports work. If the path does not
    exist, the program ends with exit code 3.
    """
    path = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).resolve()
    if not path.is_file():
        fail(EXIT_CANT_LOAD, f"the file {path} does not exist")
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        parts, folder = [folder.name, *parts], folder.parent
    return ".".join(parts).removesuffix(".__init__"), folder


def _import(name: str, folder: Path) -> ModuleType:
    """Import and return the module ``name``.

    If the import fails, print the reason and end the program. The text distinguishes between a missing module and a
    module whose own imports are missing.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            there = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
            modules = f"; modules in that folder: {', '.join(there[:8])}" if there else ""
            fail(EXIT_CANT_LOAD, f"no module {error.name!r} in {folder} or on Python's path{modules}")
        _show_user_frames(error, name)
    except SetupError as error:
        fail_of_setup(error)
    except BaseException as error:
        _show_user_frames(error, name)


def _found(module: ModuleType, attribute: str, factory: bool) -> App:
    """Return the App ``attribute`` of ``module``.

    If ``attribute`` is empty, look for ``app`` and ``create_app``. If there is no App, print the reason and end the
    program.
    """
    names = (attribute,) if attribute else _DEFAULT_NAMES
    name = next((name for name in names if hasattr(module, name)), None)
    if name is None:
        looked = " or ".join(map(repr, names))
        where = f"module {module.__name__!r} ({_place(module)})"
        fail(EXIT_CANT_LOAD, f"{where} has no {looked}; {_apps_in(module)}")
    value = getattr(module, name)
    if factory or (not attribute and name == "create_app"):
        value = _called(value, name, module)
    from zroute.app import App  # imported late: errors of the target's import don't need it

    if value is None:
        fail(EXIT_CANT_LOAD, f"{module.__name__}:{name} is None: a factory must return an App")
    if not isinstance(value, App):
        what = f"{module.__name__}:{name}"
        call = "; if the name is that of a function that returns an App, add --factory" if callable(value) else ""
        fail(EXIT_CANT_LOAD, f"{what} is a {type(value).__name__}, not a zroute App{call}; {_apps_in(module)}")
    if value.name == "app":
        value.name = module.__name__ if name in _DEFAULT_NAMES else f"{module.__name__}:{name}"
    return value


def _place(module: ModuleType) -> str:
    """Return the path of a module, for an error text.

    A package folder without ``__init__.py`` has only a ``__path__``. A built-in module has no path.
    """
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "built into Python")


def _called(value: object, name: str, module: ModuleType) -> object:
    """Return the result of the factory ``value``, or end the program if it fails."""
    if not callable(value):
        fail(
            EXIT_CANT_LOAD,
            f"{module.__name__}:{name} is a {type(value).__name__}, not a function: omit --factory",
        )
    try:
        result: object = value()
    except SetupError as error:
        fail_of_setup(error)
    except (Exception, SystemExit) as error:
        _show_user_frames(error, module.__name__)
    return result


def _apps_in(module: ModuleType) -> str:
    """Return a phrase that lists the App objects of ``module``, for an error text."""
    from zroute.app import App

    apps = [name for name, value in vars(module).items() if isinstance(value, App)]
    return f"the module's App objects: {', '.join(apps)}" if apps else "the module has no App objects"


def fail_of_setup(error: SetupError) -> NoReturn:
    """Print ``error``, and end with exit code 5 for an EndpointError, otherwise 4."""
    fail(EXIT_ENDPOINT if isinstance(error, EndpointError) else EXIT_INVALID, str(error))


def _show_user_frames(error: BaseException, name: str) -> NoReturn:
    """Print the traceback of ``error`` and end the program with exit code 3.

    The traceback omits the frames of zroute and Python's import system. After Ctrl-C, the program ends with 130 and
    prints no traceback.
    """
    if _was_interrupted(error):
        raise SystemExit(EXIT_INTERRUPTED)
    report = traceback.TracebackException.from_exception(error)
    _hide_other_frames(report)
    click.echo("".join(report.format()).rstrip(), err=True)
    fail(EXIT_CANT_LOAD, f"{name!r} can't be loaded: the code of the module failed, as shown above")


def _hide_other_frames(report: traceback.TracebackException) -> None:
    """Remove all frames that are not user code from ``report`` and its causes."""
    report.stack[:] = [frame for frame in report.stack if not frame.filename.startswith(_NOT_THE_USERS)]
    for before in (report.__cause__, report.__context__):
        if before is not None:
            _hide_other_frames(before)


def fail(code: int, text: str) -> NoReturn:
    """Print ``text`` on standard error, and end with the exit code ``code``."""
    click.echo(f"zroute: {text}", err=True)
    raise SystemExit(code)

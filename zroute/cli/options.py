"""Options that several commands share, and the types of their values.

Options created with `option` can also be set by an environment variable, for example ``--app-dir`` by
``ZROUTE_APP_DIR``. The commands that load apps use these options: run, check and routes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from zroute.endpoints import NO_KEYS, SIDES, Access, Cluster, Endpoint, EndpointOptions, parse_access, parse_endpoint
from zroute.errors import EndpointError, KeyFileError, PatternError, SetupError, SignatureError
from zroute.messages.frames import parse_form, stated_form
from zroute.messages.topics import SEPARATORS, Pattern, parse, startswith
from zroute.nats.servers import is_nats, masked, parse_cluster

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from zroute.messages.recovery import Since

__all__ = [
    "ACCESS",
    "DURATION",
    "INSECURE",
    "NATS",
    "PATTERN",
    "SINCE",
    "EndpointType",
    "access_options",
    "app_options",
    "check_past",
    "cluster_options",
    "complete_target",
    "endpoint_options",
    "fault_of_several",
    "for_one_app",
    "frames_option",
    "in_form",
    "option",
    "reachable",
    "separator_option",
    "source_of",
]

F = TypeVar("F", bound=Callable[..., Any])

CREDS = "The file of credentials for NATS: a JWT and a seed."
"""The help of ``--nats-creds``."""

NATS = (
    ("--nats", "URL,…", "Run on these NATS servers, separated by commas, instead of the app's endpoints."),
    ("--nats-creds", "FILE", CREDS),
)
"""The options that set the NATS servers of apps: flag, name of the value, help."""

ACCESS = (
    ("--keys", "FILE", "The secret file of a key (see zroute keys); encrypts all connections."),
    ("--peers", "DIR", "The directory with the keys that may connect, or 'anyone'."),
)
"""The options with a value that set the keys of apps: flag, name of the value, help."""

INSECURE = "Bind addresses that other hosts can reach, even without keys."
"""The help of ``--insecure``."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_SEPARATOR = "zroute.separator"  # the key in the context of click
_STARTSWITH = re.compile(r"""startswith\((["'])(.*)\1\)""")


class _Duration(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A duration, converted to seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds for ``10s``, ``500ms``, ``2m``, ``1h``, or a number of seconds.

        Any other text is a usage error.
        """
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration: write 10s, 500ms, 2m, 1h, or a number of seconds", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


DURATION = _Duration()


class _SinceTime(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """The beginning of the past, converted to `Since`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Since | None:
        """Return the past for ``60s``, or for a time such as ``2026-11-28T09:30``.

        A time without a zone is local. Any other text is a usage error, and so are a future time and a duration of 0.
        A number without a unit is one too, because it could be a time.
        """
        from zroute.declarations.since import check_since_option

        text = str(value).strip()
        try:
            if match := _DURATION.fullmatch(text):
                if not match[2]:
                    self.fail(f"{value!r} has no unit: write 60s, 5m or 2026-11-28T09:30", param, ctx)
                if not float(match[1]):
                    self.fail(
                        f"{value!r} contains no messages: write a duration of more than 0, such as 60s", param, ctx
                    )
                return check_since_option(timedelta(seconds=DURATION.convert(text, param, ctx)), "--since")
            time = datetime.fromisoformat(text).astimezone()
            if time > datetime.now(UTC):
                self.fail(
                    f"{value!r} is in the future: write a time in the past, or a duration such as 60s", param, ctx
                )
            return check_since_option(time, "--since")
        except (ValueError, OverflowError, SignatureError):
            self.fail(f"{value!r} is neither a duration nor a time: write 60s, 5m or 2026-11-28T09:30", param, ctx)


SINCE = _SinceTime()


def check_past(option: str, endpoint: Endpoint | Cluster, frames: str | None) -> None:
    """Raise a usage error if a source has no past, which ``option`` asks for."""
    if isinstance(endpoint, Cluster):
        raise click.UsageError(f"{option} is not possible on NATS, where publishers have no history: remove {option}")
    if frames is not None:
        raise click.UsageError(
            f"{option} is not possible with --frames, because only zroute's publishers have a history: remove {option}"
        )


class _Switch(click.types.BoolParamType):
    """The value of a flag, which a ``ZROUTE_`` variable gives as text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        """Return True or False.

        Any other text is a usage error that names the accepted values.
        """
        try:
            return bool(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is not a switch: write 1, true, yes or on; or 0, false, no or off", param, ctx)


_SWITCH = _Switch()


class EndpointType(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """An endpoint, converted to `Endpoint`.

    If the value begins with neither ``bind:`` nor ``connect:``, ``bind`` decides: True binds the address, and False
    connects to it. With ``nats=True``, the value may also be the addresses of NATS servers, converted to `Cluster`.
    """

    name = "endpoint"

    def __init__(self, *, bind: bool, nats: bool = False) -> None:
        self._bind = bind
        self._nats = nats

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint | Cluster:
        """Return the `Endpoint` or `Cluster`.

        An address that can't be parsed is a usage error.
        """
        if isinstance(value, Endpoint | Cluster):
            return value
        text = str(value).strip()
        try:
            if self._nats and is_nats(text) and (cluster := parse_cluster(text)) is not None:
                return cluster
            if is_nats(text):
                self.fail(f"{masked(text)!r} is on NATS, which this command does not support", param, ctx)
            return parse_endpoint(text, bind=self._bind)
        except EndpointError as error:
            self.fail(str(error), param, ctx)

    def split_envvar_value(self, rv: str) -> list[str]:
        """Split the value of an environment variable at commas and white space."""
        return [part for part in re.split(r"[,\s]+", rv) if part]


def reachable(endpoint: Endpoint) -> Endpoint:
    """Return ``endpoint``, or raise EndpointError if other processes can't reach it."""
    if endpoint.address.startswith("inproc:"):
        raise EndpointError(
            f"{endpoint.address} can only be reached inside its own process: add a tcp:// or ipc:// endpoint",
            endpoint=str(endpoint),
        )
    return endpoint


class _PatternType(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A topic pattern, converted to `Pattern`."""

    name = "pattern"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Pattern:
        """Return the `Pattern`. A pattern that can't be parsed is a usage error.

        ``startswith("news")`` has the same meaning as in Python. The separator is the value of `separator_option`.
        """
        separator = "." if ctx is None else ctx.meta.get(_SEPARATOR, ".")
        try:
            prefix = _STARTSWITH.fullmatch(str(value))
            return parse(value, separator) if prefix is None else startswith(prefix[2])
        except PatternError as error:
            self.fail(str(error), param, ctx)


PATTERN = _PatternType()


class _FramesType(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A message form, given as text.

    The value is not converted, because a recording stores the text in its head.
    """

    name = "form"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text unchanged. A text that is not a valid form is a usage error."""
        try:
            in_form(Endpoint("", bind=False), str(value))
        except SetupError as error:
            self.fail(error.text, param, ctx)
        return str(value)


def frames_option(command: F) -> F:
    """Add ``--frames``, which specifies the form of foreign messages."""
    text = "Form of foreign messages, such as 'separator= ', 'topic=0,body=2', 'topic=eddn,decompress=zlib' or "
    text += "'whole,topic=weather'."
    return click.option("--frames", type=_FramesType(), metavar="'FORM'", help=text)(command)


def in_form(endpoint: Endpoint, frames: str | None) -> Endpoint:
    """Return ``endpoint`` with the form from ``--frames``, if that option is set.

    Raises:
        SetupError: The text is not a valid form, or the package for the compression is not installed.
    """
    return endpoint if frames is None else attrs.evolve(endpoint, form=stated_form(parse_form(frames) or "tracked"))


def source_of(endpoint: Endpoint | Cluster, frames: str | None) -> Sequence[Endpoint] | Cluster:
    """Return the source to subscribe to, with the form from ``--frames``."""
    return endpoint if isinstance(endpoint, Cluster) else (in_form(endpoint, frames),)


def option(flag: str, *names: str, **attributes: Any) -> Callable[[F], F]:
    """Return a click option that can also be set by its ``ZROUTE_…`` variable.

    ``--help`` shows the name of the variable. ``names`` and ``attributes`` are passed to `click.option`.
    """
    if attributes.get("is_flag"):
        attributes.setdefault("type", _SWITCH)
    variable = "ZROUTE_" + flag.lstrip("-").replace("-", "_").upper()
    return click.option(flag, *names, envvar=variable, show_envvar=True, **attributes)


def separator_option(*, what: str = "patterns", expose_value: bool = False) -> Callable[[F], F]:
    """Return the option ``--separator``, for commands with patterns or topics.

    Pattern arguments (`PATTERN`) use the value of the option, even if the command function has no parameter for it.
    """

    def remember(ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
        ctx.meta[_SEPARATOR] = value
        return value

    return click.option(
        "--separator",
        type=click.Choice(tuple(SEPARATORS)),
        default=".",
        show_default=True,
        is_eager=True,  # before the patterns are parsed
        expose_value=expose_value,
        callback=remember,
        help=f"The character between the segments of {what}.",
    )


def complete_target(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete file names, for arguments that name an app."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _complete_folder(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the names of folders."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def app_options(command: F) -> F:
    """Add the options that control where an app is found."""
    command = option("--factory", is_flag=True, help="APP is the name of a function that returns the App.")(command)
    where = "Look for MODULE in this folder first."
    return option("--app-dir", default=".", metavar="DIR", help=where, shell_complete=_complete_folder)(command)


def access_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--keys``, ``--peers`` and ``--insecure``.

    The command function receives them as one argument ``access``, an `Access`.
    """

    @wraps(command)
    def gathered(*, keys: str | None, peers: str | None, insecure: bool, **arguments: Any) -> None:
        try:
            access = parse_access(keys=keys, peers=peers, insecure=insecure)
        except EndpointError as error:
            raise click.UsageError(str(error)) from error
        if not isinstance(arguments.get("endpoint"), Cluster):  # `cluster_options` refuses keys for NATS
            check_key_files(access.keys, access.peers)
        command(access=access, **arguments)

    return _access_flags(gathered)


def check_key_files(keys: str | Path | None, peers: str | Path | None) -> None:
    """End the program with exit code 5 if a given key file can't be used.

    The error names the flag or the variable with the path, because the fault is not in the line of the app.
    """
    from zroute.cli.loading import fail_of_setup
    from zroute.sockets.keys import read_secret
    from zroute.sockets.peers import PeerKeys

    name = "keys"
    try:
        if keys is not None:
            read_secret(Path(keys))
        name = "peers"
        if peers is not None and str(peers) != "anyone":
            PeerKeys(Path(peers))
    except KeyFileError as error:
        error.locate(_source_of(name))
        fail_of_setup(error)


def _source_of(name: str) -> str:
    """Return the flag or the variable that has given a parameter its value."""
    given = click.get_current_context().get_parameter_source(name)
    return f"ZROUTE_{name.upper()}" if given is click.core.ParameterSource.ENVIRONMENT else f"--{name}"


def _access_flags(command: F) -> F:
    option("--insecure", is_flag=True, help=INSECURE)(command)
    for flag, metavar, text in reversed(ACCESS):
        option(flag, metavar=metavar, help=text)(command)
    return command


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--nats-creds``, to a command whose ``endpoint`` may be a `Cluster`.

    Put it below `access_options`. The command function receives the credentials in ``endpoint``.
    """

    @wraps(command)
    def gathered(*, endpoint: Endpoint | Cluster, access: Access, nats_creds: str | None, **arguments: Any) -> None:
        if isinstance(endpoint, Cluster):
            _refuse_beside_nats()
            endpoint, access = attrs.evolve(endpoint, creds=Path(nats_creds) if nats_creds else None), NO_KEYS
        elif nats_creds is not None and by_flag("nats_creds"):
            raise click.UsageError("--nats-creds needs an ENDPOINT on NATS, such as nats://127.0.0.1:4222")
        command(endpoint=endpoint, access=access, **arguments)

    option("--nats-creds", metavar="FILE", help=CREDS)(gathered)
    return gathered


def _refuse_beside_nats() -> None:
    """Raise a usage error for options that have no meaning on NATS."""
    flags = ("keys", "peers", "insecure", "frames")
    if beside := [f"--{name}" for name in flags if by_flag(name)]:
        raise click.UsageError(
            f"{' and '.join(beside)} can't be combined with an ENDPOINT on NATS: the server decides who may connect, "
            "and a message has a subject and a body. Remove one of the two"
        )


def by_flag(name: str) -> bool:
    """Return True if an option was given on the command line, and not by a variable."""
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def endpoint_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--sub``, ``--pub`` and so on, which replace the endpoints of an app.

    The command function receives the endpoints as one argument ``ends``, an `EndpointOptions`.
    """

    @wraps(command)
    def gathered(**arguments: Any) -> None:
        ends: EndpointOptions = {}
        for side in SIDES:
            ends[side.name] = arguments.pop(side.name) or None
        ends["keys"], ends["peers"] = arguments.pop("keys"), arguments.pop("peers")
        ends["insecure"] = arguments.pop("insecure") or None
        ends["nats"], ends["nats_creds"] = _chosen_nats(arguments.pop("nats"), arguments.pop("nats_creds"), ends)
        if ends["nats"] is None:
            check_key_files(ends["keys"], ends["peers"])
        command(ends=ends, **arguments)

    _access_flags(gathered)
    for flag, metavar, text in reversed(NATS):
        option(flag, metavar=metavar, help=text)(gathered)

    for side in reversed(SIDES):
        option(side.flag, multiple=True, type=EndpointType(bind=side.binds), help=side.help)(gathered)
    return gathered


def _chosen_nats(nats: str | None, creds: str | None, ends: EndpointOptions) -> tuple[str | None, str | None]:
    """Return the servers and the credentials, after a check.

    Options take precedence over environment variables: ``--nats`` puts ``ZROUTE_SUB`` and so on out of use, and
    ``--sub`` puts ``ZROUTE_NATS`` out of use. ``ends`` is changed accordingly.
    """
    others = [side for side in SIDES if ends.get(side.name)]
    if nats is not None and by_flag("nats"):
        for side in others:
            if not by_flag(side.name):
                ends[side.name] = None
    elif any(by_flag(side.name) for side in others):
        nats = creds = None
    beside = [side.flag for side in others if ends.get(side.name)]
    if nats is not None and beside:
        raise click.UsageError(
            f"--nats can't be combined with {' and '.join(beside)}: on NATS, the servers replace all endpoints. Remove "
            "one of the two"
        )
    try:
        parse_cluster(nats)  # the credentials may belong to the servers of the app
    except EndpointError as error:
        raise click.UsageError(f"--nats: {error}") from error
    return nats, creds


def for_one_app(apps: tuple[str, ...], ends: EndpointOptions) -> None:
    """Raise a usage error if endpoints are given for several apps.

    With several apps it would be unclear which app the endpoints belong to.
    """
    fault = fault_of_several(apps, ends)
    if fault is not None:
        raise click.UsageError(fault)


def fault_of_several(apps: tuple[str, ...], ends: EndpointOptions) -> str | None:
    """Return the reason why endpoints can't be set for these apps, or None."""
    flags = [side.flag for side in SIDES if ends.get(side.name)]
    # --nats is for all apps: they find each other by topics.
    if len(apps) < 2 or not flags:
        return None
    return f"{' and '.join(flags)} can't be used with several apps: set the endpoints of each app in its code"

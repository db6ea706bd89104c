"""``zroute keys``: create keys, and decide which keys may connect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from zroute.cli.loading import fail_of_setup
from zroute.errors import KeyFileError

__all__ = ["command"]

F = TypeVar("F", bound=Callable[..., Any])

_KEYS = Path("keys")
_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


def _peers_option(command: F) -> F:
    return click.option(
        "--peers",
        type=_FOLDER,
        default=_KEYS / "peers",
        show_default=True,
        envvar="ZROUTE_PEERS",
        show_envvar=True,
        metavar="DIR",
        help="The directory with the keys that may connect.",
    )(command)


@contextmanager
def _faults() -> Iterator[None]:
    """Print a fault of a key file, and exit."""
    try:
        yield
    except KeyFileError as error:
        fail_of_setup(error)


@click.group("keys")
def command() -> None:
    """Create keys, and decide which keys may connect.

    Each program has a key of two files: NAME.key_secret, which it must not share, and NAME.key, which its peers need.
    A program accepts connections of the keys in its directory of peers, and reads the directory again while it runs.

    \b
    zroute keys new desk                 create keys/desk.key_secret and keys/desk.key
    zroute keys authorize feed.key       copy feed.key into keys/peers: the program feed may connect
    zroute run app --keys keys/desk.key_secret
    """


@command.command("new")
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    type=_FOLDER,
    default=_KEYS,
    show_default=True,
    metavar="DIR",
    help="The directory for both files.",
)
def new(name: str, folder: Path) -> None:
    """Create a key: NAME.key_secret and NAME.key.

    Only you can read the secret file. Existing files are never replaced.
    """
    from zroute.sockets.keys import create_keys, read_public

    with _faults():
        secret, public = create_keys(name, folder)
        key = read_public(public)
    click.echo(f"wrote {secret} (secret: do not copy this file)")
    click.echo(f"wrote {public} (give this file to the peers of {name})")
    click.echo(f"fingerprint {key.fingerprint}")


@command.command("show")
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="FILE…")
def show(files: tuple[Path, ...]) -> None:
    """Show the name, the public key and the fingerprint of each FILE.

    Secret keys are not shown.
    """
    from zroute.sockets.keys import SECRET, read_public, read_secret

    with _faults():
        for path in files:
            secret = path.name.endswith(SECRET)
            key = read_secret(path) if secret else read_public(path)
            kind = "secret" if secret else "public"
            click.echo(f"{key.name}  {kind}  {key.public.decode()}  {key.fingerprint}")


@command.command("authorize")
@click.argument("file", type=_FILE, metavar="FILE")
@click.option("--name", help="The name of the key in the directory. Default: the name of FILE.", metavar="NAME")
@click.option("--replace", is_flag=True, help="Replace another key of this name. Its connections are closed.")
@_peers_option
def authorize(file: Path, name: str | None, replace: bool, peers: Path) -> None:
    """Let the key in FILE connect: copy it into the directory of peers.

    Compare the fingerprint with the owner of the key. Running apps read the directory twice a second, and accept the
    key from then on. A program that was refused tries again after a pause of up to 30 seconds. An app that connects to
    the owner of the key connects at once.
    """
    from zroute.sockets.keys import PUBLIC, check_name, read_public, write_public
    from zroute.sockets.peers import PeerKeys

    with _faults():
        key = read_public(file)
        key = attrs.evolve(key, name=check_name(name or key.name))
        path = peers / (key.name + PUBLIC)
        same = PeerKeys(peers, administers=True).name_of(key.raw)
        if same == key.name:
            click.echo(f"{key.name} is authorized already ({key.fingerprint}): {path}")
            return
        if same is not None:
            raise KeyFileError(f"this key is already authorized, as {same} ({peers / (same + PUBLIC)})", path=path)
        replaced = path.exists()
        if replaced and not replace:
            raise KeyFileError(
                f"{path} exists already, with another key. To replace the key of {key.name}, add --replace; to keep "
                "both, add --name NAME",
                path=path,
            )
        write_public(path, key, replace=replace)
    if replaced:
        click.echo(f"replaced the key of {key.name} ({key.fingerprint}): wrote {path}")
        return
    click.echo(f"authorized {key.name} ({key.fingerprint}): wrote {path}")


@command.command("list")
@_peers_option
def list_(peers: Path) -> None:
    """List the keys that may connect."""
    from zroute.sockets.peers import PeerKeys

    faults: list[str] = []
    with _faults():
        keys = list(PeerKeys(peers, faults.append, administers=True))
    width = max((len(key.name) for key in keys), default=0)
    for key in keys:
        click.echo(f"{key.name:{width}}  {key.public.decode()}  {key.fingerprint}")
    for text in faults:
        click.echo(f"zroute: {text}", err=True)
    if faults:
        raise SystemExit(1)
    if not keys:
        click.echo(f"no keys in {peers}: no peer may connect", err=True)


@command.command("revoke")
@click.argument("name")
@_peers_option
def revoke(name: str, peers: Path) -> None:
    """Remove the key NAME from the directory of peers.

    Running programs close the connections of the key within a second, and refuse new ones.
    """
    from zroute.sockets.keys import PUBLIC, check_name
    from zroute.sockets.peers import PeerKeys

    with _faults():
        path = peers / (check_name(name) + PUBLIC)
        try:
            path.unlink()
        except FileNotFoundError:
            known = PeerKeys(peers, administers=True)
            # No similar name is proposed, because after a second call with the same name it would be another program.
            text = f"no key of {name!r} in {peers} ({known.names}): nothing was removed, or the key was revoked before"
            raise KeyFileError(text, path=path) from None
        except OSError as error:
            raise KeyFileError(f"can't remove {path}: {error.strerror}", path=path) from None
    click.echo(f"revoked {name}: removed {path}")

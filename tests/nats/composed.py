"""The Compose files of the example of a cluster, run without Docker: the same commands on ports of this machine.

Each service is a process. A host and port of the files, such as ``nats-1:4222``, becomes a free port of ``localhost``,
and a path in a container becomes the file that is mounted there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.nats.servers import NatsServer
from tests.support import ROOT, Child, free_port

CLUSTER = ROOT / "examples" / "cluster"
PLAIN, SECURE = CLUSTER / "compose.yaml", CLUSTER / "compose.secure.yaml"
CLIENTS = 4222
"""The port of a NATS server in its container."""

_ADDRESS = re.compile(r"\b([a-z]+-\d+|0\.0\.0\.0):(\d+)")


def services_of(*files: Path) -> dict[str, dict[str, Any]]:
    """Return the services of Compose files, merged as Compose does it: maps and lists are joined, the rest replaced."""
    yaml = pytest.importorskip("yaml")
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, service in yaml.safe_load(file.read_text())["services"].items():
            merged = found.setdefault(name, {})
            for key, value in service.items():
                if key == "environment":
                    value = {**merged.get(key, {}), **value}
                elif key in ("ports", "volumes", "secrets"):
                    value = [*merged.get(key, []), *value]
                merged[key] = value
    return found


def secrets_of(file: Path) -> dict[str, str]:
    """Return the paths of the secrets of a Compose file by name."""
    yaml = pytest.importorskip("yaml")
    return {name: secret["file"] for name, secret in yaml.safe_load(file.read_text())["secrets"].items()}


def is_server(service: Mapping[str, Any]) -> bool:
    """Return True for a NATS server, and False for a program of the example."""
    return str(service.get("image", "")).startswith("nats:")


def entrypoint() -> list[str]:
    """Return the command of the image of the programs, to which Compose appends that of the service."""
    found = re.search(r"^ENTRYPOINT (.*)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    assert found
    return list(json.loads(found[1]))


@attrs.define
class Composed:
    """The running services.

    Attributes:
        servers: The NATS servers by name.
        programs: The processes of the programs by service, one for each replica.
        urls: The addresses of the servers, as the programs have them.
    """

    servers: dict[str, NatsServer] = attrs.field(factory=dict)
    programs: dict[str, list[Child]] = attrs.field(factory=dict)
    urls: str = ""

    def __getitem__(self, name: str) -> Child:
        """Return the process of a program with one replica."""
        (child,) = self.programs[name]
        return child

    def server_of(self, program: str) -> NatsServer:
        """Return the server to which the first connection of a program leads."""
        line = self[program].line_with("on NATS, connected to ", stream="err")
        port = int(line.rpartition(":")[2])
        return next(server for server in self.servers.values() if server.port == port)


class _Machine:
    """Free ports in place of the addresses of containers, and files in place of mounted ones.

    Args:
        secrets: The folder in place of ``secrets`` beside the Compose files.
    """

    def __init__(self, secrets: Path) -> None:
        self._ports: dict[tuple[str, str], int] = {}
        self._secrets = secrets

    def file(self, source: str) -> Path:
        """Return the file that a Compose file names by its path from the folder of that file."""
        folder, _, name = source.removeprefix("./").rpartition("/")
        return self._secrets / name if folder == "secrets" else CLUSTER / source

    def mounted(self, service: Mapping[str, Any]) -> dict[str, Path]:
        """Return the files of a service by their paths in its container."""
        found = {
            inside: self.file(source) for source, inside, _ in (each.split(":") for each in service.get("volumes", ()))
        }
        sources = secrets_of(SECURE)
        for secret in service.get("secrets", ()):
            names = {"source": secret, "target": secret} if isinstance(secret, str) else secret
            found[f"/run/secrets/{names['target']}"] = self.file(sources[names["source"]])
        return found

    def port(self, host: str, port: int | str) -> int:
        return self._ports.setdefault((host, str(port)), free_port())

    def here(self, text: str, host: str, files: Mapping[str, Path]) -> str:
        """Return a text of a service with the addresses and files of this machine; ``host`` is that of 0.0.0.0."""

        def address(found: re.Match[str]) -> str:
            name = host if found[1] == "0.0.0.0" else found[1]
            return f"localhost:{self.port(name, found[2])}"

        text = _ADDRESS.sub(address, text)
        for inside, path in files.items():
            text = text.replace(inside, str(path))
        return text


@contextmanager
def composed(folder: Path, *compose: Path, secrets: Path | None = None) -> Iterator[Composed]:
    """Run the servers and the programs of Compose files.

    Args:
        folder: A folder for the configurations of the servers.
        compose: The Compose files.
        secrets: The folder in place of ``secrets`` beside the Compose files.
    """
    services, machine, running = services_of(*compose), _Machine(secrets or CLUSTER / "secrets"), Composed()
    with ExitStack() as stack:
        for name, service in services.items():
            if is_server(service):
                running.servers[name] = stack.enter_context(_server(folder, machine, name, service))
        for name, service in services.items():
            if not is_server(service):
                files = machine.mounted(service)
                environment = {key: machine.here(value, name, files) for key, value in service["environment"].items()}
                running.urls = environment["ZROUTE_NATS"]
                command = ("-m", *entrypoint(), *service["command"])
                running.programs[name] = [
                    stack.enter_context(Child(*command, cwd=CLUSTER, env=environment))
                    for _ in range(service.get("deploy", {}).get("replicas", 1))
                ]
        yield running


def _server(folder: Path, machine: _Machine, name: str, service: Mapping[str, Any]) -> NatsServer:
    """Return a NATS server with the arguments or the configuration of its service."""
    files = machine.mounted(service)
    config, arguments = "", []
    for argument in service["command"]:
        option, _, value = argument.partition("=")
        if option == "--config":
            config = machine.here(files[value].read_text(), name, files)
            for included in re.findall(r"^include (\S+)", config, re.MULTILINE):
                shutil.copy(files[str(Path(value).with_name(included))], folder / included)
        else:
            arguments.append(machine.here(argument, name, files))
    return NatsServer(folder, config, *arguments, port=machine.port(name, CLIENTS))

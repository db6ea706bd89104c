"""Configure an app by environment variables: endpoints and settings.

export ZROUTE_SUB=tcp://127.0.0.1:5743 ZROUTE_PUB=tcp://127.0.0.1:5744 DISK_LIMIT=90 DISK_IGNORE=tmp,scratch
zroute run --app-dir examples from_environment

In a second terminal, show the warnings. In a third, report a full disk:

zroute tail tcp://127.0.0.1:5744
zroute pub tcp://127.0.0.1:5743 disks.var '{"percent": 93.5}'
"""

import os
from collections.abc import Iterator

import attrs

from zroute import App

app = App(loop=False)  # ZROUTE_SUB and ZROUTE_PUB set the endpoints; without them, the app does not start


@attrs.frozen
class Settings:
    limit: float
    ignore: frozenset[str]


@app.resource
def settings() -> Iterator[Settings]:
    yield Settings(
        limit=float(required("DISK_LIMIT")),
        ignore=frozenset(os.environ.get("DISK_IGNORE", "").split(",")),
    )


def required(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise SystemExit(f"{name} is not set") from None


@attrs.frozen
class Usage:
    percent: float


@attrs.frozen
class TooFull:
    text: str


warnings = app.publisher("warnings.{disk}", TooFull)


@app.subscribe("disks.{disk}")
def check(usage: Usage, disk: str, settings: Settings) -> None:
    if usage.percent > settings.limit and disk not in settings.ignore:
        warnings.publish(TooFull(f"{disk} is {usage.percent:.1f} % full, over {settings.limit:g} %"), disk=disk)

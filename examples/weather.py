"""Handle two formats in one handler: stamped JSON, and raw bytes.

The older weather stations do not send JSON.

zroute run --app-dir examples weather:stations weather:office --for 3s
"""

import time

import attrs

from zroute import App, Stamped

ENDPOINT = "tcp://127.0.0.1:5712"


@attrs.frozen
class Weather:
    city: str
    celsius: float


# The plain wire and JSON: a station could send these bytes in any language.
stations = App(pub=ENDPOINT, wire="plain", codec="json")
modern = stations.publisher("weather.modern", Stamped[Weather])
oldest = stations.publisher("weather.oldest", bytes)


@stations.every(0.3)
def report() -> None:
    modern.publish(Stamped(Weather("Oslo", -3.5)))
    oldest.publish(b"BERGEN;4;CRC=77")


office = App(sub=ENDPOINT, codec="json")


@office.subscribe("weather.*")
def log(report: Stamped[Weather] | bytes) -> None:
    if isinstance(report, bytes):
        print(f"raw: {report.decode(errors='replace')}")
    else:
        print(f"{report.data.city}: {report.data.celsius} °C, {time.time() - report.timestamp:.1f} s ago")

"""Weather stations of three generations in one handler: stamped JSON, bare JSON, and raw bytes.

    zroute run --app-dir examples weather:stations weather:office --for 3s
"""

import time

import attrs

from zroute import App, Publication, Stamped

ENDPOINT = "tcp://127.0.0.1:5712"


@attrs.frozen
class Weather:
    city: str
    celsius: float


# A plain wire and JSON: what a station written in any language would send.
stations = App(pub=ENDPOINT, wire="plain", codec="json")
modern: Publication[Stamped[Weather]] = stations.publisher("weather.modern", Stamped[Weather])
oldest: Publication[bytes] = stations.publisher("weather.oldest", bytes)


@stations.every(0.3)
def report() -> None:
    modern.publish(Stamped(Weather("Oslo", -3.5), time.time()))
    oldest.publish(b"OSLO;-4;CRC=77")


office = App(sub=ENDPOINT, codec="json")
seen: list[float] = []


@office.subscribe("weather.*")
def log(report: Stamped[Weather] | bytes) -> None:
    if isinstance(report, bytes):
        print(f"raw: {report.decode(errors='replace')}")
    else:
        seen.append(report.data.celsius)
        print(f"{report.data.city}: {report.data.celsius} °C, {time.time() - report.timestamp:.1f} s ago")

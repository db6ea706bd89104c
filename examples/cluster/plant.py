"""Sensors of a plant, a desk and a clerk: the same three apps in one process, on ZeroMQ, and on a NATS cluster.

    zroute run --app-dir examples/cluster plant:sensors plant:desk plant:clerk --for 10s

The page "From one machine to a cluster" of the documentation takes them through the three stages.
"""

import attrs

from zroute import App, Envelope

sensors = App(pub="inproc://readings", name="sensors")
desk = App(
    sub="inproc://readings", rep="inproc://latest", jobs="inproc://reports", context=sensors.context, name="desk"
)
clerk = App(work="inproc://reports", context=sensors.context, name="clerk")


@attrs.frozen
class Reading:
    number: int
    celsius: float


# Sensors: publishes a reading ten times a second, and keeps the latest one for new subscribers.
readings = sensors.publisher("readings.{place}", Reading, keep="last")
sent = 0


@sensors.every(0.1)
def measure() -> None:
    global sent
    sent += 1
    readings.publish(Reading(sent, celsius=20.0 + sent % 12), place="attic")
    print(f"sent {sent}")


# Desk: receives the readings, answers requests for the latest one, and hands out a job if it is hot.
reports = desk.job_queue("reports.{place}", Reading)
latest: dict[str, Reading] = {}


@desk.subscribe("readings.{place}")
async def on_reading(reading: Reading, place: str, envelope: Envelope) -> None:
    print(f"{place} {reading.number}{' (kept)' if envelope.kept else ''}")
    latest[place] = reading
    if reading.celsius > 30:
        await reports.put(reading, place=place)


@desk.reply("latest.{place}")
def answer(place: str) -> Reading | None:
    return latest.get(place)


# Clerk: does the jobs. Several clerks share them.
@clerk.work("reports.{place}")
def write(reading: Reading, place: str) -> None:
    print(f"report {reading.number}: {place} {reading.celsius} degrees")

"""Messages of well-known programs, by the names in the documentation's table of feeds.

Each function takes a number and returns the parts that the program sends, the topic, and the body that a handler of
the table's row gets. The formats are those that the programs document.
"""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Callable
from struct import pack
from typing import Any

import msgpack

__all__ = ["FEEDS"]

Message = tuple[list[bytes], bytes, Any]
FEEDS: dict[str, Callable[[int], Message]] = {}


def feed(name: str) -> Callable[[Callable[[int], Message]], Callable[[int], Message]]:
    """Register the messages of a feed under its name in the table."""

    def register(make: Callable[[int], Message]) -> Callable[[int], Message]:
        FEEDS[name] = make
        return make

    return register


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@feed("the weather server of the ZeroMQ Guide")
def weather(number: int) -> Message:
    return [b"10001 %d 60" % (20 + number)], b"10001", f"{20 + number} 60"


@feed('pyzmq: `send_string(f"{topic} {text}")`')
def text(number: int) -> Message:
    return [b"news hello %d" % number], b"news", f"hello {number}"


@feed("pyzmq: `send_json(…)`")
def json_alone(number: int) -> Message:
    return [as_json({"n": number})], b"data", {"n": number}


@feed("pyzmq: `send_pyobj(…)`, a pickle")
def pickled(number: int) -> Message:
    body = pickle.dumps({"n": number})
    return [body], b"data", body


@feed("pyzmq: its logging handler")
def log_record(number: int) -> Message:
    return [b"pump.WARNING", b"too hot: %d\n" % number], b"pump.WARNING", f"too hot: {number}\n"


@feed("txZMQ")
def txzmq(number: int) -> Message:
    return [b"stocks.ACME\0" + as_json({"n": number})], b"stocks.ACME", {"n": number}


@feed("Bitcoin Core")
def bitcoin(number: int) -> Message:
    return [b"rawblock", b"\0\0\0\x20" + bytes(76), pack("<I", number)], b"rawblock", b"\0\0\0\x20" + bytes(76)


@feed("Monero")
def monero(number: int) -> Message:
    added = [{"id": f"{number:064x}", "blob_size": 100, "fee": 7}]
    return [b"json-minimal-txpool_add:" + as_json(added)], b"json-minimal-txpool_add", added


@feed("cryptofeed")
def cryptofeed(number: int) -> Message:
    trade = {"feed": "COINBASE", "pair": "BTC-USD", "price": str(number)}
    return [b"trades " + as_json(trade)], b"trades", trade


@feed("DWX bridge of MetaTrader")
def metatrader(number: int) -> Message:
    return [b"EURUSD:|:1.0%d;1.1%d" % (number, number)], b"EURUSD", f"1.0{number};1.1{number}"


@feed("MISP")
def misp(number: int) -> Message:
    event = {"Event": {"id": str(number), "info": "a b"}, "action": "publish"}
    return [b"misp_json_event " + as_json(event)], b"misp_json_event", event


@feed("EDDN")
def eddn(number: int) -> Message:
    message = {"$schemaRef": "https://eddn.edcd.io/schemas/journal/1", "message": {"n": number}}
    return [zlib.compress(as_json(message))], b"eddn", message


def flow(payload: bytes, number: int) -> bytes:
    """Return the header of an ntopng message: an URL of 16 bytes, version, source, size and id."""
    return b"flow".ljust(16, b"\0") + pack("<BBHI", 2, 1, len(payload), number)


@feed("ntopng")
def ntopng(number: int) -> Message:
    record = {"8": f"10.0.0.{number}", "12": "10.0.0.2"}
    payload = as_json(record)
    return [flow(payload, number), payload], b"flow", record


@feed("ntopng, compressed")
def ntopng_compressed(number: int) -> Message:
    record = {"8": f"10.0.0.{number}", "12": "10.0.0.2"}
    payload = b"\0" + zlib.compress(as_json(record))
    return [flow(payload, number), payload], b"flow", record


@feed("Zeek")
def zeek(number: int) -> Message:
    body = b"\x01\x02\0payload %d" % number
    return [b"zeek.cluster.worker", b"worker-1", b"broker-bin-v1", body], b"zeek.cluster.worker", body


@feed("Salt")
def salt(number: int) -> Message:
    event = {"_stamp": "2026-01-01T00:00:00", "n": number}
    return [b"salt/job/2026/ret\n\n" + msgpack.packb(event)], b"salt/job/2026/ret", event


@feed("bluesky, a pickle")
def bluesky(number: int) -> Message:
    body = pickle.dumps({"seq_num": number})
    return [b"runs event " + body], b"runs.event", body


@feed("imagezmq")
def imagezmq(number: int) -> Message:
    picture = bytes([number]) * (48 * 64 * 3)
    return [as_json({"dtype": "uint8", "shape": [48, 64, 3], "msg": "rpi-1"}), picture], b"camera", picture


@feed("a numpy array: header and buffer")
def array(number: int) -> Message:
    buffer = pack("<12f", *range(number, number + 12))
    return [as_json({"dtype": "float32", "shape": [3, 4]}), buffer], b"array", buffer


@feed("GNU Radio, without a key")
def samples(number: int) -> Message:
    body = bytes([0, number]) * 32
    return [body], b"iq", body


@feed("GNU Radio, with a key")
def keyed_samples(number: int) -> Message:
    body = bytes([0, number]) * 32
    return [b"chan0", body], b"chan0", body


@feed("a number as the topic, little-endian")
def little(number: int) -> Message:
    return [pack("<i", 7), as_json({"n": number})], b"sensor.7", {"n": number}


@feed("a number as the topic, big-endian")
def big(number: int) -> Message:
    return [pack(">i", 7), as_json({"n": number})], b"sensor.7", {"n": number}


@feed("C strings with their NUL: topic and body in one part")
def c_string(number: int) -> Message:
    return [b"tick " + as_json({"n": number}) + b"\0"], b"tick", {"n": number}


@feed("C strings with their NUL: two parts")
def c_strings(number: int) -> Message:
    return [b"tick\0", as_json({"n": number}) + b"\0"], b"tick", {"n": number}


@feed("C strings with their NUL: only the body")
def c_body(number: int) -> Message:
    return [b"tick", as_json({"n": number}) + b"\0"], b"tick", {"n": number}


@feed("topics with slashes, as in ROS and MQTT")
def slashes(number: int) -> Message:
    return [b"/camera/front/pose", as_json({"n": number})], b"/camera/front/pose", {"n": number}


@feed("a protobuf message as the body")
def protobuf(number: int) -> Message:
    body = b"\x0a\x03EUR\x10" + bytes([number])
    return [b"ticks.EUR", body], b"ticks.EUR", body


@feed("an empty part between topic and body")
def delimited(number: int) -> Message:
    return [b"my-topic", b"", as_json({"n": number})], b"my-topic", {"n": number}


@feed("LeRobot: header and pictures")
def robot(number: int) -> Message:
    header = {"state": [float(number)], "cameras": ["front", "wrist"]}
    return [as_json(header), b"\xff\xd8\xff" + bytes(1000), b"\xff\xd8\xff" + bytes(900)], b"robot", header


@feed("topics with spaces, in a separate part")
def spaces(number: int) -> Message:
    return [b"room 12 temp", b"%d" % number], b"room 12 temp", str(number)

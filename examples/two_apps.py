"""Connect two apps in one process over inproc://, without a port.

One app counts visits of a page, and the other shows the totals.

zroute run examples/two_apps.py:collector examples/two_apps.py:screen

In a second terminal, simulate visits:

zroute pub tcp://127.0.0.1:5745 hits.home '{"user": "ann"}' --every 100ms --count 20

To run them on two machines, change only the two endpoints.
"""

from collections import Counter

import attrs

from zroute import App

collector = App(sub="tcp://127.0.0.1:5745", pub="inproc://totals")
screen = App(sub="inproc://totals", context=collector.context)


@attrs.frozen
class Total:
    page: str
    hits: int


totals = collector.publisher("totals.{page}", Total)
hits: Counter[str] = Counter()


@collector.subscribe("hits.{page}")
def count(page: str) -> None:
    hits[page] += 1


@collector.every(1.0)
def tell() -> None:
    for page, number in hits.items():
        totals.publish(Total(page, number))
    hits.clear()


@screen.subscribe("totals.*")
def show(total: Total) -> None:
    print(f"{total.page:10} {'#' * total.hits} {total.hits}")

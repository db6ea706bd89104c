"""The table of cases from the field: each has its test."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

CASES = ROOT / "tests" / "data" / "field_cases.txt"
_TEST = re.compile(r"^(?:async )?def (test_\w+)\(", re.MULTILINE)


def cases() -> list[tuple[str, str, str]]:
    """Return description, file and test of each case."""
    found = []
    for line in CASES.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            description, arrow, test = line.rpartition(" → ")
            assert arrow, f"no arrow in {line!r}"
            found.append((description, *test.split("::")))
    return found


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return the names of the test functions in a file."""
    return frozenset(_TEST.findall(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(("description", "file", "test"), cases())
def test_each_case_has_its_test(description: str, file: str, test: str) -> None:
    """The test that a line of the table names exists."""
    assert test in names_in(ROOT / file), f"{description}: {file} has no {test}; correct tests/data/field_cases.txt"


def test_no_case_is_listed_twice() -> None:
    """Each description stands in one line."""
    descriptions = [description for description, *_ in cases()]
    assert len(set(descriptions)) == len(descriptions) > 100

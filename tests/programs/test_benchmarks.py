"""The benchmark runs on every machine and omits no row.

No test here depends on times.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import chart, page, peers_nats, receive, report
from benchmarks.chart import bars, curves
from benchmarks.goals import GOALS, judge
from benchmarks.running import CPU, Contestant, Figures, Group, Result, run
from benchmarks.workloads import BY_HAND, MULTIPART, PLAIN, TRACKED
from tests.support import ROOT

PEERS = ("libzmq in C", "nats-py on NATS", "FastStream on NATS")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the JSON of a quick run on a machine without a compiler and valgrind, and with the installed peers."""
    folder = tmp_path_factory.mktemp("benchmarks")
    files = [f"--json={folder / 'json'}", f"--docs={folder}"]
    (folder / command.PAGE).write_text((ROOT / "docs" / "explanation" / command.PAGE).read_text())
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *files],
        cwd=ROOT,
        env={**unmeasured, "PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result: dict[str, Any] = json.loads((folder / "json").read_text())
    result["files"] = {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".md", ".svg")}
    return result


@pytest.mark.slow
def test_every_row_has_figures_or_a_reason(found: dict[str, Any]) -> None:
    """A quick run has every group and every row; a row without figures states the reason."""
    groups = [group for part in command.PARTS for group in part.groups(command.QUICK)]
    assert list(found["groups"]) == [group.name for group in groups]
    for group in groups:
        rows = found["groups"][group.name]["rows"]
        assert list(rows) == [contestant.name for contestant in group.contestants]
        for row in rows.values():
            assert row.get("skipped") or row["median"][group.main] is not None
            assert not row.get("failed")


@pytest.mark.slow
def test_who_is_not_installed_is_skipped_by_name(found: dict[str, Any]) -> None:
    """Rows that need a missing compiler, package or server state what to install."""
    rows = found["groups"]["receive-json"]["rows"]
    skipped = {peer: rows[peer]["skipped"] for peer in PEERS if rows[peer].get("skipped")}
    assert "libzmq in C" in skipped
    assert all("is installed" in reason or "not installed" in reason for reason in skipped.values()), skipped


def test_each_program_on_nats_names_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server, all programs on NATS are skipped; without a package, those that need it."""
    monkeypatch.setattr(peers_nats, "find_spec", lambda name: None if name == "faststream" else name)
    monkeypatch.setattr(peers_nats, "BINARY", "/bin/nats-server")
    assert peers_nats.absent(TRACKED) is None
    assert peers_nats.absent(peers_nats.FASTSTREAM) == "faststream[nats] is not installed (the extra `bench`)"
    monkeypatch.setattr(peers_nats, "BINARY", None)
    assert str(peers_nats.absent(TRACKED)).startswith("nats-server is not installed")


@pytest.mark.slow
def test_files_have_what_the_terminal_shows(found: dict[str, Any]) -> None:
    """The pages have a table per group, the pictures their rows; a quick run judges no goal."""
    files = found["files"]
    assert all(f"### `{name}`" in files[command.TABLES] for name in found["groups"])
    assert "\n| recv_multipart by hand | " in files[command.PAGE]
    assert not found["goals"]
    assert chart.absent() or {command.BARS, command.CURVES} <= files.keys()


def curve(name: str, label: str, *costs: float) -> Result:
    """Return the result of a group of a growth curve, with a point at 1, 10, 100 and so on."""
    made = tuple(Contestant(f"{10**at} topics", figures(cost), at=10**at, curve=label) for at, cost in enumerate(costs))
    (result,) = run([Group(name, "", made, made[0].name)], 1, lambda _: None)
    return result


def test_pictures_have_the_rows_and_curves() -> None:
    """The bars have names and ratios, the curves names and axes; the same results give the same file."""
    pytest.importorskip("matplotlib")
    made = (Contestant(BY_HAND, figures(800)), Contestant(TRACKED, figures(1_000)))
    (compared,) = run([Group("receive-json", "receive", made, BY_HAND)], 1, lambda _: None)
    results = [compared, curve("growth-received-plain", PLAIN, 700, 800)]
    for draw, wanted in ((bars, {TRACKED, "1.25", "receive"}), (curves, {PLAIN, "topics in turn"})):
        picture = draw(results)
        assert picture is not None
        assert wanted <= {element.text for element in ElementTree.fromstring(picture).iter()}
        assert picture == draw(results)


def test_what_was_not_run_is_not_drawn() -> None:
    """A run without the groups of a picture leaves the old picture."""
    assert bars([]) is None
    assert curves([]) is None


def test_the_page_has_tables_of_what_was_run() -> None:
    """A table of the page is written if all its groups were run, with the figure and the ratio of each row."""
    places = [name for name in page.NAMES if name != "instructions"]
    text = "".join(f"{part.format(name=name)}\n" for name in places for part in (page.BEGIN, page.END))
    made = (Contestant(BY_HAND, figures(800, 800)), Contestant(MULTIPART, figures(2_400, 2_400)))
    one, hundred = (
        next(iter(run([Group(name, "", made, BY_HAND)], 1, lambda _: None))) for name in page.FORMS["received"][0]
    )
    assert page.updated(text, [one]) == text
    assert "| recv_multipart by hand | 2.40 µs | 3.00 | 2.40 µs | 3.00 |" in page.updated(text, [one, hundred])
    assert page.updated("no place", [one, hundred]) == "no place"


def test_the_page_has_the_counted_instructions() -> None:
    """The table of instructions has a row for each kind of work, from the file that a test compares."""
    place = "".join(part.format(name="instructions") for part in (page.BEGIN, page.END))
    rows = [line for line in page.updated(place, []).splitlines() if line.startswith("| published, one topic |")]
    known = json.loads(page.RATIOS.read_text())["ratios"]
    (row,) = rows
    assert all(f" {known[f'published, one topic: {wire}']:.2f} |" in row for wire in (PLAIN, TRACKED))


def test_the_documentation_has_a_place_for_each_table() -> None:
    """Each table that a run writes has its lines in the performance page."""
    text = (ROOT / "docs" / "explanation" / command.PAGE).read_text()
    for name in page.NAMES:
        assert text.index(page.BEGIN.format(name=name)) < text.index(page.END.format(name=name))


@pytest.mark.slow
def test_the_cost_of_keys_is_measured_with_small_and_large_bodies() -> None:
    """The benchmark of keys prints two clocks for apps and for bare sockets, with both sizes."""
    command = [sys.executable, "benchmarks/bench_keys.py", "--count", "256", "--rounds", "2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    titles = [line for line in ran.stdout.splitlines() if not line.startswith(" ")]
    assert titles == [
        f"{what}, bodies of {size} bytes" for size in ("46", "1,024") for what in ("apps", "bare sockets")
    ]
    assert ran.stdout.count("  Python thread: without keys ") == ran.stdout.count("  whole process: without keys ") == 4


@pytest.mark.parametrize("wrong", [("--rounds", "0"), ("--count", "-1"), ("--json", "no/such/folder/x")])
def test_what_can_not_work_is_refused_before_anything_is_measured(
    wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong option is refused before the first measurement."""
    with pytest.raises(SystemExit) as refused:
        command.parser().parse_args(wrong)
    assert refused.value.code == 2
    assert f"argument {wrong[0]}: " in capsys.readouterr().err


def figures(*values: float) -> Any:
    """Return a measuring function that gives one value per round, then fails."""
    waiting = list(values)

    def measure() -> Figures:
        if not waiting:
            raise RuntimeError("broken [/x]")
        return {CPU: waiting.pop(0)}

    return measure


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that slows down during a run changes no ratio."""
    group = Group("g", "", (Contestant("base", figures(10, 100)), Contestant("ours", figures(20, 200))), "base")
    (result,) = run([group], 2, lambda _: None)
    assert result.to_base("ours") == [2.0, 2.0]
    assert result.row("ours").median(CPU) == 110


def test_each_round_begins_with_another_contestant() -> None:
    """The order of contestants rotates, so each round begins with another one."""
    told: list[str] = []
    names = "abc"
    group = Group("g", "", tuple(Contestant(name, figures(1, 1, 1)) for name in names), None)
    list(run([group], 3, lambda text: told.append(text[-1])))
    assert "".join(told) == "abcbcacab"


def test_one_that_fails_is_named_and_the_others_go_on() -> None:
    """A contestant that raises gets a row with the error; the others keep their figures."""
    group = Group("g", "", (Contestant("broken", figures()), Contestant("base", figures(1, 2))), "base")
    (result,) = run([group], 2, lambda _: None)
    assert result.row("broken").failed
    assert isinstance(result.row("broken").error, RuntimeError), "its traceback keeps the sockets alive"
    assert result.row("broken").skipped == "failed: RuntimeError: broken [/x]"
    shown = Console(record=True, width=120, file=io.StringIO())
    report.show(shown, result)
    assert "broken [/x]" in shown.export_text()
    assert len(result.row("base").samples) == 2


class Turns:
    """A connection that handles a message in each turn after the first few."""

    def __init__(self, idle: int) -> None:
        self.turns, self._idle = 0, idle

    def doRead(self) -> None:
        self.turns += 1

    def seen(self) -> int:
        return max(self.turns - self._idle, 0)


def test_a_turn_without_messages_is_no_missing_message() -> None:
    """A busy machine may end a turn of reading early; a message is missing only after many such turns."""
    sub = Turns(2)
    receive.read_all(sub, sub.seen, 3)
    assert sub.seen() == 3
    idle = Turns(10**9)
    with pytest.raises(LookupError, match="only 0 of 3 messages arrived"):
        receive.read_all(idle, idle.seen, 3)


def test_a_goal_says_whether_it_is_met() -> None:
    """A verdict compares the median ratio with the goal, or states why no ratio exists."""
    goal = GOALS[0]
    group = Group(
        goal.group,
        "",
        (Contestant(goal.above, figures(1.1, 9.0, 1.0)), Contestant(goal.below, figures(1.0, 1.0, 1.0))),
        goal.below,
    )
    (result,) = run([group], 3, lambda _: None)
    judged = judge({goal.group: result})
    verdicts = [one.verdict for one in judged]
    assert verdicts[0] == "met"
    assert verdicts[-1] == "not measured: nats-requests was not run"
    shown = report.as_markdown([result], judged, {}, "", "")
    assert all(f"| {goal.what} | {goal.at_most:,g} |" in shown for goal in GOALS)


def test_the_terminal_shows_the_goals_of_the_groups_that_were_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --only, other goals are left out; with --quick, no goal is judged."""
    goal = GOALS[0]
    made = (Contestant(goal.above, figures(1.1, 1.1)), Contestant(goal.below, figures(1.0, 1.0)))
    part = SimpleNamespace(groups=lambda scale: [Group(goal.group, "", made, goal.below)])
    monkeypatch.setattr(command, "PARTS", (part,))
    assert command.main(["--only", goal.group, "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert (goal.what in shown, "was not run" in shown, "do not compare" in shown) == (True, False, False)
    assert command.main(["--quick"]) == 0
    shown = capsys.readouterr().out
    assert (goal.what in shown, "do not compare" in shown) == (False, True)


def test_a_goal_can_limit_a_figure_itself() -> None:
    """A goal without a second contestant compares the median figure with the goal."""
    goal = next(goal for goal in GOALS if goal.below is None)
    group = Group(goal.group, "", (Contestant(goal.above, figures(9_000, 10_001, 11_000)),), None)
    (result,) = run([group], 3, lambda _: None)
    (judged,) = (one for one in judge({goal.group: result}) if one.goal == goal)
    assert (judged.found, judged.verdict) == (10_001, "not met")


def test_names_of_groups_are_checked() -> None:
    """A mistyped name after --only raises an error that lists the valid names."""
    with pytest.raises(SystemExit, match="receive-json"):
        command.main(["--quick", "--only", "recieve"])  # codespell:ignore recieve


@pytest.mark.processes
def test_goals_are_about_rows_that_there_are() -> None:
    """Each goal names a group and two rows of a full run."""
    scale = command.scale_of(command.parser().parse_args([]))
    groups = {group.name: group for part in command.PARTS for group in part.groups(scale)}
    for goal in GOALS:
        names = {contestant.name for contestant in groups[goal.group].contestants}
        assert {goal.above, goal.below or goal.above} <= names


def test_a_skipped_row_is_in_the_result() -> None:
    """A skipped contestant has a row with the reason and no samples."""
    group = Group("g", "", (Contestant("away", figures(), absent="not installed"),), None)
    (result,) = run([group], 1, lambda _: None)
    assert isinstance(result, Result)
    assert (result.row("away").skipped, result.row("away").samples) == ("not installed", [])

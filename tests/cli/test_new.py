"""`zroute new`: a project that works as it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import zroute
from tests.support import ROOT, Child


def test_a_new_project_runs_is_sound_and_passes_its_tests(tmp_path: Path) -> None:
    """I type the commands of its README, in it: check, the tests, and run, which prints what it measures."""
    done = zroute("new", "kitchens/first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "kitchens" / "first"
    assert done.stdout.splitlines() == [
        *(f"wrote kitchens/first/{name}" for name in sorted(path.name for path in folder.iterdir())),
        "next: cd kitchens/first, then zroute run app",
    ]
    assert (folder / "README.md").read_text().startswith("# first\n")
    checked = zroute("check", "app", cwd=folder)
    assert (checked.returncode, checked.stderr) == (0, "")
    with Child(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        fresh=True,
        cwd=folder,
        env={"PYTEST_ADDOPTS": "-W error -p no:asyncio"},
    ) as child:
        assert child.end(None) == 0, child.out
        assert child.out[-1].startswith("3 passed")
    with Child("-m", "zroute", "run", "app", cwd=folder) as child:
        child.wait_for(lambda lines: sum(line.startswith("kitchen: ") for line in lines) >= 2)
        assert child.end() == 0, child.err
    with Child(
        "-m", "ruff", "check", "--isolated", "--select", "E,F,I,UP,B", "--line-length", "120", cwd=folder
    ) as child:
        assert child.end(None) == 0, child.out


def test_an_empty_folder_is_filled_and_a_full_one_is_left_alone(tmp_path: Path) -> None:
    """`zroute new .` works in a new folder; the second time it refuses, names what is there, and changes nothing."""
    assert zroute("new", ".", cwd=tmp_path).returncode == 0
    app = tmp_path / "app.py"
    app.write_text("mine")
    done = zroute("new", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        ". is not empty (it contains 'README.md', 'app.py', 'test_app.py'): choose a new or empty folder" in done.stderr
    )
    assert app.read_text() == "mine"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """I named a file: a usage error, and the file is as it was."""
    (tmp_path / "app.py").write_text("mine")
    done = zroute("new", "app.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "is a file" in done.stderr
    assert (tmp_path / "app.py").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/1").exists(), reason="there is no folder here that even root can not write")
def test_a_folder_that_can_not_be_written_is_told_without_a_traceback() -> None:
    """The reason is one line, and the exit code 1."""
    done = zroute("new", "/proc/1/project", cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: can't write to /proc/1/project: ")

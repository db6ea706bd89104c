"""Run the ``zroute`` command with ``python -m zroute``."""

from zroute.runtime.collector import importing, take_over
from zroute.runtime.signals import end_quietly

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process.

    After the call of `end_quietly`, Ctrl-C ends the process without a traceback. This module therefore imports as
    little as possible before that call.
    """
    end_quietly()
    take_over()
    with importing():
        from zroute.cli import main as command

    command(prog_name="zroute")


if __name__ == "__main__":
    main()

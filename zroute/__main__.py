"""``python -m zroute``: the same as the ``zroute`` command."""

from zroute.runtime.signals import end_quietly

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process.

    From here on Ctrl-C ends the process without a traceback, so the command is imported only afterwards.
    """
    end_quietly()
    from zroute.cli import main as command

    command(prog_name="zroute")


if __name__ == "__main__":
    main()

"""``python -m zroute``: the same as the ``zroute`` command."""

from zroute.runtime.signals import end_quietly

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process; Ctrl-C ends it quietly from here on, so that little is imported before."""
    end_quietly()
    from zroute.cli import main as command

    command(prog_name="zroute")


if __name__ == "__main__":
    main()

"""``python -m zroute``: the same as the ``zroute`` command.

Ctrl-C ends a command quietly from here on, so that little is imported before.
"""

import signal
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it is ignored behind nohup
        signal.signal(signal.SIGINT, _interrupted)
    from zroute.cli import main as command

    command(prog_name="zroute")


def _interrupted(number: int, _frame: Any) -> None:
    """Until a command has something to stop, and a handler of its own. click makes 1 of KeyboardInterrupt."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()

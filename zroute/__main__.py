"""``python -m zroute``: the same as the ``zroute`` command."""

from zroute.cli import main

if __name__ == "__main__":
    main(prog_name="zroute")

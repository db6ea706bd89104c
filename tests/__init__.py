"""The tests. What they import is compiled once, whatever the environment says: it takes 10 s each time."""

import sys

sys.dont_write_bytecode = False

"""The tests.

Modules that all tests import are compiled once, even if the environment forbids bytecode:
without bytecode, each process needs 10 s to compile them.
"""

import sys

sys.dont_write_bytecode = False

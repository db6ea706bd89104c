"""The tests.

The modules that they import are compiled once, even if the environment forbids bytecode: it takes 10 s each time.
"""

import sys

sys.dont_write_bytecode = False

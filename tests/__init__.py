"""The tests. Their modules and those of hypothesis are compiled once, whatever the environment says: that takes 10 s."""

import sys

sys.dont_write_bytecode = False

"""Topics, bodies and frames, as values and as bytes.

The modules in this folder are pure: they open no socket, use no reactor and read no clock.
"""

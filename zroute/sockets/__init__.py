"""All code that uses ZeroMQ sockets.

Apart from look-ups of names and the proxy, this code runs in the reactor's thread.
"""

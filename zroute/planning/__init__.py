"""Compilation of the recorded decorators into a frozen `Plan`.

The plan connects the receiving side and the publishing side. Compiling an app opens no socket.
"""

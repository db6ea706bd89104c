"""The only code that touches ZeroMQ's sockets; all of it runs on the reactor's thread."""

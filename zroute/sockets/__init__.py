"""All code that uses ZeroMQ sockets. This code runs in the reactor's thread."""

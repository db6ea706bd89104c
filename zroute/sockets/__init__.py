"""All code that uses ZeroMQ sockets. It runs on the reactor's thread."""

"""All code that uses ZeroMQ sockets. Apart from look-ups and the proxy, it runs in the reactor's thread."""

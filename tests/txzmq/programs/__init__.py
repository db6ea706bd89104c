"""The programs that txZMQ's users write, in words of our own: each takes the module it imports as an argument."""

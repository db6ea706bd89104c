"""Typical txZMQ programs; each gets the name of the module to import as an argument."""

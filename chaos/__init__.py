"""Trouble between real processes: cut, frozen and killed, by seeds. See `chaos.scenario`."""

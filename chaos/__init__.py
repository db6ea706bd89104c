"""The chaos suite: seeded trouble between real processes; see `chaos.scenario`."""

"""What travels: topics, bodies and frames, as values and bytes. Pure: no socket, no reactor, no clock."""

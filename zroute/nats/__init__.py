"""NATS: subjects, protocol, client, and the counting of losses."""

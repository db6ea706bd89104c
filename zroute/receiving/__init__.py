"""Receive frames, call handlers, and count messages, losses and failures."""

"""The way out: from a call of ``publish`` to a frame, numbered, kept and held back as the app says."""

"""The way in: from a frame to a handler, with what is counted, bounded and lost on the way."""

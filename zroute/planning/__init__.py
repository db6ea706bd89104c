"""From what decorators recorded to a frozen plan, which knows both wings. Opens nothing."""

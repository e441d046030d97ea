"""A study: its file, what can be checked before any compute, and its plan."""

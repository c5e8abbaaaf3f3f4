"""Exit codes beside 0."""

FAILED, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141
"""The last two are 128 plus the number of the signal, as the shell reports it."""

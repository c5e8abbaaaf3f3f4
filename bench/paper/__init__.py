"""Published results on receptive fields, computed anew and set beside what was printed.

    python -m bench.paper [FOLDER]

writes one page with all tables and figures (default: docs/paper). Every number that a page states
is a row of a `Table` and is held by tests/test_paper.py.
"""

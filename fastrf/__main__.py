"""``python -m fastrf``: the command line, where its script is not on the path."""

import sys

from fastrf.cli import main

if __name__ == "__main__":
    sys.exit(main())

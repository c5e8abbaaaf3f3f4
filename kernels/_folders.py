"""Where what was compiled is kept for the next process."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def user_folder(kind: str) -> Path:
    """The user's cache folder for one kind of compiled code; it need not exist.

    Raises:
        RuntimeError: the user has no home.
    """
    where = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(where) if where else Path.home() / ".cache") / "fastrf" / kind

"""How much memory of the host is free: what the system has, and what a container's group allows."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TypeAlias

Group: TypeAlias = tuple[Path, str, str, str]
"""Folder of a control group; its files of the limit and the usage, and a field of its statistics:
pages of files that nobody uses, which are given back before the limit bites."""

_VERSION_2 = ("memory.max", "memory.current", "inactive_file ")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")

UNKNOWN = 4 << 30
"""Bytes that count as free where the system does not say."""

_UNLIMITED = 1 << 60
"""Control groups of version 1 spell "no limit" as a number beyond this."""


def free_on_host(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping, and without the kernel ending the process because
    its control group (a container, a batch job) is full.

    Args:
        root: where `proc` and `sys` are.
    """
    rooms = [_room(*group) for group in _groups(root)]
    rooms.append(_field(root / "proc/meminfo", "MemAvailable:", 1024))
    return max(0, min((room for room in rooms if room is not None), default=UNKNOWN))


@cache
def _groups(root: Path) -> tuple[Group, ...]:
    """The control groups that hold this process, up to the topmost, and limit its memory; looked
    for once, as they are many files and every plan asks."""
    found: list[Group] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            base, files = root / "sys/fs/cgroup", _VERSION_2
        elif "memory" in controllers.split(","):
            base, files = root / "sys/fs/cgroup/memory", _VERSION_1
        else:
            continue
        # Inside a container the path may be the host's, of which nothing but the root is seen.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        folders = (base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))
        found.extend((folder, *files) for folder in folders)
    return tuple(group for group in found if _room(*group) is not None)


def _room(folder: Path, limit: str, usage: str, idle: str) -> int | None:
    most, taken = _number(folder / limit), _number(folder / usage)
    if most is None or taken is None or most >= _UNLIMITED:
        return None
    return most - taken + (_field(folder / "memory.stat", idle, 1) or 0)


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _field(path: Path, name: str, unit: int) -> int | None:
    for line in _read(path).splitlines():
        words = line.split()
        if line.startswith(name) and len(words) > 1 and words[1].isdigit():
            return int(words[1]) * unit
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except (OSError, ValueError):
        return ""

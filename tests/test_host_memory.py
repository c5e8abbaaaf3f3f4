"""Free memory where a control group limits it, in a folder that stands for the system's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrf.hostmemory import UNKNOWN, free_on_host

GIB = 1 << 30


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    meminfo = f"MemTotal: 99999999 kB\nMemAvailable: {8 * GIB // 1024} kB\n"
    for name, text in ({"proc/meminfo": meminfo, "proc/self/cgroup": groups} | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("", {}, 8),
        ("0::/\n", {}, 8),
        ("0::/a/b\n", {"sys/fs/cgroup/a/memory.max": f"{4 * GIB}",
                       "sys/fs/cgroup/a/memory.current": f"{3 * GIB}",
                       "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
                       "sys/fs/cgroup/a/b/memory.max": "max\n",
                       "sys/fs/cgroup/a/b/memory.current": f"{GIB}"}, 2),
        ("4:cpu,memory:/x\n0::/\n", {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}"}, 1),
        ("4:memory:/\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                          "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}"}, 8),
        ("0::/a\n", {"sys/fs/cgroup/a/memory.max": f"{GIB}",
                     "sys/fs/cgroup/a/memory.current": f"{2 * GIB}"}, 0),
        ("nonsense\n:::\n", {}, 8),
    ],
)  # fmt: skip
def test_control_groups(groups: str, files: dict[str, str], free: int, tmp_path: Path) -> None:
    assert free_on_host(system(tmp_path, groups, files)) == free * GIB


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert free_on_host(tmp_path) == UNKNOWN

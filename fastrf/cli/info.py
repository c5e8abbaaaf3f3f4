"""`fastrf info`: versions, devices, caches."""

from __future__ import annotations

import os
from typing import Any

import fastrf
from fastrf.cli.options import AsJson
from fastrf.cli.printing import print_facts, print_json

OPTIONAL = {
    "onnx": "onnx",
    "torch": "torch",
    "matplotlib": "plot",
    "cupy-cuda12x": "cuda12",
    "cupy-cuda13x": "cuda13",
    "distributed": "dask",
    "pandas": "data",
    "pyarrow": "data",
}
"""Optional distributions and the extra of fastrf that installs each."""


def info(*, as_json: AsJson = False) -> int:
    """Versions, devices and caches."""
    found = _information()
    if as_json:
        print_json(found)
        return 0
    facts = [("fastrf", found["fastrf"]), ("python", found["python"])]
    facts += [("platform", found["platform"])]
    for name, version in found["packages"].items():
        absent = f'not installed; pip install "fastrf[{OPTIONAL.get(name)}]"'
        facts.append((name, version or absent))
    facts.append(("devices", ", ".join(found["devices"])))
    if found["no_gpu"]:
        facts.append(("no GPU", found["no_gpu"]))
    facts.append(("engines", ", ".join(found["engines"])))
    facts.append(("cores", str(found["cores"])))
    facts.append(("kernel cache", found["kernel_cache"] or "none: no writable folder"))
    print_facts(facts)
    return 0


def _information() -> dict[str, Any]:
    import platform
    from importlib import metadata

    from fastrf.device import devices, gpu_at_hand
    from fastrf.engine import METHODS

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    needed = ("numpy", "numba", "scipy", "cyclopts", "rich")
    return {
        "fastrf": fastrf.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in (*needed, *OPTIONAL)},
        "devices": devices(),
        "no_gpu": gpu_at_hand(),
        "engines": list(METHODS),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "kernel_cache": _kernel_cache(),
    }


def _kernel_cache() -> str | None:
    """The folder in which compiled kernels are kept; None where none can be written to."""
    from fastrf.kernels.cpu._cache import writable

    path = writable()
    return None if path is None else str(path)

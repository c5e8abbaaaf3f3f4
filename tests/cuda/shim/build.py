"""Shared libraries for the CPU out of CUDA sources, by g++."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
RUNTIME = ("runtime.h", "runtime.cpp", "cuda_shim.h")

# Fortified, longjmp aborts when it meets another stack.
LANGUAGE = ("-std=c++17", "-O1", "-g1", "-fPIC", "-U_FORTIFY_SOURCE")
# Every library has its own functions and shared arrays; results are the same on every CPU; vector
# loads through a cast pointer are as usual in CUDA as they are undefined in C++.
KERNELS = (
    "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off", "-fno-strict-aliasing",
    "-Wno-unknown-pragmas",
)  # fmt: skip
# What CUDA leaves undefined as C++ does; runtime.cpp reports it.
CHECKS = "bounds,alignment,signed-integer-overflow,integer-divide-by-zero,shift"

_DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\(\s*(?P<alignment>\d+)\s*\)\s+)?"
    r"(?P<type>[A-Za-z_][\w: ]*?)\s+(?P<name>\w+)\s*\[\s*\]\s*;"
)
_ROUND = r"\((?:[^()]|\([^()]*\))*\)"
_KERNEL = re.compile(
    rf'extern\s*"C"\s*__global__\s+(?:__launch_bounds__\s*{_ROUND}\s*)?void\s+'
    rf"(?:__launch_bounds__\s*{_ROUND}\s*)?(\w+)\s*\("
)


class BuildError(RuntimeError):
    """g++ refused a source; the message holds what it said."""


def why_not() -> str | None:
    """Why nothing can be built here; None where it can."""
    if sys.platform != "linux":
        return "the shim needs Linux (ucontext, ELF, guard pages)"
    return None if shutil.which("g++") else "g++ is not installed"


def default_folder() -> Path:
    """For use outside of pytest, whose cache the tests take."""
    folder = Path(tempfile.gettempdir()) / f"fastrf-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def build(source: Path, folder: Path) -> Path:
    """The library of a CUDA source, from ``folder`` where it was built before.

    The headers (``.cuh``) beside the source belong to it.

    Raises:
        BuildError: the source does not compile, or has no ``extern "C" __global__`` function.
    """
    texts = {
        path.name: path.read_text("utf-8")
        for path in [source, *sorted(source.parent.glob("*.cuh"))]
    }
    library = folder / f"{source.stem}-{_digest(*texts, *texts.values())}.so"
    with _missing(library) as scratch:
        if scratch is not None:
            _compile(source.name, texts, _runtime(folder), scratch)
    return library


@contextmanager
def _missing(library: Path) -> Iterator[Path | None]:
    """A folder for what becomes the library, as ``out.so``; None where it is there. Other processes
    that ask for the same wait: a kernel takes some seconds."""
    import fcntl  # The shim is Linux's, and its tests are collected everywhere.

    if library.exists():
        yield None
        return
    with open(library.with_suffix(".lock"), "w") as turn:
        fcntl.lockf(turn, fcntl.LOCK_EX)
        if library.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            yield Path(scratch)
            os.replace(Path(scratch) / "out.so", library)
        with suppress(OSError):
            library.with_suffix(".lock").unlink()


@cache
def _ingredients() -> tuple[str, ...]:
    """What every library depends on."""
    texts = [(HERE / name).read_text("utf-8") for name in (*RUNTIME, "build.py")]
    return (*texts, _run("g++", "--version"))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join((*_ingredients(), *texts)).encode()).hexdigest()[:24]


def _runtime(folder: Path) -> Path:
    """What all libraries link to: one set of fibers, however many kernels there are."""
    library = folder / f"runtime-{_digest()}.so"
    with _missing(library) as scratch:
        if scratch is not None:
            flags = (*LANGUAGE, "-shared", f"-Wl,-soname,{library.name}")
            out = str(scratch / "out.so")
            _run("g++", *flags, "-o", out, str(HERE / "runtime.cpp"), "-ldl", "-pthread")
    return library


def _compile(main: str, texts: dict[str, str], runtime: Path, scratch: Path) -> None:
    alignments = [1]
    for name, text in texts.items():
        alignments += [int(found["alignment"] or 1) for found in _DYNAMIC.finditer(text)]
        changed = _DYNAMIC.sub(
            lambda m: (
                f"{m['type']}* const {m['name']} = "
                f"static_cast<{m['type']}*>(shim::dynamic_shared());"
            ),
            text,
        )
        (scratch / name).write_text(f'#line 1 "{name}"\n{changed}', "utf-8")
    preprocessed = _run("g++", "-std=c++17", "-E", "-P", "-x", "c++", str(scratch / main))
    kernels = _KERNEL.findall(preprocessed)
    if not kernels:
        raise BuildError(f'{main} has no extern "C" __global__ function')
    launchers = "".join(f"SHIM_KERNEL({name}, {max(alignments)})\n" for name in kernels)
    whole, library = scratch / "whole.cpp", scratch / "out.so"
    whole.write_text(
        f'#include "cuda_shim.h"\n#include "{scratch / main}"\n{launchers}'
        f'SHIM_KERNELS("{" ".join(kernels)}")\n',
        "utf-8",
    )
    checks = (f"-fsanitize={CHECKS}", f"-fsanitize-recover={CHECKS}")
    flags = (*LANGUAGE, *KERNELS, *checks, f"-I{HERE}", "-shared", "-Wl,-rpath,$ORIGIN")
    _run("g++", *flags, "-o", str(library), str(whole), str(runtime))


def source_line(library: Path, place: int) -> str | None:
    """File and line of an instruction; None where addr2line is missing or knows nothing."""
    if not shutil.which("addr2line"):
        return None
    found = _run("addr2line", "-e", str(library), hex(place)).split()[0]
    return None if found.startswith("?") else Path(found).name


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout

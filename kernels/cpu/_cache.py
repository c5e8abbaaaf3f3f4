"""Compiled kernels kept on disk, one file a kernel and signature.

Numba's own cache fails on a damaged file, on a full disk and on a folder that was writable when the
kernel was decorated, takes no notice of changes in callees of other files, and does not read where
it may not write, as in a container image that was filled when it was built. This one sits in its
place (`numba.core.caching._Cache`): whatever is wrong with it, the kernel is compiled, and one
warning says what would help.

A file holds the SHA-256 of the rest, then a pickle of the symbols that the machine code calls and
of what Numba makes of the compilation. It is named by everything that its contents depend on, and
written under another name first: processes that fill one folder at once do not disturb each other,
and none ever reads half a file.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from fastrf.kernels import tables
from fastrf.kernels._folders import user_folder
from numba.core import compiler, config
from numba.core.caching import _Cache
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps

PACKAGE = Path(__file__).parent
_REMEDY = "set NUMBA_CACHE_DIR to a folder that can be written, and fill it with `fastrf warmup`"
_DIGEST = hashlib.sha256().digest_size

_said: set[str] = set()

made = 0
"""Compilations of this process."""


def _say_once(what: str, message: str) -> None:
    if what not in _said:
        _said.add(what)
        warnings.warn(f"{message}; {_REMEDY}", RuntimeWarning, stacklevel=2)


def folders() -> list[Path]:
    """Where compiled kernels are looked for, and written to the first that can be: Numba's setting
    alone, where there is one; else beside the sources, then in the user's cache."""
    # Installations that share a folder have parts of their own.
    own = hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:16]
    chosen: str = getattr(config, "CACHE_DIR", "")
    if chosen:
        return [Path(chosen) / f"fastrf-{own}"]
    found = [PACKAGE / "__pycache__"]
    with suppress(RuntimeError):
        found.append(user_folder("cpu") / own)
    return found


def writable() -> Path | None:
    """The first of the `folders` that can be written; None where there is none."""
    for folder in folders():
        mark = folder / f"probe-{uuid.uuid4().hex}"
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
            mark.unlink()
            return folder
    return None


def _digest_of(*paths: Path) -> str | None:
    """Digest of some sources; None where they are not at hand."""
    digest = hashlib.sha256()
    try:
        for path in paths:
            digest.update(path.read_bytes())
    except OSError:
        return None
    return digest.hexdigest() if paths else None


# Read before the kernels are loaded: where files change later, the process has the old ones.
_SOURCES = _digest_of(*sorted(PACKAGE.glob("*.py")), Path(tables.__file__))
"""Digest of all that the machine code of this folder's kernels may come from."""


def _called_by(library: Any) -> list[str]:
    """The symbols that a compilation leaves to be found elsewhere: of Numba, Python and libm."""
    module = library._get_module_for_linking()
    outside = [*module.functions, *module.global_variables]
    names = [value.name for value in outside if value.is_declaration]
    return [name for name in names if not name.startswith("llvm.")]


def _reduced(compiled: Any) -> tuple[Any, ...]:
    """What Numba makes of a compilation, without the environments that hold no constants: machine
    code reads nothing else of them, and each has the module that it came from imported, NumPy's
    part of the compiler among them."""
    *rest, environments = compiled._reduce()
    return *rest, [environment for environment in environments if environment.consts]


def _provide(symbols: list[str], target: Any) -> None:
    """Has the symbols of a kernel that is loaded at hand: LLVM ends the process where one is not.

    Numba's memory is nearly always all that they need. What Numba does before it compiles, to load
    all that it can compile (`refresh`), takes longer than all else of a first result: 0.35 of
    1.2 s, most of it the import of SciPy's BLAS.
    """
    rtsys.initialize(target)
    if any(llvm.address_of_symbol(name) is None for name in symbols):
        target.refresh()


class KernelCache(_Cache):
    """The files of one kernel."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        home = Path(function.__code__.co_filename)
        self._sources = _SOURCES if home.parent == PACKAGE else _digest_of(home)
        self._enabled = True

    @property
    def cache_path(self) -> str | None:
        found = writable()
        return None if found is None else str(found)

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        """Deletes what is kept of the kernel where that can be deleted."""
        for folder in folders():
            for path in folder.glob(f"{self._name}-*.kernel"):
                with suppress(OSError):
                    path.unlink()

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The compilation of a signature; None where none is kept that can be used."""
        name = self._file(signature, target.codegen())
        for folder in folders() if name else ():
            path = folder / str(name)
            try:
                held = path.read_bytes()
            except OSError:
                continue
            try:
                if hashlib.sha256(held[_DIGEST:]).digest() != held[:_DIGEST]:
                    raise ValueError("its digest is another")
                symbols, reduced = pickle.loads(held[_DIGEST:])
                _provide(symbols, target)
                return compiler.CompileResult._rebuild(target, *reduced)
            except Exception as error:  # whatever a damaged file makes of it
                _say_once(
                    "damaged",
                    f"the compiled kernel {str(path)!r} is damaged ({error}) and is compiled anew; "
                    f"where this comes again, delete its folder, or",
                )
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keeps a compilation where that can be done."""
        global made  # noqa: PLW0603 - a counter, under Numba's lock
        made += 1
        name = self._file(signature, compiled.codegen)
        if name is None or compiled.library.has_dynamic_globals:
            return
        data = dumps((_called_by(compiled.library), _reduced(compiled)))
        data = hashlib.sha256(data).digest() + data
        problems = []
        for folder in folders():
            scratch = folder / f"{name}.{uuid.uuid4().hex[:16]}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    scratch.write_bytes(data)
                    os.replace(scratch, folder / name)
                finally:
                    scratch.unlink(missing_ok=True)
            except OSError as error:
                problems.append(f"{folder}: {error.strerror or error}")
                continue
            self._forget(folder)
            return
        _say_once(
            "unwritable",
            f"compiled kernels cannot be kept ({'; '.join(problems)}), so that every process "
            f"compiles its own",
        )

    def _forget(self, folder: Path) -> None:
        """Deletes what earlier versions of the sources have left."""
        for path in folder.glob(f"{self._name}-*.kernel"):
            if not path.name.startswith(self._prefix()):
                with suppress(OSError):
                    path.unlink()

    def _prefix(self) -> str:
        return f"{self._name}-{str(self._sources)[:8]}"

    def _file(self, signature: Any, codegen: Any) -> str | None:
        """The file of one signature on one kind of processor; None where nothing is kept."""
        if not self._enabled or self._sources is None:
            return None
        parts = (
            self._sources,
            self._name,
            signature,
            codegen.magic_tuple(),
            sys.implementation.cache_tag,
            getattr(sys, "abiflags", ""),
            numba.__version__,
            llvmlite.__version__,
        )
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        return f"{self._prefix()}-{digest[:24]}.kernel"

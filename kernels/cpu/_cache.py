"""Machine code of kernels kept on disk, one file a kernel and kind of arguments.

Numba's own cache fails on a damaged file, on a full disk and on a folder that was writable when the
kernel was decorated, takes no notice of changes in callees of other files, does not read where it
may not write, as in a container image that was filled when it was built, and has Numba imported.
Here, whatever is wrong with a file, the kernel is compiled, and one warning says what would help.

A file holds the SHA-256 of the rest, then one line of JSON and an object file (`_load.Code`). It is
named by everything that its contents depend on, and written under another name first: processes
that fill one folder at once do not disturb each other, and none ever reads half a file. One of them
compiles a kernel, and the others wait for its file (`Files.alone`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llvmlite
from fastrf.kernels import tables
from fastrf.kernels._folders import user_folder

from ._arguments import Kinds
from ._load import Code, host

try:
    import fcntl
except ImportError:  # Windows: every process compiles what it does not find
    fcntl = None  # type: ignore[assignment]

PACKAGE = Path(__file__).parent
_REMEDY = "set NUMBA_CACHE_DIR to a folder that can be written, and fill it with `fastrf warmup`"
_DIGEST = hashlib.sha256().digest_size
PATIENCE = 60.0
"""Seconds that a process waits for another one, which may have been stopped; the longest kernel
takes some 20 to compile on a slow machine."""

_said: set[str] = set()


def _say_once(what: str, message: str) -> None:
    if what not in _said:
        _said.add(what)
        warnings.warn(f"{message}; {_REMEDY}", RuntimeWarning, stacklevel=2)


def folders() -> list[Path]:
    """Where compiled kernels are looked for, and written to the first that can be: Numba's setting
    alone, where there is one; else beside the sources, then in the user's cache."""
    # Installations that share a folder have parts of their own.
    own = hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:16]
    chosen = os.environ.get("NUMBA_CACHE_DIR")
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


_FILES = (*sorted(PACKAGE.glob("*.py")), Path(tables.__file__))
# Read before the kernels are loaded: where files change later, the process has the old ones.
_SOURCES = _digest_of(*_FILES)
"""Digest of all that the machine code of this folder's kernels may come from."""


_SETTINGS = (
    "NUMBA_OPT",
    "NUMBA_ENABLE_AVX",
    "NUMBA_LOOP_VECTORIZE",
    "NUMBA_SLP_VECTORIZE",
    "NUMBA_DISABLE_INTEL_SVML",
    "NUMBA_DEBUGINFO",
    "NUMBA_BOUNDSCHECK",
)
"""Those of Numba's that change the code, beside the processor's (`host`). Others have no part in
it: who sets the number of threads would have all compiled anew."""


@cache
def _compiler() -> tuple[object, ...]:
    """Which compiler makes the code of this process, and for what. Of Numba, which is not imported
    here, the file that holds its version."""
    found = find_spec("numba")
    version = found and found.origin and _digest_of(Path(found.origin).with_name("_version.py"))
    return version, llvmlite.__version__, host(), [os.environ.get(name) for name in _SETTINGS]


class Files:
    """The files of one kernel."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        home = Path(function.__code__.co_filename)
        self._sources = _SOURCES if home.parent == PACKAGE else _digest_of(*_FILES, home)

    def read(self, kinds: Kinds) -> Code | None:
        """The machine code for arguments of some kinds; None where none is kept to be used."""
        name = self._file(kinds)
        for folder in folders() if name else ():
            path = folder / str(name)
            try:
                held = path.read_bytes()
            except OSError:
                continue
            try:
                return _decoded(held)
            except (ValueError, LookupError, TypeError) as error:
                _say_once(
                    "damaged",
                    f"the compiled kernel {str(path)!r} is damaged ({error}) and is compiled anew; "
                    f"where this comes again, delete its folder, or",
                )
        return None

    def write(self, kinds: Kinds, code: Code) -> None:
        """Keeps machine code where that can be done."""
        name = self._file(kinds)
        if name is None:
            return
        problems = []
        for folder in folders():
            scratch = folder / f"{name}.{uuid.uuid4().hex[:16]}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    scratch.write_bytes(_encoded(code))
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

    @contextmanager
    def alone(self, kinds: Kinds) -> Iterator[None]:
        """While a kernel is compiled and written: other processes that come here wait, for a while.
        Where there is no folder for a lock, or no lock on its files, nobody does."""
        path, lock = self._lock(kinds)
        try:
            if lock is not None:
                until = time.monotonic() + PATIENCE
                while not _taken(lock) and time.monotonic() < until:
                    time.sleep(0.02)
            yield
        finally:
            if lock is not None:
                with suppress(OSError):
                    path.unlink()  # who has opened it waits for that file, and then finds the code
                os.close(lock)

    def _lock(self, kinds: Kinds) -> tuple[Path, int | None]:
        """A file to be locked, open, where the kernel will be written."""
        path = Path(f"{self._file(kinds)}.lock")
        for folder in folders() if fcntl is not None and self._sources is not None else ():
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                return folder / path, os.open(folder / path, os.O_RDWR | os.O_CREAT)
        return path, None

    def _forget(self, folder: Path) -> None:
        """Deletes what earlier versions of the sources have left."""
        for path in folder.glob(f"{self._name}-*.kernel"):
            if not path.name.startswith(self._prefix()):
                with suppress(OSError):
                    path.unlink()

    def _prefix(self) -> str:
        return f"{self._name}-{str(self._sources)[:8]}"

    def _file(self, kinds: Kinds) -> str | None:
        """The file for arguments of some kinds; None where the sources are not at hand."""
        if self._sources is None:
            return None
        digest = hashlib.sha256(repr((self._sources, self._name, kinds, _compiler())).encode())
        return f"{self._prefix()}-{digest.hexdigest()[:24]}.kernel"


def _taken(lock: int) -> bool:
    """Whether a file could be locked, or cannot be at all. The system lets go of it when the
    process ends, however it does; a child that is forked does not have it."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _encoded(code: Code) -> bytes:
    head = json.dumps({"entry": code.entry, "result": code.result, "needs": code.needs})
    data = head.encode() + b"\n" + code.object_file
    return hashlib.sha256(data).digest() + data


def _decoded(held: bytes) -> Code:
    data = held[_DIGEST:]
    if hashlib.sha256(data).digest() != held[:_DIGEST]:
        raise ValueError("its digest is another")
    head, _, code = data.partition(b"\n")
    fields = json.loads(head)
    return Code(fields["entry"], fields["result"], tuple(fields["needs"]), code)

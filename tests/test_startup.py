"""What a process does before its first result: what it imports, what it compiles, what it keeps."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from fastrf.kernels import KERNELS
from fastrf.kernels.cpu import _cache, _compile, _load, _translate
from fastrf.kernels.spec import DTYPES

import fastrf as rf
from fastrf.cli import main

ROOT = Path(__file__).parents[1]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_first_field_needs_few_imports_and_one_kernel():
    """Numba is not among them. The time that is left is in bench/startup.py."""
    code = (
        "import sys, fastrf as rf\n"
        "rf.erf(rf.Sequential(*[rf.Conv(3)] * 5))\n"
        "heavy = {'torch', 'onnx', 'matplotlib', 'cupy', 'pandas', 'rich', 'cyclopts', 'sqlite3',\n"
        "         'numba', 'scipy.fft', 'scipy.special', 'scipy.sparse', 'multiprocessing',\n"
        "         'asyncio'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "rooms = {'fastrf.sweep', 'fastrf.plot', 'fastrf.report', 'fastrf.empirical',\n"
        "         'fastrf.cli', 'fastrf.benchmark', 'fastrf.importers'}\n"
        "assert not rooms & set(sys.modules), rooms & set(sys.modules)\n"
        "used = set()\n"
        "for name, module in list(sys.modules.items()):\n"
        "    for value in vars(module).values() if name.startswith('fastrf.kernels.cpu') else ():\n"
        "        if getattr(value, '_loaded', None):\n"
        "            used.add(value.function.__name__)\n"
        "print(*sorted(used))\n"
    )
    _, found = [python(code) for _ in range(2)]  # the first may have to compile
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["_measure", "_walk"]


def test_kernels_that_are_kept_are_loaded_without_the_compiler():
    """Numba takes longer to import than all else."""
    code = (
        "import sys, fastrf as rf\n"
        "for net in (rf.Sequential(*[rf.Conv(3)] * 5), rf.zoo.plain(300), rf.zoo.unet()):\n"
        "    assert rf.erf(net).image.max() > 0\n"
        "print(*sorted({'scipy.linalg', 'numba'} & set(sys.modules)))\n"
    )
    _, found = [python(code) for _ in range(2)]
    assert (found.stdout, found.stderr) == ("\n", "")


# --- the kernel cache -----------------------------------------------------------------------

SOURCE = "def tripled(x):\n    return 3 * x\n"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Decorates one small kernel anew, as another process would, with an empty cache folder."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(_cache, "_said", set())
    path = tmp_path / "own.py"
    path.write_text(SOURCE)

    def make() -> Any:
        names: dict[str, Any] = {"__name__": "own"}
        exec(compile(path.read_text(), str(path), "exec"), names)
        return _compile.kernel(names["tripled"])

    return make


def compilations(kernel: Any) -> int:
    """Calls a kernel; how many compilations that took."""
    before = _compile.made
    assert kernel(14) == 42
    return _compile.made - before


def kept() -> list[Path]:
    return sorted(p for folder in _cache.folders() for p in folder.glob("*"))


def test_a_compiled_kernel_is_found_again(made):
    assert [compilations(made()) for _ in range(3)] == [1, 0, 0]
    (path,) = kept()
    assert path.name.startswith("own.tripled-")


def test_a_kept_kernel_finds_what_numba_alone_has(tmp_path):
    """Where its machine code calls what is only there once Numba is imported, that is done: LLVM
    would end the process."""
    (tmp_path / "own.py").write_text("def second(x):\n    return x.reshape((2, 2))[1, 0]\n")
    code = (
        "import sys, numpy as np, own\n"
        "from fastrf.kernels.cpu import _compile\n"
        "found = _compile.kernel(own.second)(np.arange(4.0))\n"
        "print(found, 'numba' in sys.modules, _compile.made)\n"
    )
    places = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    found = [python(code, **places) for _ in range(2)]
    assert [f.stdout.split() for f in found] == [["2.0", "True", "1"], ["2.0", "True", "0"]]


def test_what_is_nowhere_is_named(monkeypatch):
    called = []
    monkeypatch.setattr(_translate, "load_numba", lambda: called.append(1))
    _load._engine()
    _load._provide(("malloc", "log2"))
    assert not called
    with pytest.raises(RuntimeError, match="calls no_such_function, which is nowhere"):
        _load._provide(("malloc", "no_such_function"))
    assert called


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("NUMBA_CPU_NAME", True),
        ("NUMBA_CPU_FEATURES", True),
        ("NUMBA_OPT", True),
        ("NUMBA_NUM_THREADS", False),
        ("NUMBA_THREADING_LAYER", False),
    ],
)
def test_code_for_other_settings_is_another_file(made, monkeypatch, setting, changes):
    """An image can be filled for processors of several kinds."""
    own = made().files._file(("q",))
    _forget_settings()
    monkeypatch.setenv(setting, "1")
    other = made().files._file(("q",))
    monkeypatch.undo()
    _forget_settings()
    assert (own != other) is changes


def test_generic_code_asks_for_no_features(monkeypatch):
    _forget_settings()
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    _, name, features = _load.host()
    _forget_settings()
    assert (name, features) == ("generic", "")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+sse2")
    assert _load.host()[2] == "+sse2"
    monkeypatch.undo()
    _forget_settings()
    assert _load.host()[1:] == (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())


def _forget_settings() -> None:
    for cached in (_load.host, _cache._compiler):
        cached.cache_clear()


def test_other_sources_are_compiled_anew_and_the_old_ones_forgotten(made, tmp_path):
    assert compilations(made()) == 1
    (old,) = kept()
    (tmp_path / "own.py").write_text(f"{SOURCE}# another line\n")
    assert compilations(made()) == 1
    (new,) = kept()
    assert new != old


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "one bit", "another pickle"])
def test_a_damaged_cache_is_compiled_anew_and_warns_once(made, damage):
    assert compilations(made()) == 1
    (path,) = kept()
    held = path.read_bytes()
    middle = len(held) // 2
    spoilt = {
        "truncated": held[:middle],
        "empty": b"",
        "garbage": b"garbage" * 100,
        "one bit": held[:middle] + bytes([held[middle] ^ 1]) + held[middle + 1 :],
        "another pickle": _with_digest(b"cos\nsystem\n."),
    }[damage]
    path.write_bytes(spoilt)
    with pytest.warns(RuntimeWarning, match=r"is damaged .*; .* set NUMBA_CACHE_DIR") as warned:
        assert compilations(made()) == 1
    assert len(warned) == 1
    assert path.read_bytes() != spoilt  # and kept again
    path.write_bytes(spoilt)
    assert compilations(made()) == 1  # silently: pytest makes an error of a warning
    assert compilations(made()) == 0


def _with_digest(data: bytes) -> bytes:
    return _cache.hashlib.sha256(data).digest() + data


@pytest.mark.parametrize("where", ["/dev/null/folder", "/proc/1/folder"])
def test_an_unwritable_cache_warns_once_and_says_what_helps(made, monkeypatch, where):
    monkeypatch.setenv("NUMBA_CACHE_DIR", where)
    assert _cache.writable() is None
    with pytest.warns(RuntimeWarning, match=r"cannot be kept .*NUMBA_CACHE_DIR.*warmup") as warned:
        assert compilations(made()) == 1
    assert len(warned) == 1
    assert compilations(made()) == 1


def test_the_folder_is_made_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "not" / "there"))
    (folder,) = _cache.folders()
    assert [_cache.writable() for _ in range(2)] == [folder] * 2
    assert list(folder.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(made, monkeypatch):
    def full(self, data):
        open(self, "wb").close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert compilations(made()) == 1
    assert kept() == []


def test_a_filled_cache_is_read_where_nothing_can_be_written(made, monkeypatch):
    """A container image that was filled by `fastrf warmup` and runs read-only."""
    assert compilations(made()) == 1

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("write_bytes", "mkdir", "touch", "unlink"):
        monkeypatch.setattr(Path, name, refused)
    monkeypatch.setattr(os, "replace", refused)
    assert _cache.writable() is None
    assert compilations(made()) == 0


def test_works_with_a_read_only_home_and_site_packages(tmp_path):
    """Files in the place of folders can be written by nobody, root included."""
    shutil.copytree(ROOT / "fastrf", tmp_path / "fastrf", ignore=_caches)
    shutil.copytree(ROOT / "kernels", tmp_path / "fastrf" / "kernels", ignore=_caches)
    (tmp_path / "fastrf/kernels/cpu/__pycache__").touch()
    code = (
        "import warnings, numpy as np, fastrf.kernels\n"
        f"assert fastrf.__file__.startswith({str(tmp_path)!r}), fastrf.__file__\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(2):\n"
        "        out = np.ones((1, 2, 2))\n"
        "        fastrf.kernels.load().accumulate(out.copy(), 2.0, out)\n"
        "        assert (out == 3).all()\n"
        "(one,) = said\n"
        "assert 'cannot be kept' in str(one.message), one\n"
    )
    nowhere = "/dev/null/nowhere"
    places = {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "NUMBA_CACHE_DIR": ""}
    found = python(code, PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="1", **places)
    assert found.returncode == 0, found.stderr


def _caches(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]


def test_processes_that_fill_one_cache_at_once(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from fastrf.kernels import load\n"
        "from fastrf.kernels.cpu import _compile\n"
        "accumulate = load().accumulate\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "out = np.ones((1, 2, 2)); accumulate(out.copy(), 2.0, out)\n"
        "assert (out == 3).all(); print(_compile.made)\n"
    )

    def begun() -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        place = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code], env=place, text=True, **pipes
        )

    together = [begun(), begun()]
    for process in together:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in together:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.communicate(timeout=120)[0] for process in together]
    assert [process.returncode for process in together] == [0, 0]
    assert sorted(found) == ["0\n", "1\n"]  # one compiles, the other waits for its file
    files = [path.name for path in tmp_path.glob("*/*")]
    assert files
    assert all(name.endswith(".kernel") for name in files), files
    third, _ = begun().communicate("\n", timeout=120)
    assert third == "ready\n0\n"


@pytest.mark.skipif(_cache.fcntl is None, reason="no locks on files here: nobody waits")
def test_a_process_that_was_stopped_is_not_waited_for_for_ever(made, monkeypatch):
    """It holds the lock, and will not write."""
    kernel = made()
    code = (
        "import fcntl, sys\n"
        "held = open(sys.argv[1], 'w'); fcntl.lockf(held, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.readline()\n"
    )
    path, lock = kernel.files._lock(("q",))
    os.close(lock)
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        monkeypatch.setattr(_cache, "PATIENCE", 0.3)
        begun = time.monotonic()
        assert compilations(kernel) == 1
        assert time.monotonic() - begun >= 0.3
        other.kill()
    assert [p.suffix for p in kept()] == [".kernel"]


@pytest.mark.skipif(_cache.fcntl is None, reason="no locks on files here: nobody waits")
def test_where_files_cannot_be_locked_nobody_waits(made, monkeypatch):
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def waited(_: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr(_cache.fcntl, "lockf", refused)
    monkeypatch.setattr(_cache.time, "sleep", waited)
    assert compilations(made()) == 1
    assert [p.suffix for p in kept()] == [".kernel"]


# --- warmup ---------------------------------------------------------------------------------


def test_warmup_compiles_everything(capsys):
    """What it does not reach would be compiled by another test first, or never: so every kernel is
    called in every dtype, and afterwards nothing is left to compile."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = rf.warmup("cpu")
    expected = {
        ("cpu", k.name, dtype.name)
        for k in KERNELS.values()
        if k.devices is None or "cpu" in k.devices
        for dtype in DTYPES
    }
    assert {(k.device, k.kernel, k.dtype) for k in first.kernels} == expected
    assert all(k.seconds > 0 for k in first.kernels)
    assert main(["warmup", "--device", "cpu", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert not any(k["compiled"] for k in again["kernels"])
    assert again["folders"] == {"cpu": str(_cache.writable())}
    assert main(["warmup", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert f"0 of {len(expected)} kernels compiled in" in shown
    before = _compile.made
    net = rf.Sequential(rf.Conv(3, padding=1), rf.AvgPool(3, stride=1, padding=1), rf.Conv(64))
    residual = rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1), rf.Conv(3, padding=1))] * 3)
    for dtype in DTYPES:
        for method in ("direct", "factored", "spectral"):
            assert np.isfinite(rf.erf(residual, method=method, dtype=dtype).image).all()
        rf.erf(net, dtype=dtype, layers="all")
        rf.erf(rf.zoo.plain(300), dtype=dtype, method="direct")
    assert _compile.made == before

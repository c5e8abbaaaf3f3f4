"""Which device a name means, and what is said where there is none.

No test needs a GPU: CuPy is played by a module that fails, or works, as CuPy does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf import device as devices
from fastrf import kernels
from fastrf.cli import main
from fastrf.device import gpu_at_hand, resolve
from fastrf.errors import DeviceError, FastrfError, InputError


class Machine:
    """A machine with some GPUs and CuPy, or with something of it missing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.driver = True
        self.current = 0
        self.entered: list[int] = []
        devices._look.cache_clear()
        monkeypatch.setattr(devices, "_has_driver", lambda: self.driver)

    def without_cupy(self) -> None:
        self._patch.delitem(sys.modules, "cupy", raising=False)
        self._patch.setattr(devices, "find_spec", lambda name: None)

    def emulating(self) -> None:
        self._patch.setenv("CUBLAS_EMULATE_DOUBLE_PRECISION", "1")

    def with_broken_cupy(self, error: BaseException) -> None:
        """An installed CuPy whose import raises."""

        class Finder:
            def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
                if name == "cupy":
                    raise error
                return None

        self._patch.delitem(sys.modules, "cupy", raising=False)
        self._patch.setattr(devices, "find_spec", lambda name: object())
        self._patch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])

    def with_cupy(
        self,
        count: int | Exception,
        broken: Exception | None = None,
        compiles: Exception | None = None,
        without: str = "",
    ) -> ModuleType:
        """A CuPy that finds `count` GPUs, or raises that; `broken` is raised when one is used, and
        `compiles` where something is computed there; a library may be missing."""

        def answer(value: Any) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        @contextmanager
        def entered(index: int) -> Any:
            self.entered.append(index)
            yield

        cupy = ModuleType("cupy")

        class Numbers:
            def __add__(self, other: int) -> Any:
                return answer(compiles) or np.ones(1)

        cupy.zeros = lambda shape: answer(broken) or Numbers()  # type: ignore[attr-defined]
        cupy.cuda = ModuleType("cupy.cuda")  # type: ignore[attr-defined]
        cupy.cuda.__getattr__ = lambda name: answer(  # type: ignore[method-assign]
            ImportError(f"lib{name}.so.13: cannot open") if name == without else name
        )
        cupy.cuda.Device = entered
        cupy.cuda.runtime = ModuleType("cupy.cuda.runtime")
        cupy.cuda.runtime.getDeviceCount = lambda: answer(count)
        cupy.cuda.runtime.getDevice = lambda: self.current
        self._patch.setitem(sys.modules, "cupy", cupy)
        return cupy


@pytest.fixture
def machine(monkeypatch):
    yield Machine(monkeypatch)
    devices._look.cache_clear()


# What is in the way: how the machine comes to it, what is found, what helps.
OBSTACLES = {
    "no cupy": (
        lambda m: m.without_cupy(),
        "CuPy is not installed",
        "pip install 'fastrf[cuda12]' (with a driver for CUDA 13: 'fastrf[cuda13]')",
    ),
    "no driver": (
        lambda m: (m.with_cupy(1), setattr(m, "driver", False)),
        "the driver was not found",
        "install NVIDIA's driver",
    ),
    "cupy without its libraries": (
        lambda m: m.with_broken_cupy(ImportError("libcudart.so.12: cannot open\nshared object")),
        "CuPy fails to import (ImportError: libcudart.so.12: cannot open shared object)",
        "uninstall every cupy package",
    ),
    "cupy without its cache": (
        lambda m: m.with_broken_cupy(PermissionError(13, "Permission denied", "/root/.cupy")),
        "CuPy fails to import (PermissionError: [Errno 13] Permission denied: '/root/.cupy')",
        "set CUPY_CACHE_DIR",
    ),
    "cupy of another numpy": (
        lambda m: m.with_broken_cupy(AttributeError("module 'numpy' has no attribute 'bool8'")),
        "CuPy fails to import (AttributeError: module 'numpy' has no attribute 'bool8')",
        "uninstall every cupy package",
    ),
    "driver too old": (
        lambda m: m.with_cupy(RuntimeError("cudaErrorInsufficientDriver: driver\ntoo old")),
        "the GPU does not answer (RuntimeError: cudaErrorInsufficientDriver: driver too old)",
        "nvidia-smi",
    ),
    "no gpu": (lambda m: m.with_cupy(0), "no GPU was found", "CUDA_VISIBLE_DEVICES"),
    "gpu in use": (
        lambda m: m.with_cupy(1, broken=MemoryError("out of memory allocating 512 bytes")),
        "the GPU does not answer (MemoryError: out of memory allocating 512 bytes)",
        "nvidia-smi",
    ),
    "no compiler": (
        lambda m: m.with_cupy(1, compiles=RuntimeError("Failure finding libnvrtc.so.12")),
        "CuPy cannot compile for the GPU (RuntimeError: Failure finding libnvrtc.so.12)",
        "pip install 'fastrf[cuda12]'",
    ),
    "no cublas": (
        lambda m: m.with_cupy(1, without="cublas"),
        "CuPy finds no cublas (ImportError: libcublas.so.13: cannot open)",
        "pip install 'fastrf[cuda12]'",
    ),
    "no cufft": (
        lambda m: m.with_cupy(1, without="cufft"),
        "CuPy finds no cufft (ImportError: libcufft.so.13: cannot open)",
        "or NVIDIA's CUDA toolkit",
    ),
    "no cusolver": (
        lambda m: m.with_cupy(1, without="cusolver"),
        "CuPy finds no cusolver (ImportError: libcusolver.so.13: cannot open)",
        "or NVIDIA's CUDA toolkit",
    ),
    "emulated double precision": (
        lambda m: (m.with_cupy(1), m.emulating()),
        "CUBLAS_EMULATE_DOUBLE_PRECISION makes cuBLAS emulate double precision",
        "unset it",
    ),
    "compiler of another CUDA": (
        lambda m: m.with_cupy(1, compiles=RuntimeError("CUDA_ERROR_INVALID_IMAGE")),
        "CuPy cannot compile for the GPU (RuntimeError: CUDA_ERROR_INVALID_IMAGE)",
        "uninstall nvidia-cuda-nvrtc where the driver is for CUDA 12",
    ),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
class TestWithoutGpu:
    @pytest.fixture(autouse=True)
    def prepared(self, machine, obstacle):
        prepare, self.found, self.remedy = OBSTACLES[obstacle]
        prepare(machine)

    @pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:12"])
    def test_asking_for_one_is_an_error(self, name):
        for ask in (resolve, lambda device: rf.erf(rf.Conv(3), device=device)):
            with pytest.raises(DeviceError) as caught:
                ask(name)
            message = str(caught.value)
            assert message.startswith(f"device={name!r} cannot be used: it takes CuPy, NVIDIA's")
            assert self.found in message
            assert self.remedy in message
            assert "device='cpu'" in message
            assert "\n" not in message

    def test_auto_is_the_cpu(self):
        assert gpu_at_hand().startswith(self.found)
        device = resolve("auto")
        assert (device.name, device.xp) == ("cpu", np)
        assert device.reason == f"auto: no GPU, {gpu_at_hand()}"
        assert devices.devices() == ("cpu",)
        assert rf.erf(rf.Conv(3), device="auto").image.shape == (3, 3)

    def test_the_command_line_says_why(self, capsys, monkeypatch):
        monkeypatch.delenv("COLUMNS", raising=False)  # not folded
        assert main(["info", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["devices"] == ["cpu"]
        assert found["no_gpu"] == gpu_at_hand()
        assert main(["info"]) == 0
        assert self.found in capsys.readouterr().out

    def test_the_cpu_asks_for_nothing(self):
        assert resolve("cpu").reason == "asked for"


class TestWithGpus:
    @pytest.fixture(autouse=True)
    def prepared(self, machine):
        self.machine, self.cupy = machine, machine.with_cupy(2)

    def test_devices(self):
        assert gpu_at_hand() is None
        assert devices.devices() == ("cpu", "cuda:0", "cuda:1")

    def test_the_command_line_lists_them(self, capsys):
        assert main(["info", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["devices"] == ["cpu", "cuda:0", "cuda:1"]
        assert found["no_gpu"] is None
        assert main(["info"]) == 0
        assert "no GPU" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("name", "current", "index"), [("cuda", 0, 0), ("cuda", 1, 1), ("cuda:0", 1, 0)]
    )
    def test_asking_for_one(self, name, current, index):
        self.machine.current = current
        device = resolve(name)
        assert (device.name, device.xp) == (f"cuda:{index}", self.cupy)
        assert device.reason == "asked for"
        with device.current():
            assert self.machine.entered == [index]

    def test_auto_leaves_the_choice_to_the_planner(self):
        device = resolve("auto")
        assert (device.name, device.xp) == ("cpu", np)
        assert device.reason == "auto: no GPU was asked for"

    def test_a_number_too_high(self):
        with pytest.raises(DeviceError, match=r"'cuda:2' .* GPUs here from 0 to 1; take one of"):
            resolve("cuda:2")

    def test_looks_once(self):
        for _ in range(3):
            assert gpu_at_hand() is None
        self.machine.with_cupy(0)
        assert gpu_at_hand() is None


# --- without anything played ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_cpu(name: str) -> None:
    device = resolve(name)
    assert device.name == "cpu"
    assert device.xp is np
    assert kernels.load(device.name) is kernels.load("cpu")
    assert device.reason.startswith("asked for" if name == "cpu" else "auto: ")
    with device.current():
        pass
    assert issubclass(DeviceError, FastrfError)


@pytest.mark.parametrize(
    "name",
    ["gpu", "CPU", "", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cuda:0:1", "cpu:0", None, 0],
)
def test_unknown(name: Any) -> None:
    for ask in (resolve, lambda device: rf.erf(rf.Conv(3), device=device)):
        with pytest.raises(InputError) as caught:
            ask(name)
        message = str(caught.value)
        assert message.startswith(f"device={name!r} ")
        assert "'auto', 'cpu', 'cuda' or 'cuda:N'" in message
        assert "\n" not in message


BROKEN = {
    "lacks a library": "raise ImportError('libcudart.so.12')",
    "has no cache folder": "raise OSError('.cupy')",
    "is no cupy": "",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_cupy_is_not_met(tmp_path, broken):
    """Neither by the import, nor by "auto" where it comes to importing CuPy."""
    (tmp_path / "cupy.py").write_text(BROKEN[broken])
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import fastrf as rf\n"
        "from fastrf import device, kernels\n"
        "kernels.load('cuda')\n"
        "assert 'cupy' not in sys.modules\n"
        "device._has_driver = lambda: True\n"
        "erf = rf.erf(rf.Conv(3), device='auto')\n"
        "assert device.gpu_at_hand()\n"
        "print(erf.plan.device)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "cpu\n"), done.stderr


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_gpus_share_their_kernels(device):
    """Those of the specification that are not another device's alone."""
    loaded = vars(kernels.load(device))
    assert loaded.keys() == {
        k.name for k in kernels.KERNELS.values() if k.devices is None or "cuda" in k.devices
    }
    assert kernels.load(device) is kernels.load("cuda")

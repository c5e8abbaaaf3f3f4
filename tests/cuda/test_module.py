"""Compiling, caching and launching through CuPy's bindings, with the GPU's part played here.

NVRTC is the real one where its wheel is installed; nothing else of CuPy is.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import nvrtc
import pytest
from fastrf.kernels.cuda import _module

SOURCE = '#include "one.cuh"\nextern "C" __global__ void f(float* x) { *x = ONE; }\n'
TWO = SOURCE + 'extern "C" __global__ void g(float* x) { *x = -ONE; }\n'
HEADER = "#define ONE 1.0f\n"


class DriverError(RuntimeError):
    pass


class Gpu:
    """A machine with GPUs as CuPy shows it, and what was done on it."""

    def __init__(self) -> None:
        self.device = 0
        self.capability = "90"
        self.compiled: list[tuple[str, ...]] = []
        self.loaded: list[tuple[int, bytes]] = []
        self.launched: list[tuple] = []
        self.attributes: list[tuple] = []
        self.damaged = b"damaged"

    def modules(self) -> dict[str, ModuleType]:
        gpu = self

        class Function:
            def __init__(self, name):
                self.ptr = name

            def __call__(self, grid, block, arguments, shared_mem):
                gpu.launched.append((self.ptr, grid, block, arguments, shared_mem))

        class Module:
            def load(self, image):
                if image == gpu.damaged:
                    raise DriverError("CUDA_ERROR_INVALID_IMAGE")
                gpu.loaded.append((gpu.device, image))

            def get_function(self, name):
                return Function(name)

        class Device:
            def __init__(self, index=None):
                self.compute_capability = gpu.capability
                names = (
                    "MultiProcessorCount MaxThreadsPerBlock MaxThreadsPerMultiProcessor "
                    "MaxSharedMemoryPerBlockOptin MaxSharedMemoryPerMultiprocessor"
                )
                self.attributes = (
                    {n: i + 100 * index for i, n in enumerate(names.split())}
                    if index is not None
                    else {}
                )

        compiler = ModuleType("cupy_backends.cuda.libs.nvrtc")
        vars(compiler).update(
            {
                n: getattr(nvrtc, n)
                for n in dir(nvrtc)
                if n.startswith(("get", "create", "destroy"))
            },
            NVRTCError=nvrtc.NVRTCError,
            compileProgram=lambda program, options: (
                gpu.compiled.append(options),
                nvrtc.compileProgram(program, options),
            ),
        )
        driver = SimpleNamespace(
            CUDADriverError=DriverError,
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
            funcSetAttribute=lambda *given: gpu.attributes.append(given),
        )
        runtime = SimpleNamespace(getDevice=lambda: gpu.device)
        cuda = SimpleNamespace(Module=Module, Device=Device)
        return {
            "cupy": SimpleNamespace(cuda=cuda),
            "cupy_backends": ModuleType("cupy_backends"),
            "cupy_backends.cuda": ModuleType("cupy_backends.cuda"),
            "cupy_backends.cuda.api": SimpleNamespace(driver=driver, runtime=runtime),
            "cupy_backends.cuda.libs": SimpleNamespace(nvrtc=compiler),
        }  # type: ignore[dict-item]


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    if nvrtc.why_not():
        pytest.skip(nvrtc.why_not())
    made = Gpu()
    for name, module in made.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_module, "backend", None)
    _module.read.cache_clear()
    return made


@pytest.fixture
def source(tmp_path):
    (tmp_path / "one.cu").write_text(SOURCE)
    (tmp_path / "one.cuh").write_text(HEADER)
    return tmp_path / "one.cu"


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "fastrf" / "cuda").iterdir())


def again(monkeypatch) -> None:
    """What a new process begins with."""
    monkeypatch.setattr(_module, "backend", None)
    _module.read.cache_clear()


def launch(source: Path, shared: int = 0) -> None:
    _module.launch(source, "f", (2, 3), (32,), [np.float64(1)], shared)


def test_launch_hands_everything_to_the_current_stream(gpu, source):
    array = np.zeros(3)
    _module.launch(source, "f", (2, 3), (32,), [array, np.int32(4)], 16)
    ((name, grid, block, arguments, shared),) = gpu.launched
    assert (name, grid, block, shared) == ("f", (2, 3), (32,), 16)
    assert arguments[0] is array
    assert arguments[1].dtype == np.int32


def test_compiles_for_the_device_without_flushing(gpu, source):
    launch(source)
    assert gpu.compiled == [("-std=c++17", "--gpu-architecture=sm_90")]
    assert gpu.loaded[0][1].startswith(b"\x7fELF")


def test_a_device_that_is_newer_than_nvrtc(gpu, source):
    """It gets what the driver translates for it."""
    gpu.capability = "999"
    launch(source)
    newest = max(nvrtc.getSupportedArchs())
    assert gpu.compiled == [("-std=c++17", f"--gpu-architecture=compute_{newest}")]
    assert b".visible .entry f" in gpu.loaded[0][1]


def test_compiles_once_and_loads_once_a_device(gpu, source):
    for device in (0, 1, 0, 1):
        gpu.device = device
        launch(source)
    assert len(gpu.compiled) == 1
    assert [device for device, _ in gpu.loaded] == [0, 1]
    assert len(gpu.launched) == 4


def test_functions_of_one_source_share_what_is_loaded(gpu, source):
    source.write_text(TWO)
    for name in ("f", "g", "f"):
        _module.launch(source, name, (1,), (1,), [np.float64(1)])
    assert len(gpu.compiled) == len(gpu.loaded) == 1
    assert [launched[0] for launched in gpu.launched] == ["f", "g", "f"]


def test_another_process_compiles_no_more(gpu, source, monkeypatch):
    launch(source)
    again(monkeypatch)
    launch(source)
    assert len(gpu.compiled) == 1
    assert gpu.loaded[0] == gpu.loaded[1]


@pytest.mark.parametrize("change", ["source", "header", "device"])
def test_what_is_cached_is_of_this_source_and_device(gpu, source, monkeypatch, change):
    launch(source)
    if change == "source":
        source.write_text(SOURCE + "// changed\n")
    elif change == "header":
        (source.parent / "one.cuh").write_text("#define ONE 2.0f\n")
    else:
        gpu.capability = "80"
    again(monkeypatch)
    launch(source)
    assert len(gpu.compiled) == 2


def test_one_folder_holds_all_that_is_compiled(gpu, source, monkeypatch, tmp_path):
    folder = tmp_path / "cache" / "fastrf" / "cuda"
    assert _module.writable() == _module.writable() == folder
    for text in (SOURCE, SOURCE + "// changed\n"):
        source.write_text(text)
        again(monkeypatch)
        launch(source)
    assert len(cached(tmp_path)) == 2


def test_a_full_disk_is_no_folder_to_write_in(gpu, monkeypatch):
    def full(dir):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), dir)

    monkeypatch.setattr(_module.tempfile, "TemporaryFile", full)
    assert _module.writable() is None


def test_a_damaged_cache_is_compiled_anew(gpu, source, monkeypatch, tmp_path):
    launch(source)
    (file,) = cached(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(gpu.damaged)
    again(monkeypatch)
    launch(source)
    assert len(gpu.compiled) == 2
    assert cached(tmp_path) == [file]
    assert file.read_bytes() == whole


@pytest.mark.parametrize("obstacle", ["file", "no home"])
def test_without_a_folder_to_cache_in(gpu, source, monkeypatch, tmp_path, obstacle):
    if obstacle == "file":
        (tmp_path / "cache").write_text("in the way")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def nobody():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", nobody)
    for _ in range(2):
        again(monkeypatch)
        launch(source)
    assert len(gpu.launched) == len(gpu.compiled) == 2


def test_the_cache_is_in_the_home_without_a_variable(gpu, source, monkeypatch, tmp_path):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    launch(source)
    (file,) = (tmp_path / ".cache" / "fastrf" / "cuda").iterdir()
    assert file.name.startswith("one-")
    assert os.access(file, os.R_OK)


def test_what_does_not_compile(gpu, source, tmp_path):
    source.write_text('extern "C" __global__ void f(float* x) { *x = two; }\n')
    said = (
        r"one\.cu does not compile with -std=c\+\+17 --gpu-architecture=sm_90 .*one\.cu\(1\).*two"
    )
    with pytest.raises(_module.CompilationError, match=f"(?s){said}"):
        launch(source)
    assert not (tmp_path / "cache").exists()
    assert not gpu.launched


def test_large_shared_memory_is_asked_for_once(gpu, source):
    for shared in (0, 48 << 10, 64 << 10, 50 << 10, 64 << 10, 99 << 10):
        launch(source, shared)
    assert gpu.attributes == [("f", 8, 64 << 10), ("f", 8, 99 << 10)]
    assert [launched[-1] for launched in gpu.launched][:3] == [0, 48 << 10, 64 << 10]


def test_properties_are_those_of_the_current_device(gpu):
    assert _module.properties() == _module.Properties(0, 1, 2, 3, 4)
    gpu.device = 1
    assert _module.properties() == _module.Properties(100, 101, 102, 103, 104)
    assert _module.properties() is _module.properties()
    gpu.device = 0
    assert _module.properties().processors == 0

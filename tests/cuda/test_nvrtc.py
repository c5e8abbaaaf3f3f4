"""Every CUDA source compiles as it will on a GPU, by the same compiler; no GPU is needed."""

from __future__ import annotations

import re
from pathlib import Path

import nvrtc
import pytest
from fastrf.kernels.cuda import _module

pytestmark = pytest.mark.skipif(nvrtc.why_not() is not None, reason=str(nvrtc.why_not()))

SOURCES = sorted(_module.FOLDER.glob("*.cu"))
# What the shim's tests run on a GPU, too.
TESTED = sorted((Path(__file__).parent / "sources").glob("*.cu"))
# A100, H100 and H200, B200.
ARCHITECTURES = (80, 90, 100)
# Where the launch bounds and tiles are chosen for: nothing may be pushed out of the registers.
TUNED = (80, 90)


def compiled(source: Path, *options: str) -> tuple[int, str]:
    """A compiled program, which the caller destroys, and what the compiler said."""
    text, headers = _module.read(source)
    contents = tuple(header.encode() for header in headers.values())
    program = nvrtc.createProgram(text, source.name, contents, tuple(n.encode() for n in headers))
    try:
        nvrtc.compileProgram(program, (*_module.OPTIONS, *options))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    return program, nvrtc.getProgramLog(program)


def test_there_are_sources():
    assert SOURCES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_compiles_without_a_warning(source, architecture):
    options = f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v"
    program, log = compiled(source, *options)
    try:
        usage = [line for line in log.splitlines() if line.startswith("ptxas ")]
        warnings = [line for line in log.splitlines() if line not in usage and line.strip("\0 ")]
        assert not warnings
        assert not [line for line in usage if "warning" in line]
        image = nvrtc.getCUBIN(program)
    finally:
        nvrtc.destroyProgram(program)
    functions = re.findall(r"Compiling entry function '(\w+)' for 'sm_", log)
    assert functions
    for name in functions:
        assert name.encode() in image
    if architecture in TUNED:
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
        assert len(frames) >= len(functions)
        assert set(frames) == {("0", "0")}


@pytest.mark.parametrize("source", TESTED, ids=lambda source: source.stem)
def test_what_tests_launch_compiles(source):
    """For the shim, g++ takes more than NVRTC does."""
    program, _ = compiled(source, f"--gpu-architecture=sm_{ARCHITECTURES[0]}")
    nvrtc.destroyProgram(program)


def flushes(source: Path, *options: str) -> bool:
    program, _ = compiled(source, f"--gpu-architecture=compute_{ARCHITECTURES[0]}", *options)
    try:
        return b".ftz" in nvrtc.getPTX(program)
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_subnormal_numbers_are_not_flushed(source):
    assert not flushes(source)


def test_flushing_would_be_seen():
    assert flushes(SOURCES[0], "-ftz=true")

"""What CUDA sources run on: the shim in every order of its threads, and a GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fastrf.kernels.cuda import _module
from shim.build import why_not
from shim.standin import ALIGNMENTS, ORDERS, StandIn

from fastrf import device


@pytest.fixture(scope="session")
def libraries(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shim's libraries are built; skips where none can be."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    kept = getattr(request.config, "cache", None)
    return tmp_path_factory.mktemp("shim") if kept is None else kept.mkdir("fastrf-shim")


@pytest.fixture
def standin(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StandIn]:
    """Puts a stand-in in the place of the GPU, made with the options of `StandIn`."""

    def install(**options: Any) -> StandIn:
        made = StandIn(**{"folder": libraries, **options})
        monkeypatch.setattr(_module, "backend", made)
        return made

    return install


@pytest.fixture(
    params=[*product(ORDERS, ALIGNMENTS), pytest.param("gpu", marks=pytest.mark.gpu)],
    ids=lambda param: param if param == "gpu" else "-".join(param),
)
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Runs a test on the shim in every way and on the GPU; gives the namespace of its arrays."""
    if request.param == "gpu":
        missing = device.gpu_at_hand()
        if missing is not None:
            pytest.skip(missing)
        monkeypatch.setattr(_module, "backend", None)
        return device.resolve("cuda").xp
    order, alignment = request.param
    request.getfixturevalue("standin")(order=order, alignment=alignment, seed=1)
    return np

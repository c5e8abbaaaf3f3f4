"""CuPy's manners on NumPy's arrays, for machines without a GPU.

The module stands in for the namespace `cupy`, and `Backend` for the GPU below it: the CUDA kernels
run on a `shim.standin.StandIn`. Its arrays refuse what CuPy's refuse, and a little more:

- a NumPy array in a sum, an index, an assignment or a call: memory of the host and of the device do
  not mix (CuPy takes NumPy's arrays as indices; that copies, and hides it);
- implicit conversion to a NumPy array, `numpy.asarray(array)`;
- functions and methods that are not in `FUNCTIONS`, which CuPy has;
- kernels on NumPy arrays;
- arrays of another device than the current one (CuPy takes those of a device that can reach them,
  and makes the result on the current one).

As CuPy's, its reductions are arrays without axes and no scalars. What makes the host wait for the
device (``float(array)``, ``if array:``, ``array.get()``, sizes that depend on values) is let
through and counted in `waits`: a test can tell whether it happens once or in every layer. `brought`
and `largest_taken` tell whether small things are copied to the device and to the host, or large
ones that should have been made, or left, there; `solved` what went through `cupy.linalg`.

Decompositions are those of cuSOLVER as CuPy hands them out: in its order of memory, R as a view of
an array as large as Q, and where they do not converge without an error (the device would have to be
waited for). Sparse matrices are those of `cupyx.scipy.sparse`, with what is used of them.

There are as many devices as are entered, and `Device.current` is the number of the one that is.

Not stood in for: streams, speed, CuPy's own rounding, and its limits on dtypes.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sparse
from fastrf.kernels.cuda import _module
from fastrf.kernels.cuda._module import Function, Properties
from numpy import (  # what CuPy takes from NumPy, too
    bool_,
    complex128,
    dtype,
    finfo,
    float32,
    float64,
    inf,
    int32,
    int64,
    nan,
    newaxis,
    pi,
)

__all__ = [
    "bool_",
    "complex128",
    "dtype",
    "finfo",
    "float32",
    "float64",
    "inf",
    "int32",
    "int64",
    "nan",
    "newaxis",
    "pi",
]

FUNCTIONS = frozenset(
    """
    abs absolute all any arange argmax argmin argsort around asarray ascontiguousarray
    bincount broadcast_to ceil clip concatenate copy cos count_nonzero cumsum diff divide
    dot einsum empty empty_like exp exp2 expand_dims expm1 flatnonzero flip floor frexp full
    full_like imag kron ldexp log log1p log2 logical_and logical_not logical_or matmul max
    maximum may_share_memory mean meshgrid min minimum moveaxis multiply nonzero ones
    ones_like outer pad prod ravel real repeat reshape searchsorted sin sort split sqrt square
    stack sum swapaxes take tensordot tile transpose unique where zeros zeros_like
    """.split()  # noqa: SIM905
)
"""Functions of NumPy that CuPy has by the same name and arguments."""

_METHODS = frozenset(
    """
    all any argmax argmin argsort astype clip conj copy cumsum dot fill flatten max mean min
    nonzero prod ravel repeat reshape sort squeeze sum swapaxes take transpose view
    """.split()  # noqa: SIM905
)
_VIEWS = frozenset(["squeeze", "swapaxes", "transpose", "view"])
_PROPERTIES = frozenset(
    """
    T dtype flags imag itemsize nbytes ndim real shape size strides
    """.split()  # noqa: SIM905
)
_SIZES_BY_VALUE = frozenset(["bincount", "flatnonzero", "nonzero", "unique"])

waits = 0
"""How often the host has waited for the device."""

brought = 0
"""Bytes copied from the host to the device."""

largest_taken = 0
"""Bytes of the largest array copied from the device to the host; a test may set it to 0."""

solved: list[str] = []
"""What has been computed by `linalg`, with the shape that it was computed of."""


def _wait() -> None:
    global waits  # noqa: PLW0603 - a counter
    waits += 1


class ndarray:
    """An array in the device's memory."""

    __module__ = "cupy"

    def __init__(self, held: np.ndarray, number: int | None = None) -> None:
        self.held = held
        self.device = _Device(_Device.current if number is None else number)

    def _here(self) -> ndarray:
        """The array, if it is one of the current device."""
        if self.device.id != _Device.current:
            raise ValueError(
                f"The device where the array resides ({self.device.id}) is different from the "
                f"current device ({_Device.current})."
            )
        return self

    # --- the way out ------------------------------------------------------------------------

    def get(self) -> np.ndarray:
        global largest_taken  # noqa: PLW0603 - a gauge
        _wait()
        largest_taken = builtins.max(largest_taken, self.held.nbytes)
        return self.held.copy()

    def item(self) -> Any:
        _wait()
        return self.held.item()

    def tolist(self) -> Any:
        _wait()
        return self.held.tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.held.dtype.kind not in "iu":
            raise TypeError("only integer arrays can be converted to an index")
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    # --- NumPy's functions, which are CuPy's here -------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or ufunc.__name__ not in FUNCTIONS | _OPERATORS:
            raise TypeError(f"CuPy has no {ufunc.__name__}.{method}")
        if "out" in options:
            (options["out"],) = options["out"]
        return _lifted(ufunc)(*inputs, **options)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        if function.__name__ not in FUNCTIONS:
            raise TypeError(f"CuPy has no {function.__name__}")
        return getattr(sys.modules[__name__], function.__name__)(*args, **kwargs)

    # --- elements ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> ndarray:
        if _has_mask(index):
            _wait()
        part = self.held[_index(index)]
        if not isinstance(part, np.ndarray) or not np.shares_memory(part, self.held):
            self._here()
        return ndarray(np.asarray(part), self.device.id)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._here().held[_index(index)] = _opened(value)

    def __getattr__(self, name: str) -> Any:
        if name in _PROPERTIES:
            value = getattr(self.held, name)
            return ndarray(value, self.device.id) if isinstance(value, np.ndarray) else value
        if name not in _METHODS:
            raise AttributeError(f"CuPy's arrays have no {name}")
        if name in _SIZES_BY_VALUE:
            _wait()
        if name in _VIEWS:
            return lambda *given: ndarray(getattr(self.held, name)(*given), self.device.id)
        return _lifted(getattr(self._here().held, name))


# --- operators --------------------------------------------------------------------------------

_BINARY = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "lshift": "left_shift",
    "rshift": "right_shift",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "matmul": "matmul",
}
_COMPARED = {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
}
_UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}
_OPERATORS = frozenset((*_BINARY.values(), *_COMPARED.values(), *_UNARY.values(), "divide"))


def _operator(name: str, reflected: bool = False) -> Callable[..., ndarray]:
    function = getattr(np, name)

    def apply(self: ndarray, other: Any) -> ndarray:
        a, b = (other, self) if reflected else (self, other)
        return _lifted(function)(a, b)

    return apply


def _in_place(name: str) -> Callable[..., ndarray]:
    function = getattr(np, name)

    def apply(self: ndarray, other: Any) -> ndarray:
        function(self._here().held, _opened(other), out=self.held)
        return self

    return apply


def _single(name: str) -> Callable[..., ndarray]:
    function = getattr(np, name)
    return lambda self: _wrapped(function(self._here().held))


for _short, _long in _BINARY.items():
    setattr(ndarray, f"__{_short}__", _operator(_long))
    setattr(ndarray, f"__r{_short}__", _operator(_long, reflected=True))
    setattr(ndarray, f"__i{_short}__", _in_place(_long))
for _short, _long in _COMPARED.items():
    setattr(ndarray, f"__{_short}__", _operator(_long))
for _short, _long in _UNARY.items():
    setattr(ndarray, f"__{_short}__", _single(_long))
ndarray.__hash__ = None  # type: ignore[assignment]


# --- in and out -------------------------------------------------------------------------------


def _opened(value: Any) -> Any:
    """What is given to a function of the device, as NumPy's: scalars and the device's arrays."""
    if isinstance(value, ndarray):
        return value._here().held
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, list | tuple):
        return type(value)(_opened(v) for v in value)
    return value


def _wrapped(value: Any) -> Any:
    """What a function of the device hands back: arrays, be they without axes."""
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    if isinstance(value, list | tuple):
        return type(value)(_wrapped(v) for v in value)
    return value


def _index(index: Any) -> Any:
    if isinstance(index, list):
        raise TypeError("a list is an index of host memory")
    return _opened(index)


def _has_mask(index: Any) -> bool:
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, ndarray) and part.held.dtype == np.bool_:
            return True
    return False


def _lifted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of NumPy's arrays as one of the device's."""

    def apply(*args: Any, **kwargs: Any) -> Any:
        opened = {name: _opened(value) for name, value in kwargs.items()}
        found = function(*map(_opened, args), **opened)
        out = kwargs.get("out")
        return _wrapped(found) if out is None else out

    return apply


def asarray(values: Any, dtype: Any = None, *, blocking: bool = False) -> ndarray:
    """The one way in: an array of the device itself, anything else copied to it."""
    global brought  # noqa: PLW0603 - a counter
    if isinstance(values, ndarray):
        return values if dtype in (None, values.dtype) else values.astype(dtype)
    made = ndarray(np.array(values, dtype))
    brought += made.nbytes
    return made


array = asarray


def from_dlpack(values: Any) -> ndarray:
    """A view of what another library holds on the device."""
    if values.__dlpack_device__()[0] != 2:
        raise TypeError("CPU arrays cannot be directly imported to CuPy")
    return ndarray(np.from_dlpack(values.__dlpack__(stream=1)))


def ascontiguousarray(values: ndarray) -> ndarray:
    """Unlike NumPy's, of an array of the device alone."""
    if not isinstance(values, ndarray):
        raise TypeError(f"Unsupported type {type(values)}")
    held = values.held
    return values if held.flags.c_contiguous else ndarray(np.ascontiguousarray(held))


def _function(name: str) -> Callable[..., Any]:
    lifted = _lifted(getattr(np, name))
    if name not in _SIZES_BY_VALUE:
        return lifted

    def apply(*args: Any, **kwargs: Any) -> Any:
        _wait()
        if name == "bincount" and not args[0].size:
            raise ValueError("zero-size array to reduction operation max, which has no identity")
        return lifted(*args, **kwargs)

    return apply


# From here on `any`, `abs`, `max` and their like are CuPy's in this module, not Python's.
for _name in FUNCTIONS - {"asarray", "ascontiguousarray"}:
    globals()[_name] = _function(_name)

fft = SimpleNamespace(
    **{name: _lifted(getattr(np.fft, name)) for name in ("fft", "ifft", "rfft", "irfft")}
)


# --- linear algebra ---------------------------------------------------------------------------


def _solved(name: str, *values: Any) -> list[np.ndarray]:
    """What cuSOLVER takes: matrices of the device in single or double precision."""
    found = []
    for value in values:
        if not isinstance(value, ndarray):
            raise TypeError(f"cupy.linalg takes arrays of CuPy, not {type(value)}")
        held = _opened(value)
        if held.ndim != 2 or held.dtype not in (np.float32, np.float64):
            raise TypeError(
                f"{name} of {held.ndim} dimensions and {held.dtype} is not stood in for"
            )
        solved.append(f"{name} {held.shape[0]}x{held.shape[1]}")
        found.append(held)
    return found


def _qr(a: Any, mode: str = "reduced") -> Any:
    (held,) = _solved("qr", a)
    if mode not in ("reduced", "r"):
        raise ValueError(f"mode {mode!r} is not stood in for")
    q, r = np.linalg.qr(held)
    # Both are transposed from what cuSOLVER writes; R is a view of its copy of the matrix.
    whole = np.zeros((held.shape[1], held.shape[0]), held.dtype)
    whole[:, : len(r)] = r.T
    r = whole[:, : len(r)].T
    return ndarray(r) if mode == "r" else (ndarray(np.asfortranarray(q)), ndarray(r))


def _svd(a: Any, full_matrices: bool = True, compute_uv: bool = True) -> Any:
    (held,) = _solved("svd", a)
    if full_matrices or not compute_uv:
        raise ValueError("only svd(a, full_matrices=False) is stood in for")
    try:
        u, s, vt = np.linalg.svd(held, full_matrices=False)
    except np.linalg.LinAlgError:
        rank = builtins.min(held.shape)
        shapes = (held.shape[0], rank), (rank,), (rank, held.shape[1])
        u, s, vt = (np.full(shape, np.nan) for shape in shapes)
    ordered = np.ascontiguousarray if held.shape[1] >= held.shape[0] else np.asfortranarray
    return ndarray(ordered(u)), ndarray(s), ndarray(ordered(vt))


linalg = SimpleNamespace(qr=_qr, svd=_svd, norm=_lifted(np.linalg.norm))


class csr_matrix:
    """A matrix of `cupyx.scipy.sparse`, of three arrays of the device."""

    def __init__(self, parts: tuple[Any, Any, Any], shape: tuple[int, int]) -> None:
        self.parts, self.shape = parts, shape
        data, indices, starts = (_opened(part) for part in parts)
        for part in parts:
            if not isinstance(part, ndarray):
                raise ValueError("data, indices, and indptr should be 1-D")
        assert indices.dtype == starts.dtype == np.int32
        self._held = sparse.csr_array((data, indices, starts), shape=shape)
        self._canonical: bool | None = None

    @property
    def has_canonical_format(self) -> bool:
        if self._canonical is None:
            _wait()
            self._canonical = self._held.has_canonical_format
        return self._canonical

    @has_canonical_format.setter
    def has_canonical_format(self, said: bool) -> None:
        assert said is self._held.has_canonical_format
        self._canonical = said

    def __abs__(self) -> csr_matrix:
        return csr_matrix((_lifted(np.abs)(self.parts[0]), *self.parts[1:]), self.shape)

    def __matmul__(self, dense: Any) -> ndarray:
        if not isinstance(dense, ndarray):
            raise TypeError(f"Unsupported type {type(dense)}")
        assert dense.ndim == 2
        assert self.has_canonical_format  # `sum_duplicates` looks
        return ndarray(np.asfortranarray(self._held @ _opened(dense)))


class _Device:
    """``with cupy.cuda.Device(n):``"""

    current = 0

    def __init__(self, number: int | None = None) -> None:
        self.id = _Device.current if number is None else number
        self._before: list[int] = []

    def __enter__(self) -> _Device:
        self._before.append(_Device.current)
        _Device.current = self.id
        return self

    def __exit__(self, *_: Any) -> None:
        _Device.current = self._before.pop()


cuda = SimpleNamespace(
    Device=_Device,
    get_current_stream=lambda: SimpleNamespace(synchronize=_wait),
    runtime=SimpleNamespace(
        getDevice=lambda: _Device.current,
        getDeviceCount=lambda: 2,
        getDeviceProperties=lambda number: {"name": b"stand-in", "major": 9, "minor": 0},
        driverGetVersion=lambda: 12090,
        runtimeGetVersion=lambda: 12090,
    ),
)


def get_default_memory_pool() -> Any:
    """Holds nothing back."""
    return SimpleNamespace(free_bytes=lambda: 0, free_all_blocks=lambda: None)


__version__ = "14.0.0"


# --- the device below -------------------------------------------------------------------------


class Backend:
    """Runs kernels on another backend, on arrays of the device alone."""

    def __init__(self, below: _module.Backend) -> None:
        self._below = below
        self.launches: list[str] = []

    def function(self, source: Path, name: str) -> Function:
        kernel = self._below.function(source, name)

        def launch(
            grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any], shared: int
        ) -> None:
            self.launches.append(name)
            kernel(grid, block, [_opened(argument) for argument in arguments], shared)

        return launch

    def properties(self) -> Properties:
        return self._below.properties()


def install(monkeypatch: pytest.MonkeyPatch, below: _module.Backend) -> tuple[ModuleType, Backend]:
    """Puts this module in the place of CuPy, and a backend in that of the GPU."""
    here = sys.modules[__name__]
    backend = Backend(below)
    monkeypatch.setitem(sys.modules, "cupy", here)
    for name in ("cupyx", "cupyx.scipy", "cupyx.scipy.sparse"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["cupyx.scipy.sparse"], "csr_matrix", csr_matrix, raising=False)
    monkeypatch.setattr(_module, "backend", backend)
    return here, backend

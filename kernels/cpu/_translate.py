"""From a kernel to machine code: what is done with Numba, which is imported for nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen, compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime.nrtdynmod import _meminfo_struct_type
from numba.core.typing.templates import AbstractTemplate
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import from_dtype

from . import _vectors
from ._arguments import DATA, ELEMENTS, SHAPE, STRIDES, Kinds
from ._load import Code

_WORD = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_NUMBERS = {"q": types.int64, "d": types.float64, "f": types.float32, "?": types.boolean}
_DTYPES = {letter: from_dtype(dtype) for dtype, letter in ELEMENTS.items()}

# Serial, because the engines tile over threads themselves: OpenMP aborts after a fork, and Numba's
# own layers are not safe from several threads. ``contract`` alone lets a product and a sum fuse
# into one rounding; every other fast-math flag would assume that no NaN or infinity occurs. Python
# calls none of it by Numba's rules.
_OPTIONS: dict[str, Any] = {
    "nopython": True,
    "fastmath": {"contract"},
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


class _Library(codegen.CPUCodeLibrary):
    """Functions in LLVM's terms, and no machine code in this process: Numba's own library has it
    made of each function that a kernel calls, for nobody, which took a quarter of the time."""

    def _finalize_specific(self) -> None:
        pass


class _Codegen(codegen.JITCPUCodegen):
    _library_class: Any = _Library

    def _add_module(self, module: Any) -> None:
        pass


@cache
def _target() -> Any:
    """Numba's target, with libraries as above."""
    made: Any = _Codegen
    return cpu_target.target_context.subtarget(_internal_codegen=made("fastrf"))


@cache
def type_of_kernel(function: Callable[..., Any]) -> Any:
    """Numba's type of a kernel in code that calls it."""

    class Called(AbstractTemplate):
        key = function

        def generic(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
            return None if kws else _called(function, args)

        def get_impl_key(self, signature: Any) -> Any:
            return function, signature.args

    return types.Function(Called)


@cache  # inference asks several times
def _called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The signature of a kernel that another one calls, which is compiled for that."""
    compiled = _compiled(function, arguments)
    key = function, arguments
    _target().insert_user_function(key, compiled.fndesc, [compiled.library])
    return compiled.signature


def type_of_emitted(name: str) -> Any:
    """Numba's type of a function of `_vectors`."""
    return cpu_target.typing_context.resolve_value_type(getattr(_vectors, name))


def load_numba() -> None:
    """Has all that compiled code can call, with what Numba loads late."""
    cpu_target.target_context.refresh()


def _type(kind: str) -> Any:
    if kind.isdecimal():
        return types.UniTuple(types.int64, int(kind))
    if len(kind) == 2:
        dtype = _DTYPES[kind[0].lower()]
        return types.Array(dtype, int(kind[1]), "A" if kind[0].isupper() else "C")
    return _NUMBERS[kind]


def _result(kind: Any) -> str:
    """What a kernel returns, as `Code` says it."""
    kinds = {types.none: "", types.int64: "q", types.float64: "d"}
    if isinstance(kind, types.UniTuple) and kind.dtype == types.int64:
        return str(kind.count)
    if kind not in kinds:
        raise TypeError(f"a kernel returns nothing, integers or a float64, not {kind}")
    return kinds[kind]


def machine_code(function: Callable[..., Any], kinds: Kinds) -> Code:
    """Compiles a kernel for arguments of some kinds.

    Raises:
        numba.core.errors.NumbaError: it does not compile.
        TypeError: it holds what `_memory` has no memory for, such as lists that grow, or returns
            what `Code` has no words for.
    """
    name = f"fastrf.{function.__name__}"
    entry = f"{name}.{uuid.uuid4().hex}"  # a process finds the code that it loads, and no other
    with global_compiler_lock:
        compiled = _compiled(function, tuple(map(_type, kinds)))
        result, library = _result(compiled.fndesc.restype), compiled.library
        library.add_ir_module(_entry(entry, compiled))
        library.add_ir_module(_memory())
        library.finalize()
    module = llvm.parse_assembly(library.get_llvm_str())
    called = []
    for value in [*module.functions, *module.global_variables]:
        if not value.is_declaration:
            if value.name != entry:
                value.linkage = "internal"  # other kernels hold functions of the same name
        elif not value.name.startswith("llvm."):
            called.append(value.name)
    strange = [other for other in called if other.startswith("NRT_")]
    if strange:
        raise TypeError(f"{name} calls {', '.join(strange)}, which is Numba's alone")
    object_file = library.codegen._tm.emit_object(module)
    return Code(entry, result, tuple(called), object_file)


def _compiled(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Numba's translation to LLVM's terms, which is not finished: the entry is to be added."""
    flags: Any = compiler.Flags()
    cpu_target.options.parse_as_flags(flags, _OPTIONS)
    flags.no_compile = True
    flags.enable_pyobject = False
    typing = cpu_target.typing_context
    return compiler.compile_extra(typing, _target(), function, arguments, None, flags, {})


def _entry(name: str, compiled: Any) -> ir.Module:
    """The C function that `Code` describes, around a kernel of Numba's own calling convention."""
    context, described = compiled.target_context, compiled.fndesc
    module = context.create_module(name)
    words_type = _WORD.as_pointer()
    entry = ir.Function(module, ir.FunctionType(ir.IntType(32), [words_type, words_type]), name)
    builder = ir.IRBuilder(entry.append_basic_block())
    words, results = entry.args
    place = 0

    def word() -> Any:
        nonlocal place
        place += 1
        return builder.load(builder.gep(words, [_WORD(place - 1)]))

    values = [_unpacked(context, builder, kind, word) for kind in described.argtypes]
    called = context.declare_function(module, described)
    status, value = context.call_conv.call_function(
        builder, called, described.restype, described.argtypes, values
    )
    with builder.if_then(status.is_error, likely=False):
        builder.store(builder.ptrtoint(status.excinfoptr, _WORD), results)
        builder.ret(ir.IntType(32)(1))
    numbers = [] if described.restype == types.none else [value]
    if isinstance(described.restype, types.UniTuple):
        numbers = cgutils.unpack_tuple(builder, value)
    for i, number in enumerate(numbers):
        builder.store(builder.bitcast(number, _WORD), builder.gep(results, [_WORD(i)]))
    builder.ret(ir.IntType(32)(0))
    return module


def _unpacked(context: Any, builder: Any, kind: Any, word: Callable[[], Any]) -> Any:
    """One argument, in the form in which Numba passes it on, from its words."""
    if isinstance(kind, types.UniTuple):
        return context.make_tuple(builder, kind, [word() for _ in range(kind.count)])
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder)
        whole = builder.inttoptr(word(), _WORD.as_pointer())

        def at(words: Any, place: int) -> Any:
            return builder.load(builder.gep(words, [_WORD(place)]))

        lists = [builder.inttoptr(at(whole, place), whole.type) for place in (SHAPE, STRIDES)]
        shape, strides = ([at(own, i) for i in range(kind.ndim)] for own in lists)
        size = _WORD(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        populate_array(
            array,
            data=builder.inttoptr(at(whole, DATA), array.data.type),
            shape=cgutils.pack_array(builder, shape),
            strides=cgutils.pack_array(builder, strides),
            itemsize=size,
            meminfo=None,  # the caller's memory, which nothing here frees
        )
        return array._getvalue()
    if kind == types.boolean:
        return builder.icmp_signed("!=", word(), _WORD(0))
    if kind == types.int64:
        return word()
    value = builder.bitcast(word(), ir.DoubleType())
    return value if kind == types.float64 else builder.fptrunc(value, ir.FloatType())


@cache
def _memory() -> ir.Module:
    """What compiled code asks of Numba's runtime, whose functions are there only once Numba is
    imported: memory for what lives as long as a call (Python's, which tracemalloc sees and which
    needs no GIL), and two functions of C."""
    module = ir.Module("fastrf.memory")
    module.triple = llvm.get_process_triple()

    def of_c(name: str, result: Any, *arguments: Any) -> ir.Function:
        return ir.Function(module, ir.FunctionType(result, arguments), name)

    def begun(name: str, result: Any, *arguments: Any) -> tuple[ir.IRBuilder, Any]:
        function = of_c(name, result, *arguments)
        return ir.IRBuilder(function.append_basic_block()), function.args

    def renamed(name: str, called: ir.Function) -> None:
        kind = called.function_type
        builder, arguments = begun(name, kind.return_type, *kind.args)
        found = builder.call(called, arguments)
        builder.ret_void() if isinstance(kind.return_type, ir.VoidType) else builder.ret(found)

    int_, double = ir.IntType(32), ir.DoubleType()
    malloc = of_c("PyMem_RawMalloc", _BYTES, _WORD)
    free = of_c("PyMem_RawFree", ir.VoidType(), _BYTES)
    renamed("NRT_Allocate", malloc)
    renamed("NRT_Free", free)
    renamed("numba_frexp", of_c("frexp", double, double, int_.as_pointer()))
    renamed("numba_ldexp", of_c("ldexp", double, double, int_))

    # The description of an array's memory, which then follows where it is aligned.
    builder, (size, align) = begun("NRT_MemInfo_alloc_aligned", _BYTES, _WORD, int_)
    align = builder.zext(align, _WORD)
    head = _WORD(8 * len(_meminfo_struct_type.elements))
    block = builder.call(malloc, [builder.add(builder.add(size, align), head)])
    with builder.if_then(builder.icmp_unsigned("==", block, _BYTES(None)), likely=False):
        builder.ret(_BYTES(None))
    begin = builder.add(builder.add(builder.ptrtoint(block, _WORD), head), align)
    begin = builder.and_(builder.sub(begin, _WORD(1)), builder.neg(align))
    described = builder.bitcast(block, _meminfo_struct_type.as_pointer())
    data = builder.inttoptr(begin, _BYTES)
    for i, value in enumerate((_WORD(1), _BYTES(None), _BYTES(None), data, size)):
        builder.store(value, cgutils.gep(builder, described, 0, i))
    builder.ret(block)
    aligned = builder.function

    builder, (size,) = begun("NRT_MemInfo_alloc", _BYTES, _WORD)
    builder.ret(builder.call(aligned, [size, int_(16)]))

    # Of a list that does not grow: with a function that lets go of its elements.
    builder, (size, let_go) = begun("NRT_MemInfo_new_varsize_dtor", _BYTES, _WORD, _BYTES)
    block = builder.call(aligned, [size, int_(16)])
    with builder.if_then(builder.icmp_unsigned("!=", block, _BYTES(None)), likely=True):
        described = builder.bitcast(block, _meminfo_struct_type.as_pointer())
        builder.store(let_go, cgutils.gep(builder, described, 0, 2))
    builder.ret(block)

    builder, (block,) = begun("NRT_MemInfo_call_dtor", ir.VoidType(), _BYTES)
    described = builder.bitcast(block, _meminfo_struct_type.as_pointer())
    let_go, data = (builder.load(cgutils.gep(builder, described, 0, i)) for i in (2, 3))
    with builder.if_then(builder.icmp_unsigned("!=", let_go, _BYTES(None)), likely=False):
        kind = ir.FunctionType(ir.VoidType(), [_BYTES]).as_pointer()
        builder.call(builder.bitcast(let_go, kind), [data])
    builder.call(free, [block])
    builder.ret_void()

    return module

"""Functions and arrays by address, for compiled code.

A function that calls another one has LLVM optimise and emit the callee once more. `run_stage`
takes seconds, so callers reach it by address instead: compiled once, called from anywhere.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import typeof as _typeof
from numba import types
from numba.extending import intrinsic as _intrinsic
from numba.np.arrayobj import make_array as _make_array
from numba.np.arrayobj import populate_array as _populate_array

from kernels.errors import HeadwiseError
from kernels.lowering import operation

__all__ = ["ask_at", "call_at", "entry_address", "floats_at"]

# numba is typed in parts only.
typeof: Any = _typeof
intrinsic: Any = _intrinsic
make_array: Any = _make_array
populate_array: Any = _populate_array

_FLOATS = types.Array(types.float32, 1, "C")


def entry_address(kernel: Callable[..., Any], args: tuple[Any, ...]) -> int:
    """Return the address of what a kernel has compiled for arguments of these types.

    Raises:
        HeadwiseError: it has not been called with such arguments before.
    """
    dispatcher: Any = kernel
    signature = tuple(typeof(arg) for arg in args)
    compiled = dispatcher.overloads.get(signature)
    if compiled is None:
        raise HeadwiseError(f"{dispatcher.__name__} is not compiled for {signature}; call it first")
    name = compiled.fndesc.llvm_func_name
    return int(compiled.library.get_pointer_to_function(name))


@intrinsic  # type: ignore[untyped-decorator]
def call_at(typing_context: Any, address: Any, args: Any) -> Any:
    """Call a compiled function that returns nothing, by the address that `entry_address` gave.

    The types of the tuple `args` must be those that the address was taken for.
    """
    return types.none(address, args), _lower_call


@intrinsic  # type: ignore[untyped-decorator]
def ask_at(typing_context: Any, address: Any, args: Any) -> Any:
    """Do the same with a function that returns an int."""
    return types.int64(address, args), _lower_call


def _lower_call(context: Any, builder: Any, sig: Any, values: Any) -> Any:
    """Call what returns sig.return_type with the elements of a tuple."""
    at, packed = values
    returned, arg_types = sig.return_type, list(sig.args[1])
    unpacked = [builder.extract_value(packed, i) for i in range(len(arg_types))]
    ftype = context.call_conv.get_function_type(returned, arg_types)
    function = builder.inttoptr(at, ftype.as_pointer())
    status, value = context.call_conv.call_function(
        builder, function, returned, arg_types, unpacked
    )
    with builder.if_then(status.is_error, likely=False):
        context.call_conv.return_status_propagate(builder, status)
    return context.get_dummy_value() if returned == types.none else value


def floats_at(address: int, n: int) -> npt.NDArray[np.float32]:
    """Return the n float32 values that lie at an address, as an array that may be written."""
    values = (ctypes.c_float * int(n)).from_address(int(address))
    return np.frombuffer(memoryview(values).cast("B"), np.float32)


@operation(floats_at, _FLOATS, types.Integer, types.Integer)
def _floats_at(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    array = make_array(_FLOATS)(context, builder)
    data = builder.inttoptr(args[0], ir.FloatType().as_pointer())
    n = context.cast(builder, args[1], sig.args[1], types.intp)
    item_bytes = context.get_constant(types.intp, 4)
    populate_array(
        array, data=data, shape=[n], strides=[item_bytes], itemsize=item_bytes, meminfo=None
    )
    return array._getvalue()

"""How our own operations become LLVM IR: lane types, registration, checked addresses.

Does not know any operation; see `simd` and `barrier`.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils
from numba.core.datamodel.models import PrimitiveModel as _PrimitiveModel
from numba.core.typing import templates as _templates
from numba.extending import lower_builtin as _lower_builtin
from numba.extending import register_model
from numba.np.arrayobj import make_array as _make_array

__all__ = [
    "F32X8",
    "I16X8",
    "I32X8",
    "N_LANES",
    "F32x8Type",
    "LoweredModel",
    "LoweredType",
    "call_libc",
    "cgutils",
    "element_address",
    "f32x8",
    "make_array",
    "operation",
]

# numba is typed in parts only.
cgutils: Any = _cgutils
make_array: Any = _make_array
templates: Any = _templates
lower_builtin: Any = _lower_builtin
PrimitiveModel: Any = _PrimitiveModel

N_LANES = 8
F32X8 = ir.VectorType(ir.FloatType(), N_LANES)
I32X8 = ir.VectorType(ir.IntType(32), N_LANES)
I16X8 = ir.VectorType(ir.IntType(16), N_LANES)


class F32x8Type(types.Type):
    """8 float32 lanes."""


class LoweredType(types.Type):
    """A type that says itself what LLVM type its values have."""

    def __init__(self, name: str, llvm_type: Any) -> None:
        self.llvm_type = llvm_type
        super().__init__(name)


f32x8 = F32x8Type("f32x8")


@register_model(F32x8Type)
class _F32x8Model(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, F32X8)


class LoweredModel(PrimitiveModel):  # type: ignore[misc]
    """The data model of every LoweredType."""

    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm_type)


# Arguments: context, builder, signature, values.
Lowering = Callable[[Any, Any, Any, Any], Any]


def operation(
    function: Callable[..., Any], result: Any, *parameters: Any
) -> Callable[[Lowering], Lowering]:
    """Register `function` as compiled by the decorated lowering.

    Args:
        function: what kernels call; its own body is what runs with JIT off.
        result: numba type of its result, or a function that returns it for the argument types, or
            None if they do not fit; it sees literal types.
        parameters: numba type class of each argument.
    """

    def generic(self: Any, args: Any, kws: Any) -> Any:
        fits = len(args) == len(parameters) and all(map(isinstance, args, parameters))
        found = result(*args) if fits and not isinstance(result, types.Type) else result
        return templates.signature(found, *args) if fits and found is not None else None

    name = f"{function.__name__}_template"
    fields = {"generic": generic, "prefer_literal": not isinstance(result, types.Type)}
    template = type(name, (templates.AbstractTemplate,), fields)
    templates.infer_global(function)(template)
    register: Callable[[Lowering], Lowering] = lower_builtin(function, *parameters)
    return register


def call_libc(builder: Any, name: str, *args: Any) -> Any:
    """Call a function of libc that returns an int, and return that as int64."""
    ftype = ir.FunctionType(ir.IntType(32), [arg.type for arg in args])
    function = builder.module.globals.get(name) or ir.Function(builder.module, ftype, name)
    return builder.sext(builder.call(function, args), ir.IntType(64))


def element_address(
    context: Any, builder: Any, array_type: Any, array: Any, i: Any, n_bytes: int
) -> Any:
    """Return the address of element i, from where n_bytes are used.

    Under NUMBA_BOUNDSCHECK=1 the first and the last of these bytes' elements are checked.
    """
    struct = make_array(array_type)(context, builder, array)
    if context.enable_boundscheck:
        last = n_bytes * 8 // array_type.dtype.bitwidth - 1
        size = cgutils.unpack_tuple(builder, struct.shape, 1)[0]
        for index in (i, builder.add(i, i.type(last))):
            cgutils.do_boundscheck(context, builder, index, size)
    return builder.gep(struct.data, [i])

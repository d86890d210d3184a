"""Softmax in 8 lanes. exp takes the steps of `elementary.exp_f32`: a lane has a scalar's bits.

numba's loops over scalars do not become vector code here; attention takes one exp a position.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from kernels import elementary
from kernels.lowering import F32X8, I32X8, N_LANES, F32x8Type, f32x8, operation
from kernels.simd import F32x8, _ints, _splat

__all__ = ["exp8", "less", "times"]


def less(value: F32x8, x: np.float32) -> F32x8:
    """Return value - x, lane by lane."""
    return value - x


def times(value: F32x8, x: np.float32) -> F32x8:
    """Return value * x, lane by lane."""
    return value * x


def exp8(value: F32x8) -> F32x8:
    """Return exp of every lane, 0 below -87 and at most exp(88); NaN stays NaN."""
    one: Any = getattr(elementary.exp_f32, "py_func", elementary.exp_f32)
    return np.array([one(lane) for lane in value], np.float32)


@operation(less, f32x8, F32x8Type, types.Float)
def _less(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fsub(args[0], _splat(builder, args[1], F32X8))


@operation(times, f32x8, F32x8Type, types.Float)
def _times(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fmul(args[0], _splat(builder, args[1], F32X8))


@operation(exp8, f32x8, F32x8Type)
def _exp8(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    (x,) = args

    def const(number: float) -> ir.Constant:
        return ir.Constant(F32X8, [float(np.float32(number))] * N_LANES)

    y = builder.select(builder.fcmp_ordered(">", x, const(-87.0)), x, const(-87.0))
    y = builder.select(builder.fcmp_ordered("<", y, const(88.0)), y, const(88.0))
    n = _rint(builder, builder.fmul(y, const(elementary._LOG2_E)))
    high = builder.fmul(n, const(elementary._LN2_HIGH_F32))
    low = builder.fmul(n, const(elementary._LN2_LOW_F32))
    r = builder.fsub(builder.fsub(y, high), low)
    p = const(1 / 5040)
    for term in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = builder.fadd(builder.fmul(p, r), const(term))
    exponent = builder.shl(builder.add(builder.fptosi(n, I32X8), _ints(127)), _ints(23))
    e = builder.fmul(p, builder.bitcast(exponent, F32X8))
    e = builder.select(builder.fcmp_ordered(">=", x, const(-87.0)), e, const(0.0))
    return builder.select(builder.fcmp_unordered("uno", x, x), x, e)


def _rint(builder: Any, value: Any) -> Any:
    name = "llvm.rint.v8f32"
    ftype = ir.FunctionType(F32X8, [F32X8])
    function = builder.module.globals.get(name) or ir.Function(builder.module, ftype, name)
    return builder.call(function, [value])

"""exp and SiLU of 8 lanes, with the steps of `elementary`: a lane has the bits that a scalar has.

numba's loops over scalars do not become good vector code: an index could be negative for all that
LLVM knows, so it gathers.
"""

from typing import Any

import numpy as np
from llvmlite import ir

from kernels import elementary, emit
from kernels.jit import merged
from kernels.lowering import F32X8, I32X8, F32x8Type, f32x8, operation
from kernels.simd import F32x8, add, quotient, same, times

__all__ = ["exp8", "silu8"]


def exp8(value: F32x8) -> F32x8:
    """Return exp of every lane, 0 below -87 and at most exp(88); NaN stays NaN."""
    one: Any = getattr(elementary.exp_f32, "py_func", elementary.exp_f32)
    return np.array([one(lane) for lane in value], np.float32)


@merged
def silu8(value: F32x8) -> F32x8:
    """Return x / (1 + exp(-x)) of every lane."""
    one = same(np.float32(1.0))
    return quotient(value, add(one, exp8(times(value, np.float32(-1.0)))))


@operation(exp8, f32x8, F32x8Type)
def _exp8(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    (x,) = args

    def const(number: float) -> ir.Constant:
        return emit.floats(float(np.float32(number)))

    y = builder.select(builder.fcmp_ordered(">", x, const(-87.0)), x, const(-87.0))
    y = builder.select(builder.fcmp_ordered("<", y, const(88.0)), y, const(88.0))
    n = emit.call(builder, "llvm.rint.v8f32", F32X8, builder.fmul(y, const(elementary._LOG2_E)))
    high = builder.fmul(n, const(elementary._LN2_HIGH_F32))
    low = builder.fmul(n, const(elementary._LN2_LOW_F32))
    r = builder.fsub(builder.fsub(y, high), low)
    p = const(1 / 5040)
    for term in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = builder.fadd(builder.fmul(p, r), const(term))
    exponent = builder.shl(builder.add(builder.fptosi(n, I32X8), emit.ints(127)), emit.ints(23))
    e = builder.fmul(p, builder.bitcast(exponent, F32X8))
    e = builder.select(builder.fcmp_ordered(">=", x, const(-87.0)), e, const(0.0))
    return builder.select(builder.fcmp_unordered("uno", x, x), x, e)

"""exp in plain arithmetic: the same bits on every CPU, and LLVM vectorises loops of it.

    n = rint(x / ln 2),  r = x - n ln 2 (in two exact steps),  exp(x) = 2^n * P(r)

P is the Taylor polynomial, whose error at |r| <= ln(2) / 2 is below the rounding of the type.
"""

from typing import Any

import numpy as np

from kernels.half import float_of
from kernels.jit import inner

__all__ = ["exp_f32", "exp_f64"]

F32 = np.float32
F64 = np.float64
_LOG2_E = 1.4426950408889634
_LN2_HIGH_F32, _LN2_LOW_F32 = 0.693359375, -2.12194440e-4
_LN2_HIGH_F64, _LN2_LOW_F64 = 0.693147180369123816490, 1.90821492927058770002e-10


@inner
def exp_f32(x: Any) -> Any:
    """Return exp(x) of a float32, 0 below -87 and at most exp(88); NaN stays NaN."""
    y = x if x > F32(-87.0) else F32(-87.0)
    y = y if y < F32(88.0) else F32(88.0)
    n = F32(np.rint(F32(y * F32(_LOG2_E))))
    r = F32(F32(y - F32(n * F32(_LN2_HIGH_F32))) - F32(n * F32(_LN2_LOW_F32)))
    p = F32(1 / 5040)
    p = F32(F32(p * r) + F32(1 / 720))
    p = F32(F32(p * r) + F32(1 / 120))
    p = F32(F32(p * r) + F32(1 / 24))
    p = F32(F32(p * r) + F32(1 / 6))
    p = F32(F32(p * r) + F32(0.5))
    p = F32(F32(p * r) + F32(1.0))
    p = F32(F32(p * r) + F32(1.0))
    e = F32(p * float_of(np.uint32((np.int32(n) + 127) << 23)))
    return (e if x >= F32(-87.0) else F32(0.0)) if x == x else x


@inner
def exp_f64(x: Any) -> Any:
    """Return exp(x) of a float64 from -700 to 0, 0 below; NaN stays NaN."""
    y = x if x > -700.0 else -700.0
    y = y if y < 0.0 else 0.0
    n = np.rint(y * _LOG2_E)
    r = (y - n * _LN2_HIGH_F64) - n * _LN2_LOW_F64
    p = 1 / 6227020800
    p = p * r + 1 / 479001600
    p = p * r + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    power = np.int64((np.int64(n) + 1023) << 52).view(np.float64)
    return (p * power if x >= -700.0 else 0.0) if x == x else x

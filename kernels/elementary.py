"""exp in plain arithmetic: the same bits on every CPU, and LLVM vectorises loops of it.

    n = rint(x / ln 2),  r = x - n ln 2 (in two exact steps),  exp(x) = 2^n * P(r)

P is the Taylor polynomial, whose error at |r| <= ln(2) / 2 is below the rounding of the type.
"""

from typing import Any

import numpy as np

from kernels.half import float_of
from kernels.jit import inner

__all__ = ["exp_f32"]

F32 = np.float32
_LOG2_E = 1.4426950408889634
_LN2_HIGH_F32, _LN2_LOW_F32 = 0.693359375, -2.12194440e-4


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

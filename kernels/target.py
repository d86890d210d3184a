"""What the CPU that numba compiles for can do; decided once, before anything is compiled.

`HEADWISE_SIMD=plain` has every operation lowered to generic LLVM IR, as on an unknown CPU. An
intrinsic that the CPU lacks does not raise: LLVM ends the process, so lowerings ask here first.
"""

import os
import platform
from functools import cache
from typing import Any

import llvmlite.binding as _llvm
from numba import config as _config

__all__ = ["PLAIN_VARIABLE", "has"]

llvm: Any = _llvm
config: Any = _config

PLAIN_VARIABLE = "HEADWISE_SIMD"


def has(*wanted: str) -> bool:
    """Tell whether the CPU has all these features, in LLVM's spelling."""
    return set(wanted) <= _features()


@cache
def _features() -> frozenset[str]:
    if os.environ.get(PLAIN_VARIABLE) == "plain":
        return frozenset()
    # numba leaves features out when it is told a CPU's name.
    if config.CPU_FEATURES is not None:
        found = {f[1:] for f in config.CPU_FEATURES.split(",") if f.startswith("+")}
    elif config.CPU_NAME:
        found = set()
    else:
        found = {name for name, present in llvm.get_host_cpu_features().items() if present}
    machine = {"x86_64": "x86", "AMD64": "x86", "aarch64": "arm64", "arm64": "arm64"}
    return frozenset(found | {machine.get(platform.machine(), "")})

"""What the CPU that numba compiles for can do; decided once, before anything is compiled.

`HEADWISE_SIMD=plain` has every operation lowered to generic LLVM IR, as on an unknown CPU. An
intrinsic that the CPU lacks does not raise: LLVM ends the process, so lowerings ask here first.
"""

import ctypes
import os
import platform
from functools import cache
from typing import Any

import llvmlite.binding as _llvm
from numba import config as _config

__all__ = ["PLAIN_VARIABLE", "describe", "has"]

llvm: Any = _llvm
config: Any = _config

PLAIN_VARIABLE = "HEADWISE_SIMD"

# Sets of features that some lowering asks for, the best for integer products first.
_INTEGER_PRODUCTS = {
    "vnni": (("x86", "avx512vnni", "avx512vl"), ("x86", "avxvnni")),
    "avx2": (("x86", "avx2"),),
    "dotprod": (("arm64", "dotprod"),),
    "smull": (("arm64",),),
}
_WIDE = {"zmm": (("x86", "avx512vnni", "avx512vl", "avx512bw"),)}
_HALVES = {"f16c": (("x86", "f16c"),), "fcvtl": (("arm64",),)}


def has(*wanted: str) -> bool:
    """Tell whether the CPU has all these features, in LLVM's spelling."""
    return set(wanted) <= _features()


def describe() -> str:
    """Return which CPU is compiled for and what is made of it, for one line of a log.

    For example `cpu=znver3 features=avx2,f16c lowerings=avx2,f16c`; features are those that some
    lowering asks for, and lowerings `plain` where only generic LLVM IR is used.
    """
    tables = (_INTEGER_PRODUCTS, _WIDE, _HALVES)
    asked = {f for table in tables for sets in table.values() for names in sets for f in names}
    present = ",".join(sorted(asked & _features() - {"x86", "arm64"}))
    chosen = []
    for table in tables:
        usable = (name for name, sets in table.items() if any(has(*names) for names in sets))
        chosen += list(usable)[:1]
    cpu = config.CPU_NAME or llvm.get_host_cpu_name()
    return f"cpu={cpu} features={present or 'none'} lowerings={','.join(chosen) or 'plain'}"


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
        found = _host_features()
    return frozenset({*found, _machine()})


# Of Linux on aarch64: the entry of the auxiliary vector and its bit for sdot and udot.
_AT_HWCAP, _HWCAP_ASIMDDP = 16, 1 << 20


def _host_features() -> set[str]:
    """Return this CPU's features; what LLVM does not look for, numba is told to use."""
    known = llvm.get_host_cpu_features()
    found = {name for name, present in known.items() if present}
    if _machine() == "arm64" and _hardware_capabilities() & _HWCAP_ASIMDDP:
        found.add("dotprod")
        # A CPU whose name LLVM does not know would lack it, and sdot end the process.
        config.CPU_FEATURES = f"{known.flatten()},+dotprod"
    return found


def _machine() -> str:
    names = {"x86_64": "x86", "AMD64": "x86", "aarch64": "arm64", "arm64": "arm64"}
    return names.get(platform.machine(), "")


def _hardware_capabilities() -> int:
    """Return what the kernel says of the CPU; on boards with two kinds of cores, of both."""
    read = ctypes.CDLL(None).getauxval
    read.argtypes, read.restype = [ctypes.c_ulong], ctypes.c_ulong
    return int(read(_AT_HWCAP))


# Before numba compiles anything: it reads its settings then, once.
_features()

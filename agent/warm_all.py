"""`headwise agent --warm`: compile whatever an agent may be asked for, when it is installed.

A plan names the model's weight format, what is on the wire (8-bit activations go with f16) and
the format of the KV cache; each combination has kernels of its own. Which machine's: this one's.
"""

import itertools
import time

from agent.share import KvFormat
from agent.warm import is_warm, warm_kernels
from kernels import kept_cache_directory
from kernels.errors import ResourceError
from kernels.layout import Geometry, WeightFormat
from kernels.mode import JIT_DISABLED

__all__ = ["KERNEL_SETS", "warm_all"]

KernelSet = tuple[WeightFormat, KvFormat, bool]

# int8 is compiled by the first agent that a plan asks for it: twice as many sets as it is worth.
_KV_FORMATS: tuple[KvFormat, ...] = ("f32", "f16")
_QUANTISED = (WeightFormat.Q8, WeightFormat.Q4)

# Weight format, KV format, 8-bit activations; first what plans ask for by default. Other formats
# have the same kernels with 8-bit activations and without.
KERNEL_SETS: tuple[KernelSet, ...] = tuple(
    (fmt, kv, int8 and fmt in _QUANTISED)
    for int8, kv, fmt in itertools.product((True, False), _KV_FORMATS, WeightFormat)
    if int8 or fmt in _QUANTISED
)


def warm_all() -> None:
    """Compile what is not in the cache yet, and say so line by line on stdout.

    Raises:
        ResourceError: there is nowhere to keep what is compiled, or nothing is compiled at all.
    """
    directory = kept_cache_directory()
    if JIT_DISABLED:
        raise ResourceError("NUMBA_DISABLE_JIT is set: there is nothing to compile; unset it")
    if directory is None:
        raise ResourceError(
            "no directory that this user alone can write is there for compiled kernels; set "
            "XDG_CACHE_HOME to one (NUMBA_CACHE_DIR, if it is set, has to be one)"
        )
    started_s = time.monotonic()
    for fmt, kv, int8 in KERNEL_SETS:
        was_warm, set_started_s = is_warm(fmt, kv, int8), time.monotonic()
        warm_kernels(_geometry(fmt), kv, int8)
        seconds = time.monotonic() - set_started_s
        kind = "8-bit activations" if int8 else "f32 activations"
        how = "in the cache already" if was_warm else f"compiled in {seconds:.1f} s"
        print(f"{fmt.name.lower():<4} {kind:<18} kv {kv}: {how}", flush=True)
    seconds = time.monotonic() - started_s
    print(f"{len(KERNEL_SETS)} sets of kernels are ready after {seconds:.1f} s, in {directory}")


def _geometry(fmt: WeightFormat) -> Geometry:
    """Return a small model's; kernels are the same for all shapes."""
    return Geometry(
        hidden_size=64, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=32, n_columns=40,
        vocab_size=10, fmt=fmt, norm_eps=1e-5,
    )  # fmt: skip

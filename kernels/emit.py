"""Pieces of LLVM IR that several operations on lanes are lowered to.

Functions take an IR builder and IR values and return IR values; pointers may have any type. What
depends on the CPU is decided here, while compiling, by `target`.
"""

from typing import Any

from llvmlite import ir

from kernels.lowering import F32X8, I16X8, I32X8, N_LANES
from kernels.target import has

__all__ = [
    "I32",
    "I64",
    "VNNI",
    "ZMM",
    "byte_of",
    "call",
    "constant",
    "dot4",
    "floats",
    "from_bytes",
    "from_halves",
    "halves",
    "ints",
    "joined",
    "load",
    "multiply_add",
    "prefetch",
    "splat",
    "store",
]

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
I8X32, I16X16 = ir.VectorType(I8, 32), ir.VectorType(I16, 16)
I8X16, I32X4 = ir.VectorType(I8, 16), ir.VectorType(I32, 4)

# vpdpbusd; its left factor is unsigned.
VNNI = has("x86", "avx512vnni", "avx512vl") or has("x86", "avxvnni")
# Into which caches memory is asked for: 3 = all, 2 = the second level. The first level's few line
# buffers hold 1 KiB under way, which is what memory of a server sends in 60 ns (docs/decisions.md).
NEARNESS = 2 if has("x86") else 3
# Vectors of 16 lanes, and 32 registers.
ZMM = has("x86", "avx512vnni", "avx512vl", "avx512bw")


def ints(value: int) -> ir.Constant:
    """Return 8 lanes of one int32."""
    return ir.Constant(I32X8, [value] * N_LANES)


def floats(value: float) -> ir.Constant:
    """Return 8 lanes of one float32."""
    return ir.Constant(F32X8, [value] * N_LANES)


def constant(vector: ir.VectorType, value: int) -> ir.Constant:
    """Return a vector whose lanes all hold a number."""
    return ir.Constant(vector, [value] * vector.count)


def splat(builder: Any, value: Any, vector: ir.VectorType = F32X8) -> Any:
    """Return a vector whose lanes all hold value."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    lanes = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, first, lanes)


def joined(builder: Any, a: Any, b: Any) -> Any:
    """Return the lanes of two vectors of 8 as one of 16."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 16), list(range(16))))


def halves(builder: Any, value: Any) -> list[Any]:
    """Return the two vectors of 8 lanes that one of 16 consists of."""
    parts = (list(range(8)), list(range(8, 16)))
    return [builder.shuffle_vector(value, value, ir.Constant(I32X8, lanes)) for lanes in parts]


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Call an LLVM intrinsic."""
    module = builder.module
    ftype = ir.FunctionType(result, [a.type for a in args])
    function = module.globals.get(name) or ir.Function(module, ftype, name)
    return builder.call(function, args)


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of float32 lanes, rounded once; where a CPU cannot, libm does, slowly."""
    return call(builder, f"llvm.fma.v{a.type.count}f32", a.type, a, b, c)


def load(builder: Any, pointer: Any, kind: Any, skip_bytes: Any = 0) -> Any:
    """Load a value of type `kind`, which need not be aligned, skip_bytes behind a pointer."""
    skip = skip_bytes if isinstance(skip_bytes, ir.Value) else I64(skip_bytes)
    at = builder.gep(builder.bitcast(pointer, I8.as_pointer()), [skip])
    return builder.load(builder.bitcast(at, kind.as_pointer()), align=1)


def store(builder: Any, value: Any, pointer: Any, skip_bytes: Any) -> None:
    """Store a value, which need not be aligned, skip_bytes behind a pointer."""
    skip = skip_bytes if isinstance(skip_bytes, ir.Value) else I64(skip_bytes)
    at = builder.gep(builder.bitcast(pointer, I8.as_pointer()), [skip])
    builder.store(value, builder.bitcast(at, value.type.as_pointer()), align=1)


def prefetch(builder: Any, pointer: Any, skip_bytes: Any) -> None:
    """Have the cache line skip_bytes behind a pointer fetched; it may lie anywhere: no access."""
    skip = skip_bytes if isinstance(skip_bytes, ir.Value) else I64(skip_bytes)
    at = builder.gep(builder.bitcast(pointer, I8.as_pointer()), [skip])
    # To be read, how near (only the last level is far slower, measured), data.
    call(builder, "llvm.prefetch.p0", ir.VoidType(), at, I32(0), I32(NEARNESS), I32(1))


def from_halves(builder: Any, pointer: Any, skip_bytes: Any = 0) -> Any:
    """Return the 8 float16 values behind a pointer as float32, exactly."""
    if has("x86", "f16c") or has("arm64"):
        halves = load(builder, pointer, ir.VectorType(ir.HalfType(), N_LANES), skip_bytes)
        return builder.fpext(halves, F32X8)
    # In integers, since not every CPU converts half precision. With m the exponent and mantissa
    # in float32's place: normal numbers and NaN only need another exponent, subnormal ones are
    # normalised by an exact subtraction.
    bits = builder.zext(load(builder, pointer, I16X8, skip_bytes), I32X8)
    m = builder.shl(builder.and_(bits, ints(0x7FFF)), ints(13))
    sign = builder.shl(builder.and_(bits, ints(0x8000)), ints(16))
    normal = builder.add(m, ints(112 << 23))
    tiny = builder.bitcast(builder.add(m, ints(113 << 23)), F32X8)
    tiny = builder.bitcast(builder.fsub(tiny, floats(2.0**-14)), I32X8)
    special = builder.add(m, ints((224 << 23) - (1 << 32)))
    is_tiny = builder.icmp_signed("<", m, ints(1 << 23))
    is_special = builder.icmp_signed(">=", m, ints(0x7C00 << 13))
    magnitude = builder.select(is_special, special, builder.select(is_tiny, tiny, normal))
    return builder.bitcast(builder.or_(magnitude, sign), F32X8)


def from_bytes(builder: Any, pointer: Any, skip_bytes: Any = 0) -> Any:
    """Return the 8 signed bytes behind a pointer as float32."""
    numbers = load(builder, pointer, ir.VectorType(I8, N_LANES), skip_bytes)
    return builder.sitofp(builder.sext(numbers, I32X8), F32X8)


def byte_of(builder: Any, lanes: Any, byte: int) -> Any:
    """Return byte 0 (lowest) to 3 of each int32 lane as a signed number."""
    return builder.ashr(builder.shl(lanes, ints(24 - 8 * byte)), ints(24))


def dot4(builder: Any, total: Any, w: Any, x: Any, w_is_positive: bool) -> Any:
    """Return total + the products of the 4 bytes of each lane of w with those of x.

    Bytes are signed and never -128. With VNNI, w's are unsigned: the caller corrects the sum.
    """
    if VNNI:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * w.type.count}"
        return call(builder, name, w.type, total, w, x)
    if has("x86", "avx2"):
        left, right = builder.bitcast(w, I8X32), builder.bitcast(x, I8X32)
        if not w_is_positive:
            # The left factor is unsigned: |x| it is, and w takes the sign of x.
            size = call(builder, "llvm.abs.v32i8", I8X32, right, ir.Constant(ir.IntType(1), 0))
            left, right = size, call(builder, "llvm.x86.avx2.psign.b", I8X32, left, right)
        # Two products of at most 127 * 127 fit an int16.
        pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", I16X16, left, right)
        ones = ir.Constant(I16X16, [1] * 16)
        return builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", I32X8, pairs, ones))
    if has("arm64"):
        return _dot4_arm(builder, total, w, x)
    for byte in range(4):
        a, b = (byte_of(builder, lanes, byte) for lanes in (w, x))
        total = builder.add(total, builder.mul(a, b))
    return total


def _dot4_arm(builder: Any, total: Any, w: Any, x: Any) -> Any:
    four = _sdot if has("arm64", "dotprod") else _widening_dot
    halves = []
    for half in range(2):
        lanes = ir.Constant(I32X4, list(range(4 * half, 4 * half + 4)))
        t, a, b = (builder.shuffle_vector(v, v, lanes) for v in (total, w, x))
        halves.append(four(builder, t, builder.bitcast(a, I8X16), builder.bitcast(b, I8X16)))
    return builder.shuffle_vector(*halves, ir.Constant(I32X8, list(range(8))))


def _sdot(builder: Any, total: Any, w: Any, x: Any) -> Any:
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", I32X4, total, w, x)


def _widening_dot(builder: Any, total: Any, w: Any, x: Any) -> Any:
    """Do what sdot does on a CPU that lacks it: 5 instructions for 16 products."""
    products = []
    for half in range(2):
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 8), list(range(8 * half, 8 * half + 8)))
        a, b = (builder.shuffle_vector(v, v, lanes) for v in (w, x))
        products.append(call(builder, "llvm.aarch64.neon.smull.v8i16", I16X8, a, b))
    # Two products of at most 127 * 127 fit an int16.
    pairs = call(builder, "llvm.aarch64.neon.addp.v8i16", I16X8, *products)
    four = call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", I32X4, pairs)
    return builder.add(total, four)

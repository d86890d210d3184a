"""What LLVM makes of every kernel for the CPUs of boards, seen from any machine."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from numba import config

from kernels.jit import JIT_DISABLED
from kernels.target import PLAIN_VARIABLE
from tests.kernel.arm_assembly import Counts, count, functions, innermost_loops
from tests.kernel.arm_compiler import CPUS, EXACT, SPECS, TRIPLE, assembly

ROOT = Path(__file__).parents[2]
ROOMS = ("kernels", "weights", "agent", "coordinator", "tools")
INT8 = [spec for spec in SPECS if SPECS[spec][1]]
HALF_CACHE = [spec for spec in SPECS if SPECS[spec][2] == "f16"]
BYTE_CACHE = [spec for spec in SPECS if SPECS[spec][2] == "int8"]
MULTIPLIES = re.compile(r"[su]dot|f?(mul|mla|mls)\.|[su]m[lu]l[l2]*\.")
NO_DOTPROD = ["cortex-a53", "cortex-a72"]

pytestmark = [
    pytest.mark.slow,  # two minutes of processor time
    pytest.mark.timeout(900),
    pytest.mark.skipif(JIT_DISABLED or bool(config.BOUNDSCHECK), reason="compiles by itself"),
]

# Features and jobs of each compiler, evenly long, and the directory where they write.
RUNS = [
    ("out", "neon", "f32", "q8"),
    ("out", "neon", "f16", "q4"),
    ("out", "neon", *INT8),
    ("out", "neon,dotprod", *INT8, "others"),
    ("plain", "neon,dotprod", "matvec"),
]


def compile_all(directory: Path, features: str, *jobs: str) -> None:
    directory.mkdir(exist_ok=True)
    chosen = {PLAIN_VARIABLE: "plain"} if directory.name == "plain" else {}
    unset = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT", PLAIN_VARIABLE)
    env = {name: value for name, value in os.environ.items() if name not in unset}
    words = [sys.executable, "-m", "tests.kernel.arm_compiler", str(directory), features, *jobs]
    done = subprocess.run(
        words, cwd=ROOT, env={**env, **chosen, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with assembly of all kernels in `out`, and of one in generic code in `plain`."""
    top = tmp_path_factory.mktemp("arm")
    with ThreadPoolExecutor(len(RUNS)) as pool:
        for done in [pool.submit(compile_all, top / run[0], *run[1:]) for run in RUNS]:
            done.result()
    return top


def text_of(built: Path, cpu: str, spec: str) -> str:
    return (built / "out" / cpu / f"run_stage.{spec}.s").read_text()


def loops_of(text: str, function: str) -> list[Counts]:
    """Return the innermost loops of functions with this name that multiply vectors."""
    found = functions(text)
    # numba: _ZN, then each part of the dotted name after its length.
    chosen = [name for name in found if f"{len(function)}{function}B" in name]
    assert chosen, f"no function {function} among {sorted(found)}"
    loops = [count(loop) for name in chosen for loop in innermost_loops(found[name])]
    return [loop for loop in loops if any(MULTIPLIES.match(kind) for kind in loop)]


def matrix_loops(text: str) -> list[Counts]:
    """Return the loops of one row and of several, which have a function of their own."""
    return [*loops_of(text, "matvec"), *loops_of(text, "_in_blocks")]


def one_row(loops: list[Counts]) -> Counts:
    """Return the loop over blocks that fetches ahead and serves a single row: the shorter one."""
    return min((loop for loop in loops if loop["prfm"]), key=lambda loop: loop.total())


def check_vectors(loops: list[Counts]) -> None:
    """Loops that multiply do so in vectors and leave the lanes where they are."""
    assert loops
    for loop in loops:
        assert not loop["lane"], loop
        assert not [kind for kind in loop if kind.startswith("scalar f")], loop


def check_matrix_loops(loops: list[Counts]) -> None:
    check_vectors(loops)
    assert len(loops) == 3, loops  # one row of a short and of a long matrix, and several rows
    # Of a short matrix the loop is over row tiles, whose addresses are products.
    assert not any(loop["scalar mul"] > 4 for loop in loops), loops


def check_sdot(text: str, spec: str) -> None:
    loops = matrix_loops(text)
    check_matrix_loops(loops)
    assert all(loop["sdot"] for loop in loops)
    assert not any(loop["smull"] or loop["mla.4s"] for loop in loops)
    # 32 inputs of 8 rows are 256 products, of which each does 16.
    assert one_row(loops)["sdot"] == 16
    check_f16_loads(text, "matvec")


def check_widening(text: str, spec: str) -> None:
    loops = matrix_loops(text)
    check_matrix_loops(loops)
    for loop in loops:
        assert loop["smull.8h"] == 2 * loop["addp.8h"] > 0
        assert loop["sadalp.4s"] + loop["saddlp.4s"] == loop["addp.8h"]
        assert not loop["mla.4s"]
    assert one_row(loops)["smull.8h"] == 32
    check_f16_loads(text, "matvec")


def check_f16_loads(text: str, function: str) -> None:
    """Float16 numbers are converted by the CPU, four at a time."""
    found = functions(text)
    name = next(name for name in found if f"{len(function)}{function}B" in name)
    counts = count(found[name])
    assert counts["fcvtl.4s"] == counts["fcvtl2.4s"] > 0
    assert not counts["scalar fcvt"]


def check_byte_loads(text: str) -> None:
    """Bytes become floats four at a time: widened (LLVM looks them up), then converted."""
    loops = [loop for loop in loops_of(text, "attend") if loop["scvtf.4s"]]
    assert len(loops) >= 4  # keys and values, for one query head and two
    for loop in loops:
        widened = loop["tbl.16b"] + loop["sshll.4s"] + loop["sshll2.4s"]
        assert loop["scvtf.4s"] == widened, loop
        assert loop["fmla.4s"] >= loop["scvtf.4s"]
        assert not loop["scalar scvtf"]


@pytest.mark.parametrize("cpu", CPUS)
def test_every_kernel_is_compiled(built: Path, cpu: str) -> None:
    sources = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    texts = [path.read_text() for path in sources]
    declared = {name for t in texts for name in re.findall(r"^@kernel\ndef (\w+)", t, re.MULTILINE)}
    assert len(declared) > 10
    files = [path.name.split(".") for path in (built / "out" / cpu).iterdir()]
    assert {kernel for kernel, *_ in files} == declared
    assert {spec for kernel, spec, _ in files if kernel == "run_stage"} == set(SPECS)


@pytest.mark.parametrize("spec", INT8)
def test_bytes_are_multiplied_by_sdot_where_there_is_one(built: Path, spec: str) -> None:
    check_sdot(text_of(built, "cortex-a76", spec), spec)


@pytest.mark.parametrize("cpu", NO_DOTPROD)
@pytest.mark.parametrize("spec", INT8)
def test_bytes_are_multiplied_in_vectors_elsewhere(built: Path, cpu: str, spec: str) -> None:
    check_widening(text_of(built, cpu, spec), spec)


@pytest.mark.parametrize("cpu", CPUS)
def test_no_other_kernel_has_dot_products(built: Path, cpu: str) -> None:
    for path in (built / "out" / cpu).iterdir():
        if cpu in NO_DOTPROD or not any(spec in path.name for spec in INT8):
            assert not re.search(r"\t[su]dot\b", path.read_text()), path.name


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("spec", EXACT)
def test_floats_are_multiplied_in_vectors(built: Path, cpu: str, spec: str) -> None:
    text = text_of(built, cpu, spec)
    loops = matrix_loops(text)
    check_matrix_loops(loops)
    for loop in loops:
        # One rounding for each weight; q8 and q4 are scaled before.
        assert loop["fmla.4s"] >= 8
    if spec != "f32":
        check_f16_loads(text, "matvec")


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("spec", SPECS)
def test_attention_is_computed_in_vectors(built: Path, cpu: str, spec: str) -> None:
    text = text_of(built, cpu, spec)
    in_vectors = [loop for loop in loops_of(text, "attend") if loop["fmla.4s"] or loop["fmul.4s"]]
    check_vectors(in_vectors)
    assert len(in_vectors) >= 4  # q . k, exp, and the sum over v for many and for few dimensions
    if spec in HALF_CACHE:
        check_f16_loads(text, "attend")
    if spec in BYTE_CACHE:
        check_byte_loads(text)


@pytest.mark.parametrize("cpu", CPUS)
def test_exchange_is_computed_in_vectors(built: Path, cpu: str) -> None:
    wanted = {"encode_flat": "fadd.4s", "decode_flat": "fadd.4s", "add_partials": "fadd.4s"}
    for kernel, kind in {**wanted, "read_chunks": "add.2d", "log_sum_exp": "fmul.4s"}.items():
        text = (built / "out" / cpu / f"{kernel}.others.s").read_text()
        loops = [count(x) for lines in functions(text).values() for x in innermost_loops(lines)]
        assert any(loop[kind] >= 2 and loop["lane"] <= 1 for loop in loops), kernel


@pytest.mark.parametrize("cpu", CPUS)
def test_threads_meet_by_ordered_accesses(built: Path, cpu: str) -> None:
    """ARM orders no others, and an emulator on x86 orders all: only the code can tell."""
    for spec in SPECS:
        lines = [line for part in functions(text_of(built, cpu, spec)).values() for line in part]
        counts = count(lines)
        assert counts["ldar"] > 0
        assert counts["stlr"] > 0
        adds = ("ldaddal",) if cpu == "cortex-a76" else ("ldaxr", "stlxr")
        assert all(counts[name] > 0 for name in adds)
        assert not any(counts[name] for name in ("ldadd", "ldadda", "ldaddl", "ldxr", "stxr"))


# That these checks can fail.


def test_generic_lowering_is_noticed(built: Path) -> None:
    text = (built / "plain/cortex-a76/matvec.matvec.s").read_text()
    assert "mla" in text
    with pytest.raises(AssertionError):
        check_sdot(text, "q8-int8")
    with pytest.raises(AssertionError):
        check_widening(text, "q8-int8")
    with pytest.raises(AssertionError):
        check_f16_loads(text, "matvec")
    with pytest.raises(AssertionError):
        check_byte_loads(text_of(built, "cortex-a76", "q8-int8"))


LOOP = """
target triple = "{triple}"
define void @"_ZN1B"(<4 x float>* %p, i64 %n) {{
top:
  br label %body
body:
  %i = phi i64 [ 0, %top ], [ %next, %body ]
  %at = getelementptr <4 x float>, <4 x float>* %p, i64 %i
  %v = load <4 x float>, <4 x float>* %at
{middle}
  store <4 x float> %result, <4 x float>* %at
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %body, label %end
end:
  ret void
}}
"""
VECTOR = "  %result = fmul <4 x float> %v, %v"
# LLVM cannot see through the empty instruction of each lane, so it keeps them apart.
LANE = """
  %a{i} = extractelement <4 x float> %v, i32 {i}
  %b{i} = call float asm sideeffect "", "=w,0"(float %a{i})
  %c{i} = fmul float %b{i}, %b{i}
  %v{n} = insertelement <4 x float> {before}, float %c{i}, i32 {i}
"""
LANES = "".join(LANE.format(i=i, n=i + 1, before=f"%v{i}" if i else "undef") for i in range(4))
LANES += "  %result = fadd <4 x float> %v4, %v4"


def test_a_scalarised_loop_is_noticed() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    name = "cortex-a72"

    def loops(middle: str) -> list[Counts]:
        text = assembly(LOOP.format(triple=TRIPLE, middle=middle), name, CPUS[name])
        (lines,) = functions(text).values()
        return [count(loop) for loop in innermost_loops(lines)]

    check_vectors([loop for loop in loops(VECTOR) if loop["fmul.4s"]])
    lanes = loops(LANES)
    assert sum(loop["lane"] for loop in lanes) >= 3
    with pytest.raises(AssertionError):
        check_vectors(lanes)

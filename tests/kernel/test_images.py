"""Images of kernels: the results of numba's own functions, safely mapped, judged before use."""

import ast
import errno
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

import kernels.entries
import kernels.entry
from agent.compile_server import Request, answer
from kernels.entries import count_up, top_of_row
from kernels.entry import Entry, encode, use_images
from kernels.errors import HeadwiseError, InputError
from kernels.image import Image, Images, pack_image
from kernels.jit import JIT_DISABLED
from kernels.layout import WeightFormat
from kernels.link import PAGE_BYTES, link
from kernels.mode import BOUNDS_CHECKED
from kernels.pool import Pool
from tests.kernel_models import geometry, make_model, make_stage

needs_images = pytest.mark.skipif(JIT_DISABLED or BOUNDS_CHECKED, reason="no images in this mode")
ROOT = Path(__file__).resolve().parents[2]


def made_here(module: str, name: str, kinds: str, path: Path) -> bool:
    error = answer(Request(module, name, kinds, str(path))).error
    assert not error, error
    return True


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    """Images of this test's own, compiled in this process."""
    images = Images(tmp_path)
    images.compile = made_here
    forget_images()
    use_images(images)
    yield images
    use_images(None)
    forget_images()


def forget_images() -> None:
    """Have entries look for images anew; what other tests of this process found stays mapped."""
    for entry in vars(kernels.entries).values():
        if isinstance(entry, Entry):
            entry._found.clear()
            entry._missing.clear()


def test_entries_name_kernels_that_exist() -> None:
    entries = {k: v for k, v in vars(kernels.entries).items() if isinstance(v, Entry)}
    assert len(entries) > 8
    for name, entry in entries.items():
        source = ROOT / (entry._module.replace(".", "/") + ".py")
        functions = {n.name for n in ast.parse(source.read_text()).body if hasattr(n, "name")}
        assert entry._name in functions, name


def test_arguments_become_words() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    b = np.zeros(4, np.uint8)[1:]
    b.flags.writeable = False
    kinds: list[str] = []
    words: list[int] = []
    encode((7, a, (np.int32(-1), (b,), ()), 0.5), kinds, words)
    assert " ".join(kinds) == "i f2w ( i ( B1r ) ( ) ) f"
    assert words == [
        7, 0, 0, 6, 4, a.ctypes.data, 2, 3, 12, 4, -1, 0, 0, 3, 1, b.ctypes.data, 3, 1,
        0x3FE0000000000000,
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [True, "text", None, np.zeros((4, 4))[:, :2], np.float32(1)])
def test_other_arguments_are_refused(bad: Any) -> None:
    with pytest.raises(InputError, match="kernels take"):
        encode((1, bad), [], [])


@needs_images
def test_results_are_those_of_numba(images: Images) -> None:
    rng = np.random.default_rng(3)
    logits, ids = rng.standard_normal(500).astype(np.float32), np.arange(500, dtype=np.uint32)
    found = []
    for _ in range(2):
        best, of_best = np.zeros(20, np.uint32), np.zeros(20, np.float32)
        sync = np.zeros(64, np.int64)
        count_up(sync, 8)
        total = np.zeros(1)
        n = top_of_row(logits, ids, 20, 0.7, total, best, of_best)  # calls libm
        found.append((n, total[0], best.tolist(), of_best.tolist(), int(sync[8])))
        use_images(None)
    assert found[0] == found[1]
    assert found[0][0] == 20
    assert len(list(images.directory.glob("*.image"))) == 2


@pytest.mark.slow
@needs_images
@pytest.mark.parametrize(
    ("fmt", "kv", "int8"),
    [
        (WeightFormat.Q8, np.uint16, True),
        (WeightFormat.Q4, np.uint16, True),
        (WeightFormat.Q4, np.float32, False),
        (WeightFormat.F16, np.uint16, False),
        (WeightFormat.Q4, np.int8, True),
    ],
)
def test_a_stage_gives_the_same_bits(
    images: Images, fmt: WeightFormat, kv: type, int8: bool
) -> None:
    model = make_model(geometry(fmt=fmt))
    found = []
    for n_threads in (1, 2, 1):
        pool = Pool(n_threads)
        stage = make_stage(model, pool=pool, kv_dtype=kv, int8=int8)
        x = np.random.default_rng(5).standard_normal((9, 40)).astype(np.float32)
        logits = np.zeros((9, 131), np.float32)
        stage.begin(np.zeros(9, np.int32), np.arange(9, dtype=np.int32))
        stage.run_layers(x)
        stage.logits(x, logits)
        pool.close()
        found.append(x.tobytes() + logits.tobytes())
        assert np.isfinite(logits).all()
        assert len(np.unique(logits)) > 1000
        if len(found) == 2:
            assert list(images.directory.glob("run_stage-*.image"))
            use_images(None)
    assert found[0] == found[1] == found[2]


@needs_images
def test_a_bound_call_passes_new_numbers_on(images: Images) -> None:
    for _ in range(2):
        words = np.zeros(64, np.int64)
        bound = count_up.bind((words, 0), 1, 1)
        bound(3)
        bound(5)
        bound(5)
        # Behind each count is when it changed.
        assert [words[3], words[5]] == [1, 2]
        assert not words[[0, 1, 2, *range(7, 16)]].any()
        use_images(None)


@needs_images
def test_no_page_can_be_written_and_run(images: Images) -> None:
    logits, ids = np.ones(3, np.float32), np.ones(3, np.uint32)
    top_of_row(logits, ids, 1, 1.0, np.zeros(1), ids.copy(), logits.copy())
    (path,) = images.directory.glob("*.image")
    lines = Path("/proc/self/maps").read_text().splitlines()
    (i,) = (i for i, line in enumerate(lines) if line.endswith(str(path)))
    assert lines[i].split()[1] == "r-xp"
    end = int(lines[i].split()[0].split("-")[1], 16)
    slots = lines[i + 1].split()
    assert int(slots[0].split("-")[0], 16) == end
    assert slots[1] == "r--p"


@needs_images
def test_a_damaged_image_that_cannot_be_removed_is_passed_over(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_up(np.zeros(64, np.int64), 0)
    (path,) = images.directory.glob("*.image")
    path.write_bytes(b"")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert images._open(path) is None


@needs_images
@pytest.mark.parametrize("harm", ["torn", "changed", "empty", "foreign"])
def test_a_damaged_image_is_never_run(images: Images, harm: str) -> None:
    count_up(np.zeros(64, np.int64), 0)
    (path,) = images.directory.glob("*.image")
    good = path.read_bytes()
    bad = {
        "torn": good[: PAGE_BYTES + 8], "empty": b"", "foreign": b"\x7fELF" + good[4:],
        "changed": good[:-5] + b"\xcc" + good[-4:],
    }[harm]  # fmt: skip
    path.write_bytes(bad)
    with pytest.raises(HeadwiseError, match="damaged"):
        Image(path)
    count_up._found.clear()
    words = np.zeros(64, np.int64)
    count_up(words, 0)
    assert words[0] == 1
    assert path.read_bytes()[: 1 << 16] == good[: 1 << 16]


@needs_images
def test_without_an_image_numba_does_it(images: Images, caplog: pytest.LogCaptureFixture) -> None:
    images.compile = None
    words = np.zeros(64, np.int64)
    count_up(words, 0)
    count_up(words, 0)
    assert words[0] == 2
    assert len([m for m in caplog.messages if "numba compiles it in this process" in m]) == 1


@needs_images
def test_an_exception_in_a_kernel_is_an_error(tmp_path: Path) -> None:
    """No kernel raises; one that does must not pass for one that is done."""
    code = _object("define i32 @fails(ptr %words) {\n ret i32 1\n}")
    linked = link(code, ("fails",))
    header = {
        "name": "fails", "result": "i", "entry": linked.offsets["fails"], "function": 0,
        "imports": [], "target": "",
    }  # fmt: skip
    (tmp_path / "image").write_bytes(pack_image(header, linked.image))
    with pytest.raises(HeadwiseError, match="kernel fails failed with status 1"):
        Image(tmp_path / "image").call(array("q", [0]))


def _object(text: str, triple: str = "") -> bytes:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = triple or llvm.get_process_triple()
    module = llvm.parse_assembly(f'target triple = "{triple}"\n{text}')
    machine = llvm.Target.from_triple(triple).create_target_machine(
        opt=3, reloc="pic", codemodel="small"
    )
    code: bytes = machine.emit_object(module)
    return code


TRIPLES = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"]


@pytest.mark.parametrize("triple", TRIPLES)
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("@n = global i32 1\ndefine ptr @f() {\n ret ptr @n\n}", "no section .data"),
        ("@n = internal global i32 0\ndefine ptr @f() {\n ret ptr @n\n}", "no section .bss"),
        ("@n = thread_local global i32 0\ndefine ptr @f() {\n ret ptr @n\n}", "no section .tbss"),
        ("@g = constant ptr @f\ndefine ptr @f() {\n ret ptr @g\n}", "no table of addresses"),
        ("define i32 @g() {\n ret i32 1\n}", "lacks one of"),
    ],
)
def test_what_kernels_do_not_need_is_not_linked(triple: str, text: str, what: str) -> None:
    with pytest.raises(HeadwiseError, match=re.escape(what)):
        link(_object(text, triple), ("f",))


def test_only_objects_for_these_machines_are_linked() -> None:
    good = _object("define i32 @f() {\n ret i32 1\n}", TRIPLES[0])
    assert link(good, ("f",)).imports == ()
    for bad in (b"", b"MZ", good[:70], good[:18] + b"\x03" + good[19:]):
        with pytest.raises(HeadwiseError):
            link(bad, ("f",))


def test_arm_code_finds_its_constants_and_imports() -> None:
    """Instructions with addresses are read back; that they run is for the tests marked `arm`."""
    text = """
declare double @sin(double)
define double @f(double %x) {
  %a = call double @sin(double %x)
  %b = fmul double %a, 0.3
  ret double %b
}"""
    linked = link(_object(text, TRIPLES[1]), ("f",))
    assert linked.imports == ("sin",)
    code = [
        int.from_bytes(linked.image[i : i + 4], "little")
        for i in range(0, len(linked.image) // 4 * 4, 4)
    ]
    (call,) = (i for i, word in enumerate(code[:40]) if word >> 26 == 0b100101)
    stub = call + (code[call] & 0x3FFFFFF)
    assert code[stub] & 0x9F00001F == 0x90000010  # adrp x16
    pages = (code[stub] >> 5 & 0x7FFFF) << 2 | code[stub] >> 29 & 3
    assert (4 * stub >> 12) + pages == len(linked.image) >> 12  # the slots are behind the image
    assert code[stub + 2] == 0xD61F0200  # br x16


@needs_images
def test_every_image_of_another_machine_is_another_file() -> None:
    from agent.compiler import cpu_identity

    pi4 = "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd08\nBogoMIPS\t: 108.0\n"
    assert cpu_identity(pi4) == cpu_identity(pi4.replace("108.0", "96.0"))
    assert cpu_identity(pi4) != cpu_identity(pi4.replace("0xd08", "0xd0b"))
    assert cpu_identity(pi4) != cpu_identity(pi4.replace("asimd", "asimd asimddp"))
    assert cpu_identity(pi4 + pi4.replace(": 0\n", ": 1\n")) == cpu_identity(pi4)
    assert os.sep not in cpu_identity("")

"""Compiles kernels for ARM on whatever machine this is; a program, since it takes numba over.

    python -m tests.kernel.arm_compiler DIRECTORY FEATURES JOB...

numba lowers for an aarch64 CPU with FEATURES ("neon" or "neon,dotprod"), unoptimised: kernels are
called as the product calls them, but what is compiled never runs, the calls return at once. Then
LLVM optimises each kernel for every CPU of `CPUS` that FEATURES fit and writes its assembly to
DIRECTORY/CPU/KERNEL.JOB.s. JOBs are names of SPECS (the phases), "others" (all other kernels that
Python calls), and "matvec" (the product of q8 weights and 8-bit activations alone).
"""

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import llvmlite.binding as llvm
from numba import _dynfunc
from numba.core import codegen, config, cpu, dispatcher, ir

TRIPLE = "aarch64-unknown-linux-gnu"

# What LLVM finds there, see /proc/cpuinfo of a Zero 2 W, a Pi 4 and a Pi 5, and +dotprod.
CPUS = {
    "cortex-a53": "+crc,+fp-armv8,+neon",
    "cortex-a72": "+crc,+fp-armv8,+neon",
    "cortex-a76": "+aes,+crc,+fp-armv8,+lse,+neon,+sha2,+dotprod",
}
# Weight format, 8-bit activations, format of the cache: each of them at least once.
SPECS = {
    "f32": ("F32", False, "f32"),
    "f16": ("F16", False, "f16"),
    "q8": ("Q8", False, "f32"),
    "q4": ("Q4", False, "f16"),
    "q8-int8": ("Q8", True, "f16"),
    "q4-int8": ("Q4", True, "int8"),
}
# Those where it makes no difference whether the CPU has sdot.
EXACT = [name for name, (_, int8, _) in SPECS.items() if not int8]
KERNELS: list[Any] = []


def machine(name: str, features: str, opt: int) -> Any:
    """Return LLVM's target for a CPU, as numba makes it for itself."""
    return llvm.Target.from_triple(TRIPLE).create_target_machine(
        cpu=name, features=features, opt=opt, reloc="default", codemodel="jitdefault", jit=True
    )


class Library(codegen.CPUCodeLibrary):  # type: ignore[misc]
    """Code that is never emitted for this machine."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass  # `assembly` does it, once for each CPU

    def _finalize_specific(self) -> None:
        pass

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 1


class ArmCodegen(codegen.CPUCodegen):  # type: ignore[misc]
    """numba's code generator without an engine to run what it generates."""

    _library_class = Library

    def _init(self, llvm_module: Any) -> None:
        self._tm_features = config.CPU_FEATURES
        self._tm = machine("generic", self._tm_features, 0)
        self._data_layout = str(self._tm.target_data)
        self._target_data = self._tm.target_data
        self._engine = None
        self._loopvect, self._opt_level = False, 0

    def _add_module(self, module: Any) -> None:
        pass

    def set_env(self, env_name: str, env: Any) -> None:
        pass


# What compiled kernels are instead: -1 is what those that return a number say when all is well.
_NOTHING = ctypes.PYFUNCTYPE(ctypes.py_object, *[ctypes.c_void_p] * 3)(lambda *_: -1)


def _entry(context: Any, library: Any, fndesc: Any, env: Any) -> Any:
    library._ensure_finalized()
    address = ctypes.cast(_NOTHING, ctypes.c_void_p).value
    return _dynfunc.make_function(
        fndesc.lookup_module(), fndesc.qualname, "", address, env, (library,)
    )


def _note(kernel: Any) -> None:
    KERNELS.append(kernel)


def take_over(features: str) -> None:
    """Have numba, and our own choice of instructions, take this machine for an ARM board."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    config.CPU_NAME = "generic"
    config.CPU_FEATURES = ",".join(f"+{name}" for name in features.split(","))
    patches: dict[Any, dict[str, Any]] = {
        platform: {"machine": lambda: "aarch64"},
        llvm: {"get_process_triple": lambda: TRIPLE},
        codegen: {"JITCPUCodegen": ArmCodegen},
        cpu.CPUContext: {"get_executable": _entry},
        # Only kernels that Python calls ask for a cache; none of this may end up in it.
        dispatcher.Dispatcher: {"enable_caching": _note},
    }
    for owner, changes in patches.items():
        mock.patch.multiple(owner, **changes).start()
    # Copied statements share their scope: the same code in four fifths of the time.
    ir.Scope.__deepcopy__ = lambda scope, memo: scope


def call_stage(spec: str) -> None:
    """Compile the phases of one specialisation."""
    import numpy as np

    from kernels.layout import WeightFormat
    from kernels.paging import PAGE_DTYPES
    from tests.kernel_models import geometry, make_model, make_stage

    fmt, int8, kv = SPECS[spec]
    model = make_model(geometry(fmt=WeightFormat[fmt]))
    stage = make_stage(model, kv_dtype=PAGE_DTYPES[kv], int8=int8)
    stage.begin(np.zeros(1, np.int32), np.zeros(1, np.int32))
    stage.run_layers(np.ones((1, model.geometry.hidden_size), np.float32))


def call_matvec() -> Any:
    """Compile the product of quantised rows with q8 weights; return its kernel."""
    import numpy as np

    from kernels.matvec import matvec
    from kernels.spans import Matrix, Rows, Span
    from tests.kernel_models import callable_from_python

    out = Rows(np.zeros(8, np.float32), 0, 8)
    matrix = Matrix(np.zeros(34, np.int64), 0, 34, 1, 8, -1, 0)
    callable_from_python(matvec)(matrix, 0, 1, out, out, 1, Span(out.values, 0))
    return matvec


def assembly(code: str, name: str, features: str) -> str:
    """Return what LLVM makes of a kernel for a CPU."""
    target = machine(name, features, 3)
    module = llvm.parse_assembly(code)
    module.data_layout = str(target.target_data)
    options = codegen.create_pass_builder(target, opt=3, loop_vectorize=True, slp_vectorize=False)
    options.getModulePassManager().run(module, options)
    return str(target.emit_assembly(module))


def compile_job(job: str) -> list[Any]:
    """Lower a job's kernels and return them."""
    if job == "matvec":
        return [call_matvec()]
    if job == "others":
        from tests.kernel.arm_calls import call_others

        call_others()
        return [kernel for kernel in KERNELS if kernel.__name__ != "run_stage"]
    call_stage(job)
    return [kernel for kernel in KERNELS if kernel.__name__ == "run_stage"]


def main(directory: Path, features: str, jobs: list[str]) -> None:
    """Do all jobs."""
    take_over(features)
    for job in jobs:
        # The newest specialisation.
        codes = {k.__name__: list(k.overloads.values())[-1].library for k in compile_job(job)}
        for name, of_cpu in CPUS.items():
            # What was lowered for the CPU, where that makes a difference.
            if job in EXACT or ("dotprod" in of_cpu) == ("dotprod" in features) or job == "others":
                (directory / name).mkdir(exist_ok=True)
                for kernel, library in codes.items():
                    text = assembly(library.get_llvm_str(), name, of_cpu)
                    (directory / name / f"{kernel}.{job}.s").write_text(text)


if __name__ == "__main__":
    os.environ["NUMBA_CACHE_DIR"] = sys.argv[1]
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])

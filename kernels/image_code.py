"""One kernel for arguments of one kind, compiled to an image that needs no compiler to be called.

Takes numba's own optimised module, so code and results are those that numba itself would run, and
has LLVM emit it once more, position-independent. In front of it comes

    i32 headwise_entry(int64 *words)    words[0] receives the result, the arguments follow

whose arguments are those of `entry.encode`. Only compiling processes import this file.
"""

import importlib
from typing import Any, NamedTuple

import llvmlite.binding as _llvm
import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype as _from_dtype

from kernels.errors import HeadwiseError
from kernels.link import Linked, link
from kernels.target import describe

__all__ = ["Emitted", "emit", "parse_kinds"]

llvm: Any = _llvm
from_dtype: Any = _from_dtype
_tuple_of: Any = types.Tuple

ENTRY = "headwise_entry"

# numba asks its C helper to reshape; kernels only make C-contiguous arrays flat.
_RESHAPE = """
define i32 @numba_attempt_nocopy_reshape(i64 %nd, ptr %dims, ptr %strides, i64 %newnd,
                                         ptr %newdims, ptr %newstrides, i64 %itemsize, i32 %f) {
  %flat = icmp eq i64 %newnd, 1
  br i1 %flat, label %yes, label %no
yes:
  store i64 %itemsize, ptr %newstrides
  ret i32 1
no:
  ret i32 0
}
"""
_RESULTS = {types.int64: "i", types.float64: "f", types.none: ""}


class Emitted(NamedTuple):
    """An image, the kind of its result (i, f or nothing) and what it was compiled for."""

    linked: Linked
    entry: str
    function: str
    result: str
    target: str


def emit(module: str, name: str, kinds: str) -> Emitted:
    """Compile a kernel.

    Args:
        module: where it is defined.
        name: its name there.
        kinds: of its arguments, see `entry.encode`.

    Raises:
        HeadwiseError: the linker does not understand what came out.
    """
    dispatcher: Any = getattr(importlib.import_module(module), name)
    signature = tuple(parse_kinds(kinds))
    # Numba's cache spares the work if a process that has numba was first, and is filled if not.
    dispatcher.compile(signature)
    compiled = dispatcher.overloads[signature]
    result = compiled.signature.return_type
    if result not in _RESULTS:
        raise HeadwiseError(f"kernel {name} returns {result}; only int64 and float64 are possible")
    function = compiled.fndesc.llvm_func_name
    machine_code = _machine_code(compiled.library, function)
    linked = link(machine_code, (ENTRY, function))
    return Emitted(linked, ENTRY, function, _RESULTS[result], describe())


def parse_kinds(kinds: str) -> list[Any]:
    """Return the numba types that `entry.encode` wrote down."""
    stack: list[list[Any]] = [[]]
    for word in kinds.split():
        if word == "(":
            stack.append([])
        elif word == ")":
            inner = stack.pop()
            stack[-1].append(_tuple_of(inner))
        elif word in "if":
            stack[-1].append(types.int64 if word == "i" else types.float64)
        else:
            element = from_dtype(np.dtype(word[0]))
            stack[-1].append(types.Array(element, int(word[1]), "C", readonly=word[2] == "r"))
    (found,) = stack
    return found


def _machine_code(library: Any, function: str) -> bytes:
    """Return an object file with the function and its entry."""
    codegen = library.codegen
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    # Of all that a library offers only this is there after it came from numba's cache.
    module = llvm.parse_assembly(str(library._get_module_for_linking()))
    module.link_in(llvm.parse_assembly(_entry_text(module.get_function(function))))
    if any(f.name == "numba_attempt_nocopy_reshape" for f in module.functions):
        module.link_in(llvm.parse_assembly(_RESHAPE))
    for f in module.functions:
        if not f.is_declaration and f.name not in (function, ENTRY):
            f.linkage = "internal"
    machine = llvm.Target.from_triple(module.triple).create_target_machine(
        cpu=codegen._get_host_cpu_name(), features=codegen._get_host_cpu_features(), opt=3,
        reloc="pic", codemodel="small",
    )  # fmt: skip
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(0)))
    code: bytes = machine.emit_object(module)
    return code


def _entry_text(function: Any) -> str:
    """Return the entry in LLVM's language: load every argument from its word and call."""
    parameters = [str(a.type) for a in function.arguments]
    lines, arguments = [], ["ptr %words", "ptr %error"]
    for i, kind in enumerate(parameters[2:], 1):
        lines.append(f"  %at{i} = getelementptr i64, ptr %words, i64 {i}")
        lines.append(f"  %a{i} = load {kind}, ptr %at{i}")
        arguments.append(f"{kind} %a{i}")
    return "\n".join(
        [
            f'declare i32 @"{function.name}"({", ".join(parameters)})',
            f"define i32 @{ENTRY}(ptr %words) {{",
            "  %error = alloca ptr",
            *lines,
            f'  %status = call i32 @"{function.name}"({", ".join(arguments)})',
            "  ret i32 %status",
            "}",
        ]
    )

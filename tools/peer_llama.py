"""llama.cpp as a peer of `tools.bench_peers`, in a process of its own: `-m tools.peer_llama`.

Through the C functions of llama-cpp-python, with a model of random weights. Settings: flash
attention off and on. The rest is what `llama-bench` takes: micro-batches of 512, logits of the
last token only, weights repacked where llama.cpp wants to (q4 on x86; without, it is a third
slower). But memory instead of a mapped file: nothing has to be read while it is timed.
"""

import ctypes
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.peer_child import PeerError, Request, Task, serve

__all__ = ["LlamaPeer"]

MICRO_BATCH_TOKENS = 512
BATCH_TOKENS = 2048
# llama.cpp rounds contexts up to it by itself.
CONTEXT_STEP_TOKENS = 256
SETTINGS = {"fa off": 0, "fa on": 1}


class LlamaPeer:
    """A model, and a context for each setting.

    Raises:
        PeerError: llama.cpp does not take it.
    """

    def __init__(self, task: Task) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp.llama_cpp
        # Kept: C calls it for as long as the process lives.
        self._log = self._lib.llama_log_callback(_log)
        self._lib.llama_log_set(self._log, ctypes.c_void_p(0))
        self._lib.llama_backend_init()
        model = self._load(task)
        self.settings = tuple(SETTINGS)
        self.about = {
            "llama_cpp_python": llama_cpp.__version__,
            "system_info": self._lib.llama_print_system_info().decode().strip(),
        }
        self._contexts = {
            name: _Context(self._lib, model, flash, task) for name, flash in SETTINGS.items()
        }

    def measure_s(self, request: Request) -> float:
        """Return the seconds of one repeat, after one token to warm up."""
        context = self._contexts[request.setting]
        context.run_s(request.depth, [1], request.threads)
        n = request.n_tokens
        sizes = [1] * n
        if request.phase == "pp":
            sizes = [min(BATCH_TOKENS, n - first) for first in range(0, n, BATCH_TOKENS)]
        return context.run_s(request.depth, sizes, request.threads)

    def _load(self, task: Task) -> Any:
        from tools.write_gguf import write_gguf

        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.load_mode = self._lib.LLAMA_LOAD_MODE_NONE
        with tempfile.TemporaryDirectory(dir=task.directory) as name:
            path = Path(name) / "model.gguf"
            write_gguf(path, task.shape, task.dtype, max(task.context_tokens, 2048))
            model = self._lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise PeerError(f"llama.cpp does not load a model of this shape in {task.dtype}")
        return model


class _Context:
    """Keys and values of one sequence, always filled from position 0 on."""

    def __init__(self, lib: Any, model: Any, flash: int, task: Task) -> None:
        self._lib = lib
        n_tokens = -(-task.context_tokens // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS
        params = lib.llama_context_default_params()
        params.n_ctx = n_tokens
        params.n_batch, params.n_ubatch = BATCH_TOKENS, MICRO_BATCH_TOKENS
        params.n_seq_max = 1
        params.flash_attn_type = flash
        params.type_k = params.type_v = lib.GGML_TYPE_F32 if task.exact else lib.GGML_TYPE_F16
        params.n_threads = params.n_threads_batch = task.n_cores
        params.no_perf = True
        self._context = lib.llama_init_from_model(model, params)
        if not self._context:
            raise PeerError(f"llama.cpp makes no context of {n_tokens} tokens")
        self._memory = lib.llama_get_memory(self._context)
        self._n_cores, self._vocab_size = task.n_cores, task.shape.vocab_size
        numbers = np.random.default_rng(1).integers(task.shape.vocab_size, size=n_tokens)
        self._tokens = (lib.llama_token * n_tokens)(*numbers.tolist())
        self._n_held = 0
        self._states: dict[int, Any] = {}

    def run_s(self, depth: int, sizes: list[int], n_threads: int) -> float:
        """Return the seconds of batches of these sizes, behind a context of depth tokens."""
        lib, context = self._lib, self._context
        self._seek(depth)
        lib.llama_set_n_threads(context, n_threads, n_threads)
        first, batches = depth, []
        for size in sizes:
            batches.append(self._batch(first, size))
            first += size
        decode, synchronize = lib.llama_decode, lib.llama_synchronize
        started_s = time.perf_counter()
        for batch in batches:
            failed = decode(context, batch)
            synchronize(context)
            if failed:
                raise PeerError(f"llama_decode gives {failed}")
        seconds = time.perf_counter() - started_s
        self._n_held = first
        self._check_logits()
        return seconds

    def _batch(self, first: int, n_tokens: int) -> Any:
        tokens = ctypes.cast(
            ctypes.byref(self._tokens, first * ctypes.sizeof(self._lib.llama_token)),
            ctypes.POINTER(self._lib.llama_token),
        )
        return self._lib.llama_batch_get_one(tokens, n_tokens)

    def _seek(self, depth: int) -> None:
        """Make the context hold depth tokens; computed once, with all cores."""
        lib = self._lib
        if self._n_held >= depth > 0:
            lib.llama_memory_seq_rm(self._memory, 0, depth, -1)
        else:
            lib.llama_memory_clear(self._memory, False)
            if depth in self._states:
                state = self._states[depth]
                if not lib.llama_state_seq_set_data(self._context, state, len(state), 0):
                    raise PeerError(f"llama.cpp does not take back a context of {depth} tokens")
            else:
                self._fill(depth)
        self._n_held = depth

    def _fill(self, depth: int) -> None:
        lib = self._lib
        lib.llama_set_n_threads(self._context, self._n_cores, self._n_cores)
        for first in range(0, depth, BATCH_TOKENS):
            if lib.llama_decode(
                self._context, self._batch(first, min(BATCH_TOKENS, depth - first))
            ):
                raise PeerError(f"llama.cpp does not read a prompt of {depth} tokens")
        if depth:
            state = (ctypes.c_uint8 * lib.llama_state_seq_get_size(self._context, 0))()
            lib.llama_state_seq_get_data(self._context, state, len(state), 0)
            self._states[depth] = state

    def _check_logits(self) -> None:
        pointer = self._lib.llama_get_logits_ith(self._context, -1)
        logits = np.ctypeslib.as_array(pointer, (self._vocab_size,))
        if not (np.isfinite(logits).all() and logits.any()):
            raise PeerError("llama.cpp gave logits that are not finite, or all zero")


def _log(_level: int, text: bytes, _data: Any) -> None:
    sys.stderr.write(text.decode(errors="replace"))


if __name__ == "__main__":
    sys.exit(serve(LlamaPeer))

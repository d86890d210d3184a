"""A process that compiles kernels to images: requests on stdin, answers on stdout, a line each.

    {"module", "name", "kinds", "path"}  ->  {"error": ""}, and the image at `path`

It has numba and LLVM in memory, so that agents need not: it ends when its stdin does, even in the
middle of a compilation.
"""

import os
import queue
import sys
import threading
from pathlib import Path

import msgspec

from agent.private_files import put_private
from kernels.image import pack_image

__all__ = ["Answer", "Request", "answer", "main"]


class Request(msgspec.Struct, frozen=True):
    """One kernel, its arguments as `kernels.entry.encode` describes them, where its image goes."""

    module: str
    name: str
    kinds: str
    path: str


class Answer(msgspec.Struct, frozen=True):
    """What was wrong, if anything."""

    error: str


def main() -> int:
    """Serve until stdin ends."""
    from kernels.inlining import compile_faster  # numba: agents import this file too

    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        while line := sys.stdin.buffer.readline():
            requests.put(line)
        os._exit(0)

    threading.Thread(target=read, name="requests", daemon=True).start()
    compile_faster()
    while True:
        request = msgspec.json.decode(requests.get(), type=Request)
        sys.stdout.buffer.write(msgspec.json.encode(answer(request)) + b"\n")
        sys.stdout.buffer.flush()


def answer(request: Request) -> Answer:
    """Make the image that is asked for."""
    from kernels.image_code import emit

    try:
        emitted = emit(request.module, request.name, request.kinds)
        linked = emitted.linked
        header = {
            "name": request.name,
            "result": emitted.result,
            "entry": linked.offsets[emitted.entry],
            "function": linked.offsets[emitted.function],
            "imports": linked.imports,
            "target": emitted.target,
        }
        put_private(Path(request.path), pack_image(header, linked.image), replace=True)
    except Exception as e:  # whatever numba and LLVM raise
        return Answer(f"{type(e).__name__}: {e}"[:1000])
    return Answer("")


if __name__ == "__main__":
    sys.exit(main())

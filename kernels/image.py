"""Compiled kernels in files, mapped and called without a compiler in the process.

    file    magic | BLAKE2b of the rest | bytes of header | header, JSON | padding | image (`link`)

An image is mapped from its file to be read and run; its slots lie behind it in memory of their
own, which is written once and then read-only. So no page can ever be written and run. As with
numba's cache, whoever can write the files runs code as this user: they lie in a directory that
only this user may write. The checksum finds what a power cut has torn.
"""

import contextlib
import ctypes
import hashlib
import json
import logging
import mmap
import os
import struct
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kernels.errors import HeadwiseError

__all__ = ["Image", "Images", "pack_image"]

log = logging.getLogger(__name__)

_MAGIC = b"HWIMAGE1"
_DIGEST_BYTES = 32
_HEAD = struct.Struct(f"<8s{_DIGEST_BYTES}sI")
# No page of any kernel that headwise runs on is larger.
_PAGE_BYTES = 1 << 16
_FIXED = 0x10  # MAP_FIXED of Linux, which module mmap does not have
# What numba's functions return if all is well: 0, or -2 for None.
_GOOD = (0, -2)


def pack_image(header: dict[str, Any], image: bytes) -> bytes:
    """Return the content of an image's file."""
    text = json.dumps(header).encode()
    body = struct.pack("<I", len(text)) + text
    body += bytes(-(len(body) + len(_MAGIC) + _DIGEST_BYTES) % _PAGE_BYTES) + image
    return _MAGIC + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() + body


class Image:
    """One kernel for arguments of one kind, mapped; it stays until the process ends.

    Args:
        path: its file.

    Attributes:
        target: what it was compiled for.
        function: address of the kernel as other compiled code calls it.

    Raises:
        HeadwiseError: the file is damaged.
        OSError: it cannot be read, or the system does not let it be run.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            header, n_bytes = _checked(file.read(), path)
            base = _map(file.fileno(), n_bytes, [_address(name) for name in header["imports"]])
        self.target = str(header["target"])
        self.function = base + int(header["function"])
        self._name = str(header["name"])
        self._result = str(header["result"])
        entry = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)  # releases the GIL
        self._entry: Callable[[int], int] = entry(base + int(header["entry"]))

    def call(self, block: "array[int]") -> Any:
        """Call the kernel; block: a word for the result, then its arguments (`entry.encode`).

        Raises:
            HeadwiseError: it has raised an exception.
        """
        status = self._entry(block.buffer_info()[0])
        if status not in _GOOD:
            raise HeadwiseError(f"kernel {self._name} failed with status {status}")
        if self._result == "i":
            return block[0]
        return struct.unpack_from("d", block)[0] if self._result else None


class Images:
    """The images of a directory.

    Args:
        directory: that this user alone can write.

    Attributes:
        compile: makes the image of a kernel, (module, name, kinds, path); False if it cannot.
            None: what is missing stays missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.compile: Callable[[str, str, str, Path], bool] | None = None
        self._target = ""

    def find(self, module: str, name: str, kinds: str) -> Image | None:
        """Return the image of a kernel for arguments of these kinds, if there is one to be had."""
        digest = hashlib.blake2b(f"{module} {kinds}".encode(), digest_size=8).hexdigest()
        path = self.directory / f"{name}-{digest}.image"
        image = self._open(path)
        if image is None and self.compile is not None and not path.exists():
            image = self._open(path) if self.compile(module, name, kinds, path) else None
        return image

    def _open(self, path: Path) -> Image | None:
        """Return the image in a file, if it can be used; one that is damaged is removed."""
        try:
            return self._noted(Image(path))
        except HeadwiseError as e:
            log.warning("%s", e)
            with contextlib.suppress(OSError):  # of a disk that nobody may write
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        except OSError as e:
            log.warning("%s cannot be used: %s", path, e)
        return None

    def _noted(self, image: Image) -> Image:
        """Log, once, what images are for; the choice was made before they were compiled."""
        if image.target != self._target:
            self._target = image.target
            log.info("kernel target %s", image.target)
        return image


def _checked(data: bytes, path: Path) -> tuple[dict[str, Any], int]:
    """Return the header and how many bytes of image there are."""
    if len(data) >= _HEAD.size:
        magic, digest, n_header_bytes = _HEAD.unpack_from(data)
        body = memoryview(data)[len(_MAGIC) + _DIGEST_BYTES :]
        whole = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() == digest
        if magic == _MAGIC and whole:
            header = json.loads(data[_HEAD.size : _HEAD.size + n_header_bytes])
            start = -(-(_HEAD.size + n_header_bytes) // _PAGE_BYTES) * _PAGE_BYTES
            return header, len(data) - start
    raise HeadwiseError(f"{path} is no image of a kernel, or damaged")


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value


def _map(fd: int, n_bytes: int, slots: list[int]) -> int:
    """Map the last n_bytes of an image's file with its slots behind; return the address."""
    start = os.fstat(fd).st_size - n_bytes
    run = mmap.PROT_READ | mmap.PROT_EXEC
    base = _libc.mmap(None, n_bytes + _PAGE_BYTES, run, mmap.MAP_PRIVATE, fd, start)
    if base in (None, _FAILED):
        _raise_errno("map an image to run it")
    # Over the pages behind the file's end, which are ours already.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED
    write = mmap.PROT_READ | mmap.PROT_WRITE
    at = _libc.mmap(base + n_bytes, _PAGE_BYTES, write, flags, -1, 0)
    if at in (None, _FAILED):
        _raise_errno("map the slots of an image")
    ctypes.memmove(at, array("Q", slots).tobytes(), 8 * len(slots))
    if _libc.mprotect(at, _PAGE_BYTES, mmap.PROT_READ):
        _raise_errno("protect the slots of an image")
    return int(base)


def _raise_errno(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"cannot {what}: {os.strerror(number)}")


def _address(name: str) -> int:
    """Return the address of a function of libc or libm."""
    for library in (_libc, _libm()):
        function = getattr(library, name, None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    raise OSError(0, f"no function {name} in libc or libm")


def _libm() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libm.so.6")
    except OSError:
        return _libc  # musl has all in one

"""Kernels as Python calls them, without importing their sources, and so numba, before it must.

An `Entry` stands for a kernel. By default it calls what numba compiles, as a decorated function
does. A process that has said `use_images` has no compiler: the entry encodes the arguments as
64-bit words and calls the kernel's image; where there is none, numba is imported after all.
"""

import ctypes
import importlib
import logging
import struct
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.errors import InputError
from kernels.image import Image, Images

__all__ = ["Bound", "Entry", "address_of", "encode", "images_in_use", "use_images"]

log = logging.getLogger(__name__)

_C_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400  # of numpy's C API

_images: Images | None = None


def use_images(images: Images | None) -> None:
    """Have all entries look for images from now on; None: call numba's functions again."""
    global _images
    _images = images


def images_in_use() -> Images | None:
    """Return what `use_images` was told."""
    return _images


def _address_field(array: npt.NDArray[Any]) -> int:
    """Return where an array's elements are, from the field of its C structure."""
    return ctypes.c_ssize_t.from_address(id(array) + object.__basicsize__).value


def _address_slowly(array: npt.NDArray[Any]) -> int:
    """Return the same by numpy's own way, which takes 1.5 us instead of 0.3."""
    return array.ctypes.data


_PROBE = np.zeros(3, np.uint8)[1:]
address_of = _address_field if _address_field(_PROBE) == _PROBE.ctypes.data else _address_slowly


def encode(args: tuple[Any, ...], kinds: list[str], words: list[int]) -> None:
    """Append the kind and the words of each argument.

    An int is `i`, a float `f`, a tuple its elements between parentheses, and an array its dtype's
    character, its dimensions, and w if it can be written, else r: `f2w`. An array's words are those
    of numba's structure: two that nobody uses, size, bytes of an element, address, shape, strides.

    Raises:
        InputError: something else, or an array that is not C-contiguous and aligned.
    """
    for arg in args:
        kind = type(arg)
        if kind is int:
            kinds.append("i")
            words.append(arg)
        elif kind is np.ndarray or isinstance(arg, np.ndarray):
            flags = arg.flags.num
            if flags & (_C_CONTIGUOUS | _ALIGNED) != _C_CONTIGUOUS | _ALIGNED:
                raise InputError(
                    f"kernels take aligned, C-contiguous arrays, got one of {arg.dtype} and shape "
                    f"{arg.shape} that is not; copy it"
                )
            kinds.append(f"{arg.dtype.char}{arg.ndim}{'w' if flags & _WRITEABLE else 'r'}")
            words += (0, 0, arg.size, arg.itemsize, address_of(arg), *arg.shape, *arg.strides)
        elif kind is float:
            kinds.append("f")
            words += struct.unpack("q", struct.pack("d", arg))
        elif isinstance(arg, tuple):
            kinds.append("(")
            encode(arg, kinds, words)
            kinds.append(")")
        elif isinstance(arg, int | np.integer) and not isinstance(arg, bool):
            kinds.append("i")
            words.append(int(arg))
        else:
            raise InputError(f"kernels take numbers, arrays and tuples of them, got {kind}")


class Entry:
    """One kernel.

    Args:
        module: where it is defined.
        name: its name there.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name
        self._compiled: Callable[..., Any] | None = None
        self._found: dict[str, Image] = {}
        self._missing: set[str] = set()

    def __call__(self, *args: Any) -> Any:
        """Call the kernel."""
        if _images is None:
            return (self._compiled or self.compiled())(*args)
        image, block = self.prepare(args)
        return self.compiled()(*args) if image is None else image.call(block)

    def compiled(self) -> Callable[..., Any]:
        """Return what numba makes of the kernel's source; imports it."""
        if self._compiled is None:
            self._compiled = getattr(importlib.import_module(self._module), self._name)
        return self._compiled

    def prepare(self, args: tuple[Any, ...]) -> tuple[Image | None, "array[int]"]:
        """Return the image for such arguments, if there is one, and the block to call it with."""
        kinds: list[str] = []
        words = [0]
        encode(args, kinds, words)
        key = " ".join(kinds)
        image = self._found.get(key) or self._find(key)
        return image, array("q", words)

    def address(self, args: tuple[Any, ...]) -> int:
        """Return where compiled code finds the kernel for arguments of these types.

        Raises:
            HeadwiseError: it has not been called with such arguments before.
        """
        image = self.prepare(args)[0] if _images is not None else None
        if image is not None:
            return image.function
        from kernels.native import entry_address

        return entry_address(self.compiled(), args)

    def bind(self, args: tuple[Any, ...], first: int, n: int) -> "Bound":
        """Return a call in which only the n integers from args[first] on differ."""
        return Bound(self, args, first, n)

    def _find(self, kinds: str) -> Image | None:
        # Two threads may both come here: a kernel that is mapped twice does no harm.
        if kinds in self._missing or _images is None:
            return None
        image = _images.find(self._module, self._name, kinds)
        if image is not None:
            self._found[kinds] = image
        elif _images is not None:  # else nobody shall look for images any more
            self._missing.add(kinds)
            log.warning(
                "no image of kernel %s for %s: numba compiles it in this process, which takes "
                "100 MB", self._name, kinds,
            )  # fmt: skip
        return image


class Bound:
    """A call of a kernel whose arguments are the same but for some integers beside each other.

    For one thread at a time. Keeps the arguments alive.

    Args:
        entry: the kernel.
        args: all arguments; the integers may have any value.
        first: place of the first integer that differs.
        n: how many differ.
    """

    def __init__(self, entry: Entry, args: tuple[Any, ...], first: int, n: int) -> None:
        self._kernel = entry
        self._args = args
        self._before, self._after = args[:first], args[first + n :]
        self._image: Image | None = None
        self._block: array[int] = array("q")
        self._place = slice(0)

    def __call__(self, *numbers: int) -> Any:
        """Call the kernel with these numbers in place of the others."""
        if self._image is None:
            if _images is None:
                return self._kernel(*self._before, *numbers, *self._after)
            self._image, self._block = self._kernel.prepare(self._args)
            if self._image is None:
                return self._kernel(*self._before, *numbers, *self._after)
            words: list[int] = [0]
            encode(self._before, [], words)
            self._place = slice(len(words), len(words) + len(numbers))
        self._block[self._place] = array("q", numbers)
        return self._image.call(self._block)

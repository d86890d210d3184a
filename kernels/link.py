"""An object file of LLVM made into an image: code and constants that run wherever they are mapped.

    image   sections of the object, one after the other | stubs | padding | slots
    stub    jumps to the address in the slot of a function that is not in the object
    slots   8 bytes an imported function, on pages of their own; whoever maps the image fills them

Everything else is relative to the place of the instruction, so the image itself is never written.
Only what LLVM emits for kernels is understood (x86-64, aarch64; position-independent, small code
model); anything else is an error. See `image` for how it is mapped.
"""

import struct
from typing import NamedTuple

from kernels.errors import HeadwiseError
from kernels.layout import round_up

__all__ = ["PAGE_BYTES", "Linked", "link"]

# The largest page size of any kernel that headwise runs on.
PAGE_BYTES = 1 << 16

_X86, _ARM = 62, 183
_PROGBITS, _SYMTAB, _RELA, _NOBITS = 1, 2, 4, 8
_WRITE, _ALLOC, _EXEC = 1, 2, 4
_STUB_BYTES = 16
_STUB_ALIGN = 16
# Unwind tables: no exception passes through kernels.
_LEFT_OUT = (".eh_frame",)
# Pointers to pickled Python exceptions, which only numba's own wrappers follow; ours do not.
_NEVER_READ = ".data.rel.ro"
# Names of those pointers, and ARM's mark of where data begins.
_HARMLESS = (".const.picklebuf.", "$d")


class Linked(NamedTuple):
    """An image, where its exported functions are, and what it imports, slot by slot."""

    image: bytes
    offsets: dict[str, int]
    imports: tuple[str, ...]


class _Section(NamedTuple):
    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


class _Symbol(NamedTuple):
    name: str
    section: int
    value: int


def link(elf: bytes, exports: tuple[str, ...]) -> Linked:
    """Lay out an object file and resolve its relocations.

    Raises:
        HeadwiseError: it holds what kernels do not need and this linker does not know.
    """
    try:
        return _Linker(elf).link(exports)
    except (struct.error, IndexError, KeyError) as e:
        raise HeadwiseError(f"an object file of {len(elf)} bytes cannot be read: {e!r}") from e


class _Linker:
    """Links one object file."""

    def __init__(self, elf: bytes) -> None:
        if elf[:6] != b"\x7fELF\x02\x01":
            raise HeadwiseError("a kernel was not compiled to a 64-bit little-endian ELF object")
        self._elf = elf
        kind, self._machine = struct.unpack_from("<HH", elf, 16)
        if kind != 1 or self._machine not in (_X86, _ARM):
            raise HeadwiseError(f"object file of type {kind} for machine {self._machine}")
        self._sections = self._read_sections()
        self._symbols = self._read_symbols()
        self._places: dict[int, int] = {}
        self._slots: dict[str, int] = {}
        self._stubs: dict[str, int] = {}
        self._image = bytearray()

    def link(self, exports: tuple[str, ...]) -> Linked:
        """Do it."""
        for i, section in enumerate(self._sections):
            if section.flags & _ALLOC and section.size and section.name not in _LEFT_OUT:
                self._place(i, section)
        relocations = self._read_relocations()
        imports = {s.name for _, _, s, _ in relocations if s.section == 0}
        self._image += bytes(-len(self._image) % _STUB_ALIGN)
        first_slot = round_up(len(self._image) + _STUB_BYTES * len(imports), PAGE_BYTES)
        for i, name in enumerate(sorted(imports)):
            self._slots[name] = first_slot + 8 * i
            self._stubs[name] = len(self._image)
            self._image += self._stub(len(self._image), self._slots[name])
        for at, kind, symbol, addend in relocations:
            self._relocate(at, kind, symbol, addend)
        self._image += bytes(first_slot - len(self._image))
        found = {s.name: self._address(s) for s in self._symbols if s.name in exports}
        if len(found) != len(exports):
            raise HeadwiseError(f"an object file lacks one of {exports}")
        return Linked(bytes(self._image), found, tuple(self._slots))

    # Reading.

    def _read_sections(self) -> list[_Section]:
        (start,) = struct.unpack_from("<Q", self._elf, 40)
        size, n, names_at = struct.unpack_from("<HHH", self._elf, 58)
        raw = [struct.unpack_from("<IIQQQQIIQQ", self._elf, start + i * size) for i in range(n)]
        names = raw[names_at][4]
        return [
            _Section(self._text(names + name), kind, flags, offset, n_bytes, to, info, align)
            for name, kind, flags, _, offset, n_bytes, to, info, align, _ in raw
        ]

    def _text(self, offset: int) -> str:
        return self._elf[offset : self._elf.index(b"\0", offset)].decode()

    def _read_symbols(self) -> list[_Symbol]:
        (table,) = (s for s in self._sections if s.kind == _SYMTAB)
        names = self._sections[table.link].offset
        found = []
        for at in range(table.offset, table.offset + table.size, 24):
            name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", self._elf, at)
            found.append(_Symbol(self._text(names + name), section, value))
        return found

    def _read_relocations(self) -> list[tuple[int, int, _Symbol, int]]:
        """Return (place in the image, type, symbol, addend) of those that matter."""
        found = []
        for table in self._sections:
            if table.kind != _RELA or table.info not in self._places:
                continue
            if self._sections[table.info].name == _NEVER_READ:
                self._check_never_read(table.info)
                continue
            for at in range(table.offset, table.offset + table.size, 24):
                offset, what, addend = struct.unpack_from("<QQq", self._elf, at)
                symbol = self._symbols[what >> 32]
                place = self._places[table.info] + offset
                found.append((place, what & 0xFFFFFFFF, symbol, addend))
        return found

    def _check_never_read(self, section: int) -> None:
        """Make sure that a section holds nothing but numba's pickled exceptions."""
        for symbol in self._symbols:
            if symbol.section == section and symbol.name and not symbol.name.startswith(_HARMLESS):
                raise HeadwiseError(f"kernels need no table of addresses such as {symbol.name}")

    # Writing.

    def _place(self, i: int, section: _Section) -> None:
        if section.kind != _PROGBITS or (section.flags & _WRITE and section.name != _NEVER_READ):
            raise HeadwiseError(f"kernels need no section {section.name} of type {section.kind}")
        self._image += bytes(-len(self._image) % max(section.align, 1))
        self._places[i] = len(self._image)
        self._image += self._elf[section.offset : section.offset + section.size]

    def _address(self, symbol: _Symbol) -> int:
        """Return where a symbol is in the image: a stub for a function that is not here."""
        if symbol.section == 0:
            return self._stubs[symbol.name]
        if symbol.section not in self._places:
            raise HeadwiseError(f"{symbol.name} is neither code nor a constant")
        return self._places[symbol.section] + symbol.value

    def _stub(self, at: int, slot: int) -> bytes:
        if self._machine == _X86:  # jmp [rip + ...]
            code = b"\xff\x25" + struct.pack("<i", slot - at - 6)
        else:  # adrp x16, slot; ldr x16, [x16, slot % 4096]; br x16
            adrp, load = _with_page(0x90000010, slot, at), 0xF9400210 | (slot & 0xFFF) >> 3 << 10
            code = struct.pack("<III", adrp, load, 0xD61F0200)
        return code.ljust(_STUB_BYTES, b"\0")

    def _relocate(self, at: int, kind: int, symbol: _Symbol, addend: int) -> None:
        if self._machine == _X86:
            self._relocate_x86(at, kind, symbol, addend)
        else:
            self._relocate_arm(at, kind, symbol, addend)

    def _relocate_x86(self, at: int, kind: int, symbol: _Symbol, addend: int) -> None:
        if kind in (2, 4):  # PC32, PLT32
            value = self._address(symbol) + addend - at
        elif kind in (9, 41, 42) and symbol.section == 0:  # GOTPCREL, GOTPCRELX, REX_GOTPCRELX
            value = self._slots[symbol.name] + addend - at
        else:
            raise _unknown(kind, symbol)
        struct.pack_into("<i", self._image, at, value)

    def _relocate_arm(self, at: int, kind: int, symbol: _Symbol, addend: int) -> None:
        if kind in (311, 312) and symbol.section == 0:  # ADR_GOT_PAGE, LD64_GOT_LO12_NC
            target = self._slots[symbol.name] + addend
        else:
            target = self._address(symbol) + addend
        if kind == 261:  # PREL32
            struct.pack_into("<i", self._image, at, target - at)
            return
        (code,) = struct.unpack_from("<I", self._image, at)
        if kind in (275, 311):  # ADR_PREL_PG_HI21, ADR_GOT_PAGE
            code = _with_page(code, target, at)
        elif kind in (282, 283):  # JUMP26, CALL26
            code |= (target - at) >> 2 & 0x3FFFFFF
        elif kind in _ARM_LOW_BITS:
            code |= (target & 0xFFF) >> _ARM_LOW_BITS[kind] << 10
        else:
            raise _unknown(kind, symbol)
        struct.pack_into("<I", self._image, at, code)


# ADD_ABS_LO12_NC, LDST8 .. LDST128_ABS_LO12_NC, LD64_GOT_LO12_NC: how the offset is scaled.
_ARM_LOW_BITS = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4, 312: 3}


def _with_page(code: int, target: int, at: int) -> int:
    """Return an ADRP instruction that gives the page of `target`."""
    pages = (target >> 12) - (at >> 12)
    return code | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5


def _unknown(kind: int, symbol: _Symbol) -> HeadwiseError:
    return HeadwiseError(f"relocation of type {kind} to {symbol.name!r} is not understood")

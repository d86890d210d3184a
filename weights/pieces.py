"""What bytes each token of a tokenizer.json stands for.

Two kinds of decoder cover the supported families: byte-level BPE (GPT-2's table of printable
stand-ins for bytes) and SentencePiece (a low block for a space, `<0xE2>` for a lone byte).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from kernels.errors import ModelError

__all__ = ["Pieces"]

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_LONE_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def _bytes_of_stand_ins() -> dict[str, int]:
    """Return GPT-2's table: printable Latin-1 stands for itself, the rest for 256 and up."""
    table: dict[str, int] = {}
    n_moved = 0
    for byte in range(256):
        is_printable = 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE
        table[chr(byte if is_printable else 256 + n_moved)] = byte
        n_moved += not is_printable
    return table


def _steps(decoder: object) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a possibly nested decoder."""
    if not isinstance(decoder, Mapping):
        return
    if decoder.get("type") == "Sequence":
        for step in decoder.get("decoders", ()):
            yield from _steps(step)
    else:
        yield decoder


class Pieces:
    """Token id -> UTF-8 bytes, which need not be whole characters.

    Attributes:
        strips_first_space: whether the space that starts a text is the tokenizer's own.

    Args:
        decoder: the `decoder` of tokenizer.json.
        piece_of: token id -> its spelling in the vocabulary, None if unknown.
        hidden_ids: tokens that stand for no text, such as BOS.

    Raises:
        ModelError: a decoder of another kind.
    """

    def __init__(
        self, decoder: object, piece_of: Callable[[int], str | None], hidden_ids: Set[int]
    ) -> None:
        self._piece_of = piece_of
        self._hidden_ids = hidden_ids
        self._stand_ins: dict[str, int] = {}
        self._has_lone_bytes = False
        self.strips_first_space = False
        kinds = []
        for step in _steps(decoder):
            kinds.append(str(step.get("type")))
            self._add_step(step)
        is_known = "ByteLevel" in kinds or "Metaspace" in kinds or "Replace" in kinds
        if not is_known:
            raise ModelError(
                f"tokenizer.json: decoder {' + '.join(kinds) or 'none'} is not supported; "
                f"supported are ByteLevel and SentencePiece"
            )

    def _add_step(self, step: Mapping[str, Any]) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._stand_ins = _bytes_of_stand_ins()
            case {"type": "ByteFallback"}:
                self._has_lone_bytes = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": " "} if (
                old == _SPACE
            ):
                pass
            case {"type": "Strip", "content": " ", "start": start, "stop": 0}:
                self.strips_first_space = start > 0
            case {"type": "Metaspace", "replacement": str(old)} if old == _SPACE:
                scheme = step.get("prepend_scheme", "always")
                self.strips_first_space = scheme != "never" and step.get("add_prefix_space", True)
            case _:
                raise ModelError(
                    f"tokenizer.json: decoder step {dict(step)} is not supported; "
                    f"supported are those of ByteLevel and SentencePiece"
                )

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of one token; none for special or unknown tokens."""
        piece = None if token_id in self._hidden_ids else self._piece_of(token_id)
        if piece is None:
            return b""
        if self._stand_ins:
            data = [self._stand_ins.get(char, -1) for char in piece]
            # Added tokens are spelled plainly and may hold characters outside the table.
            return bytes(data) if min(data, default=0) >= 0 else piece.encode()
        lone = _LONE_BYTE.fullmatch(piece) if self._has_lone_bytes else None
        return bytes([int(lone[1], 16)]) if lone else piece.replace(_SPACE, " ").encode()

"""Reads a Hugging Face checkpoint directory: config.json and one or several safetensors files.

The safetensors library checks the headers, which come from outside (bounded size, known types,
tensors that cover the file exactly). The numbers are read here with plain reads: the library
has no bfloat16 for NumPy, and its memory mapping would count every page it touched as memory
of the conversion.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from kernels.errors import ModelError

__all__ = ["Checkpoint", "StoredMatrix", "read_json"]

F32Array = npt.NDArray[np.float32]

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# bfloat16 is the upper half of a float32, so it is read as raw 16-bit numbers.
_STORED_AS: dict[str, npt.DTypeLike] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_MAX_JSON_BYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of at most 64 MB; raises ModelError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_JSON_BYTES:
        raise ModelError(f"{path} is larger than {_MAX_JSON_BYTES} bytes; that is no config file")
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path} is not a JSON object: {error}") from None


class _Entry(NamedTuple):
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int


class StoredMatrix:
    """Rows of one tensor as they lie in the file: (n_rows, n_k), or (1, n) for a vector.

    Turning parts of it into float32 one at a time keeps the peak memory near the stored size.
    """

    def __init__(self, raw: npt.NDArray[Any], label: str) -> None:
        self.raw = raw
        self.label = label

    def columns(
        self, first: int = 0, stop: int | None = None, largest: float = math.inf
    ) -> F32Array:
        """Return columns [first, stop) of all rows as float32, freshly allocated.

        Raises:
            ModelError: a number is NaN, infinite, or of a magnitude above `largest`.
        """
        part = self.raw[:, first:stop]
        if part.dtype == np.uint16:
            wide = np.left_shift(part, 16, dtype=np.uint32)
            values: F32Array = wide.view(np.float32)
        else:
            values = np.array(part, dtype=np.float32, order="C")
        # NaN and infinity both survive max and min, which need no copy as isfinite does.
        found = max(float(values.max()), -float(values.min())) if values.size else 0.0
        if not math.isfinite(found):
            raise ModelError(
                f"{self.label} holds NaN or infinity; the checkpoint is damaged, get it again"
            )
        if found > largest:
            raise ModelError(
                f"{self.label} holds a weight of magnitude {found:.6g}, the chosen dtype reaches "
                f"{largest:.6g}; convert with --dtype f32"
            )
        return values


class Checkpoint:
    """The tensors of a checkpoint directory, by name; reads them piece by piece."""

    def __init__(self, directory: Path) -> None:
        """Read all headers.

        Raises:
            ModelError: no checkpoint here, or a file is missing, truncated or inconsistent.
        """
        self.directory = directory
        self._entries: dict[str, _Entry] = {}
        index_path, single_path = directory / INDEX_NAME, directory / SINGLE_NAME
        if single_path.is_file():
            self._add_file(single_path)
        elif index_path.is_file():
            self._add_shards(index_path)
        else:
            raise ModelError(
                f"'{directory}' holds neither {SINGLE_NAME} nor {INDEX_NAME}; "
                f"give the directory of a Hugging Face checkpoint in safetensors format"
            )

    def _add_shards(self, index_path: Path) -> None:
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, Mapping) or not weight_map:
            raise ModelError(f"{index_path} has no weight_map; get the checkpoint again")
        for shard in sorted({str(name) for name in weight_map.values()}):
            # Only plain names: an index comes from outside and must not reach elsewhere.
            if PurePath(shard).name != shard or shard in (".", ".."):
                raise ModelError(f"{index_path} names the file {shard!r} outside its directory")
            self._add_file(self.directory / shard)
        for name, shard in weight_map.items():
            entry = self._entries.get(name)
            if entry is None or entry.path.name != shard:
                raise ModelError(
                    f"{self.directory / str(shard)} has no tensor {name}, which {INDEX_NAME} "
                    f"promises; get the checkpoint again"
                )

    def _add_file(self, path: Path) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise ModelError(
                "reading checkpoints needs safetensors; install it with "
                "pip install 'headwise[convert]'"
            ) from None
        try:
            with path.open("rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
            with safe_open(path, framework="numpy") as tensors:
                offset_bytes = 8 + header_bytes
                # The library has checked that tensors follow each other without holes.
                for name in tensors.offset_keys():
                    part = tensors.get_slice(name)
                    entry = _Entry(path, part.get_dtype(), tuple(part.get_shape()), offset_bytes)
                    offset_bytes += self._tensor_bytes(name, entry)
                    if name in self._entries:
                        raise ModelError(f"{path}: tensor {name} is also in another file")
                    self._entries[name] = entry
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error}; get the checkpoint again") from None
        except SafetensorError as error:
            raise ModelError(
                f"{path} is damaged or truncated: {error}; get the checkpoint again"
            ) from None

    @staticmethod
    def _tensor_bytes(name: str, entry: _Entry) -> int:
        item_bytes = _ITEM_BYTES.get(entry.dtype)
        if item_bytes is None:
            raise ModelError(f"{entry.path}: tensor {name} has the unknown type {entry.dtype}")
        n_items = 1
        for size in entry.shape:
            n_items *= size
        return n_items * item_bytes

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of all tensors."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ModelError unless every wanted tensor is there, in shape and type."""
        for name, shape in wanted.items():
            entry = self._entries.get(name)
            if entry is None:
                unknown = sorted(set(self._entries) - set(wanted))
                hint = f" (it has an unknown {unknown[0]}: renamed?)" if unknown else ""
                raise ModelError(f"checkpoint '{self.directory}' has no tensor {name}{hint}")
            if entry.shape != shape:
                raise ModelError(
                    f"{entry.path}: tensor {name} has shape {entry.shape}, "
                    f"config.json asks for {shape}; are both from the same model?"
                )
            if entry.dtype not in _STORED_AS:
                raise ModelError(
                    f"{entry.path}: tensor {name} is stored as {entry.dtype}; "
                    f"supported are {', '.join(_STORED_AS)}"
                )

    def read(self, name: str, first_row: int = 0, n_rows: int | None = None) -> StoredMatrix:
        """Read rows [first_row, first_row + n_rows) of a tensor, all by default.

        Raises:
            ModelError: the file ended early or cannot be read.
        """
        entry = self._entries[name]
        shape = entry.shape if len(entry.shape) == 2 else (1, *entry.shape)
        rows = shape[0] - first_row if n_rows is None else n_rows
        raw = np.empty((rows, shape[1]), dtype=_STORED_AS[entry.dtype])
        offset_bytes = entry.offset_bytes + first_row * shape[1] * raw.itemsize
        label = f"{entry.path}: tensor {name}"
        try:
            with entry.path.open("rb", buffering=0) as file:
                file.seek(offset_bytes)
                self._fill(file.fileno(), raw, label)
        except OSError as error:
            raise ModelError(f"{label} cannot be read: {error.strerror}") from None
        return StoredMatrix(raw, label)

    @staticmethod
    def _fill(fd: int, raw: npt.NDArray[Any], label: str) -> None:
        view = raw.reshape(-1).view(np.uint8).data
        while view:
            n_read = os.readv(fd, [view])
            if n_read == 0:
                raise ModelError(f"{label} ends early: the file shrank while it was read")
            view = view[n_read:]

"""A headwise model directory on disk: manifest.json, weights.bin (memory-mapped), side files."""

import contextlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from kernels.errors import ModelError, PromptError
from kernels.layout import VOCAB_ROWS_PER_ATOM, Geometry
from kernels.tiles import unpack_row
from weights.config import ModelConfig
from weights.manifest import MAX_MANIFEST_BYTES, AtomLocation, Manifest, content_hash
from weights.sections import AtomKind

__all__ = ["MANIFEST_NAME", "WEIGHTS_NAME", "ModelDirectory"]

MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.bin"


def _read_manifest(path: Path) -> Manifest:
    manifest_path = path / MANIFEST_NAME
    try:
        with manifest_path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ModelError(
            f"'{path}' is not a headwise model directory: {manifest_path.name} cannot be read "
            f"({error.strerror}); make one with `headwise convert SRC OUT --dtype q8`"
        ) from None
    try:
        return Manifest.parse(data)
    except ModelError as error:
        raise ModelError(f"{manifest_path}: {error}") from None


def _map_weights(path: Path, n_bytes: int) -> mmap.mmap:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); convert or copy the model again"
        ) from None
    try:
        found_bytes = os.fstat(fd).st_size
        if found_bytes != n_bytes:
            raise ModelError(
                f"{path} has {found_bytes} bytes, its manifest says {n_bytes}; "
                f"convert or copy the model again"
            )
        return mmap.mmap(fd, n_bytes, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"{path} cannot be mapped: {error.strerror}") from None
    finally:
        os.close(fd)


class ModelDirectory:
    """An opened model; `weights` is all of weights.bin: (weights_bytes,) uint8, read-only.

    Opening reads the manifest and the size of weights.bin, not the weights: pages come in as
    they are touched. Check what you use with `verify_atoms`.
    """

    def __init__(self, path: Path, manifest: Manifest, mapping: mmap.mmap) -> None:
        self.directory = path
        self.manifest = manifest
        self.weights: npt.NDArray[np.uint8] = np.frombuffer(mapping, dtype=np.uint8)
        self._mapping = mapping
        # Blobs of embedding rows whose hashes were checked.
        self._embedding: dict[int, npt.NDArray[np.uint8]] = {}
        self._vocab_size = manifest.config.vocab_size
        self._hidden_size, self._fmt = manifest.config.hidden_size, manifest.fmt
        # A tied model's embedding rows are its vocab rows.
        self._row_kind: AtomKind = "vocab" if manifest.config.tied_embeddings else "embedding"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "ModelDirectory":
        """Open a model directory.

        Raises:
            ModelError: it is none, its manifest is damaged or weights.bin has another size.
        """
        directory = Path(path)
        manifest = _read_manifest(directory)
        return cls(
            directory, manifest, _map_weights(directory / WEIGHTS_NAME, manifest.weights_bytes)
        )

    @property
    def config(self) -> ModelConfig:
        """Return the model's shape and maths."""
        return self.manifest.config

    @property
    def geometry(self) -> Geometry:
        """Return the model's array shapes."""
        return self.manifest.geometry

    @property
    def model_id(self) -> str:
        """Return the hash of the manifest, which names the model."""
        return self.manifest.model_id

    def atom_bytes(self, location: AtomLocation) -> npt.NDArray[np.uint8]:
        """Return one atom's blob as a view: (n_bytes,) uint8, read-only."""
        return self.weights[location.offset_bytes : location.offset_bytes + location.n_bytes]

    def verify_atoms(self, locations: Iterable[AtomLocation]) -> None:
        """Read the atoms and raise ModelError naming the first whose hash is wrong."""
        for location in locations:
            found = content_hash(self.atom_bytes(location).data)
            if found != location.hash:
                raise ModelError(
                    f"{self.directory / WEIGHTS_NAME}: {location} is damaged (hash {found}, "
                    f"its manifest says {location.hash}); convert or copy the model again"
                )

    def verify_embedding(self) -> None:
        """Check all embedding atoms now, so that no row has to be checked when it is read.

        Raises:
            ModelError: naming the first atom that is damaged.
        """
        for index in range(len(self.manifest.section(self._row_kind).hashes)):
            self._verified_rows(index)
        self.embedding_row(0, np.empty(self._hidden_size, np.float32))  # loads what unpacks it

    def embedding_row(self, token_id: int, out: npt.NDArray[np.float32]) -> None:
        """Write the embedding of a token into `out`: (hidden_size,) float32.

        An atom's hash is checked when its first row is read, unless `verify_embedding` was
        called: nobody else may read these bytes.

        Raises:
            PromptError: the vocabulary has no such token.
            ModelError: the atom that holds the row is damaged.
        """
        if not 0 <= token_id < self._vocab_size:
            raise PromptError(
                f"token {token_id} is outside the vocabulary of model '{self.manifest.name}'; "
                f"it has tokens 0 to {self._vocab_size - 1}"
            )
        index, row = divmod(token_id, VOCAB_ROWS_PER_ATOM)
        blob = self._embedding.get(index)
        if blob is None:
            blob = self._verified_rows(index)
        unpack_row(blob, row, self._hidden_size, self._fmt, out)

    def _verified_rows(self, index: int) -> npt.NDArray[np.uint8]:
        """Return the blob of one atom of embedding rows, checked; ModelError if it is damaged."""
        location = self.manifest.atom(self._row_kind, -1, index)
        self.verify_atoms([location])
        blob = self._embedding[index] = self.atom_bytes(location)
        return blob

    def path(self, name: str) -> Path | None:
        """Return the path of a side file such as tokenizer.json, or None if there is none.

        Raises:
            ModelError: the file is missing or differs from what was converted.
        """
        wanted = self.manifest.files.get(name)
        if wanted is None:
            return None
        path = self.directory / name
        try:
            found = content_hash(path.read_bytes())
        except OSError as error:
            raise ModelError(
                f"{path} cannot be read ({error.strerror}); convert or copy the model again"
            ) from None
        if found != wanted:
            raise ModelError(
                f"{path} is not the file that was converted (hash {found}, the manifest says "
                f"{wanted}); convert or copy the model again"
            )
        return path

    def close(self) -> None:
        """Drop the mapping; arrays that callers still hold stay valid and keep it alive."""
        self.weights = np.empty(0, dtype=np.uint8)
        self._embedding.clear()
        with contextlib.suppress(BufferError):
            self._mapping.close()

    def __enter__(self) -> "ModelDirectory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

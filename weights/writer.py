"""Writes a model directory from a source of atoms: sections, hashes, manifest, side files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from kernels.layout import round_up
from weights.config import ModelConfig
from weights.directory import MANIFEST_NAME, WEIGHTS_NAME
from weights.manifest import FORMAT_VERSION, DType, Manifest, Section, content_hash
from weights.output import OutputDirectory, OutputFile
from weights.sections import SECTION_ALIGN_BYTES, SectionShape, section_shapes

__all__ = ["AtomSource", "Progress", "Provenance", "draft_manifest", "write_model"]

# Called with bytes of weights.bin written so far, and in the end.
Progress = Callable[[int, int], None]

# Packed bytes asked of a source at once; the float32 numbers behind q4 are 7 times as many.
_BATCH_BYTES = 1 << 20
# Room for manifest and tokenizer next to the weights.
_EXTRA_BYTES = 16 << 20


@dataclass(frozen=True)
class Provenance:
    """Where weights come from: free text kept in the manifest."""

    source: str = ""
    revision: str = ""
    licence: str = ""


class AtomSource(Protocol):
    """Where the blobs of a new model come from; asked in file order."""

    def atoms(self, shape: SectionShape, first: int, n_atoms: int) -> npt.NDArray[np.uint8]:
        """Return atoms [first, first + n_atoms) of a section: (n_atoms, atom_bytes) uint8."""
        ...


def _write_section(
    source: AtomSource, shape: SectionShape, file: OutputFile, report: Callable[[], None]
) -> Section:
    file.pad_to(SECTION_ALIGN_BYTES)
    offset_bytes = file.n_bytes
    hashes: list[str] = []
    batch = max(1, _BATCH_BYTES // shape.atom_bytes)
    for first in range(0, shape.n_atoms, batch):
        blobs = source.atoms(shape, first, min(batch, shape.n_atoms - first))
        file.write(blobs.reshape(-1).data)
        hashes += [content_hash(blob.data) for blob in blobs]
        report()
    return Section(shape.kind, shape.layer, offset_bytes, shape.atom_bytes, tuple(hashes))


def _ignore(_done_bytes: int, _total_bytes: int) -> None:
    pass


def draft_manifest(
    config: ModelConfig, dtype: DType, name: str, provenance: Provenance
) -> Manifest:
    """Return a manifest that still lacks sections, sizes and file hashes."""
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        source=provenance.source or name,
        revision=provenance.revision,
        licence=provenance.licence,
        config=config,
        dtype=dtype,
        weights_bytes=0,
        sections=(),
        files={},
    )


def write_model(
    source: AtomSource,
    out: Path,
    draft: Manifest,
    side_files: dict[str, bytes],
    progress: Progress | None = None,
) -> Manifest:
    """Write a model directory to `out`, which appears whole or not at all.

    Args:
        source: gives the atoms of the draft's config and dtype.
        out: where; must not exist.
        draft: the manifest without sections, sizes and file hashes.
        side_files: name -> content.
        progress: called as bytes are written.

    Raises:
        HeadwiseError: `out` exists or cannot be written, the disk is full, the source fails.
    """
    shapes = section_shapes(draft.geometry, draft.config.tied_embeddings)
    total_bytes = sum(round_up(s.n_atoms * s.atom_bytes, SECTION_ALIGN_BYTES) for s in shapes)
    with OutputDirectory(out, total_bytes + _EXTRA_BYTES) as directory:
        file = directory.create(WEIGHTS_NAME)

        def report() -> None:
            (progress or _ignore)(file.n_bytes, total_bytes)

        sections = tuple(_write_section(source, shape, file, report) for shape in shapes)
        file.pad_to(SECTION_ALIGN_BYTES)
        report()
        for name, data in side_files.items():
            directory.create(name).write(data)
        manifest = msgspec.structs.replace(
            draft,
            weights_bytes=file.n_bytes,
            sections=sections,
            files={name: content_hash(data) for name, data in side_files.items()},
        )
        directory.create(MANIFEST_NAME).write(manifest.encode())
    return manifest

"""The manifest of a headwise model directory: what weights.bin holds, hashed atom by atom.

A manifest names its model: `model_id` is the hash of its bytes, and those bytes hold the hash
of every atom, so whoever has the id can check all the rest.
"""

import hashlib
from functools import cached_property
from typing import Annotated, Literal

import msgspec

from kernels.errors import ModelError
from kernels.layout import Geometry, WeightFormat, round_up
from weights.config import ModelConfig
from weights.sections import SECTION_ALIGN_BYTES, AtomKind, section_shapes

__all__ = [
    "FORMAT_VERSION",
    "MAX_MANIFEST_BYTES",
    "SIDE_FILES",
    "AtomLocation",
    "DType",
    "Manifest",
    "Section",
    "content_hash",
]

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 64 << 20
# The only other files of a model directory. A manifest naming any other is refused: names
# come from outside and are joined to paths.
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)

Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
DType = Literal["f32", "f16", "q8", "q4"]


def content_hash(data: bytes | memoryview) -> str:
    """Return the BLAKE2b hash of some bytes, 16 bytes long, as 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class AtomLocation(msgspec.Struct, frozen=True):
    """One atom: which it is, where its blob lies in weights.bin, and its hash."""

    kind: AtomKind
    layer: int
    index: int
    offset_bytes: int
    n_bytes: int
    hash: str

    def __str__(self) -> str:
        where = f" of layer {self.layer}" if self.layer >= 0 else ""
        return f"{self.kind} {self.index}{where}"


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run of equal atoms: atom i lies at offset_bytes + i * stride_bytes."""

    kind: AtomKind
    layer: int
    offset_bytes: int
    stride_bytes: int
    hashes: tuple[Hash, ...]

    @property
    def end_bytes(self) -> int:
        """Return where the section ends."""
        return self.offset_bytes + self.stride_bytes * len(self.hashes)

    def __str__(self) -> str:
        return f"section {self.kind}" + (f" of layer {self.layer}" if self.layer >= 0 else "")


class _Version(msgspec.Struct):
    format_version: int


class Manifest(msgspec.Struct, frozen=True, dict=True, forbid_unknown_fields=True):
    """Everything about a converted model but the weights themselves.

    Attributes:
        format_version: version of manifest and layout; others are refused.
        name, source, revision, licence: where the weights come from, free text.
        config: shape and maths.
        dtype: how the matrices are stored.
        weights_bytes: size of weights.bin.
        sections: every atom of the model, each exactly once.
        files: hashes of the other files of the directory.
    """

    format_version: int
    name: str
    source: str
    revision: str
    licence: str
    config: ModelConfig
    dtype: DType
    weights_bytes: int
    sections: tuple[Section, ...]
    files: dict[str, Hash]

    @property
    def fmt(self) -> WeightFormat:
        """Return the weight format."""
        return WeightFormat[self.dtype.upper()]

    @cached_property
    def geometry(self) -> Geometry:
        """Return the array shapes."""
        return self.config.geometry(self.fmt)

    @cached_property
    def model_id(self) -> str:
        """Return the hash of `encode()`, 32 hex digits."""
        return content_hash(self.encode())

    @cached_property
    def _sections_by_name(self) -> dict[tuple[str, int], Section]:
        return {(s.kind, s.layer): s for s in self.sections}

    def section(self, kind: AtomKind, layer: int = -1) -> Section:
        """Return a section; raises ModelError if the model has none such."""
        found = self._sections_by_name.get((kind, layer))
        if found is None:
            raise ModelError(f"model '{self.name}' has no {kind} atoms in layer {layer}")
        return found

    def atom(self, kind: AtomKind, layer: int, index: int) -> AtomLocation:
        """Return one atom; `layer` is -1 for vocab, embedding and final_norm.

        Raises:
            ModelError: the model has no such atom.
        """
        section = self.section(kind, layer)
        n_atoms = len(section.hashes)
        if not 0 <= index < n_atoms:
            raise ModelError(
                f"model '{self.name}' has no {kind} atom {index} in layer {layer}; "
                f"it has 0 to {n_atoms - 1}"
            )
        stride = section.stride_bytes
        offset = section.offset_bytes + index * stride
        return AtomLocation(kind, layer, index, offset, stride, section.hashes[index])

    def encode(self) -> bytes:
        """Return the canonical bytes: JSON, a line per section so that people can read it."""
        sections = b",\n".join(msgspec.json.encode(s) for s in self.sections)
        head = msgspec.json.encode(msgspec.structs.replace(self, sections=()))
        return head.replace(b'"sections":[]', b'"sections":[\n' + sections + b"\n]", 1) + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Return the manifest in `data`, fully checked against its own geometry.

        Raises:
            ModelError: too big, not a manifest, of another version, with impossible shapes,
                or with sections that are missing, doubled, overlapping or misplaced.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ModelError(
                f"manifest of {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are accepted"
            )
        try:
            version = msgspec.json.decode(data, type=_Version).format_version
            if version != FORMAT_VERSION:
                raise ModelError(
                    f"manifest has format version {version}, this headwise reads "
                    f"{FORMAT_VERSION}; convert the model again with this version"
                )
            manifest = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(
                f"manifest is damaged: {error}; convert or copy the model again"
            ) from None
        manifest.validate()
        return manifest

    def validate(self) -> None:
        """Raise ModelError unless config, sections and file names are sound."""
        self.config.validate()
        self._validate_sections()
        self._validate_extents()
        unknown = sorted(set(self.files) - set(SIDE_FILES))
        if unknown:
            raise ModelError(
                f"manifest names file {unknown[0]!r}; allowed are {', '.join(SIDE_FILES)}"
            )

    def _validate_sections(self) -> None:
        shapes = section_shapes(self.geometry, self.config.tied_embeddings)
        if len(self._sections_by_name) != len(self.sections) or len(self.sections) != len(shapes):
            raise ModelError(
                f"manifest lists {len(self.sections)} sections "
                f"({len(self._sections_by_name)} different ones), "
                f"its config needs {len(shapes)}; convert the model again"
            )
        for shape in shapes:
            section = self.section(shape.kind, shape.layer)
            found = (len(section.hashes), section.stride_bytes)
            if found != (shape.n_atoms, shape.atom_bytes):
                raise ModelError(
                    f"manifest: {section} has {found[0]} atoms of {found[1]} bytes, its config "
                    f"needs {shape.n_atoms} of {shape.atom_bytes}; convert the model again"
                )

    def _validate_extents(self) -> None:
        # No gaps but alignment: the size of weights.bin follows from the config alone, so a
        # manifest cannot make a board reserve absurd memory.
        next_bytes, last = 0, "the start"
        for section in sorted(self.sections, key=lambda s: s.offset_bytes):
            if section.offset_bytes != next_bytes:
                raise ModelError(
                    f"manifest: {section} starts at byte {section.offset_bytes}; it must start "
                    f"at {next_bytes}, the first multiple of {SECTION_ALIGN_BYTES} after {last}; "
                    f"convert the model again"
                )
            next_bytes = round_up(section.end_bytes, SECTION_ALIGN_BYTES)
            last = str(section)
        if next_bytes != self.weights_bytes:
            raise ModelError(
                f"manifest: weights.bin is said to have {self.weights_bytes} bytes, but its "
                f"sections take {next_bytes}; convert the model again"
            )

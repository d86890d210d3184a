"""Which sections a weights file holds: one per atom class and layer. Pure arithmetic."""

from typing import Literal, NamedTuple

from kernels.layout import Geometry

__all__ = ["SECTION_ALIGN_BYTES", "AtomKind", "SectionShape", "section_shapes"]

AtomKind = Literal["head_group", "column", "vocab", "embedding", "layer_norms", "final_norm"]

# Sections start at page boundaries, so that a board maps and drops them independently.
SECTION_ALIGN_BYTES = 4096


class SectionShape(NamedTuple):
    """A run of equal atoms; `layer` is -1 for those that belong to no layer."""

    kind: AtomKind
    layer: int
    n_atoms: int
    atom_bytes: int


def section_shapes(geometry: Geometry, tied_embeddings: bool) -> list[SectionShape]:
    """Return the sections of a model in file order.

    Tied models have no embedding section: the coordinator looks rows up in the vocab atoms.
    """
    g = geometry
    shapes: list[SectionShape] = []
    if not tied_embeddings:
        shapes.append(SectionShape("embedding", -1, g.n_vocab_atoms, g.vocab_bytes))
    for layer in range(g.n_layers):
        shapes.append(SectionShape("layer_norms", layer, 1, g.layer_norms_bytes))
        shapes.append(SectionShape("head_group", layer, g.n_kv_heads, g.head_group_bytes))
        shapes.append(SectionShape("column", layer, g.n_column_atoms, g.column_bytes))
    shapes.append(SectionShape("final_norm", -1, 1, g.final_norm_bytes))
    shapes.append(SectionShape("vocab", -1, g.n_vocab_atoms, g.vocab_bytes))
    return shapes

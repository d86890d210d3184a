"""The manifest: what it says about atoms, and every way it can be wrong."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.errors import ModelError
from kernels.layout import Geometry, WeightFormat
from tests.unit.tiny_checkpoint import TINY_CONFIG
from weights.families import read_config
from weights.manifest import (
    FORMAT_VERSION,
    MAX_MANIFEST_BYTES,
    AtomLocation,
    Manifest,
    Section,
    content_hash,
)
from weights.sections import SECTION_ALIGN_BYTES, section_shapes

Change = Callable[[dict[str, Any]], None]


def _manifest(tied: bool = False) -> Manifest:
    config = read_config({**TINY_CONFIG, "tie_word_embeddings": tied})
    sections: list[Section] = []
    at = 0
    for shape in section_shapes(config.geometry(WeightFormat.Q8), tied):
        names = [f"{shape.kind} {shape.layer} {i}".encode() for i in range(shape.n_atoms)]
        hashes = tuple(content_hash(name) for name in names)
        sections.append(Section(shape.kind, shape.layer, at, shape.atom_bytes, hashes))
        at = -(-sections[-1].end_bytes // SECTION_ALIGN_BYTES) * SECTION_ALIGN_BYTES
    files = {"tokenizer.json": content_hash(b"")}
    return Manifest(
        FORMAT_VERSION, "tiny", "here", "r1", "MIT", config, "q8", at, tuple(sections), files
    )


def _error(change: Change) -> str:
    fields = json.loads(_manifest().encode())
    change(fields)
    with pytest.raises(ModelError) as caught:
        Manifest.parse(json.dumps(fields).encode())
    return str(caught.value)


@pytest.mark.parametrize("tied", [False, True])
def test_encode_and_parse_are_inverse(tied: bool) -> None:
    manifest = _manifest(tied)
    again = Manifest.parse(manifest.encode())
    assert again == manifest
    assert again.encode() == manifest.encode()
    assert again.model_id == content_hash(manifest.encode())
    assert again.geometry == manifest.config.geometry(WeightFormat.Q8)


def test_the_model_id_follows_every_atom() -> None:
    manifest = _manifest()
    first = manifest.sections[0]
    other = msgspec.structs.replace(first, hashes=(content_hash(b"other"), *first.hashes[1:]))
    changed = msgspec.structs.replace(manifest, sections=(other, *manifest.sections[1:]))
    assert changed.model_id != manifest.model_id


def test_a_name_cannot_forge_sections() -> None:
    manifest = msgspec.structs.replace(_manifest(), name='x","sections":[]')
    assert Manifest.parse(manifest.encode()) == manifest


def test_atoms_are_located() -> None:
    manifest = _manifest()
    g = manifest.geometry
    section = manifest.section("head_group", 1)
    atom = manifest.atom("head_group", 1, 1)
    expected = AtomLocation(
        "head_group",
        1,
        1,
        section.offset_bytes + g.head_group_bytes,
        g.head_group_bytes,
        content_hash(b"head_group 1 1"),
    )
    assert atom == expected
    assert str(atom) == "head_group 1 of layer 1"
    assert str(manifest.atom("final_norm", -1, 0)) == "final_norm 0"
    assert manifest.atom("vocab", -1, 1).n_bytes == g.vocab_bytes


def test_absent_atoms_are_named() -> None:
    with pytest.raises(ModelError, match="has no column atom 2 in layer 0; it has 0 to 1"):
        _manifest().atom("column", 0, 2)
    with pytest.raises(ModelError, match="has no column atom -1 in layer 0"):
        _manifest().atom("column", 0, -1)
    with pytest.raises(ModelError, match="has no column atoms in layer 2"):
        _manifest().atom("column", 2, 0)
    with pytest.raises(ModelError, match="has no embedding atoms"):
        _manifest(tied=True).atom("embedding", -1, 0)


def _set(*path: str | int, value: object) -> Change:
    def change(fields: Any) -> None:
        for key in path[:-1]:
            fields = fields[key]
        fields[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_set("format_version", value=2), "format version 2, this headwise reads 1"),
        (_set("format_version", value="1"), "manifest is damaged: Expected `int`"),
        (_set("dtype", value="q3"), "manifest is damaged: Invalid enum value 'q3'"),
        (_set("extra", value=1), "unknown field `extra`"),
        (_set("weights_bytes", value=4096), "said to have 4096 bytes, but its sections take"),
        (_set("weights_bytes", value=10**30), "said to have 10000000"),
        (_set("config", "n_layers", value=3), "lists 9 sections (9 different ones)"),
        (_set("config", "n_layers", value=10**6), "n_layers is 1000000, allowed"),
        (_set("config", "hidden_size", value=2**60), "hidden_size is 1152921504606846976"),
        (_set("config", "hidden_size", value=-4), "hidden_size is -4"),
        (_set("config", "hidden_size", value=48), "section embedding has 2 atoms of"),
        (_set("config", "n_columns", value=65), "section column of layer 0 has 2 atoms"),
        (_set("config", "tied_embeddings", value=True), "lists 9 sections"),
        (_set("sections", 1, "stride_bytes", value=64), "has 1 atoms of 64 bytes"),
        (_set("sections", 3, "hashes", value=[]), "has 0 atoms of"),
        (_set("sections", 3, "hashes", 0, value="abc"), "manifest is damaged"),
        (_set("sections", 3, "hashes", 0, value="G" * 32), "manifest is damaged"),
        (_set("sections", 3, "layer", value=1), "lists 9 sections (8 different ones)"),
        (_set("sections", 3, "kind", value="vocab"), "has no column atoms in layer 0"),
        (_set("sections", 3, "kind", value="lora"), "Invalid enum value 'lora'"),
        (_set("sections", 3, "offset_bytes", value=4100), "starts at byte 4100; it must start at"),
        (_set("sections", 3, "offset_bytes", value=0), "starts at byte 0; it must start at"),
        (_set("sections", 3, "offset_bytes", value=-4096), "starts at byte -4096"),
        (_set("files", value={"../../etc/passwd": "0" * 32}), "names file '../../etc/passwd'"),
        (_set("files", value={"tokenizer.json": "1"}), "manifest is damaged"),
    ],
)
def test_unsound_manifests_are_refused(change: Change, text: str) -> None:
    assert text in _error(change)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="manifest is damaged"):
        Manifest.parse(data)


def test_huge_manifests_are_refused_unread() -> None:
    with pytest.raises(ModelError, match="at most 67108864 are accepted"):
        Manifest.parse(bytes(MAX_MANIFEST_BYTES + 1))


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=3)), min_size=1, max_size=4)
)
def test_damaged_bytes_never_crash(edits: list[tuple[int, bytes]]) -> None:
    data = _manifest().encode()
    for place, piece in edits:
        at = place % len(data)
        data = data[:at] + piece + data[at + 1 :]
    _parse_or_refuse(data)


_numbers = st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 64, 4096]) | st.none()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_odd_values_never_crash(data: st.DataObject) -> None:
    fields = json.loads(_manifest().encode())
    section = st.sampled_from(fields["sections"])
    for _ in range(data.draw(st.integers(1, 3))):
        target = data.draw(st.sampled_from([fields, fields["config"], fields["config"]["rope"]]))
        target = data.draw(st.just(target) | section)
        target[data.draw(st.sampled_from(sorted(target)))] = data.draw(_numbers)
        if not all(isinstance(fields.get(k), kind) for k, kind in _SHAPE):
            break
        if not isinstance(fields["config"].get("rope"), dict):
            break
    _parse_or_refuse(json.dumps(fields).encode())


_SHAPE = (("sections", list), ("config", dict))


def _parse_or_refuse(data: bytes) -> None:
    try:
        manifest = Manifest.parse(data)
    except ModelError:
        return
    # What was accepted is sound: every atom lies inside the file, none over another.
    assert isinstance(manifest.geometry, Geometry)
    spans = sorted((s.offset_bytes, s.end_bytes) for s in manifest.sections)
    assert spans[0][0] >= 0
    assert spans[-1][1] <= manifest.weights_bytes
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert Manifest.parse(manifest.encode()) == manifest

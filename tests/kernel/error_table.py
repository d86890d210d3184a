"""How far kernels are from the float64 oracle, by weight format, activations and KV format.

Also a program, which prints the tables of docs/kernels.md in five minutes and 2.5 GB:

    python -m tests.kernel.error_table --stories ../shared/models/stories260K

Two errors that are never mixed: that of the arithmetic is against an oracle of the same weights,
as they are stored, which rounds neither activations nor keys and values; that of the format is
between two oracles, of the stored weights and of the float32 ones. Relative to the root mean square
of the row that a number belongs to.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.ids import KvId
from agent.kv_ops import KvOp, KvOpCode
from agent.member import make_member
from kernels.formats import BLOCK_FLOATS, kept_floats, weight_dtype
from kernels.layout import TILE_BYTES, Geometry, WeightFormat
from kernels.matvec import matvec
from kernels.pool import Pool
from kernels.quantise import quantise
from kernels.spans import Matrix, Rows, Span
from tests import naive
from tests.kernel_models import PackedModel, callable_from_python, make_model, make_stage
from tests.protocol.agent_harness import assignment
from weights.convert import convert
from weights.directory import ModelDirectory

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# TinyLlama's, but for the number of layers and the vocabulary.
SHAPE = Geometry(
    hidden_size=2048, n_layers=2, n_heads=32, n_kv_heads=4, head_dim=64, n_columns=5632,
    vocab_size=2048, fmt=WeightFormat.F32, norm_eps=1e-5,
)  # fmt: skip
N_TOKENS = 256
KV_DTYPES: dict[str, type] = {"f32": np.float32, "f16": np.uint16, "int8": np.int8}
QUANTISED = (WeightFormat.Q8, WeightFormat.Q4)
PLACES = ("qkv", "attention", "mlp", "logits")


class Arithmetic(NamedTuple):
    """What decides which kernels run; `kv` names one of KV_DTYPES."""

    fmt: WeightFormat
    int8: bool
    kv: str


class Error(NamedTuple):
    """Largest and mean difference, in the numbers' unit and in root mean squares of their rows."""

    largest: float
    mean: float
    largest_of_rms: float
    mean_of_rms: float


ALL = [
    Arithmetic(fmt, int8, kv)
    for fmt in WeightFormat
    for int8 in ((False, True) if fmt in QUANTISED else (False,))
    for kv in KV_DTYPES
    if kv != "int8" or int8 or fmt is WeightFormat.F32  # others take minutes to compile
]


def error_of(actual: npt.NDArray[Any], desired: F64) -> Error:
    """Compare rows (n, columns)."""
    difference = np.abs(actual - desired)
    assert np.isfinite(difference).all()
    relative = difference / np.sqrt(np.mean(desired**2, axis=1, keepdims=True))
    return Error(*(float(f(e)) for e in (difference, relative) for f in (np.max, np.mean)))


def rows_of(geometry: Geometry, n_tokens: int) -> F32:
    """Return residuals (n_tokens, D) as all measurements get them."""
    rng = np.random.default_rng(3)
    return rng.standard_normal((n_tokens, geometry.hidden_size)).astype(np.float32)


def desired(model: PackedModel, x: F32) -> dict[str, F64]:
    """Return what the oracle says of each place: head group 0, layer 0, layer 0, the whole."""
    g, layer, rows = model.geometry, model.naive.layers[0], x.astype(np.float64)
    return {
        "qkv": rows @ _qkv_of_group_0(model).T,
        "attention": naive.attention(model.naive, layer, rows, list(range(g.n_kv_heads))),
        "mlp": naive.mlp(model.naive, layer, rows, list(range(g.n_columns))),
        "logits": naive.forward(model.naive, rows)[1],
    }


def _qkv_of_group_0(model: PackedModel) -> F64:
    g, layer = model.geometry, model.naive.layers[0]
    d = g.head_dim
    return np.concatenate([layer.q[: g.heads_per_group * d], layer.k[:d], layer.v[:d]])


def stage_rows(model: PackedModel, how: Arithmetic, x: F32) -> dict[str, F32]:
    """Return what the kernels of a stage say of the same places, but for qkv."""
    n = len(x)
    stage = make_stage(
        model, kv_dtype=KV_DTYPES[how.kv], max_rows=n, context_tokens=n, int8=how.int8
    )
    stage.begin(np.zeros(n, np.int32), np.arange(n, dtype=np.int32))
    attention, mlp, residual = np.zeros_like(x), np.zeros_like(x), x.copy()
    stage.attention(0, x, attention)
    stage.mlp(0, x, mlp)
    stage.run_layers(residual)
    logits = np.zeros((n, model.geometry.vocab_size), np.float32)
    stage.logits(residual, logits)
    return {"attention": attention, "mlp": mlp, "logits": logits}


def qkv_rows(model: PackedModel, how: Arithmetic, x: F32) -> F32:
    """Return x times the qkv of head group 0, by the kernel alone."""
    g = model.geometry
    dtype = np.dtype(weight_dtype(how.fmt, how.int8))
    k_tiles = -(-g.hidden_size // 32)
    padded = np.zeros((len(x), 32 * k_tiles), np.float32)
    padded[:, : g.hidden_size] = x
    if how.int8:
        plain, padded = padded, np.zeros((len(x), BLOCK_FLOATS * k_tiles), np.float32)
        for row, blocks in zip(plain, padded, strict=True):
            callable_from_python(quantise)(Span(row, 0), k_tiles, Span(blocks, 0))
    first, tile_size = model.groups[0][0] // dtype.itemsize, TILE_BYTES[how.fmt] // dtype.itemsize
    matrix = Matrix(model.store.view(dtype), first, tile_size, k_tiles, g.qkv_rows, -1, 0)
    out = np.zeros((len(x), g.qkv_rows), np.float32)
    to = Rows(out.reshape(-1), 0, g.qkv_rows)
    source = Rows(padded.reshape(-1), 0, padded.shape[1])
    kept = Span(np.zeros(kept_floats(len(x)), np.float32), 0)
    callable_from_python(matvec)(matrix, 0, -(-g.qkv_rows // 8), source, to, len(x), kept)
    return out


def arithmetic_errors(model: PackedModel, how: Arithmetic, wanted: dict[str, F64]) -> Any:
    """Yield (place, error) of a stage's kernels; `wanted` is what `desired` says of the model."""
    x = rows_of(model.geometry, len(wanted["logits"]))
    for place, rows in stage_rows(model, how, x).items():
        yield place, error_of(rows, wanted[place])


def stories_errors(stories: Path) -> Iterator[tuple[Arithmetic, Error]]:
    """Compare logits of stories260K with the recorded ones, which float32 weights gave."""
    recorded = np.load(stories / "reference_logits_f64.npz")
    texts = [(recorded[f"ids_{i}"], recorded[f"logits_{i}"]) for i in range(3)]
    with tempfile.TemporaryDirectory() as work:
        for fmt in WeightFormat:
            convert(stories / "hf", Path(work) / fmt.name, fmt.name.lower())  # type: ignore[arg-type]
            with ModelDirectory.open(Path(work) / fmt.name) as directory:
                for how in (how for how in ALL if how.fmt is fmt):
                    found = [stories_logits(directory, how, ids) for ids, _ in texts]
                    logits = np.concatenate([wanted for _, wanted in texts])
                    yield how, error_of(np.concatenate(found), logits)


def stories_logits(directory: ModelDirectory, how: Arithmetic, ids: npt.NDArray[np.int32]) -> F32:
    """Return the logits after each token of a text, (n, V)."""
    g, n = directory.geometry, len(ids)
    told = assignment(
        directory, 1, groups=(0, g.n_kv_heads), columns=(0, g.n_column_atoms),
        vocab=(0, g.n_vocab_atoms), wire="f16" if how.int8 else "f32", kv=how.kv,
    )  # fmt: skip
    assert told.int8_activations == how.int8
    pool = Pool(1)
    member = make_member(told, directory.manifest, directory.weights, pool)
    member.kv.apply([KvOp(KvOpCode.OPEN, KvId(1), n)])
    slots, positions = np.zeros(n, np.int32), np.arange(n, dtype=np.int32)
    member.kv.prepare(np.array([(1, i) for i in range(n)], np.uint32), slots)
    x = np.empty((n, g.hidden_size), np.float32)
    for row, token_id in zip(x, ids, strict=True):
        directory.embedding_row(int(token_id), row)
    member.kernels.begin(slots, positions)
    member.kernels.run_layers(x)
    logits = np.zeros((n, g.vocab_size), np.float32)
    member.kernels.logits(x, logits)
    pool.close()
    return logits


def _line(*cells: object) -> None:
    print("| " + " | ".join(f"{c:.1e}" if isinstance(c, float) else str(c) for c in cells) + " |")


def _heading(*names: str) -> None:
    print()
    _line(*names, "largest", "mean", "largest / RMS", "mean / RMS")
    _line(*["---"] * (len(names) + 4))


def _names(how: Arithmetic) -> tuple[str, str]:
    return how.fmt.name.lower(), "int8" if how.int8 else "f32"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--stories", type=Path, help="directory of stories260K and its references")
    args = parser.parse_args()
    x = rows_of(SHAPE, N_TOKENS)
    of_arithmetic: dict[str, list[tuple[object, ...]]] = {place: [] for place in PLACES}
    of_format: dict[str, list[tuple[object, ...]]] = {place: [] for place in PLACES}
    unrounded: dict[str, F64] = {}
    for fmt in WeightFormat:
        model = make_model(replace(SHAPE, fmt=fmt))
        wanted = desired(model, x)
        unrounded = unrounded or wanted
        for place in PLACES:
            of_format[place].append((fmt.name.lower(), *error_of(wanted[place], unrounded[place])))
        for how in (how for how in ALL if how.fmt is fmt):
            if how.kv == "f32":
                error = error_of(qkv_rows(model, how, x), wanted["qkv"])
                of_arithmetic["qkv"].append((*_names(how), "", *error))
            for place, error in arithmetic_errors(model, how, wanted):
                # No keys and values in these.
                if place != "mlp" or how.kv == "f32":
                    kv = "" if place == "mlp" else how.kv
                    of_arithmetic[place].append((*_names(how), kv, *error))
    _heading("arithmetic of", "weights", "activations", "KV")
    for place in PLACES:
        for row in of_arithmetic[place]:
            _line(place, *row)
    _heading("format seen in", "weights")
    for place in PLACES:
        for row in of_format[place][1:]:
            _line(place, *row)
    if args.stories:
        _heading("both, logits of", "weights", "activations", "KV")
        for how, error in stories_errors(args.stories):
            _line("stories260K", *_names(how), how.kv, *error)


if __name__ == "__main__":
    main()

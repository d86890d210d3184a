"""The canonical layout of weights: tiles, atoms and their byte offsets. Pure arithmetic.

One layout on disk, on the wire and in memory, so nothing is ever repacked on a board.

Tile: 8 output rows x 32 inputs (k) of a matrix, scales inline, lane = row:

    f32  1024 B   w[k 32][row 8]                                            float32
    f16   512 B   w[k 32][row 8]                                            float16
    q8    272 B   q[k/4 8][row 8][k%4 4] int8, then scale[row 8] float16    w = q * scale
    q4    144 B   b[j 4][row 8][i 4] uint8, then scale[row 8] float16       w = (n - 8) * scale
                  low nibble of b[j][row][i] is k = 4j+i, high nibble k = 16+4j+i

A lane never meets another lane: each output row is one chain of additions in rising k, so a
row's result depends on nothing but its weights and its input.

Matrix (rows, k): tiles in order [row tile][k tile], both zero-padded.

Atom blobs (matrix starts and blob sizes are multiples of 64 bytes), D hidden size, d head_dim,
n = H/G query heads per group:

    head group  qkv ((n+2)*d, D): q rows, k rows, v rows | o (D, n*d) | bias ((n+2)*d) f32, if any
    column      gate_up (64, D): 8 gate rows, 8 up rows, 8 gate rows, ... | down (D, 32)
    vocab       rows (128, D)
    layer norms attn_norm (D) | mlp_norm (D) | q_norm (d), k_norm (d), if any      float32
    final norm  norm (D)                                                          float32

Quantisation restarts at every atom because no tile crosses one.
"""

from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "COLUMNS_PER_ATOM",
    "TILE_BYTES",
    "TILE_K",
    "TILE_ROWS",
    "VOCAB_ROWS_PER_ATOM",
    "Geometry",
    "WeightFormat",
    "matrix_bytes",
    "round_up",
]

TILE_ROWS = 8
TILE_K = 32
COLUMNS_PER_ATOM = 32
VOCAB_ROWS_PER_ATOM = 128
ALIGN_BYTES = 64


class WeightFormat(IntEnum):
    """How weights are stored; the numbers appear in manifests and kernels."""

    F32 = 0
    F16 = 1
    Q8 = 2
    Q4 = 3


TILE_BYTES: dict[WeightFormat, int] = {
    WeightFormat.F32: 1024,
    WeightFormat.F16: 512,
    WeightFormat.Q8: 272,
    WeightFormat.Q4: 144,
}


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least n."""
    return -(-n // multiple) * multiple


def matrix_bytes(n_rows: int, n_k: int, fmt: WeightFormat) -> int:
    """Return the bytes of a tiled (n_rows, n_k) matrix, padding of rows and k included."""
    return -(-n_rows // TILE_ROWS) * -(-n_k // TILE_K) * TILE_BYTES[fmt]


@dataclass(frozen=True)
class Geometry:
    """The array shapes of one model, all that kernels know of it.

    Layers are alike. `n_columns` is F, the MLP width before padding to whole column atoms.
    """

    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_columns: int
    vocab_size: int
    fmt: WeightFormat
    norm_eps: float
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one KV head, H/G."""
        return self.n_heads // self.n_kv_heads

    @property
    def qkv_rows(self) -> int:
        """Rows of a head group's q, k and v together, (H/G + 2) * d."""
        return (self.heads_per_group + 2) * self.head_dim

    @property
    def o_columns(self) -> int:
        """Inputs of a head group's W_o columns, (H/G) * d."""
        return self.heads_per_group * self.head_dim

    @property
    def n_column_atoms(self) -> int:
        """Column atoms of one layer; the last one may hold fewer real columns."""
        return -(-self.n_columns // COLUMNS_PER_ATOM)

    @property
    def n_vocab_atoms(self) -> int:
        """Vocab atoms; the last one may hold fewer real rows."""
        return -(-self.vocab_size // VOCAB_ROWS_PER_ATOM)

    # Head group blob.

    @property
    def o_offset_bytes(self) -> int:
        """Start of W_o inside a head-group blob; qkv starts at 0."""
        return round_up(matrix_bytes(self.qkv_rows, self.hidden_size, self.fmt), ALIGN_BYTES)

    @property
    def bias_offset_bytes(self) -> int:
        """Start of the q, k, v biases inside a head-group blob."""
        o_bytes = matrix_bytes(self.hidden_size, self.o_columns, self.fmt)
        return self.o_offset_bytes + round_up(o_bytes, ALIGN_BYTES)

    @property
    def head_group_bytes(self) -> int:
        """Size of one head-group blob."""
        bias_bytes = 4 * self.qkv_rows if self.qkv_bias else 0
        return self.bias_offset_bytes + round_up(bias_bytes, ALIGN_BYTES)

    # Column blob.

    @property
    def down_offset_bytes(self) -> int:
        """Start of the down columns inside a column blob; gate_up starts at 0."""
        gate_up_bytes = matrix_bytes(2 * COLUMNS_PER_ATOM, self.hidden_size, self.fmt)
        return round_up(gate_up_bytes, ALIGN_BYTES)

    @property
    def column_bytes(self) -> int:
        """Size of one column blob."""
        down_bytes = matrix_bytes(self.hidden_size, COLUMNS_PER_ATOM, self.fmt)
        return self.down_offset_bytes + round_up(down_bytes, ALIGN_BYTES)

    # Vocab and norm blobs.

    @property
    def vocab_bytes(self) -> int:
        """Size of one vocab blob."""
        return round_up(matrix_bytes(VOCAB_ROWS_PER_ATOM, self.hidden_size, self.fmt), ALIGN_BYTES)

    @property
    def layer_norms_bytes(self) -> int:
        """Size of one layer's norms blob: attn_norm, mlp_norm, then q_norm and k_norm if any."""
        n_floats = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        return round_up(4 * n_floats, ALIGN_BYTES)

    @property
    def final_norm_bytes(self) -> int:
        """Size of the final norm's blob."""
        return round_up(4 * self.hidden_size, ALIGN_BYTES)

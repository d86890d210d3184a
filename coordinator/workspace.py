"""The engine's buffers for steps of one number of rows: made once, used by every such step.

Everything a phase touches is here as a view, so that the hot path neither allocates nor asks
NumPy for shapes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from agent.frames import Wire, payload_offset

__all__ = ["Workspace"]


class Workspace:
    """Residual and STEP frame of steps with n_rows rows.

    Args:
        n_rows: rows of a step.
        hidden_size: D.

    Attributes:
        x: the residual, (n_rows, D) float32; `flat` and `flat_read` are views of all of it, the
            second read-only, so that kernels have one specialisation.
        frame: header, row table and room for the payload of a STEP in f32, the larger type.
        payload: the payload as (n,) numbers of each wire type.
        frames: the whole frame with a payload of each wire type.
        frame_arrays: the same as (n,) uint8.
    """

    def __init__(self, n_rows: int, hidden_size: int) -> None:
        n = n_rows * hidden_size
        self.n_rows = n_rows
        self.x = np.zeros((n_rows, hidden_size), np.float32)
        self.flat = self.x.reshape(-1)
        self.flat_read = self.x.reshape(-1)
        self.flat_read.flags.writeable = False
        start = payload_offset(n_rows)
        self.frame = bytearray(start + 4 * n)
        dtypes: dict[Wire, Any] = {Wire.F16: np.uint16, Wire.F32: np.float32}
        self.payload: dict[Wire, npt.NDArray[Any]] = {
            wire: np.frombuffer(self.frame, dtype, n, start) for wire, dtype in dtypes.items()
        }
        whole = memoryview(self.frame)
        self.frames = {w: whole[: start + p.nbytes] for w, p in self.payload.items()}
        self.frame_arrays = {w: np.frombuffer(f, np.uint8) for w, f in self.frames.items()}

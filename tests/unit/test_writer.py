"""A long prompt is many steps: whoever writes the text can be stopped between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from agent.ids import KvId
from agent.kv_ops import KvOp, KvOpCode
from agent.vocab_payload import SamplerRow
from coordinator.engine import Engine
from coordinator.rows import Rows, StepTimes
from coordinator.sampling import SamplingOptions
from coordinator.texts import Texts
from coordinator.writer import Writer
from kernels.errors import RemoteError
from tests.protocol.agent_harness import make_model


class Steps:
    """An engine that carries rows nowhere, slowly, and notes how many."""

    max_rows = 16
    ended = False

    def __init__(self) -> None:
        self.n_rows: list[int] = []
        self.released: list[KvId] = []

    def control_kv(self, ops: Sequence[KvOp]) -> None:
        self.released += [op.kv_id for op in ops if op.code is KvOpCode.RELEASE]

    def step(
        self,
        x: npt.NDArray[np.float32],
        rows: Rows,
        samplers: Sequence[SamplerRow],
        times: StepTimes,
    ) -> list[object]:
        assert not samplers, "the prompt was read to its end"
        self.n_rows.append(len(x))
        times.longest_dispatch_s = 0.25
        return []


def refuse(why: RemoteError) -> None:
    raise why


def test_a_text_can_be_ended_between_the_chunks_of_its_prompt(tmp_path: Path) -> None:
    engine = Steps()

    def check() -> None:
        if len(engine.n_rows) == 3:
            raise RemoteError("stopped")

    with make_model(tmp_path / "model") as directory:
        writer = Writer(
            Texts(lambda: cast("Engine", engine), refuse).new(KvId(7)), directory, None,
            [5] * 100, max_tokens=5, context_tokens=192,
            options=SamplingOptions(), stop=(), check=check,
        )  # fmt: skip
        with pytest.raises(RemoteError, match="stopped"):
            next(writer.tokens())
    assert engine.n_rows == [8, 8, 8]
    assert engine.released == [7]
    assert writer.result().finish_reason == "cancelled"

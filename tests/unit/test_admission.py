"""What agents may say of themselves when they join."""

import pytest
from msgspec.structs import replace

from agent.ids import AgentName, InstanceId
from agent.messages import Hello, Versions
from coordinator.admission import refusal

OURS = Versions("1", 1, 1, 1)
HELLO = Hello(AgentName("pi-1"), InstanceId("a"), OURS, 4, 4, 1 << 30, 1e9)


@pytest.mark.parametrize("usual", [{}, {"bytes_per_s": 0.0}, {"memory_bytes": 0}])
def test_what_boards_have_is_taken(usual: dict[str, float]) -> None:
    assert refusal(replace(HELLO, **usual), OURS) == ""


@pytest.mark.parametrize(
    "odd",
    [
        {"memory_bytes": 2**63}, {"memory_bytes": -1}, {"bytes_per_s": 1e-300},
        {"bytes_per_s": 1e16}, {"bytes_per_s": float("nan")}, {"n_threads": 0},
        {"n_cores": 1 << 40},
    ],
)  # fmt: skip
def test_numbers_that_no_board_has_are_refused(odd: dict[str, float]) -> None:
    assert refusal(replace(HELLO, **odd), OURS).endswith("use the same headwise release")

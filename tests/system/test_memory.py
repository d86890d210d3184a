"""How much memory an agent takes by itself, measured from outside."""

import pytest

from agent.compiler import IMAGES_VARIABLE
from tools.bench_memory import measure
from weights.demo import demo_path

# With kernels from images; and with numba in the process, besides LLVM's library. Of that one 72 MB
# are resident where it was read piece by piece, 114 MB where it was just installed: the kernel maps
# what a large folio of the page cache holds at once.
MOST_BYTES = 80_000_000
MOST_BYTES_BESIDES_LLVM = 115_000_000


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
def test_an_agent_stays_small(exact: bool) -> None:
    resident = measure(demo_path(), 200, exact).resident
    assert resident.weights_bytes > 0
    assert resident.kv_bytes > 0
    assert resident.own_bytes <= MOST_BYTES, resident
    assert not any("llvm" in name for name in resident.by_name)
    assert any(name.endswith(".image") for name in resident.by_name)


@pytest.mark.slow
def test_an_agent_that_compiles_for_itself_stays_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(IMAGES_VARIABLE, "0")
    measure(demo_path(), 1)  # whatever is to be compiled
    resident = measure(demo_path(), 200).resident
    llvm_bytes = sum(n for name, n in resident.by_name.items() if "llvm" in name)
    assert llvm_bytes > 0
    assert resident.own_bytes - llvm_bytes <= MOST_BYTES_BESIDES_LLVM, resident

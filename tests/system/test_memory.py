"""How much memory an agent takes by itself, measured from outside."""

import pytest

from agent.compiler import IMAGES_VARIABLE
from tools.bench_memory import measure
from weights.demo import demo_path

# With kernels from images.
MOST_BYTES = 80_000_000
# With numba in the process. How much of its libraries is resident is for the page cache to say: of
# LLVM's 72 MB where it was read piece by piece, 114 MB where it was just installed, of the others
# 25 and 42 MB, as the kernel maps what a large folio holds at once. So what is private is bounded,
# and how large the mapped libraries are besides LLVM's.
MOST_PRIVATE_BYTES = 85_000_000
MOST_LIBRARY_BYTES = 150_000_000


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
    assert resident.private_bytes <= MOST_PRIVATE_BYTES, resident
    libraries = resident.files()
    others = {file for file in libraries if "llvm" not in file.name}
    assert others < libraries
    assert sum(file.stat().st_size for file in others if file.exists()) <= MOST_LIBRARY_BYTES

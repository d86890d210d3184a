"""Kernels and an agent on an emulated aarch64 CPU, against this machine; `.ci/arm` prepares it.

Compiling takes ten times as long there, so everything starts at once, and what the agent needs is
compiled by the tests before.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.cluster import Cluster
from tests.system.conftest import ROOT
from tests.system.processes import AGENT, Command, free_port
from tools import cli

PYTHON_VARIABLE = "HEADWISE_ARM_PYTHON"
# An emulated process is done in two minutes on a quiet machine with four cores.
PATIENCE_S = 800.0
PROMPT = "Once upon a time"

pytestmark = [pytest.mark.arm, pytest.mark.timeout(900)]

# Prints residual and logits of a few rows, bit by bit, and whether bytes are multiplied by sdot.
STEP = """
import sys
import numpy as np
from agent.warm import warm_kernels
from kernels.layout import WeightFormat
from kernels.target import has
from tests.kernel_models import geometry, step_bits
g = geometry(fmt=WeightFormat.Q8, n_columns=150)
exact = sys.argv[1] == "exact"
if not exact:
    warm_kernels(g, "f16", True)
print(step_bits(g, np.float32 if exact else np.uint16, int8=not exact))
print(has("arm64"), has("arm64", "dotprod"), file=sys.stderr)
"""
KINDS = ("int8", "exact")
KERNEL_TESTS = {
    "cortex-a72": ["test_target.py", "test_int8.py"],
    "cortex-a76": ["test_target.py", "test_int8.py", "test_exchange.py", "test_vocab_kernels.py"],
}


class Board:
    """The emulated system: its interpreter, and what runs on it."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._cache = Path(python).parent / "cache"
        self._running: list[Command] = []

    def start(self, *words: str | Path, cpu: str = "cortex-a76") -> Command:
        """Start its interpreter with these arguments."""
        # Compiled kernels stay there, for the next run with the same sources.
        env = {"QEMU_CPU": cpu, "XDG_CACHE_HOME": str(self._cache), "NUMBA_CACHE_DIR": ""}
        self._running.append(Command(*words, program=(self._python,), env=env))
        return self._running[-1]

    def close(self) -> None:
        for command in self._running:
            command.close()


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    python = os.environ.get(PYTHON_VARIABLE)
    if not python:
        why = f"{PYTHON_VARIABLE} names no emulated interpreter: run .ci/arm"
        # CI must not pass without it.
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    board = Board(python)
    yield board
    board.close()


@pytest.fixture(scope="module")
def steps(board: Board) -> dict[str, Command]:
    """The same step in 8-bit activations and in float32, running."""
    return {kind: board.start("-c", STEP, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def kernel_tests(board: Board) -> dict[str, Command]:
    """The kernel tests on each CPU, running."""
    plain = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "600")
    return {
        cpu: board.start(*plain, *(ROOT / "tests/kernel" / name for name in names), cpu=cpu)
        for cpu, names in KERNEL_TESTS.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_has_the_same_bits_on_arm(
    steps: dict[str, Command], kernel_tests: dict[str, Command], kind: str
) -> None:
    words = [sys.executable, "-c", STEP, kind]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    here = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300, check=True)
    there = steps[kind]
    assert there.wait(PATIENCE_S) == 0, there.stderr
    assert there.stdout == here.stdout
    assert there.stderr.splitlines()[-1] == "True True"
    assert here.stderr.splitlines()[-1] == "False False"


def ids(cluster: Cluster) -> list[int | None]:
    return [token.id for token in cluster.generate(PROMPT, max_tokens=24)]


def join_file(root: Path, name: str, port: int) -> Path:
    words = ["--address", f"tcp://127.0.0.1:{port}", "--keys", str(root / "keys")]
    assert cli.main(["keys", "add", name, "-o", str(root / f"{name}.join"), *words]) == 0
    return root / f"{name}.join"


def test_an_agent_on_arm_writes_the_same_words(
    board: Board, steps: dict[str, Command], tmp_path: Path
) -> None:
    assert [step.wait(PATIENCE_S) for step in steps.values()] == [0, 0]
    keys, port = tmp_path / "keys", free_port()
    assert cli.main(["keys", "init", "--keys", str(keys)]) == 0
    files = [join_file(tmp_path, name, port) for name in ("pi", "pc")]
    board.start("-m", "agent", "--join", files[0], "--cache-dir", tmp_path / "pi", "--threads", "2")
    for exact in (True, False):
        with Cluster(local=1, exact=exact) as local:
            wanted = ids(local)
        assert len(wanted) == 24
        with Cluster(
            bind=f"tcp://127.0.0.1:{port}",
            keys=keys,
            exact=exact,
            wait_s=PATIENCE_S,
            place="spread",
        ) as cluster:
            assert cluster.agent_names() == ["pi"]
            assert ids(cluster) == wanted
            if exact:  # with a part of every layer on each machine
                words = ("--join", files[1], "--cache-dir", tmp_path / "pc", "--threads", "1")
                with Command(*words, program=AGENT):
                    cluster.control.wait_agents(2, 60.0)
                    cluster.install(cluster.make_plan())
                    assert sorted(cluster.weights_bytes()) == ["pc", "pi"]
                    assert ids(cluster) == wanted


@pytest.mark.parametrize("cpu", KERNEL_TESTS)
def test_kernel_tests_pass_on_arm(kernel_tests: dict[str, Command], cpu: str) -> None:
    there = kernel_tests[cpu]
    assert there.wait(PATIENCE_S) == 0, there.stdout
    assert " passed" in there.stdout
    assert "Illegal" not in there.stderr

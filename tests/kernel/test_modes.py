"""Runs the kernel tests again with bounds checks and with JIT off, and looks at the cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba import config

from kernels.jit import JIT_DISABLED

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    JIT_DISABLED or bool(config.BOUNDSCHECK), reason="these start the other modes"
)

# Starts kernels, runs one step and prints how many kernels had to be compiled for it.
ONE_STEP = """
import numpy as np
from kernels.layout import WeightFormat
from kernels.phases import run_stage
from kernels.row_table import prepare_rows
from tests.kernel_models import geometry, make_model, make_stage
stage = make_stage(make_model(geometry()))
stage.begin(np.zeros(1, np.int32), np.zeros(1, np.int32))
stage.run_layers(np.ones((1, 40), np.float32))
print(sum(sum(kernel.stats.cache_misses.values()) for kernel in (run_stage, prepare_rows)))
"""


def run(arguments: list[str], **environment: str) -> str:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def pytest_run(*extra: str, **environment: str) -> str:
    quiet = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return run([*quiet, str(Path(__file__).parent), *extra], **environment)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kernels_without_jit() -> None:
    assert " passed" in pytest_run(NUMBA_DISABLE_JIT="1")


# In parts, because each compiles its kernels anew: together they would take minutes.
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "chosen",
    [
        "whole_stage or partial_sums",
        "test_matvec and (0] or 1])",
        "test_matvec and (2] or 3])",
        "outside_an_array or candidates_sort or column_pair",
    ],
    ids=["stage", "floats", "quantised", "others"],
)
def test_kernels_with_bounds_checks(chosen: str) -> None:
    # numba's cache does not know the option, so this mode needs a directory of its own.
    cache = os.environ["NUMBA_CACHE_DIR"] + "-boundscheck"
    out = pytest_run("-k", chosen, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=cache)
    assert " passed" in out


def test_second_start_finds_everything_compiled() -> None:
    run(["-c", ONE_STEP])
    assert run(["-c", ONE_STEP]).split() == ["0"]


def test_cache_directory_depends_on_the_sources(tmp_path: Path) -> None:
    environment = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path)}
    show = ["-c", "import os, kernels; print(os.environ['NUMBA_CACHE_DIR'])"]
    chosen = Path(run(show, **environment).strip())
    assert chosen.parent == tmp_path / "headwise" / "numba"
    assert chosen.stat().st_mode & 0o077 == 0
    assert run(show, **environment | {"NUMBA_CACHE_DIR": "/elsewhere"}).strip() == "/elsewhere"


def test_cache_directory_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    environment = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    show = ["-c", "import os, kernels; print(os.environ['NUMBA_CACHE_DIR'])"]
    chosen = Path(run(show, **environment).strip())
    chosen.chmod(0o777)
    other = Path(run(show, **environment).strip())
    assert other != chosen
    assert other.stat().st_mode & 0o022 == 0

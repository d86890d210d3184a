"""Carries out a benchmark: what is measured, whether it fits, in which order.

All configurations are measured once in each repeat, and the bandwidth of memory before and after
each of them on the same threads, so that what else the machine does meets all alike.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent.memory import available_memory_bytes
from agent.resources import memory_budget_bytes
from kernels.errors import ResourceError
from kernels.inlining import compile_faster
from kernels.pool import Pool
from tools.bandwidth import ReadBuffer, buffer_bytes
from tools.bench_model import BenchModel, Setup, load_kernels, runtime_bytes
from tools.bench_rows import Case, Sample
from weights.directory import ModelDirectory
from weights.manifest import DType, Manifest
from weights.random_model import making_bytes, random_manifest, random_weights

__all__ = [
    "Bench",
    "Models",
    "Start",
    "check_memory",
    "measure",
    "open_bench",
    "start_kernels",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """One model in one or more weight formats; random unless it has a directory."""

    name: str
    manifests: dict[str, Manifest]
    directory: ModelDirectory | None = None

    @classmethod
    def stored(cls, path: Path) -> "Models":
        """Open a model directory; raises ModelError."""
        directory = ModelDirectory.open(path)
        return cls(
            directory.manifest.name, {directory.manifest.dtype: directory.manifest}, directory
        )

    @classmethod
    def random(cls, config_path: Path, dtypes: Sequence[DType]) -> "Models":
        """Return models of a config's shape; raises ModelError."""
        manifests: dict[str, Manifest] = {
            dtype: random_manifest(config_path, dtype) for dtype in dtypes
        }
        return cls(f"random, shape of {config_path.name}", manifests)

    def weights(self, dtype: str) -> npt.NDArray[np.uint8]:
        """Return the weights in one format, mapped or made up."""
        if self.directory is not None:
            return self.directory.weights
        log.info("making up weights dtype=%s", dtype)
        return random_weights(self.manifests[dtype])


class Start(NamedTuple):
    """How the kernels came.

    Attributes:
        start_s: from the start of the process to the first result, in the first weight format.
        cache: whether the kernels of that result came from the cache (warm) or not (cold).
        load_s: what all formats took together.
        compiled: the formats that had to be compiled.
    """

    start_s: float
    cache: str
    load_s: float
    compiled: tuple[str, ...]


def start_kernels(models: Models, setup: Setup) -> Start:
    """Load or compile the kernels of every format."""
    compile_faster()
    started_s = time.perf_counter()
    start_s, compiled = 0.0, []
    for dtype, manifest in models.manifests.items():
        if not load_kernels(manifest.geometry, setup):
            compiled.append(dtype)
        start_s = start_s or _process_age_s()
    cache = "cold" if next(iter(models.manifests)) in compiled else "warm"
    return Start(start_s, cache, time.perf_counter() - started_s, tuple(compiled))


def _process_age_s() -> float:
    """Return how long ago this process started, to 10 ms."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def check_memory(
    models: Models,
    setup: Setup,
    threads: Sequence[int],
    cache_bytes: int,
    peers_bytes: int = 0,
) -> None:
    """Make sure that everything fits, before any of it is there.

    Args:
        models: what is measured.
        setup: how it is run.
        threads: the numbers of threads.
        cache_bytes: of the last-level caches.
        peers_bytes: what others take at the same time for being compared with.

    Raises:
        ResourceError: it does not.
    """
    manifests = models.manifests.values()
    weights_bytes = sum(manifest.weights_bytes for manifest in manifests)
    need_bytes = weights_bytes + buffer_bytes(cache_bytes) + peers_bytes
    need_bytes += len(threads) * sum(runtime_bytes(manifest, setup) for manifest in manifests)
    if models.directory is None:
        need_bytes += max(making_bytes(manifest.geometry) for manifest in manifests)
    free_bytes = memory_budget_bytes(available_memory_bytes(), None)
    if need_bytes > free_bytes:
        raise ResourceError(
            f"measuring {', '.join(models.manifests)} takes {_mib(need_bytes)} of memory, "
            f"{_mib(weights_bytes)} of it weights, and {_mib(free_bytes)} are free; ask for fewer "
            f"formats (--dtype) at once, shorter contexts (-d, -p, -n) or a smaller model"
        )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.0f} MiB"


def measure(
    models: Models, cases: Sequence[Case], setup: Setup, n_repeats: int, cache_bytes: int
) -> dict[Case, list[Sample]]:
    """Measure every case n_repeats times, interleaved.

    Raises:
        HeadwiseError: too little memory after all, or wrong numbers.
    """
    samples: dict[Case, list[Sample]] = {case: [] for case in cases}
    with open_bench(models, cases, setup, cache_bytes) as bench:
        for repeat in range(n_repeats):
            # There and back: whatever drifts within a repeat meets first and last cases alike.
            for case in cases if repeat % 2 == 0 else reversed(cases):
                sample = bench.sample(case)
                samples[case].append(sample)
                log.info(
                    "repeat=%d of=%d %s tokens_per_s=%.2f read_bytes_per_s=%.3g", repeat + 1,
                    n_repeats, case, case.n_tokens / sample.seconds, sample.read_bytes_per_s,
                )  # fmt: skip
    return samples


class Bench(NamedTuple):
    """Everything that is measured, by weight format and number of threads."""

    models: dict[tuple[str, int], BenchModel]
    pools: dict[int, Pool]
    buffer: ReadBuffer

    def sample(self, case: Case) -> Sample:
        """Measure a case once."""
        model, pool = self.models[case.dtype, case.threads], self.pools[case.threads]
        before = self.buffer.bytes_per_s(pool)
        # Brings threads, pages and what fits the cache back from reading the buffer.
        model.decode_s(case.depth, 1)
        if case.phase == "pp":
            seconds = model.prefill_s(case.depth, case.n_tokens)
            n_bytes = model.prefill_bytes(case.depth, case.n_tokens)
        else:
            seconds = model.decode_s(case.depth, case.n_tokens)
            n_bytes = model.decode_bytes(case.depth, case.n_tokens)
        after = self.buffer.bytes_per_s(pool)
        return Sample(seconds, n_bytes, (before + after) / 2)


@contextlib.contextmanager
def open_bench(
    models: Models, cases: Sequence[Case], setup: Setup, cache_bytes: int
) -> Iterator[Bench]:
    """Set everything up; the threads end with the context."""
    with contextlib.ExitStack() as stack:
        pools = {n: Pool(n) for n in dict.fromkeys(case.threads for case in cases)}
        for pool in pools.values():
            stack.callback(pool.close)
        try:
            made: dict[tuple[str, int], BenchModel] = {}
            for dtype, manifest in models.manifests.items():
                store = models.weights(dtype)
                for n, pool in pools.items():
                    made[dtype, n] = BenchModel(manifest, store, setup, pool)
            yield Bench(made, pools, ReadBuffer(buffer_bytes(cache_bytes)))
        except MemoryError as e:
            raise ResourceError(f"out of memory: {e}; ask for less at once") from e

"""`headwise agent --warm`: kernels compiled when an agent is installed, and what may hinder it."""

import itertools
import logging
import os
import re
import sys
import types
from pathlib import Path

import pytest

import agent.warm
import agent.warm_all
import kernels.target
from agent.warm_all import KERNEL_SETS
from kernels.errors import ResourceError
from kernels.layout import WeightFormat
from kernels.target import PLAIN_VARIABLE, describe
from tests.system.processes import AGENT, Command

# The first of all sets alone: all of them take minutes.
ONE_SET = """
import sys
import agent.warm_all
agent.warm_all.KERNEL_SETS = agent.warm_all.KERNEL_SETS[:1]
from agent.main import main
sys.exit(main())
"""


def test_every_plan_finds_its_kernels_among_those_that_are_warmed() -> None:
    quantised = (WeightFormat.Q8, WeightFormat.Q4)
    asked = {
        (fmt, kv, wire == "f16" and fmt in quantised)
        for fmt, kv, wire in itertools.product(WeightFormat, ("f16", "f32"), ("f16", "f32"))
    }
    assert set(KERNEL_SETS) == asked
    assert len(KERNEL_SETS) == len(asked)


def test_the_choice_of_target_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for cache in (kernels.target._features, agent.warm.log_target):
        cache.cache_clear()
    monkeypatch.setenv(PLAIN_VARIABLE, "plain")
    try:
        with caplog.at_level(logging.INFO):
            agent.warm.log_target()
            agent.warm.log_target()
        (line,) = caplog.messages
        assert line.startswith("kernel target cpu=")
        assert line.endswith(" features=none lowerings=plain")
    finally:
        kernels.target._features.cache_clear()


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"x86", "avx2", "f16c", "sse4.2"}, "features=avx2,f16c lowerings=avx2,f16c"),
        ({"x86", "avx2", "avxvnni"}, "features=avx2,avxvnni lowerings=vnni"),
        ({"arm64", "dotprod", "neon"}, "features=dotprod lowerings=dotprod,fcvtl"),
        ({"arm64", "avx2"}, "features=avx2 lowerings=smull,fcvtl"),
        (set(), "features=none lowerings=plain"),
    ],
)
def test_a_target_is_described_by_what_is_made_of_it(
    monkeypatch: pytest.MonkeyPatch, features: set[str], expected: str
) -> None:
    monkeypatch.setattr(kernels.target, "_features", lambda: frozenset(features))
    assert re.fullmatch(rf"cpu=\S+ {expected}", describe())


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with Command("--warm", program=AGENT, env={"NUMBA_CACHE_DIR": str(tmp_path / "k")}) as command:
        assert command.wait() == 1
        assert "error: no directory that this user alone can write" in command.stderr


def test_a_cache_that_others_can_write_is_an_error(tmp_path: Path) -> None:
    """Cached kernels are code: whoever can write them is this user."""
    place = tmp_path / "kernels"
    place.mkdir()
    place.chmod(0o777)
    with Command("--warm", program=AGENT, env={"NUMBA_CACHE_DIR": str(place)}) as command:
        assert command.wait() == 1
        assert "error: no directory that this user alone can write" in command.stderr
    assert list(place.rglob("*.nb*")) == []


def test_a_lock_that_is_held_for_ever_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "F32-f32.warm"
    monkeypatch.setattr(agent.warm, "LOCK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(agent.warm, "LOCK_POLL_S", 0.01)
    with agent.warm._compiling_once(marker):
        waited = rf"another process has held {tmp_path}/compile\.lock for 0\.2 s"
        with pytest.raises(ResourceError, match=waited), agent.warm._compiling_once(marker):
            raise AssertionError("two hold the lock")
    assert marker.exists()


def test_who_holds_the_lock_has_time_while_kernels_get_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "F32-f32.warm"
    clock_s, looks = iter(range(0, 10_000, 100)), itertools.count()

    def look(_: float) -> None:
        look = next(looks)
        if look == 20:  # 2000 s
            marker.touch()
        elif look % 5 == 0:
            os.utime(tmp_path, ns=(look, look))

    clock = types.SimpleNamespace(monotonic=lambda: next(clock_s), sleep=look)
    monkeypatch.setattr(agent.warm, "time", clock)
    with agent.warm._compiling_once(marker), agent.warm._compiling_once(marker):
        assert marker.exists()
    assert next(looks) == 21


def test_nothing_is_warmed_without_a_compiler() -> None:
    with Command("--warm", program=AGENT, env={"NUMBA_DISABLE_JIT": "1"}) as command:
        assert command.wait() == 1
        assert "error: NUMBA_DISABLE_JIT is set" in command.stderr


@pytest.mark.slow
def test_what_is_warmed_is_kept(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    for expected in (r"kv f\d\d: compiled in \d", r"kv f\d\d: in the cache already"):
        with Command("--warm", "-v", program=(sys.executable, "-c", ONE_SET), env=env) as command:
            assert command.wait() == 0, command.stderr
            assert len(command.stdout.splitlines()) == 2
            command.until("stdout", expected)
            command.until("stdout", f"1 sets of kernels are ready .*{tmp_path}")
            assert command.stderr.count("kernel target cpu=") == 1

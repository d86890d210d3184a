"""The life of agent processes: joining, leaving, losing the coordinator, refusing nonsense."""

import contextlib
import os
import signal
import sys
import time

import pytest

from agent.frames import FrameType, Phase
from agent.kv_ops import KvOp, KvOpCode
from agent.messages import (
    Bye,
    Failed,
    Heartbeat,
    Hello,
    Ready,
    Refused,
    Release,
    Shutdown,
    Versions,
)
from agent.versions import our_versions
from tests.protocol.agent_harness import (
    ROOT,
    AgentProcess,
    TinyCoordinator,
    assignment,
    make_model,
    running,
)
from tests.protocol.test_agent_steps import numbers

# An agent whose kernels never return, to be ended all the same.
STUCK = """
import sys, time
import agent.stepper
agent.stepper.Stepper.step = lambda self, header: time.sleep(3600)
from agent.main import main
sys.exit(main())
"""
# An agent that may import nothing beyond the base set, and of that no compiler.
BASE_ONLY = """
import sys

class Forbid:
    NAMES = {"tokenizers", "torch", "jinja2", "safetensors", "transformers", "msgpack", "numba",
             "llvmlite", "huggingface_hub", "coordinator", "tools", "hypothesis", "pytest"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.NAMES:
            raise ImportError(f"an agent must not import {name}")

sys.meta_path.insert(0, Forbid())
from agent.main import main
code = main()
loaded = {name.partition(".")[0] for name in sys.modules}
print("imported", sorted(Forbid.NAMES & loaded), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("process") / "model") as directory:
        yield directory


def script(tmp_path, text):
    path = tmp_path / "agent_script.py"
    path.write_text(text)
    return {
        "program": [sys.executable, str(path)],
        "env": {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    }


def test_sigterm_says_bye_and_the_next_start_finds_the_cache(directory, tmp_path):
    for found_in_cache in (False, True):
        with running(directory, tmp_path) as (coordinator, agent):
            assert (coordinator.join().pulled_bytes == 0) is found_in_cache
            agent.popen.send_signal(signal.SIGTERM)
            assert coordinator.until(Bye).reason == "SIGTERM"
            assert agent.wait(2.0) == 0
            assert "Traceback" not in agent.log


def test_an_agent_inside_a_kernel_can_be_ended(directory, tmp_path):
    with running(directory, tmp_path, **script(tmp_path, STUCK)) as (coordinator, agent):
        coordinator.join()
        coordinator.kv(KvOp(KvOpCode.OPEN, 1, 10))
        coordinator.send(coordinator.header(FrameType.STEP), [(1, 0)], b"\0" * 128)
        coordinator.until(Heartbeat)
        agent.popen.send_signal(signal.SIGINT)
        coordinator.until(Bye)
        assert agent.wait(2.5) == 0


def test_an_agent_inside_a_kernel_leaves_with_its_parent(directory, tmp_path):
    read_fd, write_fd = os.pipe()
    extra = ["--leave-with-fd", str(read_fd)]
    with running(directory, tmp_path, *extra, **script(tmp_path, STUCK)) as (coordinator, agent):
        os.close(read_fd)
        coordinator.join()
        coordinator.send(coordinator.header(FrameType.STEP), [(1, 0)], b"\0" * 128)
        os.close(write_fd)
        assert agent.wait(2.0) == 0


def test_the_base_set_is_enough(directory, tmp_path):
    extra = ["--model-dir", str(directory.directory.parent)]
    with running(directory, tmp_path, *extra, **script(tmp_path, BASE_ONLY)) as (
        coordinator,
        agent,
    ):
        ready = coordinator.join()
        assert isinstance(ready, Ready)
        assert ready.pulled_bytes == 0
        assert not (tmp_path / "cache").exists()
        coordinator.kv(KvOp(KvOpCode.OPEN, 1, 10))
        header, _ = coordinator.step(Phase.STAGE, 0, numbers(1), [(1, 0)])
        assert header.type is FrameType.RESIDUAL
        coordinator.tell(Shutdown("done", leave=True))
        assert agent.wait(3.0) == 0
        assert "imported []" in agent.log


def test_plans_come_and_go_on_one_hot_link(directory, tmp_path):
    with running(directory, tmp_path) as (coordinator, agent):
        half = {"groups": (0, 1), "columns": (0, 2), "vocab": (1, 1)}
        ready = coordinator.join(assignment(directory, coordinator.run_id, **half))
        rest = assignment(directory, coordinator.run_id, 2, 1, groups=(1, 1), columns=(2, 2))
        both = coordinator.assign(rest, (Ready, Failed))
        assert 0 < both.pulled_bytes < rest.manifest_bytes + ready.pulled_bytes * 4
        coordinator.routes[0] = coordinator.routes[1]
        for epoch in (1, 2):
            coordinator.kv(KvOp(KvOpCode.OPEN, 1, 10), epoch=epoch)
            header, _ = coordinator.step(Phase.MLP, 1, numbers(1), [(1, 0)], epoch=epoch)
            assert (header.type, header.epoch, header.rank) == (FrameType.PARTIAL, epoch, epoch - 1)
        header, payload = coordinator.step(Phase.STAGE, 0, numbers(1), [(1, 0)], epoch=2)
        assert b"does not hold all atoms" in payload
        third = coordinator.assign(assignment(directory, coordinator.run_id, 3), (Ready, Failed))
        assert third == Failed(3, "2 epochs are held already; release one first")
        coordinator.tell(Release(1))
        assert isinstance(
            coordinator.assign(assignment(directory, coordinator.run_id, 4), (Ready, Failed)), Ready
        )
        assert "Traceback" not in agent.log


def test_a_new_coordinator_finds_the_weights_still_there(directory, tmp_path):
    first = TinyCoordinator(directory)
    agent = AgentProcess(tmp_path / "cache", first.port)
    try:
        with contextlib.closing(first):
            ready = first.join()
            hello = first.seen[0]
        second = TinyCoordinator(directory, run_id=99, control_port=first.port)
        with contextlib.closing(second):
            again = second.join()
            assert (ready.pulled_bytes > 0, again.pulled_bytes) == (True, 0)
            assert second.seen[0] == hello
            # A frame of the former run is not taken for one of this run.
            second.send(second.header(FrameType.STEP, run_id=first.run_id), [(1, 0)], b"\0" * 128)
            header, _ = second.step(Phase.MLP, 0, numbers(1), [(1, 0)])
            assert header.type is FrameType.ERROR
        assert "lost the coordinator" in agent.log
    finally:
        agent.close()


def test_a_refusal_ends_the_process_with_its_reason(directory, tmp_path):
    with running(directory, tmp_path, name="pi-1") as (coordinator, agent):
        assert coordinator.until(Hello).name == "pi-1"
        coordinator.tell(Refused("the name 'pi-1' is taken"))
        assert agent.wait(3.0) == 1
        assert "refused this agent: the name 'pi-1' is taken" in agent.log


def test_another_version_ends_the_process_with_both(directory, tmp_path):
    with running(directory, tmp_path) as (coordinator, agent):
        assert coordinator.until(Hello).versions == our_versions()
        coordinator.welcome(versions=Versions("9.9", 2, 1, 1))
        assert agent.wait(3.0) == 1
        assert "protocol version 1, the coordinator (9.9) 2" in agent.log


def test_assignments_that_cannot_be_carried_out_are_refused(directory, tmp_path):
    with running(directory, tmp_path, "--memory", "150K") as (coordinator, agent):
        run_id = coordinator.run_id
        failed = coordinator.join(assignment(directory, run_id))
        assert failed.reason.startswith("the plan asks for 1")
        assert "this agent offers 153600 bytes" in failed.reason
        small = {"vocab": (0, 0), "context_tokens": 64, "kv_tokens": 64, "n_contexts": 1}
        cases = [
            (small | {"model_id": "0" * 32}, "does not grant the manifest"),
            (small | {"model_id": "../../etc"}, "is no hash"),
            (small | {"groups": (1, 2)}, "head group of layer 0s 1 to 2"),
            (small | {"columns": (0, 1 << 40)}, "beyond the model's 4"),
            (small | {"max_rows": 100_000}, "max_rows 100000; 1 to 512"),
            (small | {"context_tokens": 0}, "context_tokens 0"),
        ]
        for epoch, (changes, text) in enumerate(cases, 2):
            told = assignment(directory, run_id, epoch, **changes)
            failed = coordinator.assign(told, (Ready, Failed))
            assert isinstance(failed, Failed)
            assert text in failed.reason
        told = assignment(directory, run_id, 20, **small)
        assert isinstance(coordinator.assign(told, (Ready, Failed)), Ready)
        assert "Traceback" not in agent.log


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--coordinator", "pi:1"], 1, "error: 'pi:1' is no coordinator address"),
        (["--coordinator", "tcp://pi:1", "--name", "a/b"], 1, "error: 'a/b' is no agent name"),
        (["--coordinator", "tcp://pi:1", "--threads", "0"], 1, "error: --threads 0; 1 to 256"),
        (["--coordinator", "tcp://pi:1", "--leave-with-fd", "77"], 1, "77 is no open file"),
        (["--coordinator", "tcp://pi:1", "--memory", "much"], 2, "'much' is no size"),
        ([], 2, "required: --coordinator"),
    ],
)
def test_wrong_arguments(capsys, arguments, code, text):
    from agent.main import add_arguments, run
    from agent.shell import run_verb

    try:
        got = run_verb("headwise agent", "x", (add_arguments, run), arguments)
    except SystemExit as e:
        got = e.code
    assert got == code
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_a_closed_port_is_told_within_10_s(directory, tmp_path):
    agent = AgentProcess(tmp_path / "cache", 1)
    try:
        deadline_s = time.monotonic() + 20
        while "no answer from the coordinator at tcp://127.0.0.1:1" not in agent.log:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    finally:
        agent.close()

"""The commands as people type them: real processes, their stdout, stderr and exit codes."""

import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.ids import AgentName, ModelId
from agent.share import count_atoms
from coordinator.plan import decode_plan, encode_plan
from coordinator.random_plan import random_plan
from tests.system.conftest import DATA, ROOT
from tests.system.processes import AGENT, HEADWISE, Command, Words, free_port
from tools.cli import main
from weights.demo import demo_path
from weights.directory import ModelDirectory
from weights.tokenizer import Tokenizer

Capture = pytest.CaptureFixture[str]

COORDINATOR = (sys.executable, "-m", "coordinator")
CONVERT = (sys.executable, str(ROOT / "tools" / "convert.py"))
ONCE = ["-p", "Once upon a time", "-n", "12"]


def finished(*words: str | Path, program: tuple[str, ...] = HEADWISE) -> Command:
    """Run a command to its end, which must be a good one."""
    with Command(*words, program=program) as command:
        assert command.wait() == 0, command.stderr
    return command


def said(capsys: Capture, *words: str | Path) -> str:
    """Run a verb in this process (its agents are others) and return its stdout."""
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def demo_tokenizer() -> Tokenizer:
    return Tokenizer(ModelDirectory.open(demo_path()))


@pytest.fixture(scope="module")
def story() -> dict[str, Any]:
    """What the demo model writes after ONCE on three local agents, as --json tells it."""
    command = finished("run", *ONCE, "--local", "3", "--exact", "--json", "--stats")
    assert command.stdout.count("\n") == 1
    result: dict[str, Any] = json.loads(command.stdout)
    # The text streams to stderr, after a line for each agent and before the speed.
    assert result["text"] + "\n" in command.stderr
    lines = command.stderr.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["local-1", "local-2", "local-3"]
    assert re.search(r"12 tokens at [\d.]+ tokens/s, .*; end: length", lines[-1])
    return result


def test_json_is_one_object_with_everything_in_it(story: dict[str, Any]) -> None:
    assert set(story) == {
        "text", "token_ids", "prompt_token_ids", "finish_reason", "timings", "plan",
    }  # fmt: skip
    tokenizer = demo_tokenizer()
    assert story["prompt_token_ids"] == tokenizer.encode("Once upon a time")
    assert len(story["token_ids"]) == 12
    assert story["finish_reason"] == "length"
    whole = tokenizer.decode(story["prompt_token_ids"] + story["token_ids"])
    assert whole == "Once upon a time" + story["text"]


def test_json_timings_and_plan(story: dict[str, Any]) -> None:
    timings = story["timings"]
    shares = [timings[f"{part}_share"] for part in ("kernels", "exchange", "coordinator")]
    assert all(share > 0 for share in shares)
    assert sum(shares) == pytest.approx(1.0)
    assert timings["prefill_s"] > 0
    assert timings["decode_s"] > 0
    assert timings["time_to_first_token_s"] == timings["prefill_s"]
    assert timings["decode_tokens_per_s"] == pytest.approx(11 / timings["decode_s"])
    # One chunk of prompt and 11 tokens, each 6 layers of attention and MLP and the vocabulary.
    assert (timings["n_steps"], timings["n_phases"]) == (12, 12 * 13)
    plan = decode_plan(json.dumps(story["plan"]).encode())
    assert [member.agent for member in plan.members] == ["local-1", "local-2", "local-3"]
    assert (plan.wire, plan.kv) == ("f32", "f32")


def test_text_goes_to_stdout_and_nothing_to_stderr(story: dict[str, Any]) -> None:
    command = finished(*ONCE, "--exact", "--echo", program=COORDINATOR)
    assert command.stdout == "Once upon a time" + story["text"] + "\n"
    assert command.stderr == ""


def test_prompt_ids_are_the_same_prompt(capsys: Capture, story: dict[str, Any]) -> None:
    ids = ",".join(map(str, story["prompt_token_ids"]))
    result = json.loads(said(capsys, "run", "--prompt-ids", ids, "-n", "12", "--exact", "--json"))
    assert result["prompt_token_ids"] == story["prompt_token_ids"]
    assert result["token_ids"] == story["token_ids"]
    assert result["text"] == story["text"]


def test_an_empty_prompt_is_bos_alone(capsys: Capture) -> None:
    result = json.loads(said(capsys, "run", "-n", "3", "--json"))
    assert result["prompt_token_ids"] == [1]
    assert len(result["token_ids"]) == 3
    assert not result["text"].startswith(" ")


def test_plan_prints_who_would_hold_what(capsys: Capture) -> None:
    lines = said(capsys, "plan", "--agents", "3").splitlines()
    assert lines[0].split()[:2] == ["agent", "layers"]
    assert any(line.startswith("local-1 ") for line in lines)
    assert any(re.match(r"predicted: [\d.]+ ms per token", line) for line in lines)
    # What it beat: every number of agents, one of them chosen.
    assert sum(line.endswith("chosen") for line in lines) == 1
    assert [line[0] for line in lines[-3:]] == ["1", "2", "3"]


def test_a_plan_of_a_file_of_boards_runs(
    tmp_path: Path, capsys: Capture, story: dict[str, Any]
) -> None:
    boards = [
        {"name": "local-1", "memory": "2G", "bytes_per_s": 1e9},
        {"name": "local-2", "memory": 3 << 30, "bytes_per_s": 4e9, "threads": 4},
    ]
    (tmp_path / "boards.json").write_text(json.dumps(boards))
    options: Words = ["--agents", tmp_path / "boards.json", "--place", "spread", "--exact"]
    made = said(capsys, "plan", *options, "--json")
    (tmp_path / "plan.json").write_text(made)
    ran = said(capsys, "run", *ONCE, "--plan", tmp_path / "plan.json", "--local", "2", "--json")
    result = json.loads(ran)
    assert result["plan"] == json.loads(made)
    assert result["token_ids"] == story["token_ids"]
    # The fast board holds more.
    plan = decode_plan(made.encode())
    n_columns = {str(m.agent): count_atoms(m.layers[0].columns) for m in plan.members}
    assert n_columns["local-2"] > n_columns["local-1"] > 0


def test_the_script_of_convert_makes_a_model_that_runs_from_ids(
    tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    done = finished(DATA / "qwen2", out, "--dtype", "q8", program=CONVERT)
    assert done.stdout.startswith(f"{out}: qwen2, q8, ")
    ran = said(capsys, "run", "-m", out, "--prompt-ids", "5,6,7", "-n", "4")
    # Without a tokenizer the ids themselves are the text.
    assert re.fullmatch(r"(\d+ ){4}\n", ran)


def test_the_five_lines_of_the_readme() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "from coordinator import Cluster" in blocks[0]
    done = subprocess.run(
        [sys.executable, "-c", blocks[0]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) > 10


def two_boards(path: Path) -> Path:
    """Write a plan for pi-1 and pi-2, so that what each holds does not depend on its speed."""
    with ModelDirectory.open(demo_path()) as model:
        model_id, geometry = ModelId(model.model_id), model.geometry
    names = [AgentName("pi-1"), AgentName("pi-2")]
    plan = random_plan(
        random.Random(1), model_id, geometry, names, max_stages=1, wire="f32", kv="f32"
    )
    path.write_bytes(encode_plan(plan))
    return path


def test_agents_dial_in_pull_their_weights_and_keep_them(
    tmp_path: Path, story: dict[str, Any]
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    plan = two_boards(tmp_path / "plan.json")
    run: Words = ["run", *ONCE, "--bind", endpoint, "--min-agents", "2", "--plan", plan, "--json"]
    join: Words = ["--coordinator", endpoint, "--threads", "1", "-v"]
    loaded = r"weights_bytes=(\d+) .* pulled_bytes=(\d+)"
    pulled = []
    with Command(*join, "--name", "pi-2", "--model-dir", demo_path(), program=AGENT) as mapper:
        for _ in range(2):
            puller = Command(*join, "--name", "pi-1", "--cache-dir", tmp_path, program=AGENT)
            with Command(*run) as coordinator, puller:
                assert coordinator.wait() == 0, coordinator.stderr
                assert json.loads(coordinator.stdout)["token_ids"] == story["token_ids"]
                pulled.append(puller.until("stderr", loaded).groups())
                # Agents that dialled in outlive the run and wait for the next one.
                puller.until("stderr", "the coordinator ended its run|lost the coordinator")
                assert puller.popen.poll() is mapper.popen.poll() is None
                puller.signal(signal.SIGTERM)
                assert puller.wait() == 0
        assert [found[1] for found in re.findall(loaded, mapper.stderr)] == ["0", "0"]
    weights_bytes = pulled[0][0]
    assert int(weights_bytes) > 100_000
    assert pulled == [(weights_bytes, weights_bytes), (weights_bytes, "0")]


@pytest.mark.parametrize("verb", ["run", "agent", "plan", "verify", "convert"])
def test_every_verb_explains_itself(verb: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: headwise {verb}" in capsys.readouterr().out


def test_wrong_usage_ends_with_code_2() -> None:
    for words in (["run", "--no-such-option"], ["sing"]):
        with Command(*words) as command:
            assert command.wait() == 2
            assert command.stdout == ""
            assert "Traceback" not in command.stderr

"""Prompts, plans, boards and options that cannot be served, through the commands."""

import json
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from _pytest.mark import ParameterSet

from agent.ids import AgentName, ModelId
from agent.share import AtomRange
from coordinator.local import local_names
from coordinator.plan import Plan, encode_plan
from coordinator.random_plan import random_plan
from tests.system.bad_input import error_of
from tests.system.processes import AGENT, Command, Words, free_port
from weights.demo import demo_path
from weights.directory import ModelDirectory

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def demo() -> Iterator[ModelDirectory]:
    with ModelDirectory.open(demo_path()) as model:
        yield model


def slow(*values: Any) -> ParameterSet:
    """Mark a case that starts agents only to be told what a unit test tells as well."""
    return pytest.param(*values, marks=pytest.mark.slow)


# Options that are refused before any process starts.


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("run --temp nan", "temperature is nan; it must be 0 (greedy) or 0.001 to 1000"),
        ("run --temp -1", "temperature is -1.0"),
        ("run --top-k -1", "top-k is -1; it must be 0 (all tokens) or more"),
        ("run --top-p 0", "top-p is 0.0"),
        ("run --top-p 1.5", "top-p is 1.5"),
        ("run --min-p 2", "min-p is 2.0; it must be 0 (all tokens) to 1"),
        ("run --repeat-penalty 0", "repeat penalty is 0.0"),
        ("run --repeat-last-n -1", "repeat-last-n is -1"),
        ("run --seed -1", "seed is -1"),
        ("run --local 1000", "--local 1000; 1 to 64 are possible"),
        ("run --local -3", "--local -3; 1 to 64 are possible"),
        ("run --local 0", "--local 0; 1 to 64 are possible"),
        ("run --bind tcp://127.0.0.1:7070 --wait-s nan", "nan"),
        ("run -c 100000", "context of 100000 tokens; this model allows 2 to 512"),
        ("run -c 1", "context of 1 tokens; this model allows 2 to 512"),
        ("run --bind 10.0.0.1", "cannot bind '10.0.0.1'; write it like tcp://127.0.0.1:7070"),
        ("run --bind tcp://no-host.invalid:7070 --insecure", "need keys: run `headwise keys init`"),
        ("run --bind tcp://0.0.0.0:7070 --insecure", "--insecure is for loopback addresses only"),
        ("run --bind tcp://127.0.0.1:65535", "ports 1 to 65533 leave room for the next two"),
        ("run --prompt-ids 1,two", "--prompt-ids '1,two' is no list of ids; write it like 1,403"),
        ("run -p a --prompt-ids 1", "give either --prompt or --prompt-ids"),
        ("run --plan no-such-plan.json", "plan file no-such-plan.json cannot be read"),
        ("plan --agents 0", "--agents 0; 1 to 64 are possible"),
        ("plan --agents no-such-file", "'no-such-file' is neither a count nor a file"),
        ("plan -c 513", "context of 513 tokens; this model allows 2 to 512"),
        ("plan --hop-ms -1", "-1"),
        ("plan --hop-ms nan", "nan"),
        ("plan --link-mbit 0", "0"),
        ("verify --agents 1,x", "--agents '1,x' is no list of counts; write it like 1,2,3,5"),
        ("verify --agents 0", "--agents '0'; each count is 1 to 64"),
        ("agent --coordinator pi.local:7070", "pi.local:7070"),
        ("agent --coordinator tcp://127.0.0.1:99999", "99999"),
        ("agent --coordinator tcp://127.0.0.1:7070 --name ../x", "../x"),
        ("agent --coordinator tcp://127.0.0.1:7070 --threads 0", "--threads 0; 1 to 256 are"),
    ],
)
def test_options(capsys: Capture, words: str, text: str) -> None:
    assert text in error_of(capsys, *words.split())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--prompt-ids", "1,1024"], "prompt token 1024 is outside the vocabulary of 1024"),
        slow(["--prompt-ids=-1"], "prompt token -1 is outside the vocabulary of 1024"),
        slow(["--prompt-ids", ""], "the prompt has no tokens; give at least one"),
        slow(["-n", "0"], "max tokens is 0; ask for at least 1"),
        slow(["--stop", ""], "a stop string is empty"),
        (["-c", "16", "-p", "One day, " * 8], "but the context holds 16, and at least one is"),
    ],
)
def test_prompts(capsys: Capture, options: list[str], text: str) -> None:
    """They need the model's tokenizer, but should not need to wait for agents."""
    assert text in error_of(capsys, "run", *options)


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_port_that_is_taken(capsys: Capture, nth: int) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port + nth)):
        found = error_of(capsys, "run", "--bind", f"tcp://127.0.0.1:{port}")
    assert found.startswith(f"cannot bind tcp://127.0.0.1:{port + nth}: Address already in use")


# Plans.


def plan_of(demo: ModelDirectory, n_agents: int = 2) -> Plan:
    model_id = ModelId(demo.model_id)
    return random_plan(
        random.Random(3), model_id, demo.geometry, local_names(n_agents), max_stages=1
    )


def changed(plan: Plan, member: int, at: int, **share: Any) -> Plan:
    """Return a plan in which a member holds something else of one layer."""
    stage = plan.stages[0]
    layers = [
        msgspec.structs.replace(old, **share) if old.layer == at else old
        for old in stage.members[member].layers
    ]
    members = list(stage.members)
    members[member] = msgspec.structs.replace(members[member], layers=tuple(layers))
    stage = msgspec.structs.replace(stage, members=tuple(members))
    return msgspec.structs.replace(plan, stages=(stage,))


def bad_plans(demo: ModelDirectory) -> Iterator[tuple[Plan, str]]:
    plan = plan_of(demo)
    groups = [m.layers[3].head_groups for m in plan.members]
    holder = 0 if groups[0] else 1
    first = min(r.first for r in groups[holder])
    missing = tuple(r for r in groups[holder] if r.first != first)
    yield (
        changed(plan, holder, 3, head_groups=missing),
        (f"head group {first} of layer 3 is missing from the plan; hold each exactly once"),
    )
    doubled = (*groups[1 - holder], AtomRange(first, 1))
    yield (
        changed(plan, 1 - holder, 3, head_groups=doubled),
        (f"head group {first} of layer 3 is held 2 times; hold each exactly once"),
    )
    yield (
        changed(plan, 0, 1, columns=(AtomRange(0, 10**9),)),
        ("plan names column atoms 0 to 999999999 of layer 1; the model has column atoms 0 to 15"),
    )
    yield changed(plan, 0, 1, layer=9), "lists layer 9 twice or outside its stage"
    two = msgspec.structs.replace(plan, stages=plan.stages * 2)
    yield two, "more than once"
    yield msgspec.structs.replace(plan, stages=()), "plan has 0 members"
    other = msgspec.structs.replace(plan, model_id=ModelId(32 * "0"))
    yield other, f"plan is for model {32 * '0'}, this one is {demo.model_id}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "case"),
    [
        *(("plan", i) for i in range(7)),
        ("run", 0),
        ("run", 1),
        *(slow("run", i) for i in range(2, 7)),
    ],
)
def test_plans_that_do_not_fit_the_model(
    demo: ModelDirectory, tmp_path: Path, capsys: Capture, verb: str, case: int
) -> None:
    plan, text = list(bad_plans(demo))[case]
    (tmp_path / "plan.json").write_bytes(encode_plan(plan))
    agents = ["--local", "2"] if verb == "run" else ["--agents", "2"]
    assert text in error_of(capsys, verb, *agents, "--plan", tmp_path / "plan.json")


def test_plans_that_name_agents_who_are_not_here(
    demo: ModelDirectory, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "plan.json").write_bytes(encode_plan(plan_of(demo, 3)))
    found = error_of(capsys, "run", "--local", "2", "--plan", tmp_path / "plan.json")
    assert "plan names agent 'local-3', which is not here; here are: local-1, local-2" in found


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model_id": 5}', '{"model_id": "a", "stages": [], "more": 1}']
)
def test_files_that_are_no_plans(tmp_path: Path, capsys: Capture, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    found = error_of(capsys, "run", "--plan", tmp_path / "plan.json")
    assert found.startswith("plan file cannot be read: ")
    assert found.endswith("`headwise plan --json` prints a valid one")


# Models that do not fit.


def missing_bytes(text: str) -> int:
    found = re.search(r"are missing \((\d+) bytes\)", text)
    assert found, text
    return int(found[1])


def test_boards_that_are_too_small_together(tmp_path: Path, capsys: Capture) -> None:
    boards = [
        {"name": "pi-1", "memory": "600K", "bytes_per_s": 1e9},
        {"name": "pi-2", "memory": "1M", "bytes_per_s": 1e9},
        {"name": "pi-3", "memory": 0, "bytes_per_s": 1e9},
    ]
    (tmp_path / "boards.json").write_text(json.dumps(boards))
    found = error_of(capsys, "plan", "--agents", tmp_path / "boards.json")
    assert re.search(r"pi-1 offers 0.6 MiB: room for \d+ head groups, \d+ column atoms", found)
    assert re.search(r"pi-3 offers 0.0 MiB: room for 0 head groups, 0 column atoms", found)
    assert missing_bytes(found) > 1_000_000
    # A little more memory is missing less.
    boards[2]["memory"] = "512K"
    (tmp_path / "boards.json").write_text(json.dumps(boards))
    fewer = error_of(capsys, "plan", "--agents", tmp_path / "boards.json")
    assert 0 < missing_bytes(fewer) < missing_bytes(found)


BOARD = {"name": "a", "memory": "1G", "bytes_per_s": 1e9}


@pytest.mark.parametrize(
    "boards",
    [
        {},
        [],
        [{"name": "a"}],
        [{**BOARD, "cpus": 4}],
        [{**BOARD, "memory": "lots"}],
        [{**BOARD, "memory": -5}],
        [{**BOARD, "bytes_per_s": -1.0}],
        [{**BOARD, "bytes_per_s": 0}],
        [{**BOARD, "threads": 0}],
        [{**BOARD, "name": "../a"}],
        [BOARD, BOARD],
    ],
)
def test_files_that_describe_no_boards(tmp_path: Path, capsys: Capture, boards: Any) -> None:
    (tmp_path / "boards.json").write_text(json.dumps(boards))
    assert "does not fit" not in error_of(capsys, "plan", "--agents", tmp_path / "boards.json")


def test_agents_with_too_little_memory(capsys: Capture) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    join: Words = ["--coordinator", endpoint, "--threads", "1", "--model-dir", demo_path()]
    small, smaller = ["--name", "pi-1", "--memory", "1M"], ["--name", "pi-2", "--memory", "600K"]
    with Command(*join, *small, program=AGENT), Command(*join, *smaller, program=AGENT):
        found = error_of(capsys, "run", "--bind", endpoint, "--min-agents", "2")
    assert "pi-1 offers 1.0 MiB" in found
    assert "pi-2 offers 0.6 MiB" in found
    assert missing_bytes(found) > 1_000_000


def test_a_plan_that_overfills_a_board(
    demo: ModelDirectory, tmp_path: Path, capsys: Capture
) -> None:
    names = [AgentName("pi-1")]
    model_id = ModelId(demo.model_id)
    plan = random_plan(random.Random(1), model_id, demo.geometry, names)
    (tmp_path / "plan.json").write_bytes(encode_plan(plan))
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    join: Words = ["--coordinator", endpoint, "--threads", "1", "--model-dir", demo_path()]
    with Command(*join, "--name", "pi-1", "--memory", "1M", program=AGENT):
        found = error_of(capsys, "run", "--bind", endpoint, "--plan", tmp_path / "plan.json")
    assert re.match(
        r"agent 'pi-1' cannot load its part: the plan asks for \d+ bytes of weights and \d+ of "
        r"KV but this agent offers 1048576 bytes",
        found,
    )

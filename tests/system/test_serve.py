"""A coordinator that stays while clients come and go: the commands as people type them."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.admin_messages import Began, Generate, Piece
from coordinator.admin_path import connect
from coordinator.plan import decode_plan
from kernels.errors import RemoteError
from tests.system.processes import wait_until
from tests.system.site import Site
from tools.cli import main

ENDLESS = ["--prompt-ids", "5,6,7", "-n", "8000"]
FEW = ["--prompt-ids", "5,6,7", "-n", "8"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, endless: Path) -> Iterator[Site]:
    """A coordinator and two agents that share every layer."""
    runtime = tmp_path_factory.mktemp("site")
    site = Site(runtime, endless, "--exact", "-c", "8192", "--place", "spread", "--log-json")
    try:
        site.add("pi-1", "pi-2")
        site.until_ready("pi-1", "pi-2")
        yield site
    finally:
        site.close()


class Shell:
    """Verbs that run in this process and find the site's coordinator."""

    def __init__(self, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
        self.site = site
        self._capsys = capsys
        self.err = ""

    def __call__(self, *words: str | Path, code: int = 0) -> str:
        """Run a verb, whose exit code must be this, and return its stdout."""
        assert main([str(word) for word in words]) == code
        out, self.err = self._capsys.readouterr()
        return out


@pytest.fixture
def shell(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setenv("XDG_RUNTIME_DIR", site.env["XDG_RUNTIME_DIR"])
    return Shell(site, capsys)


def test_run_attaches_and_writes_what_a_cluster_of_its_own_would(shell: Shell) -> None:
    attached = shell("run", *FEW, "--json", "--stats")
    lines = shell.err.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["pi-1", "pi-2"]
    assert re.search(r"8 tokens at [\d.]+ tokens/s", lines[-1])
    alone = shell("run", *FEW, "--json", "--local", "1", "--exact", "-m", shell.site.model)
    found, wanted = json.loads(attached), json.loads(alone)
    assert found.keys() == wanted.keys()
    for key in ("token_ids", "prompt_token_ids", "finish_reason", "text"):
        assert found[key] == wanted[key]
    plan = decode_plan(json.dumps(found["plan"]).encode())
    assert [member.agent for member in plan.members] == ["pi-1", "pi-2"]
    # The plan verb shows the same one.
    assert json.loads(shell("plan", "--attach", "--json")) == found["plan"]
    assert re.search(r"plan epoch \d+, in force\n$", shell("plan", "--attach"))


def test_text_goes_to_stdout_as_it_arrives(site: Site) -> None:
    with site.command("run", *FEW, "--attach", str(site.port)) as command:
        assert command.wait() == 0
        assert re.fullmatch(r"(\d+ ){8}\n", command.stdout)
        assert command.stderr == ""


@pytest.mark.parametrize("option", ["--exact", "--model=x", "--local=2", "--min-agents=2"])
def test_what_a_running_coordinator_cannot_be_told(shell: Shell, option: str) -> None:
    shell("run", *FEW, "--attach", str(shell.site.port), option, code=2)
    name = option.split("=")[0]
    assert shell.err.startswith(f"error: {name} is for a cluster of this command alone")


def test_without_attach_the_remedy_is_local(shell: Shell) -> None:
    shell("run", *FEW, "--exact", code=2)
    assert shell.err.endswith("leave it out, or add --local N\n")


def test_a_wrong_request_fails_alone(shell: Shell) -> None:
    shell("run", "-p", "words", "-n", "1", code=1)
    assert shell.err.startswith("error: this model has no tokenizer; give token ids")
    assert len(shell.site.ids(3)) == 3


def test_one_text_after_the_other_and_a_client_that_leaves(site: Site) -> None:
    wanted = site.ids(8)
    with site.command("run", *ENDLESS) as first:
        first.until("stdout", r"(\d+ ){5}")
        with site.command("run", *FEW) as second:
            second.until("stderr", "requests before this one: 1")
            assert site.status().n_waiting == 1
            assert second.stdout == ""
            first.signal(signal.SIGINT)
            assert first.wait() == 130
            assert second.wait() == 0
            assert [int(word) for word in second.stdout.split()] == wanted


def test_a_client_that_is_killed_ends_its_request(site: Site) -> None:
    with site.command("run", *ENDLESS) as client:
        client.until("stdout", r"(\d+ ){5}")
        assert site.status().state == "writing"
        client.signal(signal.SIGKILL)
        client.wait()
        site.until(lambda status: status.state == "ready")


def test_a_request_in_line_whose_client_leaves_is_forgotten(site: Site) -> None:
    with site.client() as first:
        replies = first.ask(Generate(prompt_ids=[5], max_tokens=8000))
        assert isinstance(next(replies), Began)
        with site.client() as second:
            next(second.ask(Generate(prompt_ids=[5], max_tokens=8000)))
            assert site.status().n_waiting == 1
        site.until(lambda status: status.n_waiting == 0)
        assert isinstance(next(replies), Piece)
    assert len(site.ids(3)) == 3


def test_eight_wait_and_the_ninth_is_told(site: Site) -> None:
    clients = [site.client() for _ in range(10)]
    try:
        lines = [client.ask(Generate(prompt_ids=[5], max_tokens=8000)) for client in clients]
        assert isinstance(next(lines[0]), Began)
        for line in lines[1:9]:
            next(line)
        with pytest.raises(RemoteError, match="8 requests are waiting already; try again later"):
            next(lines[9])
    finally:
        for client in clients:
            client.close()
    site.until(lambda status: (status.state, status.n_waiting) == ("ready", 0))
    assert len(site.ids(3)) == 3


@pytest.mark.parametrize(
    "junk", [b"\n", b"{}\n", b'{"type":"generate","max_tokens":"x"}\n', b"\xff\x00\n", b"[" * 9999]
)
def test_junk_is_answered_and_harms_nobody(site: Site, junk: bytes) -> None:
    with connect(site.path) as client:
        client.sendall(junk + b"\n")
        client.settimeout(10.0)
        answer = json.loads(client.recv(4096))
        assert answer["type"] == "failed"
        assert "cannot be read" in answer["reason"]
    assert site.status().state == "ready"


def test_status_tells_who_holds_what(shell: Shell) -> None:
    site = shell.site
    status = json.loads(shell("status", "--json"))
    assert status["pid"] == site.serve.popen.pid
    assert (status["state"], status["port"], status["epoch"] > 0) == ("ready", site.port, True)
    assert (status["n_keys_refused"], status["n_pulls_refused"]) == (0, 0)
    agents = {agent["name"]: agent for agent in status["agents"]}
    assert [agents[name]["state"] for name in ("pi-1", "pi-2")] == ["ready", "ready"]
    for field, total in (("n_head_groups", 16), ("n_columns", 512), ("n_vocab_rows", 600)):
        assert sum(agent[field] for agent in agents.values()) == total
    assert all(a["weights_bytes"] > 0 and a["kv_bytes"] > 0 for a in agents.values())
    table = shell("status", "--port", str(site.port)).splitlines()
    for name in ("pi-1", "pi-2"):
        assert 0.0 < agents[name]["round_trip_s"] < 1.0
        assert any(re.match(rf"{name} .* \d+\.\d\d ms ", line) for line in table)
    assert any(
        re.match(r"pi-1 +ready +[\d.]+ .iB, [\d.]+ .iB / [\d.]+ .iB", line) for line in table
    )


def test_a_second_coordinator_on_the_port_is_refused(shell: Shell) -> None:
    shell("serve", "--port", str(shell.site.port), "--insecure", code=1)
    pid = shell.site.serve.popen.pid
    assert shell.err.startswith(f"error: a coordinator is already running on this port (pid {pid})")
    assert shell.site.status().state == "ready"


@pytest.mark.parametrize(
    "verb", ["serve", "status", "drain", "undrain", "cordon", "uncordon", "stop"]
)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: headwise {verb}" in capsys.readouterr().out


def test_the_socket_is_for_its_owner_alone(site: Site) -> None:
    assert os.lstat(site.path).st_mode & 0o777 == 0o600
    assert os.lstat(site.path.parent).st_mode & 0o777 == 0o700


def test_drain_frees_an_agent_and_undrain_uses_it_again(shell: Shell) -> None:
    site = shell.site
    assert shell("drain", "pi-2") == "agent 'pi-2' has no work any more\n"
    agents = {str(agent.name): agent for agent in site.status().agents}
    assert (agents["pi-2"].state, agents["pi-2"].n_head_groups) == ("drained", 0)
    site.until_ready("pi-1")
    agents = {str(agent.name): agent for agent in site.status().agents}
    assert agents["pi-2"].state == "drained"
    assert agents["pi-1"].n_head_groups == 16
    assert len(site.ids(3)) == 3
    shell("undrain", "pi-2")
    site.until_ready("pi-1", "pi-2")
    shell("drain", "pi-9", code=1)
    assert shell.err == "error: no agent is named 'pi-9'; known are: pi-1, pi-2\n"


def test_a_cordoned_agent_keeps_its_part_but_gets_none_of_the_next_plan(shell: Shell) -> None:
    site = shell.site
    epoch = site.status().epoch
    before = {str(agent.name): agent.n_head_groups for agent in site.status().agents}
    # On a busy machine one of them may have shown itself so slow that it holds no head.
    n_groups, name = max((before[name], name) for name in ("pi-1", "pi-2"))
    (other,) = {"pi-1", "pi-2"} - {name}
    assert n_groups > 0
    kept = f"agent '{name}' keeps what it has and is given nothing new\n"
    assert shell("cordon", name) == kept
    agents = {str(agent.name): agent for agent in site.status().agents}
    assert (agents[name].state, agents[name].n_head_groups) == ("cordoned", n_groups)
    assert len(site.ids(3)) == 3
    assert site.status().epoch == epoch
    # A plan that somebody else brings about leaves it out; it stays where it is, idle.
    site.add("pi-3")
    site.until_ready(other, "pi-3")
    agents = {str(agent.name): agent for agent in site.status().agents}
    assert (agents[name].state, agents[name].n_head_groups) == ("cordoned", 0)
    assert shell("uncordon", name) == f"agent '{name}' may be used\n"
    site.until_ready("pi-1", "pi-2", "pi-3")
    site.agents.pop("pi-3").close()
    site.until_ready("pi-1", "pi-2")
    shell("cordon", "pi-9", code=1)
    assert shell.err == "error: no agent is named 'pi-9'; known are: pi-1, pi-2, pi-3\n"


def test_a_text_moves_off_a_drained_agent_and_back(shell: Shell) -> None:
    site = shell.site
    wanted = site.ids(400)
    with site.command("run", *ENDLESS) as client:
        client.until("stdout", r"(\d+ ){5}")
        assert shell("drain", "pi-2") == "agent 'pi-2' has no work any more\n"
        site.until_ready("pi-1")
        assert site.status().state == "writing"
        shell("undrain", "pi-2")
        site.until_ready("pi-1", "pi-2")
        assert site.status().state == "writing"
        client.until("stdout", r"(\d+ ){400}")
        assert [int(word) for word in client.stdout.split()[:400]] == wanted
        client.signal(signal.SIGINT)
        assert client.wait() == 130


def test_a_text_goes_on_without_a_killed_agent_and_fails_without_all(site: Site) -> None:
    wanted = site.ids(60)
    with site.command("run", *ENDLESS) as client:
        client.until("stdout", r"(\d+ ){5}")
        site.agents["pi-2"].signal(signal.SIGKILL)
        client.until("stdout", r"(\d+ ){60}")
        assert [int(word) for word in client.stdout.split()[:60]] == wanted
        site.agents["pi-1"].signal(signal.SIGKILL)
        assert client.wait() == 1
        last = client.stderr.splitlines()[-1]
        assert re.match(r"error: agent 'pi-1' was lost: .*; without it: waiting for 1 ", last)
    site.add("pi-1")
    site.until_ready("pi-1")
    assert site.ids(60) == wanted
    site.add("pi-2")
    site.until_ready("pi-1", "pi-2")
    assert site.ids(60) == wanted


def test_a_text_outlives_a_moment_in_which_no_agent_is_heard(site: Site) -> None:
    wanted = site.ids(60)

    def n_losses(name: str) -> int:
        return site.serve.stderr.count(f"agent={name} lost ")

    before = {name: n_losses(name) for name in site.agents}
    with site.command("run", *ENDLESS) as client:
        client.until("stdout", r"(\d+ ){5}")
        for agent in site.agents.values():
            agent.signal(signal.SIGSTOP)
        assert wait_until(lambda: all(n_losses(name) > n for name, n in before.items()))
        for agent in site.agents.values():
            agent.signal(signal.SIGCONT)
        client.until("stdout", r"(\d+ ){60}")
        assert [int(word) for word in client.stdout.split()[:60]] == wanted


def test_logs_are_one_object_a_line_with_request_and_epoch(site: Site) -> None:
    site.ids(11)
    site.serve.until("stderr", r'"event": "request ended epoch=\d+ n_tokens=11 [^\n]*\n')
    # The last line may be on its way still.
    whole, _, _ = site.serve.stderr.rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines()]
    assert all({"time", "level", "event"} <= line.keys() for line in lines)
    about = [line for line in lines if line["event"].startswith("request ended")]
    assert about
    assert all(line["request"] > 0 and line["epoch"] > 0 for line in about)
    assert about[-1]["n_tokens"] == 11
    loaded = [line for line in lines if line["event"].startswith("plan in force")]
    assert [line["epoch"] for line in loaded] == sorted({line["epoch"] for line in loaded})

"""`run --attach`: the coordinator of this machine, one that is just starting too, or an error."""

import json
import re
import time
from pathlib import Path

import pytest

from tests.system.processes import ROOT, Command, free_port
from tests.system.site import Site
from tools.cli import main

FEW = ["--prompt-ids", "5,6,7", "-n", "8"]


def test_attach_waits_for_a_coordinator_that_is_starting(tmp_path: Path, endless: Path) -> None:
    port = free_port()
    with Command(
        "run", *FEW, "--attach", str(port), "--json", env={"XDG_RUNTIME_DIR": str(tmp_path)}
    ) as run:
        run.until("stderr", "waiting for the coordinator to start\n")
        site = Site(tmp_path, endless, port=port)
        try:
            site.add("pi-1")
            assert run.wait() == 0, run.stderr
            result = json.loads(run.stdout)
            assert len(result["token_ids"]) == 8
            members = [m["agent"] for stage in result["plan"]["stages"] for m in stage["members"]]
            assert members == ["pi-1"]
        finally:
            site.close()


def test_attach_without_a_coordinator_ends_in_time(tmp_path: Path) -> None:
    for words in (["--attach"], ["--attach", "7070"]):
        where = " on port 7070" if words[1:] else ""
        began_s = time.monotonic()
        env = {"XDG_RUNTIME_DIR": str(tmp_path)}
        with Command("run", *FEW, *words, "--wait-s", "0.5", env=env) as run:
            assert run.wait() == 1
            assert run.stdout == ""
            assert run.stderr == (
                "waiting for the coordinator to start\nerror: after 0.5 s of waiting no "
                f"coordinator of yours runs on this machine{where}; start one with "
                "`headwise serve`\n"
            )
        assert 0.5 < time.monotonic() - began_s < 10.0


def test_no_wait_means_none(capsys: pytest.CaptureFixture[str]) -> None:
    for wait in ("0", "nan"):
        assert main(["run", *FEW, "--attach", "--wait-s", wait]) == 1
        assert capsys.readouterr().err.startswith("error: no coordinator of yours runs")


def test_the_readmes_cluster_is_what_writes() -> None:
    readme = (ROOT / "README.md").read_text()
    (step,) = re.findall(r"^5\. .*?```sh\n(.*?)```", readme, re.DOTALL | re.MULTILINE)
    serve, run, _ = step.strip().splitlines()
    # The shell goes on before the coordinator listens: a plain `run` would not find it.
    assert serve.strip().endswith("&")
    assert run.split()[:3] == ["headwise", "run", "--attach"]

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from agent.shell import parse_size_bytes, run_verb
from coordinator.cluster_options import endpoints
from coordinator.report import format_bytes, format_table
from kernels.errors import InputError, ModelError
from tools import cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("4096", 4096), ("512M", 512 << 20), ("1.5GiB", 3 << 29), ("2k", 2048), ("1tb", 1 << 40)],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_size_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "M", "12Q", "-5M", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size; write for example 512M"):
        parse_size_bytes(text)


def test_an_error_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: argparse.Namespace) -> int:
        raise ModelError("weights are gone; bring them back")

    assert run_verb("x", "X.", (lambda parser: None, run), []) == 1
    assert capsys.readouterr().err == "error: weights are gone; bring them back\n"


def test_ctrl_c_is_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    assert run_verb("x", "X.", (lambda parser: None, run), []) == 130


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["juggle"]) == 2
    assert "error: 'juggle' is no verb" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "--no-such-option"])
    assert stopped.value.code == 2


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in cli.VERBS)


def test_a_missing_extra_names_the_pip_command() -> None:
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from tools.cli import main; sys.exit(main(['run', '-n', '1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert "pip install 'headwise[run]'" in done.stderr


@pytest.mark.parametrize("bind", ["7070", "tcp://127.0.0.1", "tcp://:70", "udp://127.0.0.1:7070"])
def test_an_endpoint_that_cannot_be_bound(bind: str) -> None:
    with pytest.raises(InputError, match="write it like"):
        endpoints(bind, has_keys=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.10", "[::]", "[fe80::1%eth0]", "pi.lan"])
def test_beyond_loopback_needs_keys(host: str) -> None:
    with pytest.raises(InputError, match="headwise keys init"):
        endpoints(f"tcp://{host}:7070", has_keys=False)
    assert endpoints(f"tcp://{host}:7070", has_keys=True) == (
        f"tcp://{host}:7070", f"tcp://{host}:7071", f"tcp://{host}:7072",
    )  # fmt: skip


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "[::1]"])
def test_loopback_does_without_keys(host: str) -> None:
    assert endpoints(f"tcp://{host}:70", has_keys=False)[2] == f"tcp://{host}:72"


def test_tables_and_sizes_for_people() -> None:
    assert [format_bytes(n) for n in (5, 2048, 83 << 20, 1 << 31)] == [
        "5 B", "2.0 KiB", "83.0 MiB", "2.0 GiB",
    ]  # fmt: skip
    assert format_table([["a", "bb"], ["ccc", "d"]]) == "a    bb\n---  --\nccc  d"
